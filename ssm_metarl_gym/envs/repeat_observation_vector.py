"""Many probes of memory, stepped at once."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ssm_metarl_gym.checks import check_integer
from ssm_metarl_gym.envs.arguments import (
    check_reset_options,
    check_seed,
    parse_autoreset_mode,
    parse_reset_mask,
    parse_time_limit,
    parse_whole_numbers,
)
from ssm_metarl_gym.envs.repeat_observation import RepeatObservationEnv, draw, one_hot
from ssm_metarl_gym.envs.rows import copies_of_rows

__all__ = ["RepeatObservationVectorEnv"]


class RepeatObservationVectorEnv(gym.vector.VectorEnv[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[Any]]):
    """n probes: what ``gym.make_vec("ssm_metarl/RepeatObservation-v0", num_envs=n)`` makes.

    Given the same symbols and actions, every row is equal (``==``) to a :class:`RepeatObservationEnv`, whose
    documentation holds spaces and rewards. The rows draw from one stream; one row alone is equal to the single
    environment under the same seed.

    Example:
        >>> envs = gym.make_vec("ssm_metarl/RepeatObservation-v0", num_envs=1024, delay=0)
        >>> observations, _ = envs.reset(seed=0)
        >>> envs.step(observations.argmax(axis=1))[1].sum()
        np.float64(16.0)

    Args:
        num_envs: Number of rows n.
        delay: As for the single environment; so are ``num_symbols``, ``num_steps`` and ``render_mode``.
        max_episode_steps: Number of steps after which an episode is truncated; -1 or None for no limit.
        autoreset_mode: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``; or a member of Gymnasium's ``AutoresetMode``,
            which JSON cannot hold.

    ``reset(options=...)`` takes ``reset_mask`` (``Bool[n]``). The attribute ``symbols`` is
    ``Int64[n delay + num_steps + 1]``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        delay: int = 4,
        num_symbols: int = 4,
        num_steps: int = 64,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        check_integer("num_envs", num_envs)
        single = RepeatObservationEnv(
            delay=delay, num_symbols=num_symbols, num_steps=num_steps, render_mode=render_mode
        )
        self.delay = single.delay
        self.num_symbols = single.num_symbols
        self.num_steps = single.num_steps
        self.num_envs = num_envs
        self.max_episode_steps = parse_time_limit(max_episode_steps)
        self.render_mode = render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = single.metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.symbols: npt.NDArray[np.int64] | None = None
        self._rows = np.arange(num_envs)
        self._times = np.zeros(num_envs, dtype=np.int64)
        # The rows whose episode ended in the last step and has not begun anew.
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every row, or in those of the option ``reset_mask``; the seed is one for all rows."""
        given = check_reset_options(options, ("reset_mask",)).get("reset_mask")
        mask = parse_reset_mask(given, self.num_envs, started=self.symbols is not None)
        check_seed(seed, mask, self.num_envs)
        super().reset(seed=None if seed is None else int(seed))
        if self.symbols is None:
            self.symbols = np.zeros((self.num_envs, self.delay + self.num_steps + 1), dtype=np.int64)
        self._begin(self.symbols, self._rows if mask is None else np.flatnonzero(mask))
        return self._observe(self.symbols), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[
        npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]
    ]:
        """Step every row; what becomes of a row whose episode ended, ``autoreset_mode`` says."""
        actions, symbols, end = self._parse_actions(actions), self.symbols, self.delay + self.num_steps
        if symbols is None:
            raise gym.error.ResetNeeded("reset() must be called before step().")
        resetting = np.flatnonzero(self._ended)
        if len(resetting) and self.autoreset_mode is AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                f"rows whose episode ended must be reset before step(); got {resetting.tolist()}. "
                "Call reset(options={'reset_mask': terminations | truncations})."
            )
        # The grade. Before the delay is over, this compares with any symbol: those rows are not graded.
        right = (actions == symbols[self._rows, self._times - self.delay]) & (self._times >= self.delay)
        rewards = np.where(right, 1.0 / self.num_steps, 0.0)
        self._times[~self._ended] += 1
        # The resets of NEXT_STEP.
        rewards[resetting] = 0.0
        self._begin(symbols, resetting)
        # The ends.
        terminated = self._times == end
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        if self.max_episode_steps is not None:
            truncated[:] = self._times >= self.max_episode_steps
        self._ended = terminated | truncated
        infos: dict[str, Any] = {}
        observations = self._observe(symbols)
        # The resets of SAME_STEP, which tell first what the episodes ended with.
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            ended = self._ended
            infos = {"final_obs": copies_of_rows(observations, ended), "_final_obs": ended.copy()}
            infos |= {"final_info": {}, "_final_info": ended.copy()}
            self._begin(symbols, np.flatnonzero(ended))
            observations = self._observe(symbols)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[npt.NDArray[np.uint8], ...] | None:
        """The picture of every row, as the single environment draws it: a tuple of n frames ``UInt8[H W 3]``."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render mode. Give gym.make_vec(..., render_mode="rgb_array").')
            return None
        if self.symbols is None:
            raise gym.error.ResetNeeded("reset() must be called before render().")
        shown = (symbols[: time + 1] for symbols, time in zip(self.symbols, self._times.tolist(), strict=True))
        return tuple(draw(symbols, self.delay, self.num_symbols) for symbols in shown)

    def _begin(self, symbols: npt.NDArray[np.int64], rows: npt.NDArray[np.intp]) -> None:
        """Start an episode in ``rows``: draw their symbols."""
        if len(rows):
            symbols[rows] = self.np_random.integers(self.num_symbols, size=(len(rows), symbols.shape[1]))
            self._times[rows] = 0
            self._ended[rows] = False

    def _observe(self, symbols: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return one_hot(symbols[self._rows, self._times], self.num_symbols)

    def _parse_actions(self, actions: Any) -> npt.NDArray[Any]:
        parsed = parse_whole_numbers(actions, self.num_envs)
        wrong = (parsed < 0) | (parsed >= self.num_symbols)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"an action must be an int from 0 to {self.num_symbols - 1}; got {parsed[row]} in row {row}."
            )
        return parsed
