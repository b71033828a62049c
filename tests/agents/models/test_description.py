import gymnasium as gym
import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import SSM, DynamicsModel
from ssm_metarl_gym.agents.models.description import describe_model, rebuild_model

ENV = gym.make("CartPole-v1")
SPACES = ENV.observation_space, ENV.action_space


@pytest.mark.parametrize(
    "core",
    [
        None,
        SSM(6, 8, 4, num_layers=1),
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).half(),
    ],
)
def test_a_model_comes_back_bit_for_bit_and_nothing_random_moves(core):
    model = DynamicsModel(*SPACES, core, adapts="all")
    stream = torch.get_rng_state()
    again = rebuild_model(describe_model(model), *SPACES)
    assert torch.equal(torch.get_rng_state(), stream)
    weights, own = model.state_dict(), again.state_dict()
    assert weights.keys() == own.keys()
    assert all(own[name].dtype == weights[name].dtype and torch.equal(own[name], weights[name]) for name in weights)
    assert not again.training


def used_twice():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked(core):
    (core[0] if isinstance(core, nn.Sequential) else core).register_forward_hook(
        lambda module, args, output: 2 * output
    )
    return core


@pytest.mark.parametrize(
    "core",
    [
        used_twice(),
        hooked(SSM(6, 8, 4)),
        hooked(nn.Sequential(nn.Linear(6, 5))),
        nn.Sequential(nn.Linear(6, 5), nn.Dropout()),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
    ],
)
def test_a_core_that_is_not_described_must_be_given(core):
    model = DynamicsModel(*SPACES, core)
    described = describe_model(model)
    with pytest.raises(ValueError, match=r"core must be given .* got None"):
        rebuild_model(described, *SPACES)
    assert torch.equal(rebuild_model(described, *SPACES, core).head.weight, model.head.weight)
