"""The losses on the query sets of many tasks after inner steps on their support sets, all tasks together."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop, Weights
from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork, find_layers
from ssm_metarl_gym.agents.meta_learning.tasks import LossFunction, MetaTask, TaskSet, TaskSets, as_inputs, group_tasks

__all__ = ["AfterSteps", "BatchedTasks", "TaskLoss", "WayBack"]

_logger = logging.getLogger(__name__)
_Norm: Final = nn.modules.batchnorm._NormBase
# What vmap gets wrong in second order, by the place of its scale: https://github.com/pytorch/functorch/issues/534.
_SCALED: Final = {
    F.layer_norm: 2, torch.layer_norm: 2, torch.native_layer_norm: 2, F.batch_norm: 3, F.instance_norm: 3
}  # fmt: skip

# A loss of weights on a set.
SetLoss: TypeAlias = Callable[[Weights, TaskSet], Tensor]


@dataclass(frozen=True)
class AfterSteps:
    """The query losses after numbers of inner steps, ``Float[S]``.

    Attributes:
        num_steps: The numbers of steps.
    """

    num_steps: Sequence[int]

    def __call__(
        self, inner: InnerLoop, loss_of: SetLoss, support: TaskSet, query: TaskSet, functional: bool
    ) -> Tensor:
        """Those of one task."""
        weights, losses = inner.weights(), {}
        for index in range(max(self.num_steps) + 1):
            if index:
                weights = inner.step(lambda w: loss_of(w, support), weights, index - 1, functional=functional)
            if index in self.num_steps:
                losses[index] = loss_of(weights, query)
        return torch.stack([losses[index] for index in self.num_steps])

    def low_rank(self, network: LowRankNetwork, loss_fn: LossFunction, support: TaskSet, query: TaskSet) -> Tensor:
        """Those of K tasks, ``Float[K S]``."""
        losses = {}
        for index in range(max(self.num_steps) + 1):
            if index:
                network.step(support.x[0], lambda y: _each_loss(loss_fn, y, support))
            if index in self.num_steps:
                losses[index] = _each_loss(loss_fn, network(query.x[0]), query)
        return torch.stack([losses[index] for index in self.num_steps], dim=1)


@dataclass(frozen=True)
class WayBack:
    """Reptile: the query loss after the inner steps, ``Float[1]``, with the way back to the weights as its gradient.

    The steps take support and query set in turn, as two minibatches of one task. (Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999.)

    Attributes:
        num_steps: The number of steps.
    """

    num_steps: int

    def __call__(
        self, inner: InnerLoop, loss_of: SetLoss, support: TaskSet, query: TaskSet, functional: bool
    ) -> Tensor:
        """That of one task."""
        origin, inner = inner.weights(), inner.detached()
        weights = inner.weights()
        for index in range(self.num_steps):
            part = query if index % 2 else support
            weights = inner.step(lambda w, part=part: loss_of(w, part), weights, index, functional=functional)  # type: ignore[misc]
        loss = loss_of(weights, query).detach()
        ways = [(origin[name] * (origin[name] - weights[name]).detach()).sum() for name in inner.adapted]
        way = torch.stack(ways).sum()
        return (loss + (way - way.detach()))[None]


TaskLoss: TypeAlias = AfterSteps | WayBack


class BatchedTasks:
    """Computes the losses of tasks: together if the model allows that, else one after the other, with the same result.

    Args:
        model: The model.
        inner: The inner loop.
    """

    def __init__(self, model: nn.Module, inner: InnerLoop) -> None:
        self._model, self._together, self._watched = model, True, False
        # What vmap refuses, and modules that call what it gets wrong.
        unfit = (nn.RNNBase,) if inner.first_order else (nn.RNNBase, nn.LayerNorm, _Norm)
        found = {type(module).__name__ for module in model.modules() if isinstance(module, unfit)}
        if found:
            self._give_up(f"it contains {', '.join(sorted(found))}")

    def losses(
        self,
        tasks: Sequence[MetaTask],
        numbers: Sequence[int],
        loss_fn: LossFunction,
        inner: InnerLoop,
        task_loss: TaskLoss,
        buffers: dict[int, Weights] | None = None,
    ) -> Tensor:
        """The losses of the tasks of these numbers, ``Float[len(numbers) S]``.

        Args:
            tasks: All tasks.
            numbers: Which of them.
            loss_fn: Takes a prediction and a target, gives a scalar.
            inner: The inner steps.
            task_loss: What to compute of a task.
            buffers: Where to put the model's buffers that a task changed, by its number.
        """
        if self._together and any(map(_mixes_rows, self._model.modules())):
            self._give_up("it contains batch normalisation in training, whose statistics belong to one task")
        if self._together:
            try:
                return self._all_together(group_tasks(tasks, numbers, loss_fn, pad=True), loss_fn, inner, task_loss)
            except RuntimeError as error:
                reason = str(error)
                if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in reason:
                    raise  # a matter of task_chunk_size
            losses = self._one_by_one(tasks, numbers, loss_fn, inner, task_loss, buffers)
            self._give_up(reason)  # only now: a fault of the tasks themselves was raised again
            return losses
        return self._one_by_one(tasks, numbers, loss_fn, inner, task_loss, buffers)

    def _all_together(
        self, groups: Sequence[TaskSets], loss_fn: LossFunction, inner: InnerLoop, task_loss: TaskLoss
    ) -> Tensor:
        """Those of groups of tasks; the first time in second order it is watched what the model calls."""
        with contextlib.nullcontext() if self._watched or inner.first_order else _Watch() as watch:
            losses = [self._group_losses(group, loss_fn, inner, task_loss) for group in groups]
        if watch is not None:
            self._watched = True
            if watch.found:
                raise RuntimeError(f"it calls {', '.join(sorted(watch.found))} with a scale")
        return _in_order(losses, groups)

    def _group_losses(self, group: TaskSets, loss_fn: LossFunction, inner: InnerLoop, task_loss: TaskLoss) -> Tensor:
        """Those of tasks of equal shapes, ``Float[K S]``."""
        layers = find_layers(inner)
        if isinstance(task_loss, AfterSteps) and layers is not None and len(group.support.x) == 1:
            num_rows = group.support.x[0][0, ..., 0].numel() * max(task_loss.num_steps)
            if group.support.x[0].ndim > 2 and LowRankNetwork.pays(layers, num_rows):
                return task_loss.low_rank(LowRankNetwork(layers, inner), loss_fn, group.support, group.query)
        support, query = group.support.tensors(), group.query.tensors()
        masked = group.support.mask is not None, group.query.mask is not None
        copies = _copies(self._model)
        buffers = dict(copies)

        def of_one(support: tuple[Tensor, ...], query: tuple[Tensor, ...]) -> Tensor:
            sets = TaskSet.of(support, masked[0]), TaskSet.of(query, masked[1])
            return task_loss(inner, self._set_loss(loss_fn, buffers), *sets, functional=True)

        losses: Tensor = vmap(of_one, randomness="different")(support, query)
        if self._changed(copies, buffers):
            raise RuntimeError("it changes its buffers")
        return losses

    def _one_by_one(
        self,
        tasks: Sequence[MetaTask],
        numbers: Sequence[int],
        loss_fn: LossFunction,
        inner: InnerLoop,
        task_loss: TaskLoss,
        buffers: dict[int, Weights] | None,
    ) -> Tensor:
        losses = []
        for number in numbers:
            support_x, support_y, query_x, query_y = tasks[number]
            sets = TaskSet(as_inputs(support_x), support_y), TaskSet(as_inputs(query_x), query_y)
            copies = _copies(self._model)
            own = dict(copies)
            losses.append(task_loss(inner, self._set_loss(loss_fn, own), *sets, functional=False))
            if buffers is not None:
                buffers[number] = {name: buffer.detach() for name, buffer in self._changed(copies, own).items()}
        return torch.stack(losses)

    def _set_loss(self, loss_fn: LossFunction, buffers: Weights) -> SetLoss:
        def set_loss(weights: Weights, part: TaskSet) -> Tensor:
            tensors = buffers | weights
            prediction = functional_call(self._model, tensors, part.x)
            buffers.update({name: tensors[name] for name in buffers})  # the model may have put new ones there
            return part.loss(loss_fn, prediction)

        return set_loss

    def _changed(self, copies: Weights, buffers: Weights) -> Weights:
        """The buffers that are no longer these copies of the model's, or no longer equal to them."""
        return {
            name: buffer
            for name, buffer in buffers.items()
            if buffer is not copies[name] or not torch.equal(buffer, self._model.get_buffer(name))
        }

    def _give_up(self, reason: str) -> None:
        self._together = False
        _logger.warning(
            "tasks are computed one after the other, because torch.func.vmap does not suit the model or the loss: %s",
            reason,
        )


class _Watch(TorchFunctionMode):
    """Finds calls that scale what they normalise, in whatever module they are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, place = kwargs or {}, _SCALED.get(func)
        if place is not None and any(scale is not None for scale in (kwargs.get("weight"), *args[place : place + 1])):
            self.found.add(func.__name__)
        return func(*args, **kwargs)


def _mixes_rows(module: nn.Module) -> bool:
    """Whether it normalises by statistics of the rows that it is given, with padding and all."""
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_batch_norm and (module.training or module.running_mean is None)


def _in_order(losses: Sequence[Tensor], groups: Sequence[TaskSets]) -> Tensor:
    """Of losses group by group those in the order of the tasks: there is one group, or the order is restored."""
    if len(groups) == 1:
        return losses[0]
    order = torch.tensor([number for group in groups for number in group.numbers]).argsort()
    return torch.cat(list(losses))[order.to(losses[0].device)]


def _copies(model: nn.Module) -> Weights:
    """The model's buffers, for a task to change."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def _each_loss(loss_fn: LossFunction, predictions: Tensor, sets: TaskSet) -> Tensor:
    """The loss of each task's predictions, ``Float[K]``."""
    targets = sets.tensors()[len(sets.x) :]  # and masks, if any
    of_one = lambda prediction, *rest: TaskSet.of(rest, len(rest) > 1).loss(loss_fn, prediction)  # noqa: E731
    losses: Tensor = vmap(of_one)(predictions, *targets)
    return losses
