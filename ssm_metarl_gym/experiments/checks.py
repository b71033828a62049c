"""Checks of what a script is asked for, before it begins to work; they change nothing, and raise a ValueError."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["check_output_file", "check_output_folder"]


def check_output_file(path: Path | None, flag: str = "--output") -> None:
    """A file can be written at ``path``; None is no file.

    Raises:
        ValueError: Something else than a file is there, or the folder is missing or cannot be written to.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise ValueError(f"{flag} must be a file, or nothing yet; {path} is neither. Give another path.")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(f"{flag} must be a file that can be written; got {path} ({error.strerror}).") from error


def check_output_folder(folder: Path, flag: str = "--output", file_names: Sequence[str] = ()) -> None:
    """Files can be written into ``folder``, once it is made.

    Args:
        folder: The folder, which may be missing.
        flag: The option that names it.
        file_names: The files that will be written into it, or replaced there.

    Raises:
        ValueError: It cannot be made or written to, or holds something else than a file under one of the names.
    """
    try:
        present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=present).close()
    except OSError as error:
        raise ValueError(f"{flag} must be a folder that can be written to; got {folder} ({error.strerror}).") from error
    for name in file_names:
        path = folder / name
        if path.exists() and not path.is_file():
            raise ValueError(f"{flag} must be a folder for {name}; {path} is no file. Give another folder.")
