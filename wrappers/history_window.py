"""The last observations as one observation."""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.checks import check_flat_box, check_integer
from ssm_metarl_gym.wrappers.episode_observation import VectorEpisodeObservation, check_single

__all__ = ["HistoryWindow", "VectorHistoryWindow"]


class HistoryWindow(
    gym.Wrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32], Any], gym.utils.RecordConstructorArgs
):
    """Shows the last ``length`` observations, oldest first, each with a flag that marks the start of the episode.

    The observation is ``Float[length D+1]``. Its last column is 1 for the first step of the episode and for the rows
    before it, which are zero, and 0 afterwards: a recurrent reader that clears its state where the flag is set sees
    exactly the episode, see ``SSMFeaturesExtractor``. The restart of a trial (``info["restarted"]``) leaves the window
    as it is: the task stays, and remembering it is the point.

    Example:
        >>> env = HistoryWindow(gym.make("ssm_metarl/CartPole-v0"), 16)
        >>> env.observation_space.shape
        (16, 5)

    Args:
        env: An environment with a one-dimensional ``Box`` as observation space.
        length: Number of observations, >= 1.

    Raises:
        ValueError: Another observation space, a length that is not a positive integer, or an environment that
            is not single, or has an ``Autoreset`` within.
    """

    def __init__(self, env: gym.Env[npt.NDArray[np.float32], Any], length: int) -> None:
        check_integer("length", length)
        check_single("HistoryWindow", env)
        length = int(length)  # one of Python, which JSON can hold
        gym.utils.RecordConstructorArgs.__init__(self, length=length)
        super().__init__(env)
        space = check_flat_box("the observation space", env.observation_space)
        self.observation_space = _window_space(space, length)
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


class VectorHistoryWindow(VectorEpisodeObservation, gym.utils.RecordConstructorArgs):
    """:class:`HistoryWindow` for a vector environment, row by row equal to it around single environments.

    The observation is ``Float[n length D+1]``. The window of a row is empty wherever an episode begins: after a reset
    (of the row, where ``options["reset_mask"]`` is given) and after an autoreset. In the mode ``SAME_STEP``,
    ``infos["final_obs"]`` holds the last window of each episode that ended.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/CartPole-v0", num_envs=3)
        >>> VectorHistoryWindow(envs, 16).observation_space.shape
        (3, 16, 5)

    Args:
        env: A vector environment whose rows have a one-dimensional ``Box`` as observation space.
        length: Number of observations, >= 1.

    Raises:
        ValueError: Another observation space, a length that is not a positive integer, or an unknown autoreset mode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], length: int) -> None:
        check_integer("length", length)
        length = int(length)
        gym.utils.RecordConstructorArgs.__init__(self, length=length)
        super().__init__(env)
        space = check_flat_box("the observation space of a row", env.single_observation_space)
        self.single_observation_space = _window_space(space, length)
        self.observation_space = _window_space(env.observation_space, length)
        self._shown = np.zeros((self.num_envs, length, space.shape[0] + 1), dtype=np.float32)

    def _begin(self, rows: npt.NDArray[np.bool_], observations: npt.NDArray[np.float32]) -> None:
        self._shown[rows, :, :-1], self._shown[rows, :, -1] = 0.0, 1.0
        self._shown[rows, -1, :-1] = observations[rows]

    def _advance(
        self, actions: Any, rewards: Any, observations: npt.NDArray[np.float32], restarted: npt.NDArray[np.bool_]
    ) -> None:
        self._shown[:, :-1] = self._shown[:, 1:]
        self._shown[:, -1, :-1], self._shown[:, -1, -1] = observations, 0.0


def _window_space(space: Any, length: int) -> Any:
    """``Box[... length D+1]`` for ``Box[... D]``. It contains the zeros of the rows before the start too."""
    low, high = np.minimum(space.low, 0.0), np.maximum(space.high, 0.0)
    bounds = (np.insert(low, low.shape[-1], 0.0, axis=-1), np.insert(high, high.shape[-1], 1.0, axis=-1))
    low, high = (np.repeat(bound[..., None, :].astype(np.float32), length, axis=-2) for bound in bounds)
    return spaces.Box(low, high, dtype=np.float32)
