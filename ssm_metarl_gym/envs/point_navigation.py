"""A point in the plane that is rewarded for being near a hidden goal."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.envs.arguments import LARGEST, Family
from ssm_metarl_gym.envs.hidden_task import TaskParameter
from ssm_metarl_gym.envs.plane import LINE_COLOUR, POINT_COLOUR, PlaneEnv
from ssm_metarl_gym.envs.row_physics import RowPhysicsEnv
from ssm_metarl_gym.tasks.classic import PointNavigationTask

__all__ = ["TaskPointNavigationEnv"]

# How far the action 1 moves the point in a step, and the distance from the goal at which an episode ends.
MAX_SPEED: Final = 0.1
GOAL_RADIUS: Final = 0.01

Floats = npt.NDArray[np.float64]

_GOAL_COLOUR: Final = (46, 125, 50)


class TaskPointNavigationEnv(RowPhysicsEnv[PointNavigationTask], PlaneEnv):
    """A point that is moved through the plane, rewarded for being near a goal that the agent is not told.

    The "2D navigation" of MAML (Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.3). The dynamics are the
    same in all tasks: only the reward tells them apart, so an agent that shall find out needs it as an input.

    ## Action space
    ``Box(-1, 1, (2,))``: the velocity in x and y, as a fraction of 0.1 a step. (MAML's is the velocity itself; a
    normalised action is what SB3 and both environment checkers ask for.)

    ## Observation space
    ``Box`` of the position x and y, which has no bounds; with ``context="visible"`` followed by the parameters that
    vary in the family, scaled to [-1, 1] over the training range.

    ## Rewards
    ``-((x - goal_x)^2 + (y - goal_y)^2)``, with the position after the step.

    ## Starting state
    The origin.

    ## Episode end
    Termination within 0.01 of the goal, or the time limit of 100 steps.

    ## Arguments
    * ``split``: ``"train"`` (goals uniform in the square [-0.5, 0.5]^2), ``"interpolation"`` (the same, from a stream
      of its own) or ``"extrapolation"`` (each coordinate in [-0.75, -0.5] or [0.5, 0.75]).
    * ``context``: ``"hidden"``, or ``"visible"`` to append the goal to the observation.
    * ``task``: a dictionary of parameters (see ``PointNavigationTask``) that every episode has, or ``None`` to draw
      them.
    * ``switch``: ``None``, as a goal has no sign to flip.
    * ``on_failure``: ``"terminate"`` or ``"restart"``, as for CartPole; a point cannot fail.
    * ``observation_noise``: standard deviation of the noise on each component of the position.
    * ``warm_up_steps``: steps at the start of every episode that are not rewarded; then the state is drawn anew.

    ``reset(options=...)`` takes ``task`` (a dictionary or a ``PointNavigationTask``, for this episode) and ``state``
    (the position). ``info`` holds ``task_id`` and ``task_params``.

    ## Version history
    * v0: initial version.
    """

    task_type = PointNavigationTask
    plain_family = "PointNavigation"
    state_limits = (LARGEST, LARGEST)
    goal_x = TaskParameter()
    goal_y = TaskParameter()

    def __init__(self, family: Family | None = None, **kwargs: Any) -> None:
        space = spaces.Box(-np.inf, np.inf, shape=(2,), dtype=np.float32)
        super().__init__(family, observation_space=space, num_actions=2, **kwargs)

    def parse_bounds(self, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The origin, twice: two of ``Float64[*rows 2]``."""
        return np.zeros((*rows, 2)), np.zeros((*rows, 2))

    def derive(self, values: Floats) -> Floats:
        """The goals."""
        return values

    def advance(
        self, state: npt.NDArray[Any], derived: npt.NDArray[Any], commands: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Move the points, and measure how far they are from their goals."""
        commands *= MAX_SPEED
        state += commands
        away = np.subtract(state, derived, out=commands)
        away_x, away_y = np.square(away, out=away)
        squared_distances = away_x + away_y
        reached: npt.NDArray[np.bool_] = squared_distances <= GOAL_RADIUS**2
        return np.negative(squared_distances, dtype=np.float64), reached

    def _paint(self, pygame: Any) -> None:
        """The point (red), the goal (green) and the square of the training goals."""
        square = [self._pixels(x, y) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
        pygame.draw.polygon(self.screen, LINE_COLOUR, square, width=2)
        pygame.draw.circle(self.screen, _GOAL_COLOUR, self._pixels(self.goal_x, self.goal_y), 12, width=3)
        pygame.draw.circle(self.screen, POINT_COLOUR, self._pixels(*self.state), 7)
