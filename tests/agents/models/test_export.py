import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel, MetaPolicy

OBSERVATIONS = spaces.Box(-5.0, 5.0, (3,))
N = 5


def run(path, **inputs):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("actions", "adapts", "core"),
    [
        (spaces.Discrete(3, start=1), "last_layer", None),
        (spaces.Box(-2.0, 2.0, (2,)), "all", nn.Sequential(nn.Linear(5, 8), nn.Tanh())),
        (spaces.Box(np.float32([0.0, -1.0]), np.float32([9.0, 5.0])), "action_map", None),
    ],
    ids=["state-space model", "network", "action map"],
)
def test_a_model_of_the_dynamics_gives_the_next_observations(actions, adapts, core, tmp_path):
    rng, model = np.random.default_rng(0), DynamicsModel(OBSERVATIONS, actions, core, adapts=adapts)
    observations, next_observations = rng.normal(size=(2, N, 3)).astype(np.float32)
    taken = rng.integers(1, 4, N) if adapts == "last_layer" else rng.normal(size=(N, 2)).astype(np.float32)
    model.set_normalisation(observations, taken, next_observations)
    if adapts == "action_map":
        model.action_map.data.normal_()
        model.action_offset.data.normal_()
    model.export_onnx(tmp_path / "model.onnx")
    (predicted,) = run(tmp_path / "model.onnx", observation=observations, action=taken)
    with torch.no_grad():
        change = model(model.encode(observations, taken)) * model.target_scale
    np.testing.assert_allclose(predicted, observations + change.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "ssm"])
def test_a_meta_learned_policy_gives_its_most_probable_actions(network, tmp_path):
    rng, policy = np.random.default_rng(0), MetaPolicy(OBSERVATIONS, spaces.Discrete(4), network=network, width=8)
    policy.head.weight.data.normal_()
    policy.set_normalisation(torch.as_tensor(rng.normal(2.0, 3.0, (20, 3)), dtype=torch.float32))
    observations = rng.normal(size=(N, 3)).astype(np.float32)
    policy.export_onnx(tmp_path / "policy.onnx")
    memory = {"state": np.zeros((N, 2, 2, 4), np.float32), "start": np.ones(N, bool)} if network == "ssm" else {}
    actions, *_ = run(tmp_path / "policy.onnx", observation=observations, **memory)
    parameters, _ = policy(torch.as_tensor(observations)[:, None])
    assert actions.tolist() == parameters[:, 0].argmax(-1).tolist()
