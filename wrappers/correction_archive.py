"""The file of a corrected policy: all that stands between it and an environment, but for the policy itself."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter
from ssm_metarl_gym.agents.adaptation.rls import RecursiveLeastSquares
from ssm_metarl_gym.agents.archive import read_archive, write_archive
from ssm_metarl_gym.agents.losses import ELEMENTWISE, ELEMENTWISE_FUNCTIONS
from ssm_metarl_gym.agents.models.description import describe_model, rebuild_model
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel

__all__ = ["SavedCorrection", "read_correction", "write_correction"]

_FORMAT: Final = "correction 2"
_STORED: Final = ("observation_dim", "action_space", "model", "reference", "adapter", "online", "correction")
_ADAPTERS: Final[dict[str, Any]] = {kind.__name__: kind for kind in (Adapter, KalmanAdapter, RecursiveLeastSquares)}
_LOSSES: Final[dict[str, Any]] = {kind.__name__: kind for kind in (*ELEMENTWISE, *ELEMENTWISE_FUNCTIONS)}
_OPTIONS_OF_LOSSES: Final = ("reduction", "beta", "delta")


class SavedCorrection(NamedTuple):
    """What a file holds.

    Attributes:
        adapter: The adapter, at its source.
        reference: The model of the physics that the policy knows.
        online: The keyword arguments of :class:`OnlineAdaptation` and its vector twin.
        correction: Those of :class:`ActionCorrection` and its vector twin.
    """

    adapter: Adapter
    reference: DynamicsModel
    online: dict[str, Any]
    correction: dict[str, Any]


def write_correction(path: str | Path, saved: SavedCorrection) -> None:
    """Write a file that :func:`read_correction` reads, aside first; a missing folder is made.

    Raises:
        ValueError: The adapter or a model is of a class of one's own, or a model has hooks beside its core.
    """
    adapter = saved.adapter
    if type(adapter) not in _ADAPTERS.values():
        raise ValueError(
            f"the adapter must be one of {', '.join(_ADAPTERS)} to be saved; got {type(adapter).__name__}. Pickle the "
            "wrapper in place of it."
        )
    model = cast("DynamicsModel", adapter.model)
    online, probes = saved.online, saved.online["probe_actions"]
    state = {
        "observation_dim": model.observation_dim,
        "action_space": _describe_space(model.action_space),
        "model": describe_model(model),
        "reference": describe_model(saved.reference),
        "adapter": {"kind": type(adapter).__name__, "options": _options(adapter)},
        "online": online
        | {
            "loss_fn": _describe_loss(online["loss_fn"]),
            "probe_actions": None if probes is None else [np.asarray(action).tolist() for action in probes],
        },
        "correction": saved.correction,
    }
    write_archive(path, _plain(state), _FORMAT)


def read_correction(
    path: str | Path,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    *,
    core: nn.Module | None = None,
    loss_fn: Callable[[Any, Tensor], Tensor] | None = None,
) -> SavedCorrection:
    """What :func:`write_correction` wrote; no code from the file is run.

    Args:
        path: The file.
        observation_space: The space of the observations that the models see.
        action_space: The space of the actions.
        core: A module that is built like the cores of both models; None for those that the file describes.
        loss_fn: The loss; None for the one that the file names.

    Raises:
        ValueError: The file is damaged, another file, of other spaces, or does not describe a core or a loss that is
            not given.
        OSError: The file cannot be read.
    """
    state = read_archive(path, path, _STORED, version=_FORMAT, written_by="ActionCorrection.save")
    with _naming(path):
        space = _rebuild_space(state["action_space"])
        dim = state["observation_dim"]
        if observation_space.shape != (dim,) or action_space != space:
            raise ValueError(
                f"the environment must have {dim} observations and {space}; got {observation_space} and {action_space}."
            )
        model, reference = (
            rebuild_model(state[name], observation_space, action_space, core) for name in ("model", "reference")
        )
        online: dict[str, Any] = state["online"]
        online["loss_fn"] = _rebuild_loss(online["loss_fn"]) if loss_fn is None else loss_fn
        return SavedCorrection(_rebuild_adapter(model, state["adapter"]), reference, online, state["correction"])


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Let errors say which file it is that does not fit."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error


def _plain(value: Any) -> Any:
    """A value in which the numbers of NumPy are Python's, as only these can be read without running code."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _options(adapter: Adapter) -> dict[str, Any]:
    """The keyword arguments that make such an adapter."""
    parameters = inspect.signature(type(adapter)).parameters.values()
    names = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]
    own = {name: getattr(adapter if hasattr(adapter, name) else adapter.cfg, name) for name in names}
    return own | ({"cfg": asdict(adapter.cfg)} if type(adapter) is Adapter else {})


def _rebuild_adapter(model: DynamicsModel, described: Mapping[str, Any]) -> Adapter:
    options = described["options"]
    if "cfg" in options:
        options = options | {"cfg": AdaptationConfig(**options["cfg"])}
    adapter: Adapter = _ADAPTERS[described["kind"]](model, **options)
    return adapter


def _describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    box = cast("spaces.Box", space)  # a model takes no other
    return {"low": torch.as_tensor(box.low), "high": torch.as_tensor(box.high), "dtype": str(box.dtype)}


def _rebuild_space(described: Mapping[str, Any]) -> spaces.Space[Any]:
    if "n" in described:
        return spaces.Discrete(described["n"], start=described["start"])
    return spaces.Box(described["low"].numpy(), described["high"].numpy(), dtype=np.dtype(described["dtype"]).type)


def _describe_loss(loss_fn: Any) -> dict[str, Any] | None:
    """Of one of torch's means over elements its name and options; None of any other loss."""
    if loss_fn in ELEMENTWISE_FUNCTIONS:
        return {"name": loss_fn.__name__}
    if type(loss_fn) in ELEMENTWISE:
        options = {name: getattr(loss_fn, name) for name in _OPTIONS_OF_LOSSES if hasattr(loss_fn, name)}
        return {"name": type(loss_fn).__name__, "options": options}
    return None


def _rebuild_loss(described: Mapping[str, Any] | None) -> Any:
    if described is None:
        raise ValueError("loss_fn must be given, as it was saved with a loss of one's own; got None. Give that loss.")
    loss = _LOSSES[described["name"]]
    return loss(**described["options"]) if "options" in described else loss
