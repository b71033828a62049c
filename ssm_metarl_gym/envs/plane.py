"""Environments in the plane that Gymnasium does not have: their spaces and their pictures."""

from typing import Any, ClassVar, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import shown

__all__ = ["LINE_COLOUR", "POINT_COLOUR", "PlaneEnv"]

POINT_COLOUR: Final = (204, 77, 77)
LINE_COLOUR: Final = (210, 210, 210)
# The width of a picture in pixels.
_WIDTH: Final = 500


class PlaneEnv(gym.Env[npt.NDArray[np.float32], Any]):
    """The spaces of an environment in the plane, and its picture, which a subclass paints.

    Args:
        observation_space: What is observed.
        num_actions: Number of actions A, each in [-1, 1].
        render_mode: None, ``"human"`` or ``"rgb_array"``.

    Raises:
        ValueError: The render mode is another one.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 30}  # noqa: RUF012 - as in Gymnasium
    # The coordinate of the edges of a picture.
    edge: ClassVar[float] = 1.0

    def __init__(self, observation_space: spaces.Box, num_actions: int, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None, 'human' or 'rgb_array'; got {shown(render_mode)}.")
        self.render_mode = render_mode
        self.observation_space: Any = observation_space
        self.action_space = spaces.Box(-1.0, 1.0, shape=(num_actions,), dtype=np.float32)
        self.state: Any = None
        self.screen: Any = None
        self.clock: Any = None

    def _paint(self, pygame: Any) -> None:
        """Draw the state on ``screen``, which is white."""
        raise NotImplementedError

    def render(self) -> npt.NDArray[np.uint8] | None:
        """Draw the state on ``screen``, and show it or return it."""
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
        self._paint(pygame)
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

    def _pixels(self, x: float, y: float) -> tuple[int, int]:
        """Where a position is in the picture, y upwards; one outside of the picture is at its edge."""
        column, row = (np.clip([x, -y], -self.edge, self.edge) + self.edge) * (_WIDTH / (2 * self.edge))
        return int(column), int(row)

    def _lengths(self, length: float) -> int:
        """How many pixels a length has."""
        return round(length * _WIDTH / (2 * self.edge))
