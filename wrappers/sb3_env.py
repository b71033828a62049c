"""Environments made ready for Stable-Baselines3: batched where there is a batched form, with or without history."""

import functools
from typing import Any, Final

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecMonitor

from ssm_metarl_gym.checks import check_choice, check_integer
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.wrappers.history_window import HistoryWindow, VectorHistoryWindow
from ssm_metarl_gym.wrappers.sb3_vec_env import SB3VecEnv
from ssm_metarl_gym.wrappers.transition_observation import TransitionObservation, VectorTransitionObservation

__all__ = ["make_sb3_env"]

_OBSERVATIONS: Final = ("plain", "transition", "window")


def make_sb3_env(
    env_id: str,
    num_envs: int = 1,
    *,
    observation: str = "plain",
    window: int = 16,
    processes: bool = False,
    **env_kwargs: Any,
) -> VecEnv:
    """Rows of a registered environment for Stable-Baselines3, which logs the returns of their episodes.

    An environment of the namespace ``ssm_metarl`` that has a batched form steps all rows at once. Any other one is made
    ``num_envs`` times and stepped row by row.

    Example:
        >>> model = PPO("MlpPolicy", make_sb3_env("ssm_metarl/CartPolePolarity-v0", 64), n_steps=128).learn(8192)

    Args:
        env_id: The id of a registered environment; ``"module:id"`` imports first the module that registers it.
        num_envs: Number of rows.
        observation: What a row shows: ``"plain"``, its own observation; ``"transition"``, see
            :class:`VectorTransitionObservation`; ``"window"``, the last transitions, see :class:`VectorHistoryWindow`.
        window: Length of the window.
        processes: Whether each row is a single environment in a process of its own, which pays where one step takes
            long and there are cores enough, as for MuJoCo. A script must then protect its start, as in all uses of
            processes, by ``if __name__ == "__main__":``.
        **env_kwargs: Arguments of the environment. (Its seed is the algorithm's, or that of ``env.seed(...)``.)

    Raises:
        ValueError: The observation is none of these, or a number is not a positive integer.
    """
    check_choice("observation", observation, _OBSERVATIONS)
    check_integer("num_envs", num_envs)
    check_integer("window", window)
    if processes:
        make_row = functools.partial(_make_row, env_id, observation, window, env_kwargs)
        return VecMonitor(SubprocVecEnv([make_row] * num_envs))
    # SB3 wants a row reset in the step that ends its episode.
    env = make_rows(env_id, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
    if observation != "plain":
        env = VectorTransitionObservation(env)
    if observation == "window":
        env = VectorHistoryWindow(env, window)
    return VecMonitor(SB3VecEnv(env))


def _make_row(env_id: str, observation: str, window: int, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """A row by itself. A process that is told to call this imports the package, and so knows its ids."""
    env: gym.Env[Any, Any] = gym.make(env_id, **env_kwargs)
    if observation != "plain":
        env = TransitionObservation(env)
    return HistoryWindow(env, window) if observation == "window" else env
