"""Tasks of supervised meta-learning, side by side: stacked, or padded where they differ in their number of rows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ssm_metarl_gym.agents.losses import checked_loss, is_mean_over_elements, masked_loss

__all__ = [
    "Inputs",
    "LossFunction",
    "MetaTask",
    "SetLoss",
    "TaskGroup",
    "TaskSet",
    "as_inputs",
    "check_set",
    "check_tasks",
    "group_tasks",
]

LossFunction: TypeAlias = Callable[[Any, Tensor], Tensor]
Inputs: TypeAlias = Tensor | tuple[Tensor, ...]
MetaTask: TypeAlias = tuple[Inputs, Tensor, Inputs, Tensor]


class TaskSet(NamedTuple):
    """A support or query set; or those of K tasks, with one more axis in front of each tensor, as ``vmap`` takes them.

    Attributes:
        x: The inputs of the model, each ``Float[N ...]``.
        y: ``Float[N ...]``, the targets.
        mask: ``Bool[N]``, false for rows that are padding; None where there is none.
    """

    x: tuple[Tensor, ...]
    y: Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, x: Inputs, y: Tensor) -> "TaskSet":
        """The set of what a user gives, as tensors that autograd can save: it cannot save those of inference mode."""
        *inputs, targets = (tensor.clone() if tensor.is_inference() else tensor for tensor in (*as_inputs(x), y))
        return cls(tuple(inputs), targets)

    def loss(self, loss_fn: LossFunction, prediction: Any) -> Tensor:
        """The loss of a prediction for the rows that are not padding."""
        if self.mask is None:
            return checked_loss(loss_fn, prediction, self.y)
        return masked_loss(loss_fn, prediction, self.y, self.mask)

    @property
    def task_axes(self) -> Any:
        """The axes of the K tasks, as ``in_dims`` of ``vmap``: which takes no axis for a mask that is not there."""
        return TaskSet(0, 0, None if self.mask is None else 0)  # type: ignore[arg-type]

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of inputs and targets."""
        return tuple(tensor.shape for tensor in (*self.x, self.y))


# The loss of weights, by their names, on a support or query set.
SetLoss: TypeAlias = Callable[[dict[str, Tensor], TaskSet], Tensor]


class TaskGroup(NamedTuple):
    """Tasks of equal shapes, after padding.

    Attributes:
        indices: The indices of the tasks in the batch.
        support: The support sets, a leading axis for the tasks.
        query: The query sets, likewise.
    """

    indices: tuple[int, ...]
    support: TaskSet
    query: TaskSet


def group_tasks(tasks: Sequence[MetaTask], indices: Sequence[int], loss_fn: LossFunction, pad: bool) -> list[TaskGroup]:
    """The tasks of these indices in as few groups as possible, each of equal shapes.

    Tasks that differ in their numbers of rows alone share a group where ``pad`` is true and the loss is known to be a
    mean over rows.
    """
    pad = pad and is_mean_over_elements(loss_fn)
    groups: dict[Any, list[tuple[int, TaskSet, TaskSet]]] = {}
    for index in indices:
        support_x, support_y, query_x, query_y = tasks[index]
        support, query = TaskSet.of(support_x, support_y), TaskSet.of(query_x, query_y)
        key = tuple(shape[1:] if pad else shape for shape in (*support.shapes, *query.shapes))
        groups.setdefault((key, len(support.x)), []).append((index, support, query))
    joined = []
    for group in groups.values():
        members, supports, queries = zip(*group, strict=True)
        joined.append(TaskGroup(members, _joined(supports), _joined(queries)))
    return joined


def check_set(what: str, x: Inputs, y: Tensor) -> None:
    """``x`` and ``y`` must be tensors with as many rows each, at least one."""
    inputs = as_inputs(x)
    if not inputs or not all(isinstance(part, Tensor) for part in (*inputs, y)):
        names = ", ".join(type(part).__name__ for part in (*inputs, y))
        raise ValueError(f"the {what} must be tensors; got {names}.")
    if y.ndim == 0 or len(y) == 0 or any(part.shape[:1] != y.shape[:1] for part in inputs):
        shapes = " and ".join(str(tuple(part.shape)) for part in (*inputs, y))
        raise ValueError(f"the {what} must have as many inputs as targets, at least one; got shapes {shapes}.")


def check_tasks(tasks: Sequence[MetaTask]) -> None:
    """``tasks`` must be tuples of a support and a query set, at least one."""
    if not tasks:
        raise ValueError("tasks must hold at least one tuple (support_x, support_y, query_x, query_y); got none.")
    for index, task in enumerate(tasks):
        if len(task) != 4:
            raise ValueError(
                f"task {index} must be a tuple (support_x, support_y, query_x, query_y); got {len(task)} parts."
            )
        support_x, support_y, query_x, query_y = task
        check_set(f"support of task {index}", support_x, support_y)
        check_set(f"query of task {index}", query_x, query_y)


def as_inputs(x: Inputs) -> tuple[Tensor, ...]:
    """The arguments of a model, of which most have one."""
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _joined(sets: Sequence[TaskSet]) -> TaskSet:
    """Sets of several tasks as one, padded at the end to the longest."""
    x = [_stacked(parts) for parts in zip(*(one.x for one in sets), strict=True)]
    lengths = [len(one.y) for one in sets]
    mask = None
    if len(set(lengths)) > 1:
        y = sets[0].y
        mask = torch.arange(max(lengths), device=y.device) < torch.tensor(lengths, device=y.device)[:, None]
    return TaskSet(tuple(x), _stacked([one.y for one in sets]), mask)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors of several tasks as one, ``Float[K N ...]``, those of fewer rows padded."""
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    # With the last row over and over: of zeros, say, a model might make infinities, which times no slope are NaN.
    rows = torch.arange(max(map(len, tensors)), device=tensors[0].device)
    return torch.stack([tensor[rows.clamp(max=len(tensor) - 1)] for tensor in tensors])
