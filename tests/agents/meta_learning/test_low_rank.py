import pytest
import torch
from torch import nn
from torch.func import functional_call

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop
from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork, find_layers


def make_model():
    return nn.Sequential(
        nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 4, bias=False)), nn.ReLU(), nn.Linear(4, 1)
    )


def names(model, **options):
    layers = find_layers(InnerLoop(model, 0.1, **options))
    return None if layers is None else [name for name, _ in layers]


class Subclass(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


class TestFindLayers:
    def test_in_sequence(self):
        assert names(make_model()) == ["0.", "1.0.", "1.1.", "2.", "3."]
        assert names(nn.Linear(2, 1)) == [""]

    def test_one_activation_in_two_places(self):
        activation = nn.Tanh()
        model = nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 3), activation, nn.Linear(3, 1))
        assert names(model) == ["0.", "1.", "2.", "3.", "4."]

    @pytest.mark.parametrize(
        "part",
        [
            Subclass(3, 3),
            nn.LayerNorm(3),
            nn.Dropout(),
            nn.ReLU(inplace=True),
            nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
            nn.ModuleList([nn.Linear(3, 3)]),
        ],
        ids=lambda part: type(part).__name__,
    )
    def test_other_modules_are_refused(self, part):
        assert names(nn.Sequential(nn.Linear(2, 3), part, nn.Linear(3, 1))) is None

    @pytest.mark.parametrize(
        "register",
        ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
    )
    @pytest.mark.parametrize("where", ["", "0", "1", "1.0"])
    def test_hooks_are_refused(self, where, register):
        model = make_model()
        getattr(model.get_submodule(where), register)(lambda *_: None)
        assert names(model) is None

    def test_a_replaced_method_is_refused(self):
        model = make_model()
        model[0].forward = lambda x: x
        assert names(model) is None

    def test_a_layer_in_two_places_is_refused(self):
        layer = nn.Linear(2, 2)
        assert names(nn.Sequential(layer, nn.Tanh(), layer)) is None

    def test_shared_weights_are_refused(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        model[2].weight = model[0].weight
        assert names(model) is None

    @pytest.mark.parametrize(
        "options",
        [{"learned_rates": "tensor"}, {"grad_clip_norm": 1.0}, {"adapts": lambda name: "bias" in name}],
        ids=["learned rates", "clipping", "biases alone"],
    )
    def test_other_steps_are_refused(self, options):
        assert names(make_model(), **options) is None

    def test_weights_may_adapt_without_biases(self):
        assert names(make_model(), adapts=lambda name: "weight" in name) is not None


def losses_of(y):
    """Of the outputs ``Float[K N ... 1]`` of K tasks."""
    return y.sin().flatten(1).square().sum(dim=1)


@pytest.mark.each_value
@pytest.mark.parametrize("adapts", [None, lambda name: "weight" in name, lambda name: name.startswith("3.")])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("rest", [(), (2, 3)])
def test_it_is_the_network_with_weights_written_out(rest, first_order, adapts):
    model, x = make_model().double(), torch.randn(2, 4, 5, *rest, 2, dtype=torch.float64)  # K N ... in
    model[1][1].requires_grad_(False)
    inner = InnerLoop(model, 0.1, first_order=first_order, adapts=adapts)
    network = LowRankNetwork(find_layers(inner), inner)
    for _ in range(2):
        network.step(x[0], losses_of)
    outputs = network(x[1])
    expected = []
    for task in range(4):
        weights = inner.weights()
        for _ in range(2):
            weights = inner.step(lambda w, t=task: losses_of(functional_call(model, w, (x[0, t],))[None])[0], weights)
        expected.append(functional_call(model, weights, (x[1, task],)))
    torch.testing.assert_close(outputs, torch.stack(expected))
    slopes = [
        torch.autograd.grad(losses_of(y).sum(), inner.weights().values()) for y in (outputs, torch.stack(expected))
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


def test_without_a_graph():
    inner = InnerLoop(make_model(), 0.1).detached()
    network, x = LowRankNetwork(find_layers(inner), inner), torch.randn(3, 5, 2)
    with torch.no_grad():
        before = network(x)
        network.step(x, losses_of)
        after = network(x)
    assert not after.requires_grad
    assert (losses_of(after) < losses_of(before)).all()


def test_it_pays_where_the_rows_are_few():
    layers = find_layers(InnerLoop(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), 0.1))
    assert LowRankNetwork.pays(layers, 16)
    assert not LowRankNetwork.pays(layers, 1000)
