"""The tasks of the MuJoCo families: targets of locomotion, multipliers of physics. None of them needs MuJoCo."""

from dataclasses import dataclass
from typing import Any

from ssm_metarl_gym.tasks.task import Task

__all__ = ["AntDirTask", "HalfCheetahDirTask", "HalfCheetahVelTask", "HopperTask", "ModelTask", "Walker2dTask"]


@dataclass(frozen=True)
class HalfCheetahVelTask(Task):
    """The velocity that a half-cheetah is rewarded for.

    Attributes:
        velocity: Target of the forward velocity, m/s; the default is the middle of the training range.
    """

    limits = {"velocity": (-1e6, 1e6)}  # noqa: RUF012 - as in Task

    velocity: float = 1.5


@dataclass(frozen=True)
class HalfCheetahDirTask(Task):
    """The direction that a half-cheetah is rewarded for.

    Attributes:
        direction: +1 for forwards, the direction of Gymnasium's ``HalfCheetah-v5``, or -1 for backwards.
    """

    signs = ("direction",)

    direction: int = 1


@dataclass(frozen=True)
class AntDirTask(Task):
    """The direction that an ant is rewarded for.

    Attributes:
        direction: Angle of the direction in the horizontal plane, rad, counter-clockwise from the x axis; 0 is the
            direction of Gymnasium's ``Ant-v5``.
    """

    limits = {"direction": (-1e6, 1e6)}  # noqa: RUF012 - as in Task

    direction: float = 0.0


class ModelTask(Task):
    """Multipliers of the physics of a MuJoCo model: subclass it, one field of default 1 for each of them.

    A name consists of a part of the model and a quantity: ``<body>_mass``, ``<body>_inertia`` (the three principal
    moments), ``<joint>_damping``, ``<geom>_friction`` (sliding, torsional and rolling) or ``<motor>_gear``; or it is
    ``gravity``, or a quantity alone for all parts at once. ``ssm_metarl_gym.envs.mujoco_models`` says which a model
    has, and makes an environment of them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.positive = (*cls.positive, *cls.__annotations__)
        cls.limits = dict.fromkeys(cls.positive, (1e-6, 1e6))


@dataclass(frozen=True)
class HopperTask(ModelTask):
    """The physics of one hopper, as multiples of those of Gymnasium's ``Hopper-v5``.

    Attributes:
        torso_mass, thigh_mass, leg_mass, foot_mass: Multiples of 3.67, 4.06, 2.78 and 5.32 kg.
        torso_inertia, thigh_inertia, leg_inertia, foot_inertia: Multiples of the rotational inertias, whatever the
            masses.
        thigh_damping, leg_damping, foot_damping: Multiples of 1 N m s/rad, at the joint above the part.
        floor_friction, torso_friction, thigh_friction, leg_friction, foot_friction: Multiples of 1, 0.9, 0.9, 0.9 and
            2 (sliding). In a contact the larger friction of the two geoms acts.
    """

    torso_mass: float = 1.0
    thigh_mass: float = 1.0
    leg_mass: float = 1.0
    foot_mass: float = 1.0
    torso_inertia: float = 1.0
    thigh_inertia: float = 1.0
    leg_inertia: float = 1.0
    foot_inertia: float = 1.0
    thigh_damping: float = 1.0
    leg_damping: float = 1.0
    foot_damping: float = 1.0
    floor_friction: float = 1.0
    torso_friction: float = 1.0
    thigh_friction: float = 1.0
    leg_friction: float = 1.0
    foot_friction: float = 1.0


@dataclass(frozen=True)
class Walker2dTask(ModelTask):
    """The physics of one walker, as multiples of those of Gymnasium's ``Walker2d-v5``; ``_left`` marks its left leg.

    Attributes:
        torso_mass, thigh_mass, leg_mass, foot_mass, thigh_left_mass, leg_left_mass, foot_left_mass: Multiples of 3.67
            kg for the torso and of 4.06, 2.78 and 3.17 kg for thighs, legs and feet.
        torso_inertia, ...: Multiples of the rotational inertias of the same parts, whatever the masses.
        thigh_damping, ...: Multiples of 0.1 N m s/rad, at the joint above the part; the torso has none.
        floor_friction, torso_friction, ...: Multiples of 0.7 for the floor, 1.9 for the feet and 0.9 for the other
            parts (sliding). In a contact the larger friction of the two geoms acts.
    """

    torso_mass: float = 1.0
    thigh_mass: float = 1.0
    leg_mass: float = 1.0
    foot_mass: float = 1.0
    thigh_left_mass: float = 1.0
    leg_left_mass: float = 1.0
    foot_left_mass: float = 1.0
    torso_inertia: float = 1.0
    thigh_inertia: float = 1.0
    leg_inertia: float = 1.0
    foot_inertia: float = 1.0
    thigh_left_inertia: float = 1.0
    leg_left_inertia: float = 1.0
    foot_left_inertia: float = 1.0
    thigh_damping: float = 1.0
    leg_damping: float = 1.0
    foot_damping: float = 1.0
    thigh_left_damping: float = 1.0
    leg_left_damping: float = 1.0
    foot_left_damping: float = 1.0
    floor_friction: float = 1.0
    torso_friction: float = 1.0
    thigh_friction: float = 1.0
    leg_friction: float = 1.0
    foot_friction: float = 1.0
    thigh_left_friction: float = 1.0
    leg_left_friction: float = 1.0
    foot_left_friction: float = 1.0
