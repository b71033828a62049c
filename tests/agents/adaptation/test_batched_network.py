import copy

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ssm_metarl_gym.agents import DynamicsModel
from ssm_metarl_gym.agents.adaptation.batched_network import find_network
from ssm_metarl_gym.agents.adaptation.row_layout import RowLayout
from ssm_metarl_gym.agents.losses import MaskedLoss

N, K = 3, 5


def plain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))


def partly_frozen():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4), nn.Tanh())
    network.append(nn.Linear(4, 2))
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    network[4].requires_grad_(False)
    network[6].bias.requires_grad_(False)
    return network


def make_case(model):
    """Weights of rows near those of the model, by name and as vectors, and data."""
    named = {
        name: p.detach() + 0.1 * torch.randn(N, *p.shape) for name, p in model.named_parameters() if p.requires_grad
    }
    return named, torch.randn(N, K, 3), torch.randn(N, K, 2)


def layout_of(model):
    """How the network takes weights of rows."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kernels = {id(kernel) for kernel in find_network(model).kernels}
    return RowLayout(own, {name for name, p in own.items() if id(p) in kernels})


def weights_of(model, named):
    return layout_of(model).weights(torch.cat([part.flatten(1) for part in named.values()], dim=1))


@pytest.mark.parametrize("make", [plain, partly_frozen, lambda: nn.Linear(3, 2)])
def test_losses_and_gradients_are_those_of_each_row_s_own_network(make):
    torch.manual_seed(0)
    model = make()
    network = find_network(model)
    named, states, targets = make_case(model)
    weights = weights_of(model, named)
    mask = torch.rand(N, K) < 0.7
    mask[:, 0] = True
    assert network.knows_gradient(F.huber_loss)
    predictions = network(weights, states)
    for twin in (network, copy.deepcopy(network)):
        losses, gradients = twin.losses(MaskedLoss(F.huber_loss, targets, mask), states, weights, with_gradient=True)
        for i in range(N):
            own = {name: part[i].clone().requires_grad_() for name, part in named.items()}
            expected = functional_call(model, own, (states[i],))
            torch.testing.assert_close(predictions[i], expected.detach())
            loss = F.huber_loss(expected[mask[i]], targets[i][mask[i]])
            slopes = torch.autograd.grad(loss, list(own.values()))
            torch.testing.assert_close(losses[i], loss.detach())
            for slope, gradient in zip(slopes, layout_of(model).named(gradients[i]).values(), strict=True):
                torch.testing.assert_close(gradient, slope)


def test_other_elementwise_layers_have_outputs_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    network = find_network(model)
    named, states, _ = make_case(model)
    assert not network.knows_gradient(F.mse_loss)
    own = {name: part[1] for name, part in named.items()}
    predictions = network(weights_of(model, named), states)
    torch.testing.assert_close(predictions[1], functional_call(model, own, (states[1],)).detach())


class First(nn.Module):
    """A core that is no plain network."""

    def forward(self, x):
        return x[:, :2] * x[:, 2:]


@pytest.mark.parametrize(
    ("adapts", "core", "known"),
    [
        ("last_layer", First(), True),
        ("all", nn.Linear(4, 4), True),
        ("all", First(), False),
        ("action_map", nn.Linear(4, 4), False),
    ],
)
def test_what_adapts_of_a_model_of_the_dynamics(adapts, core, known):
    env = gym.make("Pendulum-v1")
    model = DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)
    network = find_network(model)
    assert (network is not None) == known
    if known:
        encoded = model.encode(env.observation_space.sample()[None], env.action_space.sample()[None])
        named = {name: p.detach()[None] for name, p in model.named_parameters() if p.requires_grad}
        predictions = network(weights_of(model, named), encoded[None])
        torch.testing.assert_close(predictions[0], model(encoded).detach())


def test_weights_beside_the_network_are_no_plain_network():
    model = First()
    model.adapted_network = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.ones(2))
    assert find_network(model) is None


class Shifted(DynamicsModel):
    def forward(self, encoded):
        return super().forward(encoded) + 10.0


@pytest.mark.parametrize("adapts", ["last_layer", "all"])
def test_a_model_that_computes_something_else_is_no_plain_network(adapts):
    env = gym.make("CartPole-v1")
    spaces = env.observation_space, env.action_space
    core = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    assert find_network(DynamicsModel(*spaces, core, adapts=adapts)) is not None
    assert find_network(Shifted(*spaces, core, adapts=adapts)) is None
    hooked = DynamicsModel(*spaces, core, adapts=adapts)
    hooked.register_forward_hook(lambda module, args, output: 2.0 * output)
    assert find_network(hooked) is None
