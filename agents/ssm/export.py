"""Policies of Stable-Baselines3, those that remember too, as ONNX files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from ssm_metarl_gym.agents.onnx_file import write_onnx
from ssm_metarl_gym.agents.ssm.policies import SSMPolicy
from ssm_metarl_gym.agents.ssm.real import real_copy

__all__ = ["check_normalised", "export_onnx"]

_OBSERVATION: Final = "observation"


def export_onnx(model: BaseAlgorithm | BasePolicy, path: str | Path, *, normalizer: VecNormalize | None = None) -> None:
    """Write the deterministic actions of a policy as an ONNX file, which needs neither torch nor this package.

    The inputs are ``observation`` as in the policy's observation space, one a row (of a ``Dict`` an input for each key,
    ``observation.key``), and, of an :class:`SSMPolicy`, ``state`` ``Float[n L 2 P]`` (zeros where nothing was seen yet)
    and ``start`` ``Bool[n]`` (true where an episode starts). The outputs are ``action``, within the bounds of a ``Box``
    and counted from the ``start`` of choices (Stable-Baselines3's ``predict`` counts from 0), and ``next_state``, the
    ``state`` of the next step. Any number of rows will do.

    docs/export.md tells how the file is used.

    Args:
        model: An algorithm of Stable-Baselines3, :class:`SSMPPO` among them, or its policy.
        path: Where to. The file takes the place of an older one when it is whole.
        normalizer: The ``VecNormalize`` that the policy was trained in, which becomes part of the file; None for that
            of the model's environment, where there is one.

    Raises:
        ValueError: The model is of another kind or of sb3-contrib's ``RecurrentPPO``, observations are neither a
            ``Box``, a ``Discrete``, a ``MultiDiscrete``, a ``MultiBinary`` nor a ``Dict`` of these, or the normaliser
            is of observations of another shape.
        ImportError: The extra ``export`` is not installed.
        OSError: The file cannot be written.
    """
    if isinstance(model, BaseAlgorithm):
        normalizer = model.get_vec_normalize_env() if normalizer is None else normalizer
        policy: Any = model.policy
    else:
        policy = model
    if not isinstance(policy, BasePolicy):
        raise ValueError(
            f"model must be an algorithm of Stable-Baselines3 or a policy; got {type(model).__name__}. Of a "
            "MetaPolicy or a DynamicsModel, call export_onnx itself."
        )
    if hasattr(policy, "lstm_actor"):
        raise ValueError(
            f"model must have no LSTM; got {type(policy).__name__}. Use SSMPPO for a policy that remembers."
        )
    if normalizer is not None and not isinstance(normalizer, VecNormalize):
        raise ValueError(f"normalizer must be a VecNormalize or None; got {type(normalizer).__name__}.")
    space = policy.observation_space
    parts = dict(sorted(space.items())) if isinstance(space, spaces.Dict) else {}
    inputs = {f"{_OBSERVATION}.{key}": _example(part) for key, part in parts.items()} or {_OBSERVATION: _example(space)}
    outputs = ["action"]
    if isinstance(policy, SSMPolicy):
        inputs |= {"state": policy.initial_state(2).cpu(), "start": torch.zeros(2, dtype=torch.bool)}
        outputs.append("next_state")
    write_onnx(path, _Acting(policy, list(parts), normalizer).eval(), inputs, outputs)


class _Acting(nn.Module):
    """From raw observations to actions of the environment."""

    low: Tensor
    high: Tensor

    def __init__(self, policy: BasePolicy, keys: Sequence[str], normalizer: VecNormalize | None) -> None:
        super().__init__()
        self.policy = real_copy(policy)
        self.keys = keys
        self.normalised = nn.ModuleDict()
        if normalizer is not None and normalizer.norm_obs:
            statistics: Any = normalizer.obs_rms
            for i, key in enumerate(keys or [""]):
                if not keys or key in (normalizer.norm_obs_keys or []):
                    own: Any = statistics[key] if keys else statistics
                    check_normalised(own.mean.shape, policy.observation_space, key)
                    self.normalised[str(i)] = _Normalised(own, normalizer)
        if isinstance(policy.action_space, spaces.Box):
            self.register_buffer("low", torch.as_tensor(policy.action_space.low))
            self.register_buffer("high", torch.as_tensor(policy.action_space.high))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The action, and of a policy that remembers the state after it."""
        num_parts = len(self.keys) or 1
        parts = [
            self.normalised[str(i)](part) if str(i) in self.normalised else part
            for i, part in enumerate(inputs[:num_parts])
        ]
        observation = dict(zip(self.keys, parts, strict=True)) if self.keys else parts[0]
        if isinstance(self.policy, SSMPolicy):
            distribution, state = self.policy.get_distribution(observation, *inputs[num_parts:])
            return self._to_environment(distribution.get_actions(deterministic=True)), state
        return self._to_environment(self.policy._predict(observation, deterministic=True))

    def _to_environment(self, actions: Tensor) -> Tensor:
        space = self.policy.action_space
        actions = actions.reshape(-1, *(space.shape or ()))
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            return actions + torch.as_tensor(space.start)
        if not isinstance(space, spaces.Box):
            return actions
        if self.policy.squash_output:
            actions = self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return torch.clamp(actions, self.low, self.high)  # of what is unscaled, too, which rounding carries beyond


class _Normalised(nn.Module):
    """What ``VecNormalize`` makes of observations, in double precision as there."""

    mean: Tensor
    scale: Tensor

    def __init__(self, statistics: RunningMeanStd, normalizer: VecNormalize) -> None:
        super().__init__()
        self.clip = float(normalizer.clip_obs)
        self.register_buffer("mean", torch.as_tensor(statistics.mean))
        self.register_buffer("scale", torch.as_tensor(np.sqrt(statistics.var + normalizer.epsilon)))

    def forward(self, observation: Tensor) -> Tensor:
        """``Float[n ...]`` -> the same."""
        return ((observation.double() - self.mean) / self.scale).clamp(-self.clip, self.clip).float()


def check_normalised(shape: tuple[int, ...], space: spaces.Space[Any], key: str = "") -> None:
    """What is normalised must be what the policy sees, not what another wrapper makes something else of."""
    part = space[key] if isinstance(space, spaces.Dict) else space
    if part.shape != shape:
        raise ValueError(
            f"the VecNormalize must normalise observations of the policy's shape {part.shape}; got one of {shape}. "
            "Train with it around the wrappers that change observations, such as VecFrameStack."
        )


def _example(space: spaces.Space[Any]) -> Tensor:
    """Two observations of a space, without a draw from its random stream."""
    if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return torch.as_tensor(np.zeros((2, *(space.shape or ())), dtype=space.dtype))
    raise ValueError(f"observations must be a Box, Discrete, MultiDiscrete, MultiBinary or Dict; got {space}.")
