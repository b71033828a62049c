"""A point mass whose motors obey a hidden map, in any number of dimensions."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_integer, shown
from ssm_metarl_gym.envs.actuators import check_actuator_switch, task_after_switch
from ssm_metarl_gym.envs.arguments import LARGEST, Family
from ssm_metarl_gym.envs.plane import LINE_COLOUR, POINT_COLOUR, PlaneEnv
from ssm_metarl_gym.envs.row_physics import RowPhysicsEnv
from ssm_metarl_gym.tasks.actuators import LARGEST_DELAY, ActuatorTask, actuator_task_type

__all__ = ["LateCommands", "TaskPointActuatorsEnv"]

Floats = npt.NDArray[np.float64]

_MOST_DIMENSIONS: Final = 16
# Seconds of a step, the velocity that the command 1 leads to, where the walls are, and the farthest start.
_DT: Final = 0.1
_FORCE: Final = 4.0
_WALL: Final = 3.0
_START: Final = 1.0
_GOAL_COLOUR: Final = (46, 125, 50)
# The colours of the columns of the map, those that the first and the second motor are told.
_COLUMN_COLOURS: Final = ((20, 20, 20), (150, 150, 150))


class TaskPointActuatorsEnv(RowPhysicsEnv[ActuatorTask], PlaneEnv):
    """A point mass in d dimensions, to be brought to the origin by motors that obey a hidden map.

    This project's, to see how ways to cope with what is hidden scale with the number of its dimensions: all else is as
    easy in sixteen dimensions as in one.

    ## Action space
    ``Box(-1, 1, (d,))``: what the motors are told, ``u``.

    ## Observation space
    ``Box`` of the d coordinates (in [-3, 3]) and the d velocities (without bounds); with ``context="visible"`` followed
    by the parameters that vary in the family, scaled to [-1, 1] over the training range.

    ## Dynamics
    ``velocity += 0.1 (4 (M u + offset) - velocity)``, then ``position += 0.1 velocity``, clipped to [-3, 3]. What the
    motors do is not clipped.

    ## Rewards
    ``1 - 2 rms(position) - 0.02 mean(u^2)``, with the position after the step and ``u`` as it reaches the motors; rms
    is the root of the mean square.

    ## Starting state
    At rest, each coordinate uniform in [-1, 1].

    ## Episode end
    The time limit of 100 steps.

    ## Arguments
    * ``dimension``: d, from 1 to 16.
    * ``split``: ``"train"`` (M is a random orthogonal matrix times a gain in [0.7, 1.3] for each column),
      ``"interpolation"`` (the same, from a stream of its own) or ``"extrapolation"`` (gains in [1.3, 2]).
    * ``family``: any other over these tasks, as ``actuator_family`` makes them, offsets and delays included.
    * ``context``: ``"hidden"``, or ``"visible"`` to append the parameters to the observation.
    * ``task``: a dictionary of parameters (see ``ActuatorTask``) that every episode has, or ``None`` to draw them.
    * ``switch``: ``{"step": n}`` draws a new map after n steps, ``{"probability": p}`` after any step with probability
      p, ``None`` never. With ``"motor": g`` beside it, a motor drawn at random has g times its gain from then on in
      place of a new map: 0 for a motor that dies, -1 for one that is reversed, 0.5 for a weak one.
    * ``on_failure``: ``"terminate"`` or ``"restart"``, as for CartPole; nothing can fail.
    * ``observation_noise``: standard deviation of the noise on each component of the observation.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.

    ``reset(options=...)`` takes ``task`` (a dictionary or an ``ActuatorTask``, for this episode) and ``state`` (the
    coordinates, then the velocities). ``info`` holds ``task_id`` and ``task_params`` (those of the *next* step).

    ## Version history
    * v0: initial version.
    """

    edge = _WALL
    task_type = ActuatorTask
    plain_family = "PointActuators"

    def __init__(self, family: Family | None = None, *, dimension: int = 2, **kwargs: Any) -> None:
        check_integer("dimension", dimension)
        if dimension > _MOST_DIMENSIONS:
            raise ValueError(f"dimension must be at most {_MOST_DIMENSIONS}; got {shown(dimension)}.")
        self.task_type = actuator_task_type(int(dimension))
        self.state_limits = (_WALL,) * dimension + (LARGEST,) * dimension
        self._late = LateCommands()
        high = np.repeat(np.array([_WALL, np.inf], dtype=np.float32), dimension)
        super().__init__(family, observation_space=spaces.Box(-high, high), num_actions=dimension, **kwargs)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """A cube of positions, at rest: two of ``Float64[*rows 2d]``."""
        high = np.zeros((*rows, len(self.state_limits)))
        high[..., : len(self.state_limits) // 2] = _START
        return -high, high

    def derive(self, values: Floats) -> Floats:
        """What the motors do: the map column by column and the offsets, in units of velocity, and the delays."""
        size = len(self.state_limits) // 2
        matrices = values[: size**2].reshape(size, size, -1).swapaxes(0, 1).reshape(size**2, -1)
        return np.concatenate([_DT * _FORCE * matrices, _DT * _FORCE * values[size**2 : -1], values[-1:]])

    def advance(
        self, state: npt.NDArray[Any], derived: npt.NDArray[Any], commands: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Push the points, and measure how far they are from the origin."""
        size = len(commands)
        positions, velocities = state[:size], state[size:]
        # Column by column, so that the sums are rounded in the same order for every number of rows.
        columns = derived[: size**2].reshape(size, size, -1)
        velocities *= 1.0 - _DT
        for column, command in zip(columns, commands, strict=True):
            velocities += column * command
        velocities += derived[size**2 : -1]
        positions += _DT * velocities
        np.clip(positions, -_WALL, _WALL, out=positions)
        rewards = np.subtract(1.0, 2.0 * np.sqrt(_mean_square(positions)), dtype=np.float64)
        rewards -= 0.02 * _mean_square(commands)
        return rewards, np.zeros(state.shape[1], dtype=np.bool_)

    def _check_switch(self, switch: Mapping[str, Any] | None) -> dict[str, Any]:
        return check_actuator_switch(switch)

    def _task_after_switch(self) -> ActuatorTask:
        rng = cast("np.random.Generator", self._switch_rng)
        task: ActuatorTask = task_after_switch(self.task, self._switch, self._distribution, rng)
        return task

    def _arriving(self, commands: Floats) -> Floats:
        return self._late.send(commands, self._derived[-1], np.array([self._elapsed]))

    def _paint(self, pygame: Any) -> None:
        """The point by pairs of coordinates (red), the origin (green), and in the corner what the motors do."""
        position = [*self.state[: len(self.state) // 2].tolist(), 0.0]
        pygame.draw.circle(self.screen, _GOAL_COLOUR, self._pixels(0.0, 0.0), 12, width=3)
        for x, y in zip(position[0::2], position[1::2], strict=False):
            pygame.draw.circle(self.screen, POINT_COLOUR, self._pixels(x, y), 7)
        # The columns of the map in the plane of the first two coordinates.
        centre = np.full(2, 0.7 - _WALL)
        pygame.draw.circle(self.screen, LINE_COLOUR, self._pixels(*centre), self._lengths(0.3), width=2)
        matrix = np.pad(self.task.matrix, (0, 1))[:2, :2]
        for column, colour in zip(0.3 * matrix.T, _COLUMN_COLOURS, strict=True):
            pygame.draw.line(self.screen, colour, self._pixels(*centre), self._pixels(*(centre + column)), width=4)


class LateCommands:
    """The actions on their way to the motors of n rows, which obey some steps late.

    Args:
        num_steps: The number of steps that an episode can have, or None.
    """

    def __init__(self, num_steps: int | None = None) -> None:
        longest = LARGEST_DELAY if num_steps is None else min(num_steps, LARGEST_DELAY)
        self._past: deque[npt.NDArray[Any]] = deque(maxlen=longest + 1)

    def send(
        self, commands: npt.NDArray[Any], delays: npt.NDArray[Any], elapsed: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """What arrives in this step, ``Float[A n]``: zeros before the first action of an episode does.

        Args:
            commands: What is sent, ``Float[A n]``.
            delays: The delay of each row, ``Float[n]``.
            elapsed: How many steps the episode of each row has had, ``Int[n]``.
        """
        self._past.append(commands.copy())
        if not delays.any():
            return commands
        arriving = np.zeros_like(commands)
        for delay in np.unique(delays).astype(int).tolist():
            rows = (delays == delay) & (elapsed >= delay)
            if rows.any():
                arriving[:, rows] = self._past[-1 - delay][:, rows]
        return arriving


def _mean_square(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mean over the first axis of the squares, which are summed up in order."""
    total: npt.NDArray[Any] = np.square(values[0])
    for row in values[1:]:
        total += np.square(row)
    return total / len(values)
