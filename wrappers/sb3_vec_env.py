"""A Gymnasium vector environment as Stable-Baselines3 takes it."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from ssm_metarl_gym.checks import shown
from ssm_metarl_gym.wrappers.infos import Memory, split_infos

__all__ = ["SB3VecEnv"]

# What a row of its own calls by the name on the left, a batched environment holds for all rows by the one on the right.
_BATCHED_NAMES: Final = {"task": "tasks", "state": "state"}


# What a vector environment tells of the episodes that ended in a step.
_FINAL: Final = frozenset({"final_info", "_final_info", "final_obs", "_final_obs"})


class SB3VecEnv(VecEnv):
    """Lets Stable-Baselines3 train on a Gymnasium vector environment, many tasks in one step.

    Observations, rewards, flags and infos are those that ``DummyVecEnv`` of the single environments gives. All of them
    are the caller's own. A seed is used at the next reset: ``seed(s)`` resets the vector environment with ``s``. Reset
    options are those of a single environment: the rows' ``task`` and ``state`` go to a batched environment as ``tasks``
    and ``state``, and every other option must be the same in all rows.

    The rows of a batched environment are no objects, so attributes are looked up in the vector environment, the outer
    wrapper first. A sequence or array of ``num_envs`` entries has one for each row (``task`` reads ``tasks``, of all
    rows); any other value is that of every row and can only be set for all of them. ``env_method`` calls the method
    once, for all rows whatever the indices, and divides what it returns in the same way. In a ``SyncVectorEnv`` each
    row is asked by itself.

    Example:
        >>> tasks = gym.make_vec("ssm_metarl/CartPolePolarity-v0", num_envs=64, autoreset_mode="SameStep")
        >>> model = PPO("MlpPolicy", SB3VecEnv(tasks), n_steps=128).learn(8192)

    Args:
        env: A vector environment that resets a row in the step that ends its episode.

    Raises:
        ValueError: Another autoreset mode, or an observation space that is neither an array nor a ``Dict`` of arrays.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(
                f"SB3VecEnv needs a vector environment; got {shown(env)}. Make one with gym.make_vec(id, num_envs)."
            )
        mode = env.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.SAME_STEP.value):
            argument = 'autoreset_mode="SameStep"'
            if isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
                argument = 'vector_kwargs={"autoreset_mode": "SameStep"}'
            raise ValueError(
                f"the autoreset mode must be {AutoresetMode.SAME_STEP}; got {mode}. "
                f"Make the environment with {argument}."
            )
        space = env.single_observation_space
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        if any(part.shape is None for part in parts):
            raise ValueError(f"the observation space of a row must be an array or a Dict of arrays; got {space}.")
        self.env = env
        self._memory: Memory = {}
        super().__init__(env.num_envs, space, env.single_action_space)
        self.metadata = env.metadata

    def reset(self) -> VecEnvObs:
        """Reset all rows, with the seed and the options given since the last reset."""
        seed = self._seeds[0]
        try:
            options = self._batched_options()
            observations, infos = self.env.reset(seed=None if seed is None else int(seed), options=options)
        finally:  # what was refused is not asked for again
            self._reset_seeds()
            self._reset_options()
        self.reset_infos = split_infos(infos, slice(None), self.num_envs)
        return self._copy(observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take the actions of the step that ``step_wait`` makes."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all rows; one whose episode ended shows the first observation of its next one."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        present_infos = {name: column for name, column in infos.items() if name not in _FINAL}
        rows = split_infos(present_infos, slice(None), self.num_envs, self._memory)
        (ended,) = dones.nonzero()
        final_infos = split_infos(infos.get("final_info", {}), ended, len(ended)) if len(ended) else []
        for i, final_info in zip(ended.tolist(), final_infos, strict=True):
            # The row's own info is that of its next episode, save what the vector RecordEpisodeStatistics puts there.
            if isinstance(rows[i].get("episode"), dict) and "episode" not in final_info:
                final_info["episode"] = rows[i].pop("episode")
            final = infos["final_obs"][i]
            final_info["terminal_observation"] = final.copy() if isinstance(final, np.ndarray) else deepcopy(final)
            self.reset_infos[i], rows[i] = rows[i], final_info
        for info, cut_off in zip(rows, np.greater(truncated, terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut_off
        return self._copy(observations), np.array(rewards, dtype=np.float32), dones, rows

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """A frame of every row."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"images need the render mode 'rgb_array'; got {self.render_mode!r}.", stacklevel=2)
            return [None] * self.num_envs
        frames: Any = self.env.render()
        return list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each of the given rows, all by default."""
        # The vector environment's own spaces are of all rows at once.
        if attr_name in ("observation_space", "action_space"):
            return [getattr(self, attr_name) for _ in self._get_indices(indices)]
        owner, name = self._find(attr_name)
        if isinstance(owner, SyncVectorEnv):
            return [owner.envs[i].get_wrapper_attr(name) for i in self._get_indices(indices)]
        return self._divide(getattr(owner, name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute of each of the given rows, all by default, to the value."""
        owner, name = self._find(attr_name)
        rows = list(self._get_indices(indices))
        if isinstance(owner, SyncVectorEnv):
            for i in rows:
                owner.envs[i].set_wrapper_attr(name, value)
            return
        present = getattr(owner, name)
        if self._has_rows(present):
            changed = present.copy() if isinstance(present, np.ndarray) else list(present)
            for i in rows:
                changed[i] = value
            setattr(owner, name, changed)
        elif len({range(self.num_envs)[i] for i in rows}) == self.num_envs:
            setattr(owner, name, value)
        else:
            raise ValueError(f"all rows share {attr_name!r}, which must be set for all; got indices={rows}.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What the method returns for each of the given rows, all by default."""
        owner, name = self._find(method_name)
        if isinstance(owner, SyncVectorEnv):
            rows = self._get_indices(indices)
            return [owner.envs[i].get_wrapper_attr(name)(*args, **kwargs) for i in rows]
        return self._divide(getattr(owner, name)(*args, **kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Whether a wrapper of the class is around all rows or, under a ``SyncVectorEnv``, around the row itself."""
        env = self.env
        wrapped = False
        while isinstance(env, VectorWrapper):
            wrapped = wrapped or isinstance(env, wrapper_class)
            env = env.env
        rows = self._get_indices(indices)
        return [wrapped or (isinstance(env, SyncVectorEnv) and is_wrapped(env.envs[i], wrapper_class)) for i in rows]

    def _find(self, name: str) -> tuple[VectorEnv[Any, Any, Any], str]:
        """The outermost environment that has the attribute of its own, and the name it has there."""
        env = self.env
        while isinstance(env, VectorWrapper):
            # Gymnasium's base class passes some names on; only what a wrapper adds or overrides is its own.
            inherited = getattr(type(env), name, None) is getattr(VectorWrapper, name, None)
            if name in vars(env) or not inherited:
                return env, name
            env = env.env
        batched_name = _BATCHED_NAMES.get(name, name)
        return env, batched_name if hasattr(env, batched_name) else name

    def _has_rows(self, value: Any) -> bool:
        """Whether a value that the vector environment holds or returns has an entry for each row."""
        if isinstance(value, np.ndarray):
            return bool(value.shape[:1] == (self.num_envs,))
        # A Tuple space is a sequence too.
        if not isinstance(value, Sequence) or isinstance(value, str | bytes | spaces.Space):
            return False
        return len(value) == self.num_envs

    def _divide(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        has_rows = self._has_rows(value)
        return [value[i] if has_rows else value for i in self._get_indices(indices)]

    def _copy(self, observations: Any) -> VecEnvObs:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.array(observations[key], dtype=part.dtype) for key, part in space.items()}
        return np.array(observations, dtype=space.dtype)

    def _batched_options(self) -> dict[str, Any] | None:
        """The options of the rows as those of one vector environment, or None where there are none."""
        if len(self._options) != self.num_envs:
            raise ValueError(f"options must be one dict or {self.num_envs}, one a row; got {len(self._options)}.")
        has_tasks = hasattr(self.env.unwrapped, "tasks")
        batched: dict[str, Any] = {}
        for name in dict.fromkeys(name for options in self._options for name in options):
            values = [options[name] for options in self._options if name in options]
            if len(values) < self.num_envs:
                raise ValueError(f"the option {name!r} must be given to every row; got it for {len(values)} only.")
            if has_tasks and name in _BATCHED_NAMES:
                batched[_BATCHED_NAMES[name]] = np.array(values) if name == "state" else values
                continue
            for value in values:
                if value is not values[0] and not np.array_equal(value, values[0]):
                    raise ValueError(
                        f"the option {name!r} must be the same in all rows; got {shown(values[0])} and {shown(value)}. "
                        "Use Stable-Baselines3's DummyVecEnv, whose rows are reset one by one, where it is not."
                    )
            batched[name] = values[0]
        return batched or None
