"""A model of the dynamics as an ONNX file."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.onnx_file import write_onnx
from ssm_metarl_gym.agents.ssm.real import real_copy

if TYPE_CHECKING:
    from ssm_metarl_gym.agents.models.dynamics import DynamicsModel

__all__ = ["export_dynamics"]


def export_dynamics(model: "DynamicsModel", path: str | Path) -> None:
    """Write what :meth:`DynamicsModel.export_onnx` describes."""
    space = model.action_space
    inputs = {
        "observation": torch.zeros(2, model.observation_dim),
        "action": (
            torch.full((2,), int(space.start), dtype=torch.int64)
            if isinstance(space, spaces.Discrete)
            else torch.zeros(2, *(space.shape or ()))
        ),
    }
    write_onnx(path, _Predicting(model).eval(), inputs, ["next_observation"])


class _Predicting(nn.Module):
    """From raw observations and actions to the next observations."""

    def __init__(self, model: "DynamicsModel") -> None:
        super().__init__()
        self.model = real_copy(model)
        # A network of half or double precision computes in it; what is given and returned is in single precision.
        self.dtype = model.head.weight.dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """The next observations, ``Float[n D]``."""
        observation, action = inputs
        model, space = self.model, self.model.action_space
        if isinstance(space, spaces.Discrete):
            action = F.one_hot(action - int(space.start), int(space.n))
        action = action.flatten(1).to(observation.dtype)
        if model.adapts == "action_map":
            executed = ((action - model._middle) / model._unit) @ model.action_map.detach().to(action.dtype).mT
            executed = executed + model.action_offset.detach().to(action.dtype)
            action = (executed * model._unit + model._middle).to(observation.dtype)
        normalised = (torch.cat([observation, action], dim=1) - model.input_shift) / model.input_scale
        change = model.head(model.core(normalised.to(self.dtype))).to(observation.dtype)
        predicted: Tensor = observation + change * model.target_scale
        return predicted
