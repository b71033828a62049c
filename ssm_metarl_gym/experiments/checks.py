"""Checks of what a script is asked for, before it begins to work: each raises a ValueError of one sentence."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["check_output_file", "check_output_folder"]


def check_output_file(path: Path | None, flag: str = "--output") -> None:
    """A file can be written at ``path``; None is no file.

    Args:
        path: The file, which is left as it is.
        flag: The option that names it.

    Raises:
        ValueError: Something else than a file is there, or the folder is missing or cannot be written to.
    """
    if path is None:
        return
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{flag} must be a file, or nothing yet; {path} is neither. Give another path.")
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{flag} must be a file that can be written; got {path} ({error.strerror}).") from error


def check_output_folder(folder: Path, file_names: Sequence[str] = (), flag: str = "--output") -> None:
    """Files can be written into ``folder``, which is made where it is missing.

    Args:
        folder: The folder.
        file_names: The files that will be written into it, or replaced there.
        flag: The option that names it.

    Raises:
        ValueError: It cannot be written to, or holds something else than a file under one of the names.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{flag} must be a folder that can be written to; got {folder} ({error.strerror}).") from error
    for name in file_names:
        check_output_file(folder / name, f"{name} in {flag}")
