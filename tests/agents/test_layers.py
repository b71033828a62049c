import pytest
from torch import nn
from torch.nn.utils import prune

from ssm_metarl_gym.agents.layers import layers_in_sequence


def test_nested_sequences_are_one():
    first, last = nn.Linear(2, 3), nn.Linear(3, 1)
    network = nn.Sequential(nn.Sequential(first, nn.Tanh()), nn.ReLU(), last)
    layers = layers_in_sequence(network)
    assert [prefix for prefix, _ in layers] == ["0.0.", "0.1.", "1.", "2."]
    assert [layer for _, layer in layers] == [first, network[0][1], network[1], last]
    assert layers_in_sequence(last, "head.") == [("head.", last)]


class Twice(nn.Linear):
    """Computes something else."""

    def forward(self, x):
        return 2.0 * super().forward(x)


def hooked():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


def replaced():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x
    return layer


def shared():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        replaced,
        shared,
        lambda: Twice(2, 2),
        lambda: nn.ReLU(inplace=True),
        lambda: nn.Sequential(layer := nn.Linear(2, 2), layer),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_what_may_compute_anything_is_no_plain_network(make):
    assert layers_in_sequence(make()) is None


def test_a_layer_that_names_its_bias_first_is_none_of_them():
    layer = nn.Linear(2, 3)
    prune.identity(layer, "weight")
    prune.remove(layer, "weight")
    assert layers_in_sequence(layer) is None
    assert layers_in_sequence(nn.Linear(2, 3, bias=False)) is not None
    del layer.weight, layer.bias
    assert layers_in_sequence(layer) is None
