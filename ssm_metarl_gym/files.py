"""Writing files so that a half-written one never replaces a good one."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["replacing", "write_json"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Example:
        >>> with replacing("results.json") as temporary:
        ...     _ = temporary.write_text("{}")

    Raises:
        OSError: At ``path`` is something else than a file, such as a folder or a device, which is not to be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} must be a file, or nothing yet, to be written to; it is neither. Give another path.")
    # The suffix stays the last part of the name, because writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON: indented, aside first, and with a line break at the end.

    Numbers and arrays of NumPy are written as those of Python, and what is not finite as ``null``, because JSON has
    neither NaN nor infinity.

    Raises:
        OSError: As :func:`replacing`.
        TypeError: The value holds something else that JSON cannot hold; nothing is written.
    """
    text = json.dumps(_in_json(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def _in_json(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(part) for part in value]
    return value
