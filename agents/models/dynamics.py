"""A model of the dynamics, the thing that adapts."""

from typing import Any, Final, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ssm_metarl_gym.agents.ssm.model import SSM

__all__ = ["DynamicsModel"]

_ADAPTS: Final = ("last_layer", "all")


class DynamicsModel(nn.Module):
    """Predicts how an action changes the observation, in units of the changes' standard deviation.

    A *core* (any module from ``Float[B in]`` to ``Float[B F]``; an :class:`SSM` by default, from its zero state) makes
    features of an observation and an action, a linear *head* turns them into the change. ``adapts`` says what adapts
    at test time: the whole model, or the head alone, in which case the features of a transition are computed once.
    So there are two halves: :meth:`encode` computes what does not adapt, ``forward`` takes it and computes the rest.
    A new model is in evaluation mode, and just what adapts requires a gradient, see :meth:`prepare_to_adapt`. It
    computes in the type of numbers of its core.

    Args:
        observation_space: A one-dimensional ``Box``.
        action_space: A ``Discrete`` space (encoded one-hot) or a ``Box``.
        core: The core; None for ``SSM(input_dim, hidden_dim=64, output_dim=32)``.
        adapts: ``"last_layer"`` or ``"all"``.

    Raises:
        ValueError: A space of another kind, an unknown ``adapts``, or a core that takes or gives another shape.
    """

    input_shift: Tensor
    input_scale: Tensor
    target_scale: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        core: nn.Module | None = None,
        *,
        adapts: Literal["last_layer", "all"] = "last_layer",
    ) -> None:
        super().__init__()
        if adapts not in _ADAPTS:
            raise ValueError(f"adapts must be one of {list(_ADAPTS)}; got {adapts!r}.")
        input_dim = self.input_dim(observation_space, action_space)
        self.observation_dim = cast("spaces.Box", observation_space).shape[0]
        self.action_space = action_space
        self.adapts = adapts
        self.core = SSM(input_dim, hidden_dim=64, output_dim=32) if core is None else core
        device = next((parameter.device for parameter in self.core.parameters()), torch.device("cpu"))
        self.core.eval()
        try:
            with torch.no_grad():
                features = self.core(torch.zeros(1, input_dim, dtype=self._core_dtype(), device=device))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the core must take an input of shape (batch, {input_dim}): {error}") from error
        if not isinstance(features, Tensor) or features.ndim != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"the core must give a tensor of shape (batch, features); got {got}.")
        with torch.device("cpu"):  # so that a seed means the same weights everywhere
            self.head = nn.Linear(features.shape[1], self.observation_dim)
            self.register_buffer("input_shift", torch.zeros(input_dim))
            self.register_buffer("input_scale", torch.ones(input_dim))
            self.register_buffer("target_scale", torch.ones(self.observation_dim))
        self.head.to(features.dtype)
        self.to(device)
        self.prepare_to_adapt()

    @staticmethod
    def input_dim(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> int:
        """The width of the input of a core: observation and encoded action side by side."""
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(f"the observation space must be a one-dimensional Box; got {observation_space}.")
        if not isinstance(action_space, (spaces.Box, spaces.Discrete)):
            raise ValueError(f"the action space must be Discrete or a Box; got {action_space}.")
        return observation_space.shape[0] + spaces.flatdim(action_space)

    def set_normalisation(
        self, observations: npt.NDArray[Any], actions: npt.NDArray[Any], next_observations: npt.NDArray[Any]
    ) -> None:
        """Normalise inputs and targets by the statistics of a data set of transitions, one a row."""
        inputs = self._join(observations, actions)
        changes = np.asarray(next_observations - observations)
        self.input_shift.copy_(torch.from_numpy(inputs.mean(axis=0)))
        self.input_scale.copy_(torch.from_numpy(_scale(inputs)))
        self.target_scale.copy_(torch.from_numpy(_scale(changes)))

    def inputs(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """The input of the core: ``Float[B D]`` and ``Int[B]`` or ``Float[B A]`` -> ``Float[B in]``, normalised."""
        joined = torch.from_numpy(self._join(observations, actions)).to(self.input_shift.device)
        return ((joined - self.input_shift) / self.input_scale).to(self._core_dtype())

    def targets(self, observations: npt.NDArray[Any], next_observations: npt.NDArray[Any]) -> Tensor:
        """The changes that the model should predict, normalised: ``Float[B D]`` twice -> ``Float[B D]``."""
        change = np.subtract(next_observations, observations, dtype=np.float32)
        changes = torch.from_numpy(change).to(self.target_scale.device) / self.target_scale
        return changes.to(self.head.weight.dtype)

    def encode(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """What ``forward`` takes: the normalised inputs, or their features where only the last layer adapts."""
        with torch.no_grad():
            inputs = self.inputs(observations, actions)
            return cast("Tensor", self.core(inputs)) if self.adapts == "last_layer" else inputs

    def forward(self, encoded: Tensor) -> Tensor:
        """The predicted change ``Float[B D]``, normalised, from what :meth:`encode` gave."""
        return cast("Tensor", self.head(encoded if self.adapts == "last_layer" else self.core(encoded)))

    def prepare_to_adapt(self) -> None:
        """Go to evaluation mode, and let exactly those parameters require a gradient that adapt at test time."""
        self.eval()
        self.core.requires_grad_(self.adapts == "all")
        self.head.requires_grad_(True)

    def _core_dtype(self) -> torch.dtype:
        """The type of numbers that the core takes."""
        types = (parameter.dtype for parameter in self.core.parameters() if parameter.is_floating_point())
        return next(types, torch.get_default_dtype())

    def _join(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        if isinstance(self.action_space, spaces.Discrete):
            encoded = np.eye(int(self.action_space.n), dtype=np.float32)[np.asarray(actions) - self.action_space.start]
        else:
            encoded = np.asarray(actions, dtype=np.float32).reshape(len(observations), -1)
        return np.concatenate([np.asarray(observations, dtype=np.float32), encoded], axis=1)


def _scale(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The standard deviation of each column, 1 where a column is constant."""
    scale = values.std(axis=0)
    return np.where(scale > 1e-6, scale, 1.0)
