"""Arrays and texts in one file of the format safetensors, read and written with numpy alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.files import replacing

__all__ = ["TYPES", "read_tensors", "write_tensors"]

TYPES: Final = {"float32": "F32", "float64": "F64", "uint8": "U8"}  # of NumPy, and of the format
_KINDS: Final = {code: np.dtype(name).newbyteorder("<") for name, code in TYPES.items()}
_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_ALIGNMENT: Final = 8  # of the first number, so that arrays can be used where they lie


def write_tensors(path: str | Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays of single and double precision and of bytes, aside first; a missing folder is made.

    Args:
        path: Where to.
        tensors: The arrays by name.
        metadata: Texts by name.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    parts, end = [], 0
    for name, tensor in tensors.items():
        part = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": TYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + len(part)],
        }
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(len(text).to_bytes(_LENGTH_BYTES, "little") + text + b"".join(parts))


def read_tensors(path: str | Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays and texts that :func:`write_tensors` wrote; no code from the file is run.

    Raises:
        ValueError: The file is damaged, or another file.
        OSError: It cannot be read.
    """
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    body = memoryview(data)[_LENGTH_BYTES + length :]
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        metadata = {str(name): str(text) for name, text in header.pop(_METADATA).items()}
        tensors = {name: _read_tensor(body, **described) for name, described in header.items()}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        if num_bytes != len(body):
            raise ValueError(f"it has {len(body)} bytes of tensors instead of {num_bytes}")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a whole safetensors file; it is damaged, or another file ({error})."
        ) from None
    return tensors, metadata


def _read_tensor(body: memoryview, *, dtype: str, shape: list[int], data_offsets: list[int]) -> npt.NDArray[Any]:
    begin, end = data_offsets
    part = body[begin:end]
    if dtype not in _KINDS:
        raise ValueError(f"its tensors must be of {', '.join(_KINDS)}; got {dtype}")
    kind = _KINDS[dtype]
    if not 0 <= begin <= end or len(part) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"a tensor of shape {shape} has {len(part)} bytes")
    # A copy in the machine's own order of bytes, which outlives the file's.
    return np.frombuffer(part, dtype=kind).reshape(shape).astype(kind.newbyteorder("="))
