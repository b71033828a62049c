"""The file of a trainer: tensors and plain values, so that reading it runs no code, and checked bit by bit."""

import io
import sys
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch

from ssm_metarl_gym.files import replacing

__all__ = ["check_module", "read_archive", "to_plain_values", "write_archive"]

_FORMAT: Final = 2


def write_archive(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors and plain values, aside first; a missing folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save({"format": _FORMAT, **state}, temporary)


def read_archive(path: str | Path | BinaryIO, source: str | Path, names: Collection[str]) -> dict[str, Any]:
    """The state that :func:`write_archive` wrote.

    Args:
        path: The file, or where it is.
        source: What to call it in an error.
        names: The names in every such state.

    Raises:
        ValueError: It is damaged, or another file.
        OSError: It cannot be read.
    """
    data = Path(path).read_bytes() if isinstance(path, str | Path) else path.read()
    state, hint = None, ""
    try:
        state = torch.load(_vouched_for(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a foreign file happens to trip over
        # The first line says it; torch goes on with advice for those who trust the file.
        hint = f" {str(error).partition(chr(10))[0]}"
    if not isinstance(state, dict) or state.get("format") != _FORMAT or not set(names) <= state.keys():
        if isinstance(state, dict) and state.get("format") == 1:
            hint = " It was written by an earlier version: train anew."
        raise ValueError(f"{source} must be a file written by MetaTrainer.save in format {_FORMAT}; it is not.{hint}")
    return state


def _vouched_for(data: bytes) -> BinaryIO:
    """An archive once more, of nothing but what its own checksums vouch for.

    torch compares none of them, and trusts every field of the directory: one flipped bit makes it take the numbers of a
    tensor for a folder, and what the memory happens to hold for the numbers.
    """
    verified = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(verified, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, archive.read(name))
    verified.seek(0)
    return verified


def to_plain_values(value: Any) -> Any:
    """A value as JSON could hold it: numbers and arrays of NumPy become Python's, tasks and distributions dictionaries.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_plain_values(to_dict())
    if isinstance(value, Mapping):
        return {name: to_plain_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_values(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        "env_kwargs must hold what the file of a trainer can hold: what JSON can, tasks and distributions; got "
        f"{value!r}. Register an environment that is made with it."
    )


def check_module(env_id: str, source: str | Path, allowed_modules: Collection[str]) -> None:
    """The module that making ``env_id`` would import must be there already, or allowed.

    Raises:
        ValueError: It is neither.
    """
    allowed = {allowed_modules} if isinstance(allowed_modules, str) else set(allowed_modules)
    module, _, _ = env_id.rpartition(":")
    if module and module not in allowed | sys.modules.keys():
        raise ValueError(
            f"{source} must be of an environment that is registered; its {env_id!r} would import the module {module!r} "
            f"and run its code. Import it first, or give allowed_modules=[{module!r}], if you trust the file."
        )
