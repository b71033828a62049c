"""The file of a bundle: arrays, and one text that says what they are; docs/bundle.md tells its format."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.bundle.tensor_file import TYPES, read_tensors, write_tensors

__all__ = ["read_bundle", "write_bundle"]

_FORMAT: Final = "ssm-metarl-gym bundle 1"
_PARTS: Final = ("policy", "model", "reference")
_INFINITIES: Final = {"inf": math.inf, "-inf": -math.inf}

Weights = dict[str, dict[str, npt.NDArray[Any]]]


def write_bundle(path: str | Path, described: Mapping[str, Any], weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what :func:`read_bundle` reads, aside first; a missing folder is made.

    Args:
        path: The file.
        described: Plain values.
        weights: The arrays of each part, ``"policy"``, ``"model"`` and ``"reference"``, by name.
    """
    tensors = {f"{part}.{name}": tensor for part, named in weights.items() for name, tensor in named.items()}
    sums = {name: _describe(tensor) for name, tensor in tensors.items()}
    text = json.dumps(_encoded({"tensors": sums, **described}), allow_nan=False)
    write_tensors(path, tensors, {"format": _FORMAT, "bundle": text, "sha256": _sha256(text.encode())})


def read_bundle(path: str | Path) -> tuple[dict[str, Any], Weights]:
    """What :func:`write_bundle` wrote; every number of the file is compared with its checksum.

    Raises:
        ValueError: The file is damaged, another file, or of another version.
        OSError: It cannot be read.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} must be a file written by ActionCorrection.save_bundle in the format {_FORMAT!r}; "
            f"got {metadata.get('format')!r}."
        )
    text = metadata.get("bundle", "")
    if metadata.get("sha256") != _sha256(text.encode()):
        raise ValueError(f"{path} is damaged: what it says of itself does not have the checksum that it names.")
    try:
        described = _decoded(json.loads(text))
        sums = dict(described.pop("tensors"))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a bundle ({type(error).__name__}: {error}).") from None
    damaged = [name for name in {*sums, *tensors} if name not in tensors or _describe(tensors[name]) != sums.get(name)]
    if damaged:
        raise ValueError(f"{path} is damaged: {sorted(damaged)} do not have the checksums that it names.")
    weights: Weights = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, own = name.partition(".")
        weights.setdefault(part, {})[own] = tensor
    return described, weights


def _describe(tensor: npt.NDArray[Any]) -> dict[str, Any]:
    data = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
    return {"dtype": TYPES[tensor.dtype.name], "shape": list(tensor.shape), "sha256": _sha256(data.tobytes())}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encoded(value: Any) -> Any:
    """A value in which infinity is a word, because JSON has none."""
    if isinstance(value, Mapping):
        return {name: _encoded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return _encoded(value.tolist())
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _decoded(value: Any) -> Any:
    """The reverse of :func:`_encoded`."""
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_decoded(part) for part in value]
    return _INFINITIES.get(value, value) if isinstance(value, str) else value
