"""Rows of an environment id: in its batched form, where this package gives it one."""

import copy
import importlib
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

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
        >>> import gymnasium as gym
        >>> from ssm_metarl_gym.envs.making import make_rows
        >>> type(make_rows("ssm_metarl/CartPole-v0", 2).unwrapped).__name__
        'TaskCartPoleVectorEnv'
        >>> isinstance(make_rows("CartPole-v1", 2).unwrapped, gym.vector.SyncVectorEnv)
        True

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
    envs = _SingleEnvs([partial(gym.make, env_id, **env_kwargs)] * num_envs, autoreset_mode=autoreset_mode)
    envs.spec = copy.deepcopy(gym.spec(env_id.rpartition(":")[-1]))
    how = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": autoreset_mode}}
    envs.spec.kwargs |= {**env_kwargs, "num_envs": num_envs, **how}  # as gym.make_vec notes it
    return envs


class _SingleEnvs(SyncVectorEnv):
    """Gymnasium's, with less work for infos: it makes two arrays for every entry of every row, and drops most of them.

    What is hidden of a robot's motors is dozens of entries.
    """

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        for key, value in env_info.items():
            present: Any = vector_infos.get(key)
            mask = vector_infos.get(f"_{key}")
            if present is None or mask is None:
                super()._add_info(vector_infos, {key: value}, env_num)
                continue
            if isinstance(present, dict) and isinstance(value, dict):
                self._add_info(present, value, env_num)
            else:  # numbers, or what may be a dictionary itself: the last observation of an episode
                present[env_num] = value
            mask[env_num] = True
        return vector_infos
