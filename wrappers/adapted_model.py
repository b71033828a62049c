"""What the wrappers of one environment and of many ask of the model that they adapt, and of what they show of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.checks import check_choice, check_integer

__all__ = ["check_adapted_model", "check_window", "parse_probes", "with_predictions"]


def check_window(window: int, every: int, warmup: int, restore: str, clip: float) -> None:
    """The options of what is adapted to and when must be valid; see :class:`OnlineAdaptation` for what they mean."""
    for name, value in (("window", window), ("every", every), ("warmup", warmup)):
        check_integer(name, value)
    if warmup > window:
        raise ValueError(f"warmup must be at most window ({window}); got {warmup}.")
    check_choice("restore", restore, ["episode", "call", "never"])
    if not clip > 0.0:
        raise ValueError(f"clip must be > 0; got {clip!r}.")


def check_adapted_model(
    name: str, adapter: Adapter, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> DynamicsModel:
    """The model of an adapter, which must be a :class:`DynamicsModel` of the spaces of the environment.

    Args:
        name: The wrapper, for messages.
        adapter: What a user gives.
        observation_space: The space of the observations that the wrapper sees.
        action_space: That of the actions.
    """
    if not isinstance(adapter, Adapter):
        raise ValueError(f"{name} needs an adapter of a DynamicsModel; got {type(adapter).__name__}.")
    model = adapter.model
    if not isinstance(model, DynamicsModel):
        raise ValueError(f"{name} needs an adapter of a DynamicsModel; got one of {type(model).__name__}.")
    if action_space != model.action_space or observation_space.shape != (model.observation_dim,):
        raise ValueError(
            f"the model must be made for the spaces of the environment, {observation_space} and "
            f"{action_space}; it is for {model.observation_dim} observations and {model.action_space}."
        )
    return model


def parse_probes(space: spaces.Space[Any], given: Sequence[Any] | None) -> npt.NDArray[Any]:
    """The actions to predict for, ``[P ...]``, each of which must be in the space; None for a few of them."""
    if given is None:
        if isinstance(space, spaces.Discrete):
            given = list(range(int(space.start), int(space.start + space.n)))
        elif isinstance(space, spaces.Box) and space.is_bounded():
            given = [space.low, np.clip(np.zeros_like(space.low), space.low, space.high), space.high]
        else:
            raise ValueError(f"probe_actions must be given for the action space {space}.")
    try:
        # Numbers may lose precision but not their fractions: 0.5 is no action of a Discrete space.
        probes = [np.asarray(action).astype(space.dtype, casting="same_kind") for action in given]
    except (TypeError, ValueError):
        probes = []
    if not probes or not all(space.contains(action) for action in probes):
        raise ValueError(f"probe_actions must be one or more actions of {space}; got {given!r}.")
    return np.stack(probes)


def with_predictions(space: spaces.Space[Any], num_probes: int, clip: float) -> Any:
    """``Box[D + P D]`` of an observation and the changes that are predicted for the probes, within ``clip``."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"the observation space must be a Box; got {space}.")
    bound = np.full(num_probes * space.shape[0], clip, dtype=np.float32)
    low, high = np.append(space.low, -bound), np.append(space.high, bound)
    return spaces.Box(low, high, dtype=low.dtype.type)
