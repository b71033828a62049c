"""Environments made ready for Stable-Baselines3: batched where there is a batched form, with or without history."""

from typing import Any, Final

from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from ssm_metarl_gym.checks import check_choice, check_integer
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.wrappers.history_window import VectorHistoryWindow
from ssm_metarl_gym.wrappers.sb3_vec_env import SB3VecEnv
from ssm_metarl_gym.wrappers.transition_observation import VectorTransitionObservation

__all__ = ["make_sb3_env"]

_OBSERVATIONS: Final = ("plain", "transition", "window")


def make_sb3_env(
    env_id: str, num_envs: int = 1, *, observation: str = "plain", window: int = 16, **env_kwargs: Any
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
        **env_kwargs: Arguments of the environment. (Its seed is the algorithm's, or that of ``env.seed(...)``.)

    Raises:
        ValueError: The observation is none of these, or a number is not a positive integer.
    """
    check_choice("observation", observation, _OBSERVATIONS)
    check_integer("num_envs", num_envs)
    check_integer("window", window)
    # SB3 wants a row reset in the step that ends its episode.
    env = make_rows(env_id, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
    if observation != "plain":
        env = VectorTransitionObservation(env)
    if observation == "window":
        env = VectorHistoryWindow(env, window)
    return VecMonitor(SB3VecEnv(env))
