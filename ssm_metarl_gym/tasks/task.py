"""Tasks: settings of the physical parameters that an agent is not told, one at a time and many at once."""

import functools
import hashlib
import inspect
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, cast, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ssm_metarl_gym.checks import Rule, as_array, check_choice, check_fields, check_integer, check_number, shown

__all__ = ["Task", "TaskBatch", "check_task_type"]


@dataclass(frozen=True)
class Task:
    """One setting of the parameters: subclass it, one field with a default for each parameter, all of them numbers.

    Attributes:
        signs: The names of the parameters that are +1 or -1. The first is the one that a switch flips.
        switch_draws: Whether a switch draws another task instead, of tasks without a sign.
        positive: The names of the parameters that must be > 0.
        whole: The names of the parameters that are whole numbers.
        limits: The least and the greatest value of a parameter, by name, where not every finite number will do: beyond
            them the physics could not be computed.
    """

    signs: ClassVar[tuple[str, ...]] = ()
    switch_draws: ClassVar[bool] = False
    positive: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        rules = _rules(type(self))
        check_fields(self, rules)
        for name, rule in rules.items():
            number = float(getattr(self, name))
            object.__setattr__(self, name, int(number) if rule is _SIGN else number)

    @classmethod
    def parameter_names(cls) -> list[str]:
        """The names of all parameters, in the order of the fields."""
        return [parameter.name for parameter in fields(cls)]

    @property
    def task_id(self) -> int:
        """A digest of the parameters, which any array library holds: equal tasks have equal ids, in every process.

        It has 31 bits: among n different tasks, about ``n**2 / 2**32`` pairs share one.
        """
        return int(_task_ids(type(self), np.array([[value] for value in self.to_dict().values()]))[0])

    def to_dict(self) -> dict[str, float]:
        """All parameters by name, as a new dictionary: the exact inverse of :meth:`from_dict`."""
        return {name: getattr(self, name) for name in self.parameter_names()}

    @classmethod
    def from_dict(cls, parameters: Mapping[str, Any]) -> Self:
        """A task with the given parameters, and the defaults for those not given.

        Raises:
            ValueError: A parameter does not exist (the message names the nearest that does) or has no valid value.
        """
        _check_names(cls, parameters)
        return cls(**parameters)


class TaskBatch(Sequence[Task]):
    """n tasks of one type, held column by column: a read-only sequence of tasks that thousands of rows can share.

    Example:
        >>> batch = TaskBatch(CartPoleTask, {"length": [0.4, 0.6], "polarity": -1})
        >>> batch[1].length, batch[1].polarity, len(batch)
        (0.6, -1, 2)

    Args:
        task_type: The class of the tasks.
        parameters: For each parameter that is given, one number for all tasks or one for each: ``Float[n]``. The others
            have their defaults.
        num_tasks: Number of tasks n; None where a parameter says it.

    Attributes:
        task_type: The class of the tasks.
        values: ``Float64[P n]``, the parameters in the order of the fields, read-only.

    Raises:
        ValueError: A parameter does not exist or has no valid value, or the columns differ in length.
    """

    def __init__(
        self, task_type: type[Task], parameters: Mapping[str, npt.ArrayLike], num_tasks: int | None = None
    ) -> None:
        _check_names(task_type, parameters)
        columns = {name: _column(name, column) for name, column in parameters.items()}
        lengths = {len(column) for column in columns.values() if column.ndim}
        if num_tasks is not None:
            check_integer("num_tasks", num_tasks, least=0)
        size = num_tasks if num_tasks is not None else next(iter(lengths), 1)
        if lengths - {size}:
            got = {name: len(column) for name, column in columns.items() if column.ndim}
            raise ValueError(f"each parameter must be one number or one for each of the {size} tasks; got {got}.")
        defaults = task_type()
        values = np.empty((len(task_type.parameter_names()), size))
        for row, name in zip(values, task_type.parameter_names(), strict=True):
            row[:] = columns.get(name, getattr(defaults, name))
        _check_values(task_type, values)
        self._set(task_type, values)

    @classmethod
    def from_values(cls, task_type: type[Task], values: npt.NDArray[np.float64]) -> "TaskBatch":
        """A batch of valid parameters, ``Float64[P n]``: takes the array over, and makes it read-only."""
        batch = cls.__new__(cls)
        batch._set(task_type, values)
        return batch

    @classmethod
    def from_tasks(cls, tasks: Sequence[Task]) -> "TaskBatch":
        """A batch of the given tasks, at least one and all of one type."""
        if isinstance(tasks, TaskBatch) and len(tasks):
            return tasks
        is_list = isinstance(tasks, Sequence) and not isinstance(tasks, str | bytes)
        if not is_list or len({type(task) for task in tasks}) != 1 or not isinstance(tasks[0], Task):
            raise ValueError(f"a batch needs at least one task, all of one type; got {shown(tasks)}.")
        values = np.array([tuple(task.to_dict().values()) for task in tasks], dtype=np.float64)
        return cls.from_values(type(tasks[0]), np.ascontiguousarray(values.T))

    def _set(self, task_type: type[Task], values: npt.NDArray[np.float64]) -> None:
        values.flags.writeable = False
        self.task_type = task_type
        self.values = values

    @functools.cached_property
    def task_ids(self) -> npt.NDArray[np.int64]:
        """The ``task_id`` of each task, read-only: ``Int64[n]``."""
        task_ids = _task_ids(self.task_type, self.values)
        task_ids.flags.writeable = False
        return task_ids

    def to_dict(self) -> dict[str, npt.NDArray[Any]]:
        """The columns by name, as new arrays ``[n]``: integers for a sign, else floats."""
        signs = self.task_type.signs
        return {
            name: column.astype(np.int64 if name in signs else np.float64)
            for name, column in zip(self.task_type.parameter_names(), self.values, strict=True)
        }

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One parameter of all tasks, read-only: ``Float64[n]``."""
        names = self.task_type.parameter_names()
        check_choice(f"a parameter of {self.task_type.__name__}", name, names)
        column: npt.NDArray[np.float64] = self.values[names.index(name)]
        return column

    def __len__(self) -> int:
        return int(self.values.shape[1])

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice | npt.NDArray[Any]) -> "TaskBatch": ...
    def __getitem__(self, index: Any) -> Any:
        """A task for an index; a batch for a slice, a mask ``Bool[n]`` or indices ``Int[k]``."""
        if isinstance(index, slice) or np.ndim(index) == 1:
            return TaskBatch.from_values(self.task_type, self.values[:, index])
        return self.task_type(*self.values[:, index].tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskBatch):
            return NotImplemented
        return self.task_type is other.task_type and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.task_type, (self.values + 0.0).tobytes()))  # -0.0 and 0.0 are equal

    def __reduce__(self) -> tuple[Any, ...]:
        # NumPy's own copies and pickles of a read-only array can be written.
        return TaskBatch.from_values, (self.task_type, self.values)

    def __repr__(self) -> str:
        return f"TaskBatch({self.task_type.__name__}, num_tasks={len(self)})"


# What a parameter must be. The functions take a number and an array of numbers alike.
_SIGN: Final[Rule] = ("+1 or -1", lambda value: abs(value) == 1)
_FINITE: Final[Rule] = ("a finite number", lambda value: abs(value) < math.inf)
_POSITIVE: Final[Rule] = ("a finite number > 0", lambda value: (value > 0) & (abs(value) < math.inf))


def _rules(task_type: type[Task]) -> dict[str, Rule]:
    """The rule of each parameter, by name, in the order of the fields."""
    rules = dict.fromkeys(task_type.parameter_names(), _FINITE)
    rules |= dict.fromkeys(task_type.positive, _POSITIVE)
    rules |= {
        name: _within(*limits, exclusive=limits[0] == 0.0 and name in task_type.positive)
        for name, limits in task_type.limits.items()
    }
    rules |= {name: _counted(rules[name]) for name in task_type.whole}
    return rules | dict.fromkeys(task_type.signs, _SIGN)


@functools.cache
def _within(low: float, high: float, *, exclusive: bool) -> Rule:
    """The rule that a number lies in an interval, of which the lower end may be none."""
    if exclusive:
        return f"a number > {low:g} and <= {high:g}", lambda value: (low < value) & (value <= high)
    return f"a number in [{low:g}, {high:g}]", lambda value: (low <= value) & (value <= high)


@functools.cache
def _counted(rule: Rule) -> Rule:
    """The rule that a number is a whole one beside."""
    words, holds = rule
    return words.replace("number", "whole number"), lambda value: holds(value) & (np.floor(value) == value)


def check_task_type(task_type: type[Task]) -> None:
    """The class of tasks must be a dataclass, or its parameters would not be known."""
    if "__dataclass_fields__" not in vars(task_type) and inspect.get_annotations(task_type):
        raise ValueError(f"{task_type.__name__} must be a dataclass. Put @dataclass(frozen=True) above the class.")


def _check_names(task_type: type[Task], parameters: Any) -> None:
    check_task_type(task_type)
    if not isinstance(parameters, Mapping):
        raise ValueError(f"a task must be a dictionary from parameter name to value; got {shown(parameters)}.")
    for name in parameters:
        check_choice(f"a parameter of {task_type.__name__}", name, task_type.parameter_names())


def _column(name: str, column: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = as_array(column)
    if array.dtype.kind not in "iuf" or array.ndim > 1:
        raise ValueError(f"{name} must be a number, or one for each task; got {shown(column)}.")
    return array.astype(np.float64)


def _check_values(task_type: type[Task], values: npt.NDArray[np.float64]) -> None:
    """What a task checks of its parameters, for ``Float64[P n]`` at once."""
    for (name, rule), column in zip(_rules(task_type).items(), values, strict=True):
        _, holds = rule
        valid = np.asarray(holds(column))
        if not valid.all():
            row = int(np.argmin(valid))
            check_number(f"task {row}: {name}", column[row].item(), rule)


def _task_ids(task_type: type[Task], values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """A digest of each column of ``Float64[P n]``: the bits of every parameter times a weight that its name gives."""
    bits = np.add(values, 0.0, order="C").view(np.uint64)  # the sum makes -0.0 and 0.0, which are equal, the same bits
    bits ^= bits >> np.uint64(32)  # round numbers have nothing but zeros in the lower half
    digest: npt.NDArray[np.uint64] = _weights(cast("Hashable", task_type)) @ bits
    digest ^= digest >> np.uint64(31)
    digest *= np.uint64(0x9E3779B97F4A7C15)
    return (digest >> np.uint64(33)).view(np.int64)  # the upper bits of the product depend on all of its factor


@functools.cache
def _weights(task_type: Any) -> npt.NDArray[np.uint64]:
    digests = (
        hashlib.blake2b(f"{task_type.__name__}.{name}".encode(), digest_size=8) for name in task_type.parameter_names()
    )
    return np.array([int.from_bytes(digest.digest(), "big") | 1 for digest in digests], dtype=np.uint64)
