import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import SSM, MetaMAML

MSE = nn.MSELoss()


def tanh_mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def tiny_ssm():
    return SSM(2, 4, 1, num_layers=1)


def normalised_mlp():
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 1))


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Branching(nn.Sequential):
    """Its control flow depends on data, which ``vmap`` refuses."""

    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, x):
        return super().forward(x) if x.sum() < math.inf else x


def make_tasks(num_tasks=3, num_rows=5, time=(), dtype=torch.float32):
    """Tasks for a model from two numbers to one."""
    return [tuple(torch.randn(num_rows, *time, width, dtype=dtype) for width in (2, 1, 2, 1)) for _ in range(num_tasks)]


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def meta_gradient(model, tasks, **options):
    """The gradient that ``meta_update`` descends: by how much plain gradient descent of rate 1 changes the weights."""
    model = copy.deepcopy(model)
    maml = MetaMAML(model, 0.3, 1.0, inner_steps=2, **options)
    maml.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = flat(model.parameters())
    maml.meta_update(tasks, MSE)
    return before - flat(model.parameters())


class TestAdapt:
    def test_hand_computed_steps(self):
        # Loss ((w - 1)^2 + (2w - 1)^2) / 2 with the slope 5w - 3: 2 -> 2 - 0.1 * 7 -> 1.3 - 0.1 * 3.5.
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]])
        maml = MetaMAML(model, inner_lr=0.1, outer_lr=1.0)
        for num_steps, expected in ((0, 2.0), (1, 1.3), (2, 0.95)):
            assert maml.adapt(x, y, MSE, num_steps).weight.item() == pytest.approx(expected)

    @pytest.mark.parametrize("make_model", [tanh_mlp, tiny_ssm])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_steps_are_gradient_descent(self, make_model, first_order):
        model = make_model()
        x, y, *_ = make_tasks(1)[0]
        adapted = MetaMAML(model, 0.1, 1.0, first_order).adapt(x, y, MSE, num_steps=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            MSE(model(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(flat(adapted.parameters()), flat(model.parameters()))

    def test_the_model_is_untouched(self, look, untouched_rng):
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 1))
        model[0].weight.grad = torch.ones(3, 2)
        model[2].bias.requires_grad_(False)
        x, y, *_ = make_tasks(1)[0]
        maml, before = MetaMAML(model, 0.1, 1.0), look(model)
        with untouched_rng():
            adapted = maml.adapt(x, y, MSE, num_steps=2)
        assert look(model) == before
        assert [part.training for part in adapted.modules()] == [part.training for part in model.modules()]
        assert not adapted[2].bias.requires_grad

    def test_the_copy_lives_on_its_own(self, look):
        model = tanh_mlp()
        x, y, *_ = make_tasks(1)[0]
        adapted, before = MetaMAML(model, 0.1, 1.0).adapt(x, y, MSE, num_steps=2), look(model)
        saved = io.BytesIO()
        torch.save(adapted.state_dict(), saved)
        saved.seek(0)
        restored = tanh_mlp()
        restored.load_state_dict(torch.load(saved, weights_only=True))
        for twin in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted)), restored):  # noqa: S301
            assert look(twin) == look(adapted)
        loss = MSE(adapted(x), y)
        loss.backward()
        torch.optim.SGD(adapted.parameters(), lr=0.01).step()
        assert MSE(adapted(x), y) < loss
        assert look(model) == before

    def test_no_steps_make_a_copy(self, look):
        model = tanh_mlp()
        x, y, *_ = make_tasks(1)[0]
        adapted = MetaMAML(model, 0.1, 1.0).adapt(x, y, MSE, num_steps=0)
        assert look(adapted) == look(model)
        assert not {id(p) for p in adapted.parameters()} & {id(p) for p in model.parameters()}

    @pytest.mark.parametrize("num_steps", [-1, 1.0, None])
    def test_the_number_of_steps_is_checked(self, num_steps):
        x, y, *_ = make_tasks(1)[0]
        with pytest.raises(ValueError, match=f"num_steps must be an int >= 0; got {num_steps}"):
            MetaMAML(tanh_mlp(), 0.1, 1.0).adapt(x, y, MSE, num_steps)


class TestMetaGradient:
    @pytest.mark.parametrize(
        ("make_model", "time"), [(tanh_mlp, ()), (normalised_mlp, ()), (tiny_ssm, ()), (tiny_ssm, (4,)), (LSTM, (4,))]
    )
    def test_second_order_is_exact(self, make_model, time):
        model = make_model().double()
        tasks = make_tasks(2, time=time, dtype=torch.float64)
        source = flat(model.parameters())

        def loss(weights):
            nn.utils.vector_to_parameters(weights, model.parameters())
            maml = MetaMAML(model, 0.3, 1.0)
            with torch.no_grad():
                return sum(MSE(maml.adapt(sx, sy, MSE, 2)(qx), qy).item() for sx, sy, qx, qy in tasks) / len(tasks)

        exact, first_order = (meta_gradient(model, tasks, first_order=value) for value in (False, True))
        for _ in range(4):
            direction = torch.randn_like(source)
            slope = (loss(source + 1e-6 * direction) - loss(source - 1e-6 * direction)) / 2e-6
            assert exact @ direction == pytest.approx(slope, rel=1e-6, abs=1e-9)
        assert (exact - first_order).norm() > 0.05 * exact.norm()

    @pytest.mark.parametrize("adapts", [None, lambda name: "bias" in name])
    @pytest.mark.parametrize(("make_model", "time"), [(tanh_mlp, ()), (normalised_mlp, ()), (tiny_ssm, (4,))])
    def test_first_order_is_the_gradient_at_the_adapted_weights(self, make_model, time, adapts):
        model, tasks = make_model(), make_tasks(3, time=time)
        gradients = []
        for sx, sy, qx, qy in tasks:
            adapted = MetaMAML(model, 0.3, 1.0, adapts=adapts).adapt(sx, sy, MSE, 2)
            gradients.append(flat(torch.autograd.grad(MSE(adapted(qx), qy), adapted.parameters())))
        actual = meta_gradient(model, tasks, first_order=True, adapts=adapts)
        torch.testing.assert_close(actual, torch.stack(gradients).mean(0), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("first_order", [False, True])
    @pytest.mark.parametrize("make_model", [tanh_mlp, tiny_ssm])
    def test_tasks_of_unequal_shapes_are_computed_as_those_of_equal_shapes(self, caplog, make_model, first_order):
        model, equal, longer = make_model(), make_tasks(3), make_tasks(1, num_rows=9)
        gradients = [meta_gradient(model, tasks, first_order=first_order) for tasks in (equal, longer, equal + longer)]
        torch.testing.assert_close(0.75 * gradients[0] + 0.25 * gradients[1], gradients[2], rtol=1e-4, atol=1e-5)

        maml = MetaMAML(model, 0.3, 1.0, first_order)
        together = maml.query_losses(equal, MSE, 2)
        assert together.shape == (3,)
        torch.testing.assert_close(together, maml.query_losses(equal + longer, MSE, 2)[:3])
        assert not caplog.records  # shapes are no reason to give up on vmap


class TestMetaUpdate:
    def test_it_returns_the_loss_before_the_step(self):
        model, tasks = tanh_mlp(), make_tasks()
        maml = MetaMAML(model, 0.1, 0.01, inner_steps=2)
        expected = sum(MSE(maml.adapt(sx, sy, MSE, 2)(qx), qy).item() for sx, sy, qx, qy in tasks) / len(tasks)
        assert maml.meta_update(tasks, MSE) == pytest.approx(expected, rel=1e-5)
        assert maml.meta_update(tasks, MSE) < expected
        assert all(parameter.grad is None for parameter in model.parameters())

    @pytest.mark.parametrize("first_order", [False, True])
    def test_it_learns_a_family_of_lines(self, first_order, untouched_rng):
        # The lines cross at x = 0.5, y = 3: from there one step suffices, from anywhere else it does not.
        model = nn.Linear(1, 1)
        maml = MetaMAML(model, 0.2, 0.1, first_order, inner_steps=1)
        generator = torch.Generator().manual_seed(0)

        def family(num_tasks):
            x = torch.rand(num_tasks, 2, 8, 1, generator=generator)
            slopes = 4.0 * torch.rand(num_tasks, 1, 1, 1, generator=generator) - 2.0
            y = 3.0 + slopes * (x - 0.5)
            return list(zip(x[:, 0], y[:, 0], x[:, 1], y[:, 1], strict=True))

        test = family(50)
        before = maml.query_losses(test, MSE, 1).mean().item()
        with untouched_rng():
            for _ in range(100):
                maml.meta_update(family(8), MSE)
        assert maml.query_losses(test, MSE, 1).mean().item() < 0.1 * before

    @pytest.mark.parametrize(
        ("make_model", "reason"), [(LSTM, "LSTM"), (normalised_mlp, "LayerNorm"), (Branching, "data-dependent control")]
    )
    def test_a_module_that_vmap_cannot_compute_is_computed_task_by_task(self, caplog, make_model, reason):
        maml, tasks = MetaMAML(make_model(), 0.1, 0.1), make_tasks(2, time=(3,))
        losses = [maml.meta_update(tasks, MSE) for _ in range(15)]
        assert len(caplog.records) == 1
        assert "one after the other" in caplog.text
        assert reason in caplog.text
        assert losses[-1] < 0.9 * losses[0]

    def test_a_fault_of_the_tasks_is_no_reason_to_give_up_computing_together(self, caplog):
        model, calls = tanh_mlp(), []

        def loss_fn(prediction, target):
            calls.append(None)
            return MSE(prediction, target)

        maml = MetaMAML(model, 0.1, 0.1)
        with pytest.raises(RuntimeError):
            maml.meta_update([(torch.zeros(2, 3), torch.zeros(2, 1)) * 2] * 4, loss_fn)
        calls.clear()
        maml.meta_update(make_tasks(4), loss_fn)
        assert len(calls) == 2  # of support and query, for all tasks at once
        assert not caplog.records

    def test_frozen_parameters_stay(self):
        model = tanh_mlp()
        model[0].requires_grad_(False)
        before = copy.deepcopy(model)
        maml, tasks = MetaMAML(model, 0.1, 0.1), make_tasks()
        maml.meta_update(tasks, MSE)
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        for part in (model, adapted):
            assert torch.equal(flat(part[0].parameters()), flat(before[0].parameters()))
            assert (part[2].weight != before[2].weight).all()

    def test_a_filter_limits_the_inner_steps_but_not_the_outer(self):
        model, tasks = tanh_mlp(), make_tasks()
        before = copy.deepcopy(model)
        maml = MetaMAML(model, 0.1, 0.1, adapts=lambda name: name.startswith("2."))
        adapted = maml.adapt(*tasks[0][:2], MSE, 1)
        assert torch.equal(flat(adapted[0].parameters()), flat(model[0].parameters()))
        assert (adapted[2].weight != model[2].weight).all()
        maml.meta_update(tasks, MSE)
        assert (flat(model.parameters()) != flat(before.parameters())).all()

    @pytest.mark.parametrize("num_tasks", [1, 4])
    @pytest.mark.parametrize(
        ("loss_fn", "factors"),
        [
            (MSE, (1e30, 1.0)),
            # A loss that is not finite with a gradient that is, and the other way round: sqrt is infinitely steep at 0.
            (lambda prediction, target: prediction.mean() + target.square().mean(), (1.0, 1e30)),
            (lambda prediction, target: (prediction * target).abs().sqrt().mean(), (1.0, 0.0)),
        ],
        ids=["loss and gradient", "loss", "gradient"],
    )
    def test_an_explosion_leaves_the_model_as_it_was(self, look, num_tasks, loss_fn, factors):
        model = nn.Linear(2, 1)
        maml, tasks = MetaMAML(model, 0.1, 0.1), make_tasks(num_tasks)
        maml.meta_update(tasks, loss_fn)
        before, optimizer = look(model), str(maml.optimizer.state_dict())
        sx, sy, qx, qy = tasks[-1]
        tasks[-1] = (factors[0] * sx, sy, qx, factors[1] * qy)
        with pytest.raises(FloatingPointError, match="the weights were left as they were"):
            maml.meta_update(tasks, loss_fn)
        assert look(model) == before
        assert str(maml.optimizer.state_dict()) == optimizer


class TestErrors:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize(("part", "name"), [(0, "support"), (1, "support"), (2, "query"), (3, "query")])
    def test_what_is_not_finite_is_named(self, look, value, part, name):
        model, tasks = tanh_mlp(), make_tasks()
        tasks[1][part][2] = value
        maml, before = MetaMAML(model, 0.1, 0.1), look(model)
        with pytest.raises(ValueError, match=f"the {name} of task 1 must be finite"):
            maml.meta_update(tasks, MSE)
        if name == "support":
            with pytest.raises(ValueError, match="the support must be finite"):
                maml.adapt(*tasks[1][:2], MSE, 1)
        assert look(model) == before

    @pytest.mark.parametrize("lengths", [(3, 4), (4, 3), (0, 0)])
    def test_lengths(self, lengths):
        maml = MetaMAML(tanh_mlp(), 0.1, 0.1)
        good, bad = make_tasks(1)[0], (torch.zeros(lengths[0], 2), torch.zeros(lengths[1], 1))
        with pytest.raises(ValueError, match="the support must have as many inputs as targets, at least one"):
            maml.adapt(*bad, MSE, 1)
        with pytest.raises(ValueError, match="the support of task 0 must have as many"):
            maml.meta_update([(*bad, *good[2:])], MSE)
        with pytest.raises(ValueError, match="the query of task 1 must have as many"):
            maml.meta_update([good, (*good[:2], *bad)], MSE)

    def test_no_tasks(self):
        with pytest.raises(ValueError, match="tasks must hold at least one tuple"):
            MetaMAML(tanh_mlp(), 0.1, 0.1).meta_update([], MSE)

    def test_targets_of_another_shape(self):
        x, y, *query = make_tasks()[0]
        with pytest.raises(
            ValueError, match=r"predictions and targets must have the same shape; got \(5, 1\) and \(5,\)"
        ):
            MetaMAML(tanh_mlp(), 0.1, 0.1).meta_update([(x, y[:, 0], *query)], nn.MSELoss())

    def test_running_statistics_in_training_mode(self):
        model = nn.Sequential(tanh_mlp(), nn.BatchNorm1d(1))
        x, y, *_ = make_tasks()[0]
        with pytest.raises(ValueError, match=r"evaluation mode; call model.eval\(\) first"):
            MetaMAML(model, 0.1, 0.1).adapt(x, y, nn.MSELoss(), 1)

    def test_a_loss_that_is_no_scalar(self):
        maml, tasks = MetaMAML(tanh_mlp(), 0.1, 0.1), make_tasks()
        for call in (
            lambda loss_fn: maml.adapt(*tasks[0][:2], loss_fn, 1),
            lambda loss_fn: maml.meta_update(tasks, loss_fn),
        ):
            with pytest.raises(ValueError, match=r"loss_fn must return a scalar tensor; got shape \(5, 1\)"):
                call(nn.MSELoss(reduction="none"))

    @pytest.mark.parametrize(
        ("name", "value"),
        [(name, value) for name in ("inner_lr", "outer_lr") for value in (0.0, -1.0, math.nan, math.inf)]
        + [("inner_steps", value) for value in (0, 1.5)],
    )
    def test_options(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be .*; got {value}"):
            MetaMAML(tanh_mlp(), **{"inner_lr": 0.1, "outer_lr": 0.1, name: value})

    @pytest.mark.parametrize("adapts", [None, lambda name: name == "nothing"])
    def test_nothing_to_adapt(self, adapts):
        model = tanh_mlp().requires_grad_(adapts is not None)
        with pytest.raises(ValueError, match="the model must have a parameter that requires a gradient"):
            MetaMAML(model, 0.1, 0.1, adapts=adapts)
