"""The tasks of the families that need nothing but Gymnasium."""

from dataclasses import dataclass

from ssm_metarl_gym.tasks.task import Task

__all__ = ["CartPoleTask", "ComplexODETask", "DoubleIntegratorTask", "PendulumTask", "PointNavigationTask"]

# Limits of what the physics multiply by, and of what they divide by: no step overflows within them.
_FACTOR, _DIVISOR = (0.0, 1e6), (1e-6, 1e6)


@dataclass(frozen=True)
class CartPoleTask(Task):
    """The physics of one cart-pole. The defaults are those of Gymnasium's ``CartPole-v1``.

    Attributes:
        polarity: +1, or -1 where action 1 pushes to the left and action 0 to the right.
        gravity: Gravitational acceleration, m/s^2.
        masscart: Mass of the cart, kg.
        masspole: Mass of the pole, kg.
        length: *Half* the length of the pole, m (as in Gymnasium).
        force_mag: Magnitude of the force that an action exerts on the cart, N.
    """

    signs = ("polarity",)
    positive = ("gravity", "masscart", "masspole", "length", "force_mag")
    limits = dict.fromkeys(("gravity", "masspole", "force_mag"), _FACTOR) | dict.fromkeys(
        ("masscart", "length"), _DIVISOR
    )

    polarity: int = 1
    gravity: float = 9.8
    masscart: float = 1.0
    masspole: float = 0.1
    length: float = 0.5
    force_mag: float = 10.0


@dataclass(frozen=True)
class PendulumTask(Task):
    """The physics of one pendulum. The defaults are those of Gymnasium's ``Pendulum-v1``, whose names these are.

    Attributes:
        polarity: +1, or -1 where the torque acts against the command.
        g: Gravitational acceleration, m/s^2.
        m: Mass of the pendulum, kg.
        l: Length of the pendulum, m.
        gain: Torque per unit of commanded torque.
    """

    signs = ("polarity",)
    positive = ("g", "m", "l", "gain")
    limits = dict.fromkeys(("g", "gain"), _FACTOR) | dict.fromkeys(("m", "l"), _DIVISOR)

    polarity: int = 1
    g: float = 10.0
    m: float = 1.0
    l: float = 1.0  # noqa: E741 - Gymnasium's own name for it
    gain: float = 1.0


@dataclass(frozen=True)
class PointNavigationTask(Task):
    """The goal of a point in the plane, whose episodes start at the origin.

    Attributes:
        goal_x: First coordinate of the goal; the default goal is a corner of the square of the training tasks.
        goal_y: Second coordinate of the goal.
    """

    limits = dict.fromkeys(("goal_x", "goal_y"), (-1e6, 1e6))

    goal_x: float = 0.5
    goal_y: float = 0.5


@dataclass(frozen=True)
class DoubleIntegratorTask(Task):
    """The physics of a mass that a force pushes through the plane.

    Attributes:
        sign: +1, or -1 where the force acts against the command.
        mass: Mass, which the force is divided by.
        friction: Loss of velocity, by the mass.
    """

    signs = ("sign",)
    positive = ("mass",)
    limits = {"mass": _DIVISOR, "friction": (0.0, 1e6)}  # noqa: RUF012 - as in Task

    sign: int = 1
    mass: float = 1.0
    friction: float = 0.0


@dataclass(frozen=True)
class ComplexODETask(Task):
    """What a complex action a does to the rate of a number: ``Re(c0 a + c1 a^2)``.

    Attributes:
        c0: What acts in proportion to the action.
        c1: What acts in proportion to its square.
    """

    switch_draws = True
    limits = dict.fromkeys(("c0", "c1"), (-1e6, 1e6))

    c0: float = 5.0
    c1: float = 0.0
