"""The catalogue of task families: what each environment id draws its tasks from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from ssm_metarl_gym.checks import check_choice, shown
from ssm_metarl_gym.seeding import seed_sequence
from ssm_metarl_gym.tasks.actuators import ActuatorDistribution, ActuatorTask, check_fields_of_distribution
from ssm_metarl_gym.tasks.classic import (
    CartPoleTask,
    ComplexODETask,
    DoubleIntegratorTask,
    PendulumTask,
    PointNavigationTask,
)
from ssm_metarl_gym.tasks.distributions import Distribution, TaskDistribution, TaskSet, distribution_from_dict
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Marginal, Uniform, overlap
from ssm_metarl_gym.tasks.mujoco import (
    AntDirTask,
    HalfCheetahDirTask,
    HalfCheetahVelTask,
    HopperTask,
    ModelTask,
    Walker2dTask,
)
from ssm_metarl_gym.tasks.task import Task

__all__ = ["FAMILIES", "SPLITS", "TaskFamily", "actuator_family", "parse_family", "point_actuators"]

SPLITS: Final = ("train", "interpolation", "extrapolation")


@dataclass(frozen=True)
class TaskFamily:
    """What an environment id names: the distributions of its tasks.

    Attributes:
        train: The distribution of the split ``train``.
        extrapolation: That of the split ``extrapolation``: every parameter outside its training range. None where there
            is no such split.
        interpolation: That of the split ``interpolation``; None for the one of ``train``, from a stream of its own.
            Where ``train`` is a finite set, there is no such split unless it is given.

    Raises:
        ValueError: The distributions are of different types of tasks.
    """

    train: Distribution
    extrapolation: Distribution | None = None
    interpolation: Distribution | None = None
    stream_keys: ClassVar[dict[str, int]] = {split: key for key, split in enumerate(SPLITS)}

    def __post_init__(self) -> None:
        for split in SPLITS:
            distribution = getattr(self, split)
            is_missing = distribution is None and split != "train"
            if not (is_missing or isinstance(distribution, Distribution)):
                raise ValueError(f"{split} must be a TaskDistribution or a TaskSet; got {shown(distribution)}.")
        types = {split: getattr(self, split).task_type for split in SPLITS if getattr(self, split) is not None}
        if len(set(types.values())) > 1:
            raise ValueError(f"the distributions of a family must be of one type of task; got {types}.")

    @property
    def task_type(self) -> type[Task]:
        """The class of the tasks."""
        return self.train.task_type

    @property
    def splits(self) -> list[str]:
        """The splits that the family has."""
        missing = {"extrapolation"} if self.extrapolation is None else set()
        # The tasks of a finite set are all trained on: none would be held out.
        if self.interpolation is None and isinstance(self.train, TaskSet):
            missing.add("interpolation")
        return [split for split in SPLITS if split not in missing]

    def distribution(self, split: str) -> Distribution:
        """The distribution of a split."""
        if split in SPLITS and split not in self.splits:
            raise ValueError(
                f"split must be one of {self.splits}; got {shown(split)}, for which this family has no tasks. "
                f"Give TaskFamily({split}=...)."
            )
        check_choice("split", split, self.splits)
        distribution: Distribution | None = getattr(self, split)
        return self.train if distribution is None else distribution

    def generator(self, split: str, seed: int) -> np.random.Generator:
        """A generator for the tasks of a split; different splits never share a stream, whatever the seed."""
        return np.random.default_rng(seed_sequence(seed, self.stream_keys[split]))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: the exact inverse of :meth:`from_dict`."""
        return {split: getattr(self, split).to_dict() for split in SPLITS if getattr(self, split) is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], task_type: type[Task] | None = None) -> "TaskFamily":
        """The exact inverse of :meth:`to_dict`; arguments and errors are those of ``TaskDistribution.from_dict``."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a family must be a dictionary from split to distribution; got {shown(data)}.")
        for split in data:
            check_choice("split", split, SPLITS)
        if "train" not in data:
            raise ValueError(f"a family must have a distribution for the split 'train'; got {list(data)}.")
        return cls(**{split: distribution_from_dict(item, task_type) for split, item in data.items()})


def parse_family(family: Any, task_type: type[Task]) -> TaskFamily:
    """The family that a user gave: its name, itself, a distribution to train on, or the dictionary of either."""
    if isinstance(family, str):
        named = {name: known for name, known in FAMILIES.items() if known.task_type is task_type}
        if issubclass(task_type, ActuatorTask):
            named.setdefault("PointActuators", point_actuators(task_type.num_motors()))
        check_choice("family", family, list(named))
        return named[family]
    if isinstance(family, Mapping):
        family = (
            distribution_from_dict(family, task_type)
            if "task_type" in family
            else TaskFamily.from_dict(family, task_type)
        )
    if isinstance(family, Distribution):
        family = TaskFamily(family)
    if not isinstance(family, TaskFamily) or family.task_type is not task_type:
        raise ValueError(
            f"family must be a name, a TaskFamily or a TaskDistribution over {task_type.__name__}s; "
            f"got {shown(family)}."
        )
    return family


def actuator_family(
    num_motors: int,
    *,
    gain: Marginal = Uniform((0.6, 1.4)),  # noqa: B008 - a frozen value
    extrapolation_gain: Marginal = Choice(0.4, 1.7),  # noqa: B008 - a frozen value
    **others: Any,
) -> TaskFamily:
    """The family of maps that differ in their gains alone between training and extrapolation.

    Args:
        num_motors: Number of motors d.
        gain: The gains of training and interpolation.
        extrapolation_gain: The gains of extrapolation, all of them outside.
        **others: The other fields of an :class:`ActuatorDistribution`, which all splits have.

    Raises:
        ValueError: An argument has no valid value, or gains of extrapolation can be drawn in training.
    """
    check_fields_of_distribution("an argument of actuator_family", others)
    train = ActuatorDistribution(num_motors, gain=gain, **others)
    extrapolation = ActuatorDistribution(num_motors, gain=extrapolation_gain, **others)
    if overlap(gain, extrapolation_gain):
        raise ValueError(
            f"the gains of extrapolation must lie outside those of training; got {extrapolation_gain} and {gain}. Give "
            "others as extrapolation_gain."
        )
    return TaskFamily(train, extrapolation)


def point_actuators(dimension: int) -> TaskFamily:
    """The family ``PointActuators`` in so many dimensions: an orthogonal mix of motors with gains."""
    return actuator_family(
        dimension, gain=Uniform((0.7, 1.3)), extrapolation_gain=Uniform((1.3, 2.0)), sign=False, rotation=True
    )


def _family(
    task_type: type[Task], train: dict[str, Marginal], extrapolation: dict[str, Marginal], **shared: Marginal
) -> TaskFamily:
    return TaskFamily(TaskDistribution(task_type, train | shared), TaskDistribution(task_type, extrapolation | shared))


def _multipliers(task_type: type[ModelTask]) -> TaskFamily:
    """The ranges of https://github.com/dennisl88/rand_param_envs: 1.5^U(-3, 3), and 1.3^U(-3, 3) for the damping."""
    bases = {name: 1.3 if name.endswith("_damping") else 1.5 for name in task_type.parameter_names()}
    return _family(
        task_type,
        {name: LogUniform((base**-3, base**3)) for name, base in bases.items()},
        {name: LogUniform((base**-4, base**-3), (base**3, base**4)) for name, base in bases.items()},
    )


# The ranges R ("random") and E ("extreme") of Packer et al. 2018, "Assessing Generalization in Deep Reinforcement
# Learning", https://arxiv.org/abs/1810.12282. In E every parameter lies outside its training range at once.
_CARTPOLE: Final[tuple[dict[str, Marginal], dict[str, Marginal]]] = (
    {"force_mag": Uniform((5, 15)), "length": Uniform((0.25, 0.75)), "masspole": Uniform((0.05, 0.5))},
    {
        "force_mag": Uniform((1, 5), (15, 20)),
        "length": Uniform((0.05, 0.25), (0.75, 1.0)),
        "masspole": Uniform((0.01, 0.05), (0.5, 1.0)),
    },
)
_PENDULUM: Final[tuple[dict[str, Marginal], dict[str, Marginal]]] = (
    {"m": Uniform((0.75, 1.25)), "l": Uniform((0.75, 1.25))},
    {"m": Uniform((0.5, 0.75), (1.25, 1.5)), "l": Uniform((0.5, 0.75), (1.25, 1.5))},
)
_SIGN: Final = Choice(-1, 1)
_AIB_INNER: Final = Uniform((0.5, 1.5))
_AIB_OUTER: Final = Uniform((0.1, 0.5), (1.5, 2.0))

FAMILIES: Final[dict[str, TaskFamily]] = {
    "CartPole": _family(CartPoleTask, *_CARTPOLE),
    "CartPolePolarity": _family(CartPoleTask, *_CARTPOLE, polarity=_SIGN),
    "CartPoleSwitch": _family(CartPoleTask, *_CARTPOLE, polarity=_SIGN),
    "Pendulum": _family(PendulumTask, *_PENDULUM),
    "PendulumPolarity": _family(PendulumTask, *_PENDULUM, polarity=_SIGN),
    "PendulumSwitch": _family(PendulumTask, *_PENDULUM, polarity=_SIGN),
    # The goals of MAML (https://arxiv.org/abs/1703.03400, section 5.3); the extrapolation is this project's.
    "PointNavigation": _family(
        PointNavigationTask,
        dict.fromkeys(("goal_x", "goal_y"), Uniform((-0.5, 0.5))),
        dict.fromkeys(("goal_x", "goal_y"), Uniform((-0.75, -0.5), (0.5, 0.75))),
    ),
    # The hidden maps of this project's study, in two dimensions: of others see point_actuators.
    "PointActuators": point_actuators(2),
    # The ranges of AIB, the Actuator Inversion Benchmark of DMA*-SH (https://arxiv.org/abs/2602.06550), of which it has
    # finite sets: see tasks/aib.py.
    "DoubleIntegrator": _family(DoubleIntegratorTask, {"mass": _AIB_INNER}, {"mass": _AIB_OUTER}, sign=_SIGN),
    "DoubleIntegratorFriction": _family(
        DoubleIntegratorTask,
        {"mass": _AIB_INNER, "friction": _AIB_INNER},
        {"mass": _AIB_OUTER, "friction": _AIB_OUTER},
    ),
    "ComplexODE": _family(
        ComplexODETask,
        dict.fromkeys(("c0", "c1"), Uniform((-5, 5))),
        dict.fromkeys(("c0", "c1"), Uniform((-10, -5), (5, 10))),
    ),
    # The benchmarks of MAML (https://arxiv.org/abs/1703.03400), ProMP (https://arxiv.org/abs/1810.06784) and PEARL
    # (https://arxiv.org/abs/1903.08254), on Gymnasium's MuJoCo environments.
    "HalfCheetahVel": _family(HalfCheetahVelTask, {"velocity": Uniform((0, 3))}, {"velocity": Uniform((3, 4))}),
    "HalfCheetahDir": TaskFamily(TaskDistribution(HalfCheetahDirTask, {"direction": _SIGN})),
    "AntDir": TaskFamily(TaskDistribution(AntDirTask, {"direction": Uniform((0, 2 * math.pi))})),
    "HopperParams": _multipliers(HopperTask),
    "Walker2dParams": _multipliers(Walker2dTask),
    # The motors of Gymnasium's robots, reversed, weak or strong, in Reacher swapped too: this project's.
    "ReacherActuators": actuator_family(2, permutation=True),
    "HalfCheetahActuators": actuator_family(6),
    "AntActuators": actuator_family(8),
    "HopperActuators": actuator_family(3),
    "Walker2dActuators": actuator_family(6),
}
