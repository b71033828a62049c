"""Files that are whole or not there: written aside and then renamed, and checked when they are read back."""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

__all__ = [
    "check_checksums",
    "check_zip",
    "flush",
    "in_json",
    "replacing",
    "sweep",
    "temporary_beside",
    "write_checksums",
    "write_json",
]

_CHECKSUMS: Final = "checksums.json"
# The bit of MS-DOS in the attributes of what an archive holds.
_IS_FOLDER: Final = 0x10
# The machine and the process in a name that temporary_beside gives.
_TEMPORARY: Final = re.compile(r"\..*\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}(\..*)?")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    The file is on the disk before it takes its place: after a loss of power, too, there is the old one or the new one.

    Example:
        >>> with replacing("results.json") as temporary:
        ...     _ = temporary.write_text("{}")

    Raises:
        OSError: At ``path`` is something else than a file, such as a folder or a device, which is not to be replaced.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} must be a file, or nothing yet, to be written to; it is neither. Give another path.")
    temporary = temporary_beside(path)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A hidden name beside ``path`` for what will take its place, which no other call gets.

    What killed processes of this machine left in the folder under such names is deleted.
    """
    if path.parent.is_dir():
        sweep(path.parent)
    # The suffix stays the last part of the name, because writers choose the format by it.
    return path.with_name(f".{path.stem}.{_this_machine()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def sweep(folder: Path, *, other_machines: bool = False) -> None:
    """Delete what killed processes left in a folder under names that :func:`temporary_beside` gave.

    Args:
        folder: The folder.
        other_machines: Whether to delete what is of other machines, too: nobody knows whether these processes live.
    """
    for leftover in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or not (other_machines if match[1] != _this_machine() else not _is_alive(int(match[2]))):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # of a file that is gone, or that is somebody else's
                leftover.unlink()


def _this_machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere the question below would end the process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else, or to a machine with greater numbers
        return True
    return True


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of a file system that cannot tell
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON: indented, aside first, and with a line break at the end.

    Numbers and arrays of NumPy are written as those of Python, and what is not finite as ``null``, because JSON has
    neither NaN nor infinity.

    Raises:
        OSError: As :func:`replacing`.
        TypeError: The value holds something else that JSON cannot hold; nothing is written.
    """
    text = json.dumps(in_json(value), indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def in_json(value: Any) -> Any:
    """A value as :func:`write_json` writes it, and as it comes back."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: in_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [in_json(part) for part in value]
    return value


def check_zip(file: str | Path | BinaryIO, name: str | Path) -> None:
    """Whether an archive, such as those of ``torch.save`` and of Stable-Baselines3, is as it was written.

    Neither of them compares what it reads with the checksums that the archive holds.

    Args:
        file: The archive, or where it is.
        name: What to call it in an error.

    Raises:
        ValueError: It is damaged, or no archive.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # torch takes what is marked as a folder for one, whatever it is, and reads nothing.
            folders = (part.filename for part in members if part.external_attr & _IS_FOLDER and not part.is_dir())
            damaged = archive.testzip() or next(folders, None)
    except OSError:
        raise
    except Exception as error:  # damaged headers trip over whatever comes first
        raise ValueError(f"{name} must be a whole archive; it is damaged, or something else ({error}).") from None
    # Of half an archive with another archive in it, such as those of Stable-Baselines3, the inner one may be found.
    if min((part.header_offset for part in members), default=1) > 0:
        raise ValueError(f"{name} must be a whole archive; a part of it is missing.")
    if damaged is not None:
        raise ValueError(f"{name} must be a whole archive; {damaged!r} in it is damaged.")


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write checksums.json, by which :func:`check_checksums` tells whether these files of a folder are whole."""
    write_json(folder / _CHECKSUMS, {name: _checksum(folder / name) for name in sorted(names)})


def check_checksums(folder: Path) -> bool:
    """Whether a folder has a checksums.json, with which its files agree.

    Returns:
        False where it has none, so that nobody knows.

    Raises:
        ValueError: A file is missing or damaged.
        OSError: A file cannot be read.
    """
    try:
        text = (folder / _CHECKSUMS).read_bytes()
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        raise ValueError(f"{folder / _CHECKSUMS} must be a file; it is a folder.") from None
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if not isinstance(expected, dict):
        raise ValueError(f"{folder / _CHECKSUMS} is damaged.")
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing.")
        if _checksum(folder / name) != checksum:
            raise ValueError(f"{folder / name} is damaged.")
    return True


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
