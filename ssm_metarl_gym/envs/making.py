"""Rows of an environment id: in its batched form, where this package gives it one."""

import importlib
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

__all__ = ["has_batched_form", "make_rows"]


def has_batched_form(env_id: str) -> bool:
    """Whether the id is one of this package that ``gym.make_vec`` makes with all rows stepped at once.

    Such an environment knows every autoreset mode and, of a family, holds the ``tasks`` of all rows. What other
    packages register as a batched form promises neither, so it does not count.

    Args:
        env_id: The id of a registered environment; ``"module:id"`` imports first the module that registers it.

    Raises:
        gymnasium.error.Error: There is no such id; the message names the nearest.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gym.spec(name)
    return spec.namespace == "ssm_metarl" and spec.vector_entry_point is not None


def make_rows(
    env_id: str, num_envs: int, *, autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP, **env_kwargs: Any
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Rows of a registered environment: its batched form where it has one, else as many single environments.

    Example:
        >>> from ssm_metarl_gym.envs.making import make_rows
        >>> type(make_rows("ssm_metarl/CartPole-v0", 2).unwrapped).__name__
        'TaskCartPoleVectorEnv'
        >>> type(make_rows("CartPole-v1", 2).unwrapped).__name__
        'SyncVectorEnv'

    Args:
        env_id: The id of a registered environment; ``"module:id"`` imports first the module that registers it.
        num_envs: Number of rows n.
        autoreset_mode: What becomes of a row whose episode ended.
        **env_kwargs: Arguments of the environment.

    Returns:
        A vector environment of n rows.

    Raises:
        gymnasium.error.Error: There is no such id; the message names the nearest.
    """
    if has_batched_form(env_id):
        return gym.make_vec(env_id, num_envs, autoreset_mode=autoreset_mode, **env_kwargs)
    vector_kwargs = {"autoreset_mode": autoreset_mode}
    return gym.make_vec(env_id, num_envs, vectorization_mode="sync", vector_kwargs=vector_kwargs, **env_kwargs)
