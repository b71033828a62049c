"""The losses of many tasks after inner steps on their support sets, all tasks together where the model allows that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from ssm_metarl_gym.agents.meta_learning.buffers import changed_buffers, copy_buffers
from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop, Weights
from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork, find_layers
from ssm_metarl_gym.agents.meta_learning.reptile import ReptileLoss
from ssm_metarl_gym.agents.meta_learning.tasks import LossFunction, MetaTask, SetLoss, TaskGroup, TaskSet, group_tasks
from ssm_metarl_gym.agents.meta_learning.vmap_limits import VmapLimits
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept

__all__ = ["BatchedTasks", "QueryLosses", "TaskLoss", "set_loss"]


@dataclass(frozen=True)
class QueryLosses:
    """The query losses of MAML after numbers of inner steps on the support set.

    Attributes:
        num_steps: The numbers of steps, S of them, in any order.
    """

    num_steps: Sequence[int]

    def __call__(
        self, inner: InnerLoop, loss_of: SetLoss, support: TaskSet, query: TaskSet, functional: bool
    ) -> Tensor:
        """The losses of one task, ``Float[S]``.

        Args:
            inner: The inner steps.
            loss_of: The loss of weights on one of the sets.
            support: The set that the steps are taken on.
            query: The set that the losses are measured on.
            functional: See :meth:`InnerLoop.step`.
        """
        weights, losses = inner.weights(), {}
        for index in range(max(self.num_steps) + 1):
            if index:
                weights = inner.step(lambda w: loss_of(w, support), weights, index - 1, functional=functional)
            if index in self.num_steps:
                losses[index] = loss_of(weights, query)
        return torch.stack([losses[index] for index in self.num_steps])

    def low_rank(self, network: LowRankNetwork, loss_fn: LossFunction, support: TaskSet, query: TaskSet) -> Tensor:
        """The same losses of K tasks at once, ``Float[K S]``, of a network without written-out weights."""
        losses = {}
        for index in range(max(self.num_steps) + 1):
            if index:
                network.step(support.x[0], lambda y: _each_loss(loss_fn, y, support))
            if index in self.num_steps:
                losses[index] = _each_loss(loss_fn, network(query.x[0]), query)
        return torch.stack([losses[index] for index in self.num_steps], dim=1)


TaskLoss: TypeAlias = QueryLosses | ReptileLoss


class BatchedTasks:
    """Computes the losses of tasks: together if the model allows that, else one after the other, with the same result.

    Args:
        model: The model.
        inner: The inner loop.
    """

    def __init__(self, model: nn.Module, inner: InnerLoop) -> None:
        self._model = model
        self._limits = VmapLimits(model, second_order=not inner.first_order)

    def losses(
        self,
        tasks: Sequence[MetaTask],
        indices: Sequence[int],
        loss_fn: LossFunction,
        inner: InnerLoop,
        task_loss: TaskLoss,
        buffers: dict[int, Weights] | None = None,
    ) -> Tensor:
        """The losses of the tasks of these indices, ``Float[len(indices) S]``.

        Args:
            tasks: All tasks.
            indices: Which of them.
            loss_fn: Takes a prediction and a target, gives a scalar.
            inner: The inner steps.
            task_loss: What to compute of a task.
            buffers: Where to put the model's buffers that a task changed, by its index.
        """

        def together() -> Tensor:
            groups = group_tasks(tasks, indices, loss_fn, pad=True)
            return _in_order([self._group_losses(group, loss_fn, inner, task_loss) for group in groups], groups)

        def one_by_one() -> Tensor:
            losses = []
            for index in indices:
                support_x, support_y, query_x, query_y = tasks[index]
                sets = TaskSet.of(support_x, support_y), TaskSet.of(query_x, query_y)
                loss, changed = self._losses_of_one(*sets, loss_fn, inner, task_loss)
                losses.append(loss)
                if buffers is not None:
                    buffers[index] = changed
            return torch.stack(losses)

        return self._limits.compute(together, one_by_one, second_order=not inner.first_order)

    def _group_losses(self, group: TaskGroup, loss_fn: LossFunction, inner: InnerLoop, task_loss: TaskLoss) -> Tensor:
        """The losses of tasks of equal shapes, ``Float[K S]``."""
        support, query = group.support, group.query
        layers = find_layers(inner)
        if isinstance(task_loss, QueryLosses) and layers is not None and len(support.x) == 1:
            num_rows = support.x[0][0, ..., 0].numel() * max(task_loss.num_steps)
            if support.x[0].ndim > 2 and LowRankNetwork.pays(layers, num_rows):
                return task_loss.low_rank(LowRankNetwork(layers, inner), loss_fn, support, query)
        copies = copy_buffers(self._model)
        buffers = dict(copies)
        loss_of_set = set_loss(StatelessModule(self._model), loss_fn, buffers)

        def of_one(support: TaskSet, query: TaskSet) -> Tensor:
            return task_loss(inner, loss_of_set, support, query, functional=True)

        axes = support.task_axes, query.task_axes
        with attributes_kept(self._model):
            losses: Tensor = vmap(of_one, axes, randomness="different")(support, query)
        if changed_buffers(self._model, copies, buffers):
            raise RuntimeError("it changes its buffers")
        return losses

    def _losses_of_one(
        self, support: TaskSet, query: TaskSet, loss_fn: LossFunction, inner: InnerLoop, task_loss: TaskLoss
    ) -> tuple[Tensor, Weights]:
        """The losses of a task, ``Float[S]``, and the model's buffers that it changed."""
        copies = copy_buffers(self._model)
        buffers = dict(copies)
        loss_of_set = set_loss(StatelessModule(self._model).checked, loss_fn, buffers)
        with attributes_kept(self._model):
            losses = task_loss(inner, loss_of_set, support, query, functional=False)
        changed = changed_buffers(self._model, copies, buffers)
        return losses, {name: buffer.detach() for name, buffer in changed.items()}


def set_loss(call: Callable[[Weights, tuple[Tensor, ...]], Any], loss_fn: LossFunction, buffers: Weights) -> SetLoss:
    """The loss of weights on a set; ``call`` calls the model with these buffers, and may replace them."""

    def loss_of_set(weights: Weights, part: TaskSet) -> Tensor:
        tensors = buffers | weights
        prediction = call(tensors, part.x)
        buffers.update({name: tensors[name] for name in buffers})
        return part.loss(loss_fn, prediction)

    return loss_of_set


def _in_order(losses: Sequence[Tensor], groups: Sequence[TaskGroup]) -> Tensor:
    """The losses of all groups, in the order of the tasks' indices where there is more than one group."""
    if len(groups) == 1:
        return losses[0]
    order = torch.tensor([index for group in groups for index in group.indices]).argsort()
    return torch.cat(list(losses))[order.to(losses[0].device)]


def _each_loss(loss_fn: LossFunction, predictions: Tensor, sets: TaskSet) -> Tensor:
    """The loss of each task's predictions, ``Float[K]``."""
    own = sets._replace(x=())

    def of_one(prediction: Tensor, own: TaskSet) -> Tensor:
        return own.loss(loss_fn, prediction)

    losses: Tensor = vmap(of_one, (0, own.task_axes))(predictions, own)
    return losses
