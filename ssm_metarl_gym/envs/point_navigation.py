"""A point in the plane that is rewarded for being near a hidden goal."""

from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import as_array, shown
from ssm_metarl_gym.envs.arguments import LARGEST
from ssm_metarl_gym.envs.classic import ClassicHiddenTask
from ssm_metarl_gym.envs.hidden_task import TaskParameter
from ssm_metarl_gym.tasks.classic import PointNavigationTask

__all__ = ["TaskPointNavigationEnv"]

# How far the action 1 moves the point in a step, and the distance from the goal at which an episode ends.
MAX_SPEED: Final = 0.1
GOAL_RADIUS: Final = 0.01

Floats = npt.NDArray[np.float64]

# The picture: its width in pixels, the coordinate of its edges, and the colours of the goal, the point and the lines.
_WIDTH, _EDGE = 500, 1.0
_GOAL_COLOUR, _POINT_COLOUR, _LINE_COLOUR = (46, 125, 50), (204, 77, 77), (210, 210, 210)


class _Plane(gym.Env[npt.NDArray[np.float32], Any]):
    """The spaces of the point navigation, and its picture. Gymnasium has no such environment to build on."""

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 30}  # noqa: RUF012 - as in Gymnasium

    goal_x: Any
    goal_y: Any

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None, 'human' or 'rgb_array'; got {shown(render_mode)}.")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(2,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.state: Any = None
        self.screen: Any = None
        self.clock: Any = None

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the point (red), the goal (green) and the square of the training goals on ``screen``."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Give gym.make(..., render_mode="rgb_array").')
            return None
        if self.state is None:
            raise gym.error.ResetNeeded("reset() must be called before render().")
        try:
            import pygame
        except ImportError as error:
            message = 'pictures need pygame; run `pip install "ssm-metarl-gym[demo]"`.'
            raise gym.error.DependencyNotInstalled(message) from error
        if self.screen is None:
            pygame.display.init()
            size, is_window = (_WIDTH, _WIDTH), self.render_mode == "human"
            self.screen = pygame.display.set_mode(size) if is_window else pygame.Surface(size)
            self.clock = pygame.time.Clock()
        self.screen.fill((255, 255, 255))
        square = [_pixels(x, y) for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))]
        pygame.draw.polygon(self.screen, _LINE_COLOUR, square, width=2)
        pygame.draw.circle(self.screen, _GOAL_COLOUR, _pixels(self.goal_x, self.goal_y), 12, width=3)
        pygame.draw.circle(self.screen, _POINT_COLOUR, _pixels(*self.state), 7)
        if self.render_mode == "human":
            pygame.event.pump()
            self.clock.tick(self.metadata["render_fps"])
            pygame.display.flip()
            return None
        return np.transpose(np.array(pygame.surfarray.pixels3d(self.screen)), axes=(1, 0, 2))

    def close(self) -> None:
        """Close the window, if there is one."""
        if self.screen is not None:
            import pygame

            pygame.display.quit()
            self.screen = self.clock = None


def _pixels(x: float, y: float) -> tuple[int, int]:
    """Where a position is in the picture, y upwards; one outside of the picture is at its edge."""
    column, row = (np.clip([x, -y], -_EDGE, _EDGE) + _EDGE) * (_WIDTH / (2 * _EDGE))
    return int(column), int(row)


class TaskPointNavigationEnv(ClassicHiddenTask[PointNavigationTask], _Plane):
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

    @classmethod
    def parse_bounds(cls, options: Mapping[str, Any], rows: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The origin, twice: two of ``Float64[*rows 2]``."""
        return np.zeros((*rows, 2)), np.zeros((*rows, 2))

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the point; an action outside [-1, 1] counts as the nearest bound."""
        action = as_array(action)
        if action.shape != (2,) or action.dtype.kind not in "iuf" or not np.isfinite(action).all():
            raise ValueError(f"an action must be two finite numbers in an array of shape (2,); got {shown(action)}.")
        if self.state is None:
            raise gym.error.ResetNeeded("reset() must be called before step().")
        # In double precision, so that the same action has the same effect in every type of numbers.
        self.state = self.state + np.clip(action.astype(np.float64), -1.0, 1.0) * MAX_SPEED
        away_x, away_y = (self.state - [self.goal_x, self.goal_y]).tolist()
        squared_distance = away_x * away_x + away_y * away_y
        if self.render_mode == "human":
            self.render()
        observation = self._observe(self._observe_state())
        return observation, -squared_distance, squared_distance <= GOAL_RADIUS**2, False, self._info()

    def _observe_state(self) -> npt.NDArray[np.float32]:
        return np.array(self.state, dtype=np.float32)
