import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from ssm_metarl_gym.agents.meta_learning.tasks import TaskSet, as_inputs, check_set, group_tasks

MSE = nn.MSELoss()
ROW_WISE = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), F.mse_loss, nn.MSELoss(reduction="sum")]


def make_task(support=5, query=5, *, rest=(), inputs=1):
    """A task of so many rows; of several inputs the second is wider."""
    sets = []
    for num_rows in (support, query):
        x = tuple(torch.randn(num_rows, *rest, 2 + index) for index in range(inputs))
        sets += [x[0] if inputs == 1 else x, torch.randn(num_rows, *rest, 1)]
    return tuple(sets)


def unknown_loss(prediction, target):
    return (prediction - target).square().mean()


class SquaredSum(nn.MSELoss):
    """No mean over rows, whatever its base class."""

    def forward(self, prediction, target):
        return super().forward(prediction.sum(dim=0), target.sum(dim=0))


class TestGroupTasks:
    def test_equal_shapes_are_stacked(self):
        tasks = [make_task() for _ in range(3)]
        (group,) = group_tasks(tasks, [0, 2], MSE, pad=True)
        assert group.indices == (0, 2)
        assert group.support.mask is None
        assert group.query.mask is None
        for part, tensors in enumerate((group.support.x[0], group.support.y, group.query.x[0], group.query.y)):
            assert torch.equal(tensors, torch.stack([tasks[0][part], tasks[2][part]]))

    @pytest.mark.parametrize("inputs", [1, 2])
    @pytest.mark.parametrize("rest", [(), (3,)])
    def test_different_numbers_of_rows_are_padded(self, rest, inputs):
        tasks = [make_task(3, 4, rest=rest, inputs=inputs), make_task(5, 2, rest=rest, inputs=inputs)]
        (group,) = group_tasks(tasks, range(2), MSE, pad=True)
        assert group.support.mask.sum(dim=1).tolist() == [3, 5]
        assert group.query.mask.sum(dim=1).tolist() == [4, 2]
        for index, (support_x, support_y, query_x, query_y) in enumerate(tasks):
            for one, x, y in ((group.support, support_x, support_y), (group.query, query_x, query_y)):
                for padded, own in zip((*one.x, one.y), (*as_inputs(x), y), strict=True):
                    assert torch.equal(padded[index][one.mask[index]], own)
                    assert (padded[index][~one.mask[index]] == own[-1]).all()  # nothing that the data do not have

    def test_only_what_differs_has_a_mask(self):
        (group,) = group_tasks([make_task(3, 4), make_task(5, 4)], range(2), MSE, pad=True)
        assert group.support.mask is not None
        assert group.query.mask is None

    @pytest.mark.parametrize("loss_fn", [unknown_loss, SquaredSum(), nn.CrossEntropyLoss()])
    def test_under_other_losses_different_numbers_of_rows_are_kept_apart(self, loss_fn):
        tasks = [make_task(3), make_task(5), make_task(3)]
        groups = group_tasks(tasks, range(3), loss_fn, pad=True)
        assert [group.indices for group in groups] == [(0, 2), (1,)]
        assert all(group.support.mask is None for group in groups)

    def test_without_padding(self):
        assert len(group_tasks([make_task(3), make_task(5)], range(2), MSE, pad=False)) == 2

    @pytest.mark.parametrize("other", [make_task(rest=(3,)), make_task(inputs=2)])
    def test_other_shapes_are_kept_apart(self, other):
        groups = group_tasks([make_task(), other, make_task()], range(3), MSE, pad=True)
        assert [group.indices for group in groups] == [(0, 2), (1,)]


class TestTaskSet:
    def test_tensors_of_inference_mode_become_ordinary_ones(self):
        with torch.inference_mode():
            x, y = torch.randn(3, 2), torch.randn(3, 1)
        one = TaskSet.of((x, x), y)
        assert not any(tensor.is_inference() for tensor in (*one.x, one.y))
        assert torch.equal(one.x[1], x)
        assert torch.equal(one.y, y)

    def test_other_tensors_are_not_copied(self):
        x, y = torch.randn(3, 2), torch.randn(3, 1)
        one = TaskSet.of(x, y)
        assert one.x[0] is x
        assert one.y is y

    @pytest.mark.parametrize("rest", [(), (3,)])
    @pytest.mark.parametrize("loss_fn", ROW_WISE)
    def test_padding_does_not_count(self, loss_fn, rest):
        prediction, y = torch.randn(2, 5, *rest, 1), torch.randn(5, *rest, 1)
        mask = torch.tensor([True, True, False, True, False])
        prediction[0].requires_grad_()
        predictions = torch.where(mask.view(-1, *[1] * (y.ndim - 1)), prediction[0], 1e9).requires_grad_()
        loss = TaskSet((), y, mask).loss(loss_fn, predictions)
        torch.testing.assert_close(loss, loss_fn(predictions[mask], y[mask]))
        (slopes,) = torch.autograd.grad(loss, predictions)
        assert (slopes[~mask] == 0.0).all()
        assert (slopes[mask] != 0.0).all()

    @pytest.mark.parametrize("masked", [False, True])
    def test_vmap_takes_it_whole(self, masked):
        mask = torch.tensor([[True, False], [True, True]]) if masked else None
        sets = TaskSet((torch.randn(2, 2, 3), torch.randn(2, 2, 1)), torch.randn(2, 2, 1), mask)

        def of_one(one):
            return one.loss(MSE, one.x[1] + one.x[0].sum(dim=-1, keepdim=True))

        expected = [
            of_one(TaskSet(tuple(x[k] for x in sets.x), sets.y[k], None if mask is None else mask[k])) for k in range(2)
        ]
        torch.testing.assert_close(vmap(of_one, (sets.task_axes,))(sets), torch.stack(expected))

    def test_complaints_are_those_of_a_loss_without_padding(self):
        mask = torch.tensor([True, False])
        with pytest.raises(ValueError, match=r"must have the same shape; got \(2,\) and \(2, 1\)"):
            TaskSet((), torch.zeros(2, 1), mask).loss(MSE, torch.zeros(2))
        with pytest.raises(ValueError, match="loss_fn must return a scalar tensor"):
            TaskSet((), torch.zeros(2, 1), mask).loss(nn.MSELoss(reduction="none"), torch.zeros(2, 1))


class TestCheckSet:
    def test_what_is_valid(self):
        x, y = torch.zeros(3, 2), torch.zeros(3)
        check_set("support", x, y)
        check_set("support", (x, y), y)
        check_set("support", [x, y], y)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            (torch.zeros(3, 2), torch.zeros(4, 1)),
            (torch.zeros(0, 2), torch.zeros(0, 1)),
            (torch.zeros(()), torch.zeros(3)),
            (torch.zeros(3), torch.zeros(())),
            ((torch.zeros(3, 2), torch.zeros(2, 2)), torch.zeros(3)),
        ],
    )
    def test_lengths(self, x, y):
        shapes = " and ".join(str(tuple(part.shape)) for part in (*as_inputs(x), y))
        with pytest.raises(ValueError, match="the support must have as many inputs as targets, at least one") as error:
            check_set("support", x, y)
        assert shapes in str(error.value)

    @pytest.mark.parametrize(
        ("x", "y", "names"),
        [
            ([[0.0]], torch.zeros(1), "list, Tensor"),
            (torch.zeros(1), None, "Tensor, NoneType"),
            ((), torch.zeros(1), "Tensor"),
        ],
    )
    def test_types(self, x, y, names):
        with pytest.raises(ValueError, match=f"the query must be tensors; got {names}"):
            check_set("query", x, y)
