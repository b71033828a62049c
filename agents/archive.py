"""Files of tensors and plain values, so that reading them runs no code, which are checked bit by bit."""

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ssm_metarl_gym.files import replacing

__all__ = ["read_archive", "write_archive"]


def write_archive(path: str | Path, state: Mapping[str, Any], version: int | str) -> None:
    """Write a state of tensors and plain values, aside first; a missing folder is made.

    Args:
        path: Where to.
        state: What to write.
        version: What :func:`read_archive` is to know it by.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save({"format": version, **state}, temporary)


def read_archive(
    path: str | Path | BinaryIO, source: str | Path, names: Collection[str], *, version: int | str, written_by: str
) -> dict[str, Any]:
    """The state that :func:`write_archive` wrote.

    Args:
        path: The file, or where it is.
        source: What to call it in an error.
        names: The names in every such state.
        version: That of the file.
        written_by: What writes such files, for an error.

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
    if not isinstance(state, dict) or state.get("format") != version or not set(names) <= state.keys():
        found = state.get("format") if isinstance(state, dict) else None
        if isinstance(found, int) and isinstance(version, int) and found < version:
            hint = " It was written by an earlier version: train anew."
        raise ValueError(f"{source} must be a file written by {written_by} in format {version}; it is not.{hint}")
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
