"""The small model of the dynamics that studies of adaptation share, and files of its weights."""

from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import nn

from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.files import replacing

__all__ = ["load_weights", "make_model", "save_weights"]


def make_model(env_id: str, adapts: Literal["last_layer", "all"] = "last_layer", **env_kwargs: Any) -> DynamicsModel:
    """An untrained model on a network of 64 and 32 hyperbolic tangents, small enough that a step of it is cheap.

    Args:
        env_id: The id of the environment whose spaces it has.
        adapts: What adapts.
        **env_kwargs: Arguments of the environment.
    """
    env = gym.make(env_id, **env_kwargs)
    width = DynamicsModel.input_dim(env.observation_space, env.action_space)
    core = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    return DynamicsModel(env.observation_space, env.action_space, core, adapts=adapts)


def save_weights(model: DynamicsModel, path: Path) -> None:
    """Write the weights and the normalisation of a model, aside and then in place of what is there."""
    with replacing(path) as temporary:
        torch.save(model.state_dict(), temporary)


def load_weights(env_id: str, path: Path, **env_kwargs: Any) -> DynamicsModel:
    """A model as :func:`make_model` makes it, with what :func:`save_weights` wrote; no code from the file is run."""
    model = make_model(env_id, **env_kwargs)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model
