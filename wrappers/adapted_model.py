"""What the wrappers of one environment and of many ask of the model that they adapt, and of what they show of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.bundle.online import check_online_options
from ssm_metarl_gym.checks import has_bounds

__all__ = [
    "LatestTransition",
    "OnlineOptions",
    "check_adapted_model",
    "encode_rows",
    "parse_change_ratio",
    "parse_probes",
    "valid_where_ignored",
    "with_predictions",
    "within_bounds",
]

_CHANGE_RATIO: Final = 5.0


@dataclass(frozen=True)
class OnlineOptions:
    """What is adapted to, when, and how what is predicted is shown.

    Attributes:
        window: Number of transitions that are kept.
        every: Number of steps between two calls of the adapter.
        warmup: Number of transitions that must be there before the first call.
        restore: When the adapter goes back to the source: ``"episode"``, ``"call"`` or ``"never"``.
        loss_fn: The loss of the transitions of one environment.
        clip: Bound of the predictions that are shown.
        leave_out: The share of episodes whose predictions are not shown.
        observe_predictions: Whether they are shown at all.

    Raises:
        ValueError: An option is outside its range.
    """

    window: int
    every: int
    warmup: int
    restore: str
    loss_fn: Callable[[Any, Tensor], Tensor]
    clip: float
    leave_out: float
    observe_predictions: bool

    def __post_init__(self) -> None:
        check_online_options(vars(self))
        for name in ("window", "every", "warmup"):
            object.__setattr__(self, name, int(getattr(self, name)))  # a deque's length is none of NumPy's


class LatestTransition(NamedTuple):
    """The transitions of the last step, one a row.

    Attributes:
        encoded: What the model encodes of where they began and of the actions, ``Float[N F]``.
        targets: The changes, normalised, ``Float[N D]``.
        errors: The squared errors of the adapted models before they adapted to them, ``Float64[N]``.
    """

    encoded: Tensor
    targets: Tensor
    errors: npt.NDArray[np.float64]


def encode_rows(model: DynamicsModel, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
    """What a model encodes of P actions in each of N rows: ``Float[N P D]`` and ``[N P ...]`` -> ``Float[N P F]``."""
    flat = observations.reshape(-1, observations.shape[2]), actions.reshape(-1, *actions.shape[2:])
    encoded: Tensor = model.encode(*flat).unflatten(0, observations.shape[:2])
    return encoded


def within_bounds(actions: Any, space: spaces.Space[Any]) -> npt.NDArray[Any]:
    """Actions ``[... A]`` as the environment takes them: of a ``Box``, what is beyond a bound counts as the bound."""
    given = np.asarray(actions)
    return np.clip(given, space.low, space.high) if isinstance(space, spaces.Box) else given


def valid_where_ignored(actions: Any, space: spaces.Space[Any], going: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Actions ``[N ...]``; those of rows that take no step, which may be anything, are choices that a model knows."""
    given = np.asarray(actions)
    return np.where(going, given, given.dtype.type(space.start)) if isinstance(space, spaces.Discrete) else given


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


def parse_change_ratio(given: float | None, adapter: Adapter) -> float:
    """The error that is a surprise, as a multiple of the mean; None for the default, of a filter none at all.

    A Kalman filter has a rule of its own for changes, by which it keeps its mean: going back to the source as well
    would only throw away what it knows.
    """
    if given is not None:
        return given
    return math.inf if isinstance(adapter, KalmanAdapter) else _CHANGE_RATIO


def parse_probes(space: spaces.Space[Any], given: Sequence[Any] | None) -> npt.NDArray[Any]:
    """The actions to predict for, ``[P ...]``, each of which must be in the space; None for a few of them."""
    if given is None:
        if isinstance(space, spaces.Discrete):
            given = list(range(int(space.start), int(space.start + space.n)))
        elif isinstance(space, spaces.Box) and has_bounds(space).all():
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
