import gymnasium as gym
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

from ssm_metarl_gym.agents import DynamicsModel
from ssm_metarl_gym.bundle import load_bundle
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation


@pytest.fixture(scope="session")
def plain():
    """A function that makes a small core."""

    def make(input_dim):
        return nn.Sequential(nn.Linear(input_dim, 16), nn.Tanh(), nn.Linear(16, 8, bias=False), nn.SiLU())

    return make


@pytest.fixture(scope="session")
def fitted(plain):
    """A function that gives a model which has learned a little of the nominal physics."""
    models = {}

    def make(env_id, adapts="last_layer", make_core=plain):
        key = env_id, adapts, make_core
        if key not in models:
            env = gym.make(env_id, task={})
            torch.manual_seed(0)
            core = make_core(DynamicsModel.input_dim(env.observation_space, env.action_space))
            model = DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)
            models[key] = model.fit(env, num_transitions=500, num_updates=150, learning_rate=1e-2)
        return models[key]

    return make


@pytest.fixture
def make_both(fitted, plain, tmp_path):
    """A function that makes a corrected environment, a policy of random weights, and the bundle of both."""

    def make(
        env_id, make_adapter, adapts="last_layer", *, make_core=plain, online=None, correction=None, policy=None, **env
    ):
        model = fitted(env_id, adapts, make_core)
        adapted = OnlineAdaptation(gym.make(env_id, **env), make_adapter(model), **online or {})
        corrected = ActionCorrection(adapted, model, **correction or {})
        if policy is None:
            policy = PPO("MlpPolicy", corrected, seed=0, device="cpu")
            policy.policy.action_net.weight.data.mul_(100.0)  # so that it asks for more than next to nothing
        path = tmp_path / "robot.safetensors"
        corrected.save_bundle(path, policy)
        return corrected, policy, load_bundle(path)

    return make
