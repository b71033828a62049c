import logging
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop
from ssm_metarl_gym.agents.meta_learning.reptile import ReptileLoss
from ssm_metarl_gym.agents.meta_learning.task_losses import BatchedTasks, QueryLosses

MSE = nn.MSELoss()


def make_model():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def make_tasks(*shapes, time=()):
    """Tasks of so many support and query rows each."""
    tasks = []
    for support, query in shapes or [(5, 5)] * 3:
        sizes = (support, 2), (support, 1), (query, 2), (query, 1)
        tasks.append(tuple(torch.randn(rows, *time, width, dtype=torch.float64) for rows, width in sizes))
    return tasks


def plain_losses(model, tasks, num_steps, loss_fn=MSE, inner_lr=0.1, create_graph=True):
    """``Float[K S]``, by a plain loop over tasks and steps."""
    rows = []
    for support_x, support_y, query_x, query_y in tasks:
        weights, losses = dict(model.named_parameters()), []
        for _ in range(max(num_steps) + 1):
            losses.append(loss_fn(functional_call(model, weights, (query_x,)), query_y))
            loss = loss_fn(functional_call(model, weights, (support_x,)), support_y)
            slopes = torch.autograd.grad(loss, weights.values(), create_graph=create_graph)
            weights = {name: w - inner_lr * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
        rows.append(torch.stack([losses[steps] for steps in num_steps]))
    return torch.stack(rows)


def compute(model, tasks, task_loss, loss_fn=MSE, indices=None, buffers=None, **options):
    inner = InnerLoop(model, 0.1, **options)
    indices = range(len(tasks)) if indices is None else indices
    return BatchedTasks(model, inner).losses(tasks, indices, loss_fn, inner, task_loss, buffers)


def unknown_loss(prediction, target):
    return (prediction - target).square().mean()


def assert_same(actual, expected, model):
    """The same losses, and the same gradients of each of them."""
    torch.testing.assert_close(actual, expected)
    for one, other in zip(actual.flatten(), expected.flatten(), strict=True):
        slopes = [torch.autograd.grad(loss, model.parameters(), retain_graph=True) for loss in (one, other)]
        for slope, wanted in zip(*slopes, strict=True):
            torch.testing.assert_close(slope, wanted)


class TestQueryLosses:
    @pytest.mark.each_value
    @pytest.mark.parametrize("num_steps", [[0], [3, 1, 3]])
    @pytest.mark.parametrize("time", [(), (4,)])
    def test_plain_networks(self, way, num_steps, time):
        model, tasks = make_model(), make_tasks(time=time)
        actual = compute(model, tasks, QueryLosses(num_steps))
        assert actual.shape == (3, len(num_steps))
        assert_same(actual, plain_losses(model, tasks, num_steps), model)

    @pytest.mark.each_value
    @pytest.mark.parametrize("loss_fn", [MSE, nn.HuberLoss(), nn.MSELoss(reduction="sum"), unknown_loss])
    def test_different_numbers_of_rows(self, way, caplog, loss_fn):
        model, tasks = make_model(), make_tasks((3, 4), (5, 2), (3, 4), (1, 1), (5, 2))
        actual = compute(model, tasks, QueryLosses([0, 2]), loss_fn)
        assert_same(actual, plain_losses(model, tasks, [0, 2], loss_fn), model)
        part = compute(model, tasks, QueryLosses([0, 2]), loss_fn, indices=[1, 3, 4])
        torch.testing.assert_close(part, actual[[1, 3, 4]])
        assert not caplog.records  # shapes are no reason to give up on vmap

    def test_padding_makes_no_infinities(self):
        class Reciprocal(nn.Sequential):
            """Infinite, with infinite slopes, where a row is zero."""

            def forward(self, x):
                return super().forward(1.0 / x).abs().log()

        model, tasks = Reciprocal(nn.Linear(2, 1, bias=False)).double(), make_tasks((2, 3), (4, 1))
        assert_same(compute(model, tasks, QueryLosses([2])), plain_losses(model, tasks, [2]), model)

    def test_tasks_of_unlike_kinds(self):
        """Sequences of several lengths in one batch, as groups whose order is restored."""
        model, tasks = (
            make_model(),
            [*make_tasks((2, 2), time=(4,)), *make_tasks((3, 3)), *make_tasks((5, 1), time=(4,))],
        )
        tasks = [tasks[0], tasks[1], tasks[2], *make_tasks((4, 4))]
        assert_same(compute(model, tasks, QueryLosses([1])), plain_losses(model, tasks, [1]), model)

    def test_complaints_come_from_all_ways(self, way):
        x, y, *query = make_tasks()[0]
        with pytest.raises(ValueError, match=r"must have the same shape; got \(5, 1\) and \(5,\)"):
            compute(make_model(), [(x, y[:, 0], *query)], QueryLosses([1]))


class TestReptileLoss:
    @pytest.mark.parametrize("functional", [True, False])
    def test_it_alternates_and_points_back(self, functional):
        model, (task,) = make_model(), make_tasks((3, 4))
        if not functional:
            model.register_module("norm", nn.LayerNorm(1).double())
        support_x, support_y, query_x, query_y = task
        ((loss,),) = compute(model, [task], ReptileLoss(3))
        weights = tuple(weight.detach().clone().requires_grad_() for weight in model.parameters())
        for x, y in ((support_x, support_y), (query_x, query_y), (support_x, support_y)):
            named = dict(zip(dict(model.named_parameters()), weights, strict=True))
            slopes = torch.autograd.grad(MSE(functional_call(model, named, (x,)), y), weights, allow_unused=True)
            weights = tuple(
                w if slope is None else (w - 0.1 * slope).detach().requires_grad_()
                for w, slope in zip(weights, slopes, strict=True)
            )
        named = dict(zip(dict(model.named_parameters()), weights, strict=True))
        assert loss.item() == pytest.approx(MSE(functional_call(model, named, (query_x,)), query_y).item())
        ways = torch.autograd.grad(loss, model.parameters())
        for way, before, after in zip(ways, model.parameters(), weights, strict=True):
            torch.testing.assert_close(way, before.detach() - after.detach())

    def test_a_long_way_does_not_blur_the_loss(self):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1e6)
        x, y = torch.ones(2, 1), torch.tensor([[-1.0], [1.0]])
        inner = InnerLoop(model, 0.5)  # one step to the solution, zero
        loss = BatchedTasks(model, inner).losses([(x, y, x, y)], [0], MSE, inner, ReptileLoss(1))
        assert loss.item() == 1.0
        assert torch.autograd.grad(loss, model.weight)[0].item() == 1e6


class Branching(nn.Sequential):
    """Its control flow depends on data, which ``vmap`` refuses."""

    def forward(self, x):
        return super().forward(x) if x.sum() < math.inf else x


class Normalised(nn.Module):
    """Normalises by a function, which no list of modules shows."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 4))

    def forward(self, x):
        return self.last(F.layer_norm(self.first(x), (4,), self.scale).tanh())


class Counting(nn.Sequential):
    """Counts its calls in a buffer, in place or by a new one."""

    def __init__(self, in_place):
        super().__init__(nn.Linear(2, 1))
        self.in_place = in_place
        self.register_buffer("calls", torch.tensor(7))

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return super().forward(x)


class TestOneByOne:
    def test_a_model_without_vmap_is_logged_once(self, caplog):
        model, tasks = Branching(nn.Linear(2, 1)).double(), make_tasks()
        inner = InnerLoop(model, 0.1)
        batched = BatchedTasks(model, inner)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                losses = batched.losses(tasks, range(3), MSE, inner, QueryLosses([0, 1]))
        assert len(caplog.records) == 1
        assert "one after the other" in caplog.text
        assert_same(losses, plain_losses(model, tasks, [0, 1]), model)

    @pytest.mark.parametrize("first_order", [False, True])
    def test_functions_that_are_wrong_in_second_order_are_found(self, caplog, first_order):
        model, tasks = Normalised().double(), make_tasks()
        actual = compute(model, tasks, QueryLosses([2]), first_order=first_order)
        assert_same(actual, plain_losses(model, tasks, [2], create_graph=not first_order), model)
        assert ("layer_norm with weight" in caplog.text) != first_order

    @pytest.mark.parametrize("in_place", [True, False])
    def test_buffers_that_change(self, caplog, in_place):
        model, tasks, buffers = Counting(in_place).double(), make_tasks(), {}
        losses = compute(model, tasks, QueryLosses([0, 2]), buffers=buffers)
        assert "one after the other" in caplog.text
        assert model.calls.item() == 7
        assert {index: after["calls"].item() for index, after in buffers.items()} == dict.fromkeys(range(3), 7 + 4)
        torch.testing.assert_close(losses, plain_losses(model, tasks, [0, 2]))

    def test_buffers_that_do_not_change(self, caplog):
        model, buffers = make_model(), {}
        model.register_buffer("constant", torch.ones(2))
        compute(model, make_tasks(), QueryLosses([1]), buffers=buffers)
        assert buffers == {}
        assert not caplog.records

    def test_batch_normalisation_in_training(self, caplog):
        model, tasks, buffers = nn.Sequential(make_model(), nn.BatchNorm1d(1).double()), make_tasks(), {}
        compute(model, tasks, QueryLosses([1]), buffers=buffers, first_order=True)
        assert len(caplog.records) == 1
        assert len({after["1.running_mean"].item() for after in buffers.values()}) == 3
        assert [after["1.num_batches_tracked"].item() for after in buffers.values()] == [2, 2, 2]
        assert model[1].num_batches_tracked.item() == 0

    def test_batch_normalisation_without_running_statistics(self):
        norm = nn.BatchNorm1d(1, track_running_stats=False).double()
        model, tasks = nn.Sequential(nn.Linear(2, 1).double(), norm).eval(), make_tasks((3, 4), (5, 2))
        actual = compute(model, tasks, QueryLosses([0]), first_order=True)
        torch.testing.assert_close(actual, plain_losses(model, tasks, [0]))
