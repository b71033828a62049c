import copy
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn.utils import prune

from ssm_metarl_gym.agents import SSM, DynamicsModel, RecursiveLeastSquares

MSE = nn.MSELoss()


def stream(num_rows, num_features=4, num_targets=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_rows, num_features, generator=generator, dtype=torch.float64),
        torch.randn(num_rows, num_targets, generator=generator, dtype=torch.float64),
    )


def solution(model):
    weights = model.weight.detach().T.clone()
    return weights if model.bias is None else torch.cat([weights, model.bias.detach()[None]])


def ridge_regression(source, states, targets, *, forgetting, ridge, has_bias=True):
    """The minimum directly: the rows of the data, weighted, over those of the ridge."""
    x = torch.cat([states, torch.ones(len(states), int(has_bias), dtype=states.dtype)], dim=1)
    root = forgetting ** (0.5 * torch.arange(len(x) - 1, -1, -1, dtype=x.dtype))[:, None]
    rows = torch.cat([root * x, math.sqrt(ridge) * torch.eye(x.shape[1], dtype=x.dtype)])
    return torch.linalg.lstsq(rows, torch.cat([root * targets, math.sqrt(ridge) * source])).solution


def test_a_layer_that_names_its_bias_first_is_fitted_alike():
    states, targets = stream(20)
    plain = nn.Linear(4, 2).double()
    renamed = copy.deepcopy(plain)
    prune.identity(renamed, "weight")
    prune.remove(renamed, "weight")
    assert [name for name, _ in renamed.named_parameters()] == ["bias", "weight"]
    losses = [
        RecursiveLeastSquares(model).adapt(MSE, {"states": states, "targets": targets}) for model in (plain, renamed)
    ]
    assert losses[0] == losses[1]
    torch.testing.assert_close(solution(renamed), solution(plain), rtol=0.0, atol=0.0)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)


def test_a_layer_that_computes_something_else_is_refused_and_one_that_is_watched_is_not():
    states, targets = (each.float() for each in stream(20))
    batch = {"states": states, "targets": targets}
    watched, hooked = nn.Linear(4, 2), nn.Linear(4, 2)
    watched.register_forward_hook(lambda module, inputs, output: None)
    hooked.register_forward_hook(lambda module, inputs, output: 3.0 * output)
    assert math.isfinite(RecursiveLeastSquares(watched).adapt(MSE, batch))
    for model in (hooked, Doubled(4, 2)):
        with pytest.raises(ValueError, match=r"must give W x \+ b for least squares; what .* gives is something else"):
            RecursiveLeastSquares(model).adapt(MSE, batch)
    with pytest.raises(ValueError, match="just the parameters of one"):
        RecursiveLeastSquares(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))


@pytest.mark.each_value
@pytest.mark.parametrize("forgetting", [1.0, 0.98, 0.5])
@pytest.mark.parametrize("ridge", [1e-6, 0.1, 100.0])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_weighted_ridge_regression(forgetting, ridge, has_bias):
    model = nn.Linear(4, 2, bias=has_bias).double()
    source, (states, targets) = solution(model), stream(30)
    adapter = RecursiveLeastSquares(model, forgetting=forgetting, ridge=ridge)
    for t in range(30):
        adapter.adapt(MSE, {"states": states[t : t + 1], "targets": targets[t : t + 1]})
        if t in (0, 2, 29):  # fewer rows than features, too
            expected = ridge_regression(
                source, states[: t + 1], targets[: t + 1], forgetting=forgetting, ridge=ridge, has_bias=has_bias
            )
            torch.testing.assert_close(solution(model), expected, rtol=1e-6, atol=1e-9)


def test_without_forgetting_it_is_the_recursion_of_the_covariance():
    model = nn.Linear(3, 2, bias=False).double()
    weights, covariance = solution(model), torch.eye(3, dtype=torch.float64) / 0.5
    states, targets = stream(20, 3)
    RecursiveLeastSquares(model, forgetting=1.0, ridge=0.5).adapt(MSE, {"states": states, "targets": targets})
    for x, y in zip(states, targets, strict=True):  # Plackett 1950
        gain = covariance @ x / (1.0 + x @ covariance @ x)
        weights = weights + torch.outer(gain, y - x @ weights)
        covariance = covariance - torch.outer(gain, x @ covariance)
    torch.testing.assert_close(solution(model), weights)


def test_hand_computed():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    adapter = RecursiveLeastSquares(model, forgetting=0.5, ridge=1.0)
    # x = 1, y = 0: (1 * 0 + 1 * 2) / (1 + 1). Then x = 2, y = 5: (.5 * 0 + 2 * 5 + 2) / (.5 + 4 + 1).
    for x, y, weight in ((1.0, 0.0, 1.0), (2.0, 5.0, 12.0 / 5.5)):
        adapter.adapt(MSE, {"states": torch.tensor([[x]]), "targets": torch.tensor([[y]])})
        assert model.weight.item() == pytest.approx(weight)


class TestForgetting:
    def test_after_a_change_the_old_is_forgotten(self):
        states, _ = stream(120, num_targets=1)
        errors = {}
        for forgetting in (0.9, 1.0):
            model = nn.Linear(4, 1).double()
            adapter = RecursiveLeastSquares(model, forgetting=forgetting)
            for sign, part in ((1.0, slice(0, 60)), (-1.0, slice(60, 120))):
                adapter.adapt(MSE, {"states": states[part], "targets": sign * states[part].sum(1, keepdim=True)})
            errors[forgetting] = MSE(model(states), -states.sum(1, keepdim=True)).item()
        assert errors[0.9] < 0.05 < 1.0 < errors[1.0]

    def test_where_features_stay_the_same_for_long_nothing_winds_up(self):
        """The covariance of the textbook's recursion would be .9 ** -400 by then, 2e18."""
        model = nn.Linear(4, 1).double()
        source = solution(model)
        adapter = RecursiveLeastSquares(model, forgetting=0.9)
        state = adapter.initial_state()
        x, y = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double(), torch.tensor([[3.0]]).double()
        for _ in range(400):
            state = adapter.update(state, x, y)
        # Along x, with the bias: the fixed point of the sums, 1 / (1 - .9) rows.
        expected = ridge_regression(source, x.expand(500, -1), y.expand(500, -1), forgetting=0.9, ridge=0.1)
        torch.testing.assert_close(state.weights[0], expected)
        assert torch.equal(state.weights[0, 1:4], source[1:4])
        # And one more transition of another kind moves the weights no more than it would have at first.
        other = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).double()
        step = adapter.update(state, other, 10.0 + other @ state.weights[0, :4]).weights - state.weights
        assert step.abs().max() < 10.0


def test_a_covariance_reset_keeps_the_weights_and_forgets_the_evidence():
    model = nn.Linear(4, 2).double()
    adapter = RecursiveLeastSquares(model, forgetting=0.95, ridge=0.3)
    first, second = stream(20), stream(10, seed=1)
    adapter.adapt(MSE, dict(zip(("states", "targets"), first, strict=True)))
    weights = solution(model)
    adapter.reset_covariance()
    assert torch.equal(solution(model), weights)
    assert adapter.stats.covariance_resets == 1
    adapter.adapt(MSE, dict(zip(("states", "targets"), second, strict=True)))
    expected = ridge_regression(weights, *second, forgetting=0.95, ridge=0.3)
    torch.testing.assert_close(solution(model), expected)


def test_features_that_are_all_the_same_or_of_any_size_are_no_trouble():
    for scale in (0.0, 1e-12, 1.0, 1e5):
        model = nn.Linear(4, 2)
        states = torch.full((50, 4), scale)
        RecursiveLeastSquares(model).adapt(MSE, {"states": states, "targets": torch.ones(50, 2)})
        prediction = model(states)
        assert prediction.isfinite().all()
        torch.testing.assert_close(prediction, torch.ones(50, 2), atol=0.05, rtol=0.0)


class TestWhatAdapts:
    def test_the_head_of_a_model_of_the_dynamics(self):
        model = DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2), SSM(5, 8, 6))
        rng = np.random.default_rng(0)
        encoded = model.encode(rng.normal(size=(40, 3)), rng.integers(2, size=40))
        targets = encoded[:, :3] - encoded[:, 3:] + 1.0
        before = copy.deepcopy(model.core.state_dict())
        loss = RecursiveLeastSquares(model, forgetting=1.0, ridge=1e-6).adapt(
            MSE, {"states": encoded, "targets": targets}
        )
        assert loss < 1e-6
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.core.state_dict().items())

    @pytest.mark.parametrize(
        "model",
        [
            nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
            nn.Bilinear(2, 2, 1),
            DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2), adapts="all"),
            DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), adapts="action_map"),
        ],
        ids=["two layers", "another layer", "all", "action map"],
    )
    def test_other_parameters_are_refused(self, model):
        with pytest.raises(ValueError, match=r"just the parameters of one nn\.Linear.* must require a gradient.*; got"):
            RecursiveLeastSquares(model)

    def test_a_layer_of_which_a_part_is_frozen(self):
        model = nn.Linear(4, 2)
        model.bias.requires_grad_(False)
        with pytest.raises(ValueError, match=r"just the parameters of one nn\.Linear.*; got \['weight'\]"):
            RecursiveLeastSquares(model)

    @pytest.mark.parametrize(
        "forward",
        [
            lambda head, states: head(states).tanh(),
            lambda head, states: head(head(states)),
            lambda head, states: states,
        ],
        ids=["not last", "twice", "not at all"],
    )
    def test_a_layer_that_is_not_applied_last_is_refused_in_the_first_call(self, look, forward):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(2, 2)

            def forward(self, states):
                return forward(self.head, states)

        model = Model()
        adapter, before = RecursiveLeastSquares(model), look(model)
        with pytest.raises(ValueError, match="the model must return what the layer that adapts gives"):
            adapter.adapt(MSE, {"states": torch.ones(3, 2), "targets": torch.ones(3, 2)})
        assert look(model) == before

    def test_nothing_to_adapt(self):
        with pytest.raises(ValueError, match=r"just the parameters of one nn\.Linear"):
            RecursiveLeastSquares(nn.Linear(2, 1).requires_grad_(False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forgetting": 0.0}, r"forgetting must be a number in \(0, 1\] .*; got 0\.0"),
        ({"forgetting": 1.1}, "forgetting must be"),
        ({"ridge": 0.0}, r"ridge must be a finite number > 0; got 0\.0"),
        ({"ridge": math.nan, "forgetting": -1}, "forgetting must be .* ridge must be"),
    ],
)
def test_options_outside_their_range(options, message):
    with pytest.raises(ValueError, match=message):
        RecursiveLeastSquares(nn.Linear(2, 1), **options)
