"""What the vector wrappers share whose observation depends on the episode: which rows begin one and which go on."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from ssm_metarl_gym.checks import shown
from ssm_metarl_gym.envs.rows import copies_of_rows

__all__ = ["VectorEpisodeObservation", "check_single"]

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


def check_single(name: str, env: Any) -> None:
    """What tells episodes apart by calls of ``reset`` must stand around a single environment that waits for them.

    Args:
        name: The wrapper's.
        env: What it was given.

    Raises:
        ValueError: It holds several, or an ``Autoreset``, whose resets nobody outside sees.
    """
    if isinstance(env, VecEnv | VectorEnv):
        raise ValueError(
            f"{name} takes a single environment; got a {type(env).__name__}, which holds several. Wrap each "
            f"of them, as in SB3's make_vec_env(lambda: {name}(...), 8), or put Vector{name} around "
            "gym.make_vec(id, num_envs=8)."
        )
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.Autoreset):
            raise ValueError(
                f"{name} must begin its episodes by reset; got {env}. Put Autoreset around this wrapper instead."
            )
        env = env.env


class VectorEpisodeObservation(gym.vector.VectorWrapper):
    """Base of vector wrappers whose observation depends on what the row's episode held before.

    It says which rows begin an episode and which go on, in each of the autoreset modes; a subclass says in ``_begin``
    and ``_advance`` what they show. What is shown is the caller's own; the ``infos`` of the wrapped environment and the
    caller's ``options`` stay as they are.

    Args:
        env: A vector environment of NumPy arrays whose metadata name its autoreset mode.

    Raises:
        ValueError: The autoreset mode is not known.
    """

    _shown: Floats  # n ...: what each row showed last

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        if isinstance(env, VecEnv):
            raise ValueError(
                f"{type(self).__name__} takes a gymnasium.vector.VectorEnv; got a {type(env).__name__} of "
                "Stable-Baselines3. Take gym.make_vec(id, num_envs=8), and put SB3VecEnv around the outermost wrapper."
            )
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"{type(self).__name__} needs metadata['autoreset_mode'] to be an AutoresetMode; got {shown(mode)}. "
                "Set it to the one of gymnasium.vector.AutoresetMode that the environment follows."
            )
        self._mode = mode
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        # The rows of which nobody knows where the next step starts: all of them, where others made the last reset.
        self._lost = np.ones(self.num_envs, dtype=np.bool_)

    @abstractmethod
    def _begin(self, rows: Flags, observations: Floats) -> None:
        """Let these rows ``[n]`` show the first observation of an episode, of ``observations [n D]``."""

    @abstractmethod
    def _advance(self, actions: Any, rewards: Any, observations: Floats, restarted: Flags) -> None:
        """Let every row show where its step led.

        A row in ``restarted [n]`` did not come there by its action: it began another attempt of its trial, or the step
        before failed half-way.
        """

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        """Start an episode in every row, or in those of ``options["reset_mask"]``; the others show what they showed."""
        # Gymnasium's own environments take the mask out of the dictionary that they are given.
        given = None if options is None else dict(options)
        observations, infos = self.env.reset(seed=seed, options=given)  # type: ignore[arg-type]
        rows = self._rows_to_reset(options)
        self._begin(rows, observations)
        self._ended[rows] = False
        self._lost[rows] = False
        return self._shown.copy(), infos

    def step(self, actions: Any) -> tuple[Floats, Any, Any, Any, dict[str, Any]]:
        """Step every row; one that begins an episode on this step shows nothing of the one before."""
        lost, self._lost = self._lost, np.ones_like(self._lost)  # until the step has succeeded
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended, restarted = np.logical_or(terminations, truncations), self._restarted(infos) | lost
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            # First show where the step led, which for a row that ended is told by infos alone, then begin anew.
            last = np.array(observations)
            last[ended] = np.stack(infos["final_obs"][ended])
            restarted = np.where(ended, self._restarted(infos.get("final_info", {})) | lost, restarted)
            self._advance(actions, rewards, last, restarted)
            infos = infos | {"final_obs": copies_of_rows(self._shown, ended)}
            self._begin(ended, observations)
        else:
            self._advance(actions, rewards, observations, restarted)
            if self._mode is AutoresetMode.NEXT_STEP and self._ended.any():
                self._begin(self._ended, observations)
        self._ended = ended
        self._lost = np.zeros_like(lost)
        return self._shown.copy(), rewards, terminations, truncations, infos

    def _rows_to_reset(self, options: dict[str, Any] | None) -> Flags:
        """The rows ``[n]`` that begin an episode when all are reset with these options."""
        mask = (options or {}).get("reset_mask")
        return np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.array(mask, dtype=np.bool_)

    def _restarted(self, infos: Mapping[str, Any]) -> Flags:
        """The rows ``[n]`` whose info says that a trial was restarted."""
        restarted = np.zeros(self.num_envs, dtype=np.bool_)
        if "restarted" in infos:
            told = infos.get("_restarted", np.ones_like(restarted))
            restarted[told] = infos["restarted"][told]
        return restarted
