"""Distributions over tasks: frozen, hashable values without a random stream of their own.

Whoever samples brings the generator, so that one seed gives one sequence wherever a distribution is shared.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ssm_metarl_gym.checks import check_choice, check_generator, check_integer, shown
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Marginal, Uniform, marginal_from_dict
from ssm_metarl_gym.tasks.task import Task, TaskBatch, check_task_type

__all__ = [
    "Distribution",
    "TaskDistribution",
    "TaskSet",
    "distribution_from_dict",
    "register_kind",
    "register_task_types",
]

_PATIENCE: Final = 10_000  # draws in vain after which there is hardly another task


class Distribution:
    """What all distributions over tasks have in common."""

    task_type: type[Task]

    @property
    def parameters(self) -> dict[str, Marginal]:
        """What each parameter that varies is drawn from on its own, by name, as a new dictionary."""
        raise NotImplementedError

    def contains(self, task: Task) -> bool:
        """Whether a draw can give ``task``."""
        raise NotImplementedError

    def sample_batch(self, rng: np.random.Generator, num_tasks: int) -> TaskBatch:
        """Draw tasks: a batch of ``num_tasks``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, and :func:`distribution_from_dict` reads."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator) -> Task:
        """Draw one task: the one that ``sample_batch(rng, 1)`` holds."""
        return self.sample_batch(rng, 1)[0]

    def normalise(self, tasks: Task | TaskBatch) -> npt.NDArray[np.float32]:
        """The parameters that vary here, scaled so that this distribution fills [-1, 1]: ``Float[C]``.

        For a batch of n tasks ``Float[n C]``.
        """
        parameters = self.parameters
        batch = tasks if isinstance(tasks, TaskBatch) else TaskBatch.from_tasks([tasks])
        normalised = np.empty((len(batch), len(parameters)), dtype=np.float32)
        for column, (name, marginal) in zip(normalised.T, parameters.items(), strict=True):
            column[:] = marginal.normalise(batch.column(name))
        return normalised if isinstance(tasks, TaskBatch) else normalised[0]

    def split(self, *sizes: int, seed: int = 0) -> tuple["TaskSet", ...]:
        """Draw ``sum(sizes)`` different tasks and deal them out: finite sets of which no two share a task.

        Args:
            sizes: The number of tasks of each set, e.g. ``split(100, 20)`` for 100 to train on and 20 to test on.
            seed: Seeds the draws.

        Raises:
            ValueError: A size is not positive, or there are fewer different tasks than asked for.
        """
        if not sizes:
            raise ValueError("split needs the size of at least one set; got none.")
        for size in sizes:
            check_integer("the size of a set", size)
        check_integer("seed", seed, least=0)
        available = self._num_different()
        if available < sum(sizes):
            raise ValueError(f"there are only {int(available)} different tasks; got {sum(sizes)} to deal out.")
        # Where nobody counted them: intervals may be so narrow that they hold only a few numbers.
        choices = [marginal for marginal in self.parameters.values() if isinstance(marginal, Choice)]
        patience = max(_PATIENCE, 100 * math.prod(len(choice.values) for choice in choices))
        rng, tasks, in_vain = np.random.default_rng(seed), dict[Task, None](), 0
        while len(tasks) < sum(sizes):
            known = len(tasks)
            tasks |= dict.fromkeys(self.sample_batch(rng, sum(sizes) - known))
            in_vain = in_vain + 1 if len(tasks) == known else 0
            if in_vain > patience:
                raise ValueError(f"there are hardly more than {known} different tasks; got {sum(sizes)} to deal out.")
        dealt = list(tasks)
        return tuple(TaskSet(dealt[sum(sizes[:i]) : sum(sizes[: i + 1])]) for i in range(len(sizes)))

    def _num_different(self) -> float:
        """How many different tasks there are, infinity where nobody counted them."""
        return math.inf

    def to_json(self) -> str:
        """The distribution as JSON: the exact inverse of :meth:`from_json`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, task_type: type[Task] | None = None) -> Self:
        """The distribution that :meth:`to_json` wrote; the arguments and errors are those of :meth:`from_dict`."""
        try:
            parsed = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"a distribution must be JSON; got {shown(text, 100)} ({error}).") from None
        return cls.from_dict(parsed, task_type)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], task_type: type[Task] | None = None) -> Self:
        """The exact inverse of :meth:`to_dict`.

        Args:
            data: What :meth:`to_dict` gave.
            task_type: The class of the tasks; None for the subclass of ``Task`` that ``data`` names.

        Raises:
            ValueError: The data are not of such a distribution, or of another class of tasks.
        """
        distribution = distribution_from_dict(data, task_type)
        if not isinstance(distribution, cls):
            raise ValueError(f"the data must be of a {cls.__name__}; got those of a {type(distribution).__name__}.")
        return distribution


@dataclass(frozen=True)
class TaskDistribution(Distribution):
    """Independent distributions of some parameters of a task; the other parameters keep their defaults.

    Example:
        >>> distribution = TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.75)), "polarity": Choice(-1, 1)})
        >>> task = distribution.sample(np.random.default_rng(0))
        >>> distribution.contains(task)
        True
        >>> TaskDistribution.from_json(distribution.to_json()) == distribution
        True

    Args:
        task_type: The class of the tasks.
        parameters: The distribution of each parameter that varies, by name.
    """

    task_type: type[Task]
    _items: tuple[tuple[str, Marginal], ...]

    def __init__(self, task_type: type[Task], parameters: Mapping[str, Marginal]) -> None:
        if not isinstance(parameters, Mapping):
            raise ValueError(f"parameters must be a dictionary from name to distribution; got {shown(parameters)}.")
        check_task_type(task_type)
        for name in (*task_type.signs, *task_type.positive, *task_type.whole, *task_type.limits, *parameters):
            check_choice(f"a parameter of {task_type.__name__}", name, task_type.parameter_names())
        for name, marginal in parameters.items():
            if type(marginal) not in (Uniform, LogUniform, Choice):
                raise ValueError(f"{name} must have a Uniform, a LogUniform or a Choice; got {shown(marginal)}.")
            if name in task_type.signs and not isinstance(marginal, Choice):
                raise ValueError(f"{name} must have a Choice of +1 and -1, as it is a sign; got {shown(marginal)}.")
            if name in task_type.whole and not isinstance(marginal, Choice):
                raise ValueError(f"{name} must have a Choice, as it is a whole number; got {shown(marginal)}.")
            for bound in marginal.values if isinstance(marginal, Choice) else marginal.bounds:
                task_type.from_dict({name: bound})  # what no task can have, no distribution may draw
        object.__setattr__(self, "task_type", task_type)
        object.__setattr__(self, "_items", tuple(parameters.items()))

    @property
    def parameters(self) -> dict[str, Marginal]:
        """The distribution of each parameter that varies, by name, as a new dictionary."""
        return dict(self._items)

    def sample_batch(self, rng: np.random.Generator, num_tasks: int) -> TaskBatch:
        """Draw tasks, with one call of ``rng`` for each parameter that varies and each task, parameter by parameter."""
        check_generator(rng)
        check_integer("num_tasks", num_tasks, least=0)
        values = np.repeat(self._defaults, num_tasks, axis=1)
        for index, (_, marginal) in zip(self._indices, self._items, strict=True):
            values[index] = marginal.sample(rng, num_tasks)
        return TaskBatch.from_values(self.task_type, values)

    @functools.cached_property
    def _defaults(self) -> npt.NDArray[np.float64]:
        """The default of each parameter: ``Float64[P 1]``."""
        return np.array([[value] for value in self.task_type().to_dict().values()], dtype=np.float64)

    @functools.cached_property
    def _indices(self) -> list[int]:
        """Where the parameters that vary are among all of the task."""
        names = self.task_type.parameter_names()
        return [names.index(name) for name, _ in self._items]

    def contains(self, task: Task) -> bool:
        """Whether a draw can give ``task``."""
        parameters = self.parameters
        return type(task) is self.task_type and all(
            parameters[name].contains(value) if name in parameters else value == default
            for (name, value), default in zip(task.to_dict().items(), self.task_type().to_dict().values(), strict=True)
        )

    def _num_different(self) -> float:
        marginals = [marginal for _, marginal in self._items if marginal.bounds[0] < marginal.bounds[1]]
        if all(isinstance(marginal, Choice) for marginal in marginals):
            return math.prod(len(set(marginal.values)) for marginal in marginals if isinstance(marginal, Choice))
        return math.inf

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the exact inverse of :meth:`from_dict`."""
        return {
            "task_type": self.task_type.__name__,
            "parameters": {name: marginal.to_dict() for name, marginal in self._items},
        }


@dataclass(frozen=True)
class TaskSet(Distribution):
    """The uniform distribution over finitely many different tasks.

    Attributes:
        tasks: The tasks, all of one type, no two of them equal.
    """

    tasks: tuple[Task, ...]

    def __init__(self, tasks: Sequence[Task]) -> None:
        TaskBatch.from_tasks(tasks)  # checks them
        if len(set(tasks)) < len(tasks):
            repeated = next(task for i, task in enumerate(tasks) if task in tasks[:i])
            raise ValueError(f"the tasks of a set must differ; got more than one {repeated}.")
        object.__setattr__(self, "tasks", tuple(tasks))

    @functools.cached_property
    def _batch(self) -> TaskBatch:
        return TaskBatch.from_tasks(self.tasks)

    @property
    def task_type(self) -> type[Task]:  # type: ignore[override]
        """The class of the tasks."""
        return type(self.tasks[0])

    @property
    def parameters(self) -> dict[str, Marginal]:
        """The values of each parameter that differs between the tasks, by name."""
        columns = {name: sorted(set(column.tolist())) for name, column in self._batch.to_dict().items()}
        return {name: Choice(*values) for name, values in columns.items() if len(values) > 1}

    def sample_batch(self, rng: np.random.Generator, num_tasks: int) -> TaskBatch:
        """Draw tasks with replacement, with one call of ``rng`` for each."""
        check_generator(rng)
        check_integer("num_tasks", num_tasks, least=0)
        return self._batch[rng.integers(len(self.tasks), size=num_tasks)]

    def contains(self, task: Task) -> bool:
        """Whether ``task`` is one of the set."""
        return task in self.tasks

    def _num_different(self) -> float:
        return len(self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the exact inverse of :meth:`from_dict`."""
        return {"task_type": self.task_type.__name__, "tasks": [task.to_dict() for task in self.tasks]}


# What reads the dictionary of a distribution that another module defines, by the key that tells its kind.
_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Distribution]]] = {}
# What makes the classes of tasks that another module makes when they are asked for, by their names.
_MAKERS: Final[list[Callable[[str], type[Task] | None]]] = []


def register_kind(key: str, read: Callable[[Mapping[str, Any]], Distribution]) -> None:
    """Let :func:`distribution_from_dict` read dictionaries of ``"task_type"`` and ``key`` with ``read``."""
    _READERS[key] = read


def register_task_types(make: Callable[[str], type[Task] | None]) -> None:
    """Let :func:`distribution_from_dict` ask ``make`` for a class of tasks by its name; None where it is no such."""
    _MAKERS.append(make)


def distribution_from_dict(data: Mapping[str, Any], task_type: type[Task] | None = None) -> Distribution:
    """The distribution whose ``to_dict`` gave ``data``; arguments and errors are those of its ``from_dict``."""
    for key, read in _READERS.items():
        if isinstance(data, Mapping) and set(data) == {"task_type", key}:
            distribution = read(data)
            if task_type is not None and task_type is not distribution.task_type:
                raise ValueError(f"the tasks must be of type {task_type.__name__!r}; got {shown(data['task_type'])}.")
            return distribution
    if not isinstance(data, Mapping) or set(data) not in ({"task_type", "parameters"}, {"task_type", "tasks"}):
        raise ValueError(
            f"a distribution must be a dictionary of 'task_type' and either 'parameters' or 'tasks'; got {shown(data)}."
        )
    found = _find_task_type(data["task_type"]) if task_type is None else task_type
    if found.__name__ != data["task_type"]:
        raise ValueError(f"the tasks must be of type {found.__name__!r}; got {shown(data['task_type'])}.")
    if not isinstance(data.get("parameters", {}), Mapping) or not isinstance(data.get("tasks", []), list | tuple):
        raise ValueError(f"'parameters' must be a dictionary and 'tasks' a list; got {shown(data)}.")
    if "tasks" in data:
        return TaskSet([found.from_dict(task) for task in data["tasks"]])
    return TaskDistribution(found, {name: marginal_from_dict(name, item) for name, item in data["parameters"].items()})


def _find_task_type(name: str) -> type[Task]:
    def subclasses(of: type[Task]) -> list[type[Task]]:
        return [inner for child in of.__subclasses__() for inner in (child, *subclasses(child))]

    for make in _MAKERS:
        if isinstance(name, str) and (made := make(name)) is not None:
            return made
    known = {task_type.__name__: task_type for task_type in subclasses(Task)}
    check_choice("task_type", name, list(known))
    return known[name]
