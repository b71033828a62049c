"""Tasks whose actions go through a hidden map: motors that are swapped, reversed, weak, dead, mixed or late."""

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, make_dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import as_array, check_choice, check_flag, check_generator, check_integer, shown
from ssm_metarl_gym.tasks.distributions import Distribution, register_kind, register_task_types
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Marginal, Uniform, marginal_from_dict
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = [
    "LARGEST_DELAY",
    "ActuatorDistribution",
    "ActuatorTask",
    "actuator_task_type",
    "check_fields_of_distribution",
]

Floats = npt.NDArray[np.float64]

# The most motors that a task can have, and the most steps that an action can be late.
_MOST_MOTORS: Final = 64
LARGEST_DELAY: Final = 1000
# How far a product of drawn numbers may be from what it is without rounding.
_TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class ActuatorTask(Task):
    """What the actuators make of an action ``a``: ``M a + offset``, some steps late.

    This is what the tasks of all numbers of motors share; :func:`actuator_task_type` gives the class for one number d,
    whose fields are, with the identity as their defaults,

    * ``map_<i>_<j>``: the entry of M in row i and column j, what motor i does for each unit that motor j is told;
    * ``offset_<i>``: what is added to motor i, in half ranges of the action space;
    * ``delay``: the number of steps that an action is late, a whole number.
    """

    switch_draws = True

    @classmethod
    def num_motors(cls) -> int:
        """The number of motors d."""
        return sum(name.startswith("offset_") for name in cls.parameter_names())

    @property
    def matrix(self) -> Floats:
        """M, a new array: ``Float64[d d]``."""
        num_motors = self.num_motors()
        return np.array(list(self.to_dict().values())[: num_motors**2]).reshape(num_motors, num_motors)

    @property
    def offsets(self) -> Floats:
        """The offsets, a new array: ``Float64[d]``."""
        num_motors = self.num_motors()
        return np.array(list(self.to_dict().values())[num_motors**2 : -1])

    @classmethod
    def from_matrix(cls, matrix: npt.ArrayLike, offsets: npt.ArrayLike = 0.0, delay: int = 0) -> "ActuatorTask":
        """The task of a matrix.

        Args:
            matrix: M, ``Float[d d]``.
            offsets: One number, or one for each motor: ``Float[d]``.
            delay: Number of steps.

        Raises:
            ValueError: The matrix or the offsets have another shape, or a number is not valid; or this is the class of
                no number of motors.
        """
        if not cls.num_motors():
            raise ValueError(
                f"from_matrix must be that of a class for one number of motors; got {cls.__name__}'s. Use "
                "actuator_task_type(2).from_matrix(...), for example."
            )
        num_motors, entries, each = cls.num_motors(), as_array(matrix), as_array(offsets)
        if entries.shape != (num_motors, num_motors) or entries.dtype.kind not in "biuf":
            raise ValueError(f"matrix must be numbers of shape {(num_motors, num_motors)}; got {shown(matrix)}.")
        if each.shape not in ((), (num_motors,)) or each.dtype.kind not in "biuf":
            raise ValueError(f"offsets must be one number or {num_motors}, one for each motor; got {shown(offsets)}.")
        offset = np.broadcast_to(each, num_motors)
        numbers = (*entries.astype(np.float64).ravel().tolist(), *offset.astype(np.float64).tolist(), delay)
        return cls.from_dict(dict(zip(cls.parameter_names(), numbers, strict=True)))


@functools.cache
def actuator_task_type(num_motors: int) -> type[ActuatorTask]:
    """The class of the tasks with so many motors, always the same one, with the name ``ActuatorTask<d>``.

    Example:
        >>> task = actuator_task_type(2)(map_0_0=-1.0, delay=3)
        >>> task.matrix.tolist(), task.delay
        ([[-1.0, 0.0], [0.0, 1.0]], 3.0)

    Raises:
        ValueError: The number is not from 1 to 64.
    """
    check_integer("num_motors", num_motors)
    if num_motors > _MOST_MOTORS:
        raise ValueError(f"num_motors must be at most {_MOST_MOTORS}; got {num_motors}.")
    motors = range(num_motors)
    entries = [(f"map_{i}_{j}", float, float(i == j)) for i in motors for j in motors]
    offsets = [(f"offset_{i}", float, 0.0) for i in motors]
    limits = {name: (-1e6, 1e6) for name, *_ in (*entries, *offsets)} | {"delay": (0.0, float(LARGEST_DELAY))}
    docstring = f"The map of {num_motors} motors: see :class:`ActuatorTask`."
    return make_dataclass(
        f"ActuatorTask{num_motors}",
        [*entries, *offsets, ("delay", float, 0.0)],
        bases=(ActuatorTask,),
        frozen=True,
        namespace={"__module__": __name__, "__doc__": docstring, "limits": limits, "whole": ("delay",)},
    )


def _task_type_named(name: str) -> type[ActuatorTask] | None:
    found = re.fullmatch(r"ActuatorTask([1-9]\d?)", name)
    return actuator_task_type(int(found[1])) if found and int(found[1]) <= _MOST_MOTORS else None


def __getattr__(name: str) -> Any:
    # So that a process that has not made a class yet can read pickles of its tasks.
    if (made := _task_type_named(name)) is not None:
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class ActuatorDistribution(Distribution):
    """Hidden maps of motors: ``M = R P diag(sign * gain)`` with a random rotation R and permutation P.

    Example:
        >>> distribution = ActuatorDistribution(3, permutation=True, dead=1)
        >>> task = distribution.sample(np.random.default_rng(0))
        >>> int(np.count_nonzero(task.matrix)), distribution.contains(task)
        (2, True)
        >>> distribution_from_dict(distribution.to_dict()) == distribution
        True

    Attributes:
        num_motors: Number of motors d, from 1 to 64.
        gain: What each motor is drawn its gain from, independently; every draw > 0.
        sign: Whether each motor is reversed with probability 1/2.
        permutation: Whether the motors are swapped, by a permutation drawn uniformly.
        rotation: Whether the motors are mixed by a random orthogonal matrix (rotations and reflections alike, uniform
            in the sense of Haar).
        dead: Number of motors that do nothing, drawn anew for each task.
        offset: What each motor is drawn its offset from, in half ranges of the action space; None for no offsets.
        delay: The numbers of steps that the delay is drawn from.

    Raises:
        ValueError: A field has no valid value.
    """

    num_motors: int
    gain: Marginal = Uniform((0.6, 1.4))  # noqa: RUF009 - a frozen value
    sign: bool = True
    permutation: bool = False
    rotation: bool = False
    dead: int = 0
    offset: Marginal | None = None
    delay: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        actuator_task_type(self.num_motors)  # checks the number
        check_integer("dead", self.dead, least=0)
        if self.dead > self.num_motors:
            raise ValueError(f"dead must be at most the number of motors, {self.num_motors}; got {self.dead}.")
        for name in ("sign", "permutation", "rotation"):
            check_flag(name, getattr(self, name))
            object.__setattr__(self, name, bool(getattr(self, name)))
        for name, marginal in (("gain", self.gain), ("offset", self.offset)):
            if not isinstance(marginal, Uniform | LogUniform | Choice) and not (name == "offset" and marginal is None):
                raise ValueError(f"{name} must be a Uniform, a LogUniform or a Choice; got {shown(marginal)}.")
            for bound in () if marginal is None else marginal.bounds:
                self.task_type.from_dict({f"{'map_0_0' if name == 'gain' else 'offset_0'}": bound})
        if self.gain.bounds[0] <= 0.0:
            raise ValueError(f"every gain must be > 0; got {shown(self.gain)}. Use sign=True and dead=1.")
        delays = tuple(self.delay) if isinstance(self.delay, tuple | list) else ()
        for delay in delays:
            check_integer("delay", delay, least=0)
            self.task_type.from_dict({"delay": delay})
        if not delays:
            raise ValueError(f"delay must be at least one number of steps in a tuple; got {shown(self.delay)}.")
        # As numbers of Python, which JSON can hold.
        object.__setattr__(self, "num_motors", int(self.num_motors))
        object.__setattr__(self, "dead", int(self.dead))
        object.__setattr__(self, "delay", tuple(map(int, delays)))

    @property
    def task_type(self) -> type[ActuatorTask]:  # type: ignore[override]
        """The class of the tasks."""
        return actuator_task_type(self.num_motors)

    @property
    def parameters(self) -> dict[str, Marginal]:
        """The interval of each parameter that may differ from task to task, by name; their joint draw says more."""
        most = self.gain.bounds[1]
        least = 0.0 if self.dead or self.permutation else self.gain.bounds[0]
        interval = Uniform((-most, most)) if self.sign or self.rotation else Uniform((least, most))
        motors, mixed = range(self.num_motors), self.permutation or self.rotation
        told: dict[str, Marginal] = {f"map_{i}_{j}": interval for i in motors for j in motors if mixed or i == j}
        if self.offset is not None:
            told |= {f"offset_{i}": Uniform(self.offset.bounds) for i in motors}
        return told | ({"delay": Choice(*self.delay)} if len(self.delay) > 1 else {})

    def sample_batch(self, rng: np.random.Generator, num_tasks: int) -> TaskBatch:
        """Draw tasks. What cannot vary is not drawn."""
        check_generator(rng)
        check_integer("num_tasks", num_tasks, least=0)
        shape = (num_tasks, self.num_motors)
        gains = self.gain.sample(rng, num_tasks * self.num_motors).reshape(shape)
        if self.sign:
            gains = gains * (2.0 * rng.integers(2, size=shape) - 1.0)
        if self.dead:
            first = np.broadcast_to(np.arange(self.num_motors) < self.dead, shape)
            gains = np.where(rng.permuted(first, axis=1), 0.0, gains)
        matrices = np.broadcast_to(np.eye(self.num_motors), (num_tasks, self.num_motors, self.num_motors))
        if self.permutation:
            order = rng.permuted(np.broadcast_to(np.arange(self.num_motors), shape), axis=1)
            matrices = np.take_along_axis(matrices, order[:, :, None], axis=1)
        if self.rotation:
            # The Q of a matrix of normal numbers is uniform once the diagonal of its R is positive.
            q, r = np.linalg.qr(rng.standard_normal(matrices.shape))
            matrices = (q * np.sign(np.einsum("nii->ni", r))[:, None, :]) @ matrices
        values = np.zeros((len(self.task_type.parameter_names()), num_tasks))
        values[: self.num_motors**2] = (matrices * gains[:, None, :]).reshape(num_tasks, -1).T
        if self.offset is not None:
            values[self.num_motors**2 : -1] = self.offset.sample(rng, values[0].size * self.num_motors).reshape(shape).T
        values[-1] = self.delay[0]
        if len(self.delay) > 1:
            values[-1] = Choice(*self.delay).sample(rng, num_tasks)
        return TaskBatch.from_values(self.task_type, values)

    def contains(self, task: Task) -> bool:
        """Whether a draw can give ``task``, but for rounding."""
        if not isinstance(task, self.task_type) or task.to_dict()["delay"] not in self.delay:
            return False
        matrix, offsets = task.matrix, task.offsets
        squares = matrix.T @ matrix
        gains = np.sqrt(squares.diagonal())
        alive = gains > 0.0
        can_be = [
            # Each motor acts alone, or in a direction that no other acts in.
            np.abs(squares - np.diag(squares.diagonal())).max() <= _TOLERANCE * max(1.0, squares.max()),
            self.rotation or np.count_nonzero(matrix) == np.count_nonzero(alive),
            self.rotation or self.permutation or np.array_equal(matrix, np.diag(matrix.diagonal())),
            self.rotation or self.sign or matrix.min() >= 0.0,
            np.count_nonzero(~alive) == self.dead,
            all(self._can_be_gain(gain) for gain in gains[alive].tolist()),
            all(self.offset.contains(value) if self.offset else value == 0.0 for value in offsets.tolist()),
        ]
        return all(can_be)

    def _can_be_gain(self, gain: float) -> bool:
        near = (gain, gain * (1.0 - _TOLERANCE), gain * (1.0 + _TOLERANCE))
        if isinstance(self.gain, Choice):
            return any(near[1] <= value <= near[2] for value in self.gain.values)
        return any(map(self.gain.contains, near))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the exact inverse of :meth:`from_dict`."""
        numbers = asdict(self) | {
            "gain": self.gain.to_dict(),
            "offset": None if self.offset is None else self.offset.to_dict(),
            "delay": list(self.delay),
        }
        return {"task_type": self.task_type.__name__, "actuators": numbers}


def check_fields_of_distribution(what: str, numbers: Mapping[str, Any]) -> None:
    """The names of numbers must be fields of an :class:`ActuatorDistribution`."""
    for name in numbers:
        check_choice(what, name, [field.name for field in fields(ActuatorDistribution)])


def _from_numbers(data: Mapping[str, Any]) -> ActuatorDistribution:
    """The distribution whose ``to_dict`` gave ``data``."""
    numbers = data["actuators"]
    if not isinstance(numbers, Mapping) or "num_motors" not in numbers:
        raise ValueError(f"'actuators' must be a dictionary with 'num_motors'; got {shown(numbers)}.")
    check_fields_of_distribution("what 'actuators' hold", numbers)
    marginals = {
        name: marginal_from_dict(name, numbers[name])
        for name in ("gain", "offset")
        if name in numbers and not (name == "offset" and numbers[name] is None)
    }
    distribution = ActuatorDistribution(**{**numbers, **marginals})
    if distribution.task_type.__name__ != data["task_type"]:
        raise ValueError(
            f"the tasks must be of type {distribution.task_type.__name__!r}; got {shown(data['task_type'])}."
        )
    return distribution


register_kind("actuators", _from_numbers)
register_task_types(_task_type_named)
