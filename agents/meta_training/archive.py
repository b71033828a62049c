"""The file of a trainer: tensors and plain values, so that reading it runs no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch

from ssm_metarl_gym.files import replacing

__all__ = ["read_archive", "to_plain_values", "write_archive"]

_FORMAT: Final = 2


def write_archive(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values, aside first."""
    with replacing(path) as temporary:
        torch.save({"format": _FORMAT, **state}, temporary)


def read_archive(path: str | Path | BinaryIO, source: str | Path) -> dict[str, Any]:
    """The state that :func:`write_archive` wrote.

    Args:
        path: The file, or where it is.
        source: What to call it in an error.

    Raises:
        ValueError: It is another file.
        OSError: It cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch.load raises whatever a foreign file happens to trip over
        state = None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        is_older = isinstance(state, dict) and state.get("format") == 1
        older = " It was written by an earlier version: train anew." if is_older else ""
        raise ValueError(f"{source} must be a file written by MetaTrainer.save in format {_FORMAT}; it is not.{older}")
    return state


def to_plain_values(value: Any) -> Any:
    """A value as JSON could hold it: numbers and arrays of NumPy become Python's.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: to_plain_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_values(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"env_kwargs must be what JSON can hold, to be saved; got {value!r}. Give it as a dictionary.")
