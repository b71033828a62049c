"""Tasks, distributions over tasks, and the catalogue of task families.

A *task* is one setting of the physical parameters that an agent is not told. A *distribution* draws tasks. A *family*
is what an environment id names: a distribution for each split. All are frozen, hashable values without a random
stream of their own: whoever samples brings the generator.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from ssm_metarl_gym.checks import check_choice, is_number

__all__ = ["FAMILIES", "SPLITS", "CartPoleTask", "Choice", "PendulumTask", "Task", "TaskDistribution", "Uniform"]

SPLITS: Final = ("train", "interpolation", "extrapolation")


@dataclass(frozen=True)
class Task:
    """The parameters of one task, every one positive and finite but for ``polarity``.

    Attributes:
        polarity: The sign with which the agent's force or torque acts, +1 or -1.
    """

    polarity: int = 1

    def __post_init__(self) -> None:
        for name in self.parameter_names():
            value = getattr(self, name)
            if not is_number(value):
                raise ValueError(f"{name} must be a number; got {value!r}.")
            number = float(value)
            if name == "polarity":
                if number not in (-1.0, 1.0):
                    raise ValueError(f"polarity must be +1 or -1; got {value!r}.")
                object.__setattr__(self, name, int(number))
            else:
                if not (math.isfinite(number) and number > 0.0):
                    raise ValueError(f"{name} must be finite and > 0; got {value!r}. Give a positive number.")
                object.__setattr__(self, name, number)

    @classmethod
    def parameter_names(cls) -> list[str]:
        """The names of all parameters, in the order of the fields."""
        return [parameter.name for parameter in fields(cls)]

    @property
    def task_id(self) -> int:
        """A 63-bit digest of the parameters: equal tasks have equal ids, in every process."""
        text = json.dumps([type(self).__name__, self.to_dict()], sort_keys=True)
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

    def to_dict(self) -> dict[str, float]:
        """All parameters by name, as a new dictionary: the exact inverse of :meth:`from_dict`."""
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, parameters: Mapping[str, Any]) -> Self:
        """A task with the given parameters, and the defaults for those not given.

        Raises:
            ValueError: A parameter does not exist (the message names the nearest that does) or has no valid value.
        """
        if not isinstance(parameters, Mapping):
            raise ValueError(f"a task must be a dictionary from parameter name to value; got {parameters!r}.")
        for name in parameters:
            check_choice(f"a parameter of {cls.__name__}", name, cls.parameter_names())
        return cls(**parameters)


@dataclass(frozen=True)
class CartPoleTask(Task):
    """The physics of one cart-pole. The defaults are those of Gymnasium's ``CartPole-v1``.

    Attributes:
        gravity: Gravitational acceleration, m/s^2.
        masscart: Mass of the cart, kg.
        masspole: Mass of the pole, kg.
        length: *Half* the length of the pole, m (as in Gymnasium).
        force_mag: Magnitude of the force that an action exerts on the cart, N.
        polarity: +1, or -1 where action 1 pushes to the left and action 0 to the right.
    """

    gravity: float = 9.8
    masscart: float = 1.0
    masspole: float = 0.1
    length: float = 0.5
    force_mag: float = 10.0


@dataclass(frozen=True)
class PendulumTask(Task):
    """The physics of one pendulum. The defaults are those of Gymnasium's ``Pendulum-v1``, whose names these are.

    Attributes:
        g: Gravitational acceleration, m/s^2.
        m: Mass of the pendulum, kg.
        l: Length of the pendulum, m.
        gain: Torque per unit of commanded torque.
        polarity: +1, or -1 where the torque acts against the command.
    """

    g: float = 10.0
    m: float = 1.0
    l: float = 1.0  # noqa: E741 - Gymnasium's own name for it
    gain: float = 1.0


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution over a union of disjoint intervals, e.g. ``Uniform((1, 5), (15, 20))``."""

    intervals: tuple[tuple[float, float], ...]

    def __init__(self, *intervals: tuple[float, float]) -> None:
        if not intervals or any(low > high for low, high in intervals):
            raise ValueError(f"Uniform needs at least one interval (low, high) with low <= high; got {intervals}.")
        object.__setattr__(self, "intervals", tuple((float(low), float(high)) for low, high in intervals))

    def sample(self, rng: np.random.Generator) -> float:
        """One draw, for which ``rng`` is called exactly once."""
        position = rng.uniform(0.0, sum(high - low for low, high in self.intervals))
        for low, high in self.intervals:
            if position <= high - low:
                return low + position
            position -= high - low
        return self.intervals[-1][1]  # rounding carried the position past the last interval

    def contains(self, value: float) -> bool:
        """Whether a draw can give ``value``."""
        return any(low <= value <= high for low, high in self.intervals)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        return min(low for low, _ in self.intervals), max(high for _, high in self.intervals)


@dataclass(frozen=True)
class Choice:
    """The uniform distribution over a few values, e.g. ``Choice(-1, 1)``."""

    values: tuple[float, ...]

    def __init__(self, *values: float) -> None:
        if not values:
            raise ValueError("Choice needs at least one value; got none.")
        object.__setattr__(self, "values", values)

    def sample(self, rng: np.random.Generator) -> float:
        """One draw, for which ``rng`` is called exactly once."""
        return self.values[rng.integers(len(self.values))]

    def contains(self, value: float) -> bool:
        """Whether a draw can give ``value``."""
        return value in self.values

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        return min(self.values), max(self.values)


@dataclass(frozen=True)
class TaskDistribution:
    """Independent distributions of some parameters of a task; the other parameters keep their defaults.

    Example:
        >>> distribution = TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.75)), "polarity": Choice(-1, 1)})
        >>> task = distribution.sample(np.random.default_rng(0))
        >>> distribution.contains(task)
        True

    Args:
        task_type: The class of the tasks.
        parameters: The distribution of each parameter that varies, by name.
    """

    task_type: type[Task]
    _items: tuple[tuple[str, Uniform | Choice], ...]

    def __init__(self, task_type: type[Task], parameters: Mapping[str, Uniform | Choice]) -> None:
        for name in parameters:
            check_choice(f"a parameter of {task_type.__name__}", name, task_type.parameter_names())
        object.__setattr__(self, "task_type", task_type)
        object.__setattr__(self, "_items", tuple(parameters.items()))

    @property
    def parameters(self) -> dict[str, Uniform | Choice]:
        """The distribution of each parameter that varies, by name, as a new dictionary."""
        return dict(self._items)

    def sample(self, rng: np.random.Generator) -> Task:
        """Draw one task, with one call of ``rng`` for each parameter that varies."""
        return self.task_type.from_dict({name: distribution.sample(rng) for name, distribution in self._items})

    def contains(self, task: Task) -> bool:
        """Whether a draw can give ``task``."""
        parameters = self.parameters
        return isinstance(task, self.task_type) and all(
            parameters[name].contains(value) if name in parameters else value == default
            for (name, value), default in zip(task.to_dict().items(), self.task_type().to_dict().values(), strict=True)
        )

    def normalise(self, task: Task) -> npt.NDArray[np.float32]:
        """The parameters of ``task`` that vary here, scaled so that this distribution fills [-1, 1]: ``Float[C]``."""
        bounds = [distribution.bounds for _, distribution in self._items]
        return np.array(
            [
                (2.0 * getattr(task, name) - low - high) / (high - low if high > low else 1.0)
                for (name, _), (low, high) in zip(self._items, bounds, strict=True)
            ],
            dtype=np.float32,
        )


@dataclass(frozen=True)
class TaskFamily:
    """What an environment id names: the distributions of its tasks.

    Attributes:
        train: The distribution of the splits ``train`` and ``interpolation`` (each with a stream of its own).
        extrapolation: The distribution of the split ``extrapolation``: every parameter outside its training range.
    """

    train: TaskDistribution
    extrapolation: TaskDistribution
    stream_keys: ClassVar[dict[str, int]] = {split: key for key, split in enumerate(SPLITS)}

    def distribution(self, split: str) -> TaskDistribution:
        """The distribution of a split."""
        check_choice("split", split, SPLITS)
        return self.extrapolation if split == "extrapolation" else self.train

    def generator(self, split: str, seed: int) -> np.random.Generator:
        """A generator for the tasks of a split; different splits never share a stream, whatever the seed."""
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(self.stream_keys[split],)))


def _family(
    task_type: type[Task],
    train: dict[str, Uniform | Choice],
    extrapolation: dict[str, Uniform | Choice],
    **shared: Uniform | Choice,
) -> TaskFamily:
    return TaskFamily(TaskDistribution(task_type, train | shared), TaskDistribution(task_type, extrapolation | shared))


# The ranges R ("random") and E ("extreme") of Packer et al. 2018, "Assessing Generalization in Deep Reinforcement
# Learning", https://arxiv.org/abs/1810.12282. In E every parameter lies outside its training range at once.
_CARTPOLE: Final[tuple[dict[str, Uniform | Choice], dict[str, Uniform | Choice]]] = (
    {"force_mag": Uniform((5, 15)), "length": Uniform((0.25, 0.75)), "masspole": Uniform((0.05, 0.5))},
    {
        "force_mag": Uniform((1, 5), (15, 20)),
        "length": Uniform((0.05, 0.25), (0.75, 1.0)),
        "masspole": Uniform((0.01, 0.05), (0.5, 1.0)),
    },
)
_PENDULUM: Final[tuple[dict[str, Uniform | Choice], dict[str, Uniform | Choice]]] = (
    {"m": Uniform((0.75, 1.25)), "l": Uniform((0.75, 1.25))},
    {"m": Uniform((0.5, 0.75), (1.25, 1.5)), "l": Uniform((0.5, 0.75), (1.25, 1.5))},
)
_SIGN: Final = Choice(-1, 1)

FAMILIES: Final[dict[str, TaskFamily]] = {
    "CartPole": _family(CartPoleTask, *_CARTPOLE),
    "CartPolePolarity": _family(CartPoleTask, *_CARTPOLE, polarity=_SIGN),
    "CartPoleSwitch": _family(CartPoleTask, *_CARTPOLE, polarity=_SIGN),
    "Pendulum": _family(PendulumTask, *_PENDULUM),
    "PendulumPolarity": _family(PendulumTask, *_PENDULUM, polarity=_SIGN),
    "PendulumSwitch": _family(PendulumTask, *_PENDULUM, polarity=_SIGN),
}
