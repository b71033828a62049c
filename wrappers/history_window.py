"""The last observations as one observation."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_integer

__all__ = ["HistoryWindow"]


class HistoryWindow(
    gym.Wrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32], Any], gym.utils.RecordConstructorArgs
):
    """Shows the last ``length`` observations, oldest first, each with a flag that marks the start of the episode.

    The observation is ``Float[length D+1]``. Its last column is 1 for the first step of the episode and for the rows
    before it, which are zero, and 0 afterwards: a recurrent reader that clears its state where the flag is set sees
    exactly the episode, see ``SSMFeaturesExtractor``.

    Example:
        >>> env = HistoryWindow(gym.make("ssm_metarl/CartPole-v0"), 16)
        >>> env.observation_space.shape
        (16, 5)

    Args:
        env: An environment with a one-dimensional ``Box`` as observation space.
        length: Number of observations, >= 1.

    Raises:
        ValueError: Another observation space, or a length that is not a positive integer.
    """

    def __init__(self, env: gym.Env[npt.NDArray[np.float32], Any], length: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, length=length)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"HistoryWindow needs a one-dimensional Box as observation space; got {space}.")
        check_integer("length", length)
        # The rows before the start are zeros, which the space must contain too.
        low = np.append(np.minimum(space.low, 0.0), 0.0).astype(np.float32)
        high = np.append(np.maximum(space.high, 0.0), 1.0).astype(np.float32)
        self.observation_space = spaces.Box(np.tile(low, (length, 1)), np.tile(high, (length, 1)), dtype=np.float32)
        self._window = np.zeros((length, space.shape[0] + 1), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode with an empty window."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._window[:, :-1], self._window[:, -1] = 0.0, 1.0
        self._window[-1, :-1] = observation
        return self._window.copy(), info

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and move the window on by one."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._window[:-1] = self._window[1:]
        self._window[-1, :-1], self._window[-1, -1] = observation, 0.0
        return self._window.copy(), reward, terminated, truncated, info
