"""The folder of a training run: its configuration, its checkpoints, its lock, and how long the run took."""

import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ssm_metarl_gym._version import __version__
from ssm_metarl_gym.experiments.command_line import refusing
from ssm_metarl_gym.files import (
    check_checksums,
    check_zip,
    flush,
    in_json,
    sweep,
    temporary_beside,
    write_checksums,
    write_json,
)

if sys.platform != "win32":
    import fcntl

__all__ = [
    "Stopwatch",
    "check_checkpoint",
    "check_output",
    "find_checkpoints",
    "find_versions",
    "find_whole_checkpoint",
    "hold_output",
    "how_to_go_on",
    "load_config",
    "lock_run",
    "read_config",
    "save_checkpoint",
    "write_config",
]


class Stopwatch:
    """Seconds of training, of the wall and of the processor, those of earlier sessions included."""

    def __init__(self, wall_seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall, self._cpu = time.perf_counter() - wall_seconds, time.process_time() - cpu_seconds

    def read(self) -> dict[str, float]:
        """The seconds so far."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def find_versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    versions = {"python": sys.version.partition(" ")[0]}
    for package in packages:
        if package == "ssm-metarl-gym":  # which may be on the path alone
            versions[package] = __version__
        elif importlib.util.find_spec(package.replace("-", "_")) is not None:
            versions[package] = importlib.metadata.version(package)
    return versions


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit())


def find_whole_checkpoint(folder: Path, say: Callable[[str], object] = print) -> Path | None:
    """The last checkpoint in a folder that is whole, None where there is no checkpoint at all.

    Later ones, which are damaged, are renamed, so that they are no checkpoints any more; ``say`` is told so.

    Raises:
        ValueError: There are checkpoints, but none is whole.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(find_checkpoints(folder)):
        try:
            check_checkpoint(checkpoint)
        except ValueError as error:
            damaged[checkpoint] = str(error)
            continue
        for other, reason in damaged.items():
            aside = other.with_name(f"{other.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            say(f"{reason} The run goes on from {checkpoint.name}, and {other.name} is now {aside.name}.")
        return checkpoint
    if damaged:
        raise ValueError(
            f"a checkpoint must be whole to go on from; of those in {folder} none is: "
            f"{' '.join(damaged.values())} Copy the folder of the run again, or delete {folder} to "
            "begin anew."
        )
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Whether a checkpoint is as :func:`save_checkpoint` wrote it.

    Raises:
        ValueError: It is damaged, or only a part of it is there.
    """
    if check_checksums(checkpoint):
        return
    # One of an earlier version has no checksums of its own, nor has one of which half was copied.
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    if not files:
        raise ValueError(f"{checkpoint} is empty.")
    for path in files:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty.")
        if path.suffix in (".pt", ".zip"):
            check_zip(path, path)


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], object]) -> None:
    """Save a checkpoint as one folder, which appears at once or not at all; keep the last two.

    All of it is on the disk before it appears, and it holds the checksums of its files.

    Args:
        folder: The folder of all checkpoints.
        step: How far the run is. Checkpoints that are further are none of this run, and are deleted.
        write: Writes what belongs to it into the folder that it is given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder / "unfinished")
    temporary.mkdir()
    try:
        write(temporary)
        files = [path for path in temporary.rglob("*") if path.is_file()]
        write_checksums(temporary, [path.relative_to(temporary).as_posix() for path in files])
        for path in (*files, temporary):
            flush(path)
        for other in find_checkpoints(folder):
            if int(other.name) >= step:
                shutil.rmtree(other)
        temporary.rename(folder / f"{step:010d}")
        flush(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in find_checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def how_to_go_on(folder: Path, unit: str) -> str:
    """What the user of a run that was interrupted is told: from which step it will go on, in units such as updates."""
    steps = [int(path.name) for path in find_checkpoints(folder / "checkpoints")]
    return f"the same command again goes on from {unit} {max(steps, default=0)}"


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, which must exist, so that no second run writes to it in the meantime.

    The system lets go of it when this process ends, however it ends. What killed runs left unfinished in it is deleted.
    Where the file system knows no locks, or on Windows, nothing is held.

    Raises:
        ValueError: Another process holds it; the message says which.
    """
    lock = _open_lock(folder) if sys.platform != "win32" else None
    if lock is not None:  # so that all that is unfinished is of runs that were killed, wherever they ran
        for part in (folder, folder / "checkpoints"):
            sweep(part, other_machines=True)
    try:
        yield
    finally:
        if lock is not None:
            (folder / ".lock").unlink(missing_ok=True)
            lock.close()


@contextlib.contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Make the output folder of a script and hold it; the script ends where another process does (:func:`lock_run`)."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with refusing():
            stack.enter_context(lock_run(folder))
        yield


def _open_lock(folder: Path) -> IO[str] | None:
    """The file of the lock, which is held until it is closed; None where there are no locks."""
    path = folder / ".lock"
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
            raise ValueError(
                f"--output must be a folder that no other run uses; {folder} is in use by {owner}. Wait until it has "
                "ended, or give another --output."
            ) from None
        except OSError:
            lock.close()
            return None
        # The last owner deleted its file before it let go: another one may be there by now.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
        lock.close()
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    lock.flush()
    return lock


def read_config(folder: Path, key: str) -> dict[str, Any] | None:
    """The configuration of the run in a folder, None where there is none.

    Raises:
        ValueError: It cannot be read, is damaged, or is one of something else: it lacks ``key``.
    """
    path = folder / "config.json"
    try:
        config = load_config(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Give another --output.") from error
    if config is None or key not in config:
        raise ValueError(f"--output must be a new folder or that of a run; {folder}/config.json is of something else.")
    return config


def load_config(path: Path) -> dict[str, Any] | None:
    """A configuration that :func:`write_config` wrote, None where the file holds no object in JSON.

    Runs of version 0.1.0 have no checksum: theirs is taken as it is.

    Raises:
        ValueError: It is damaged, or was edited.
        OSError: It cannot be read.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, no text, or brackets in brackets in brackets
        return None
    if not isinstance(config, dict):
        return None
    # What is last and as long as a checksum is one, whatever a flipped bit has made of its name.
    name, checksum = next(reversed(config.items()), ("", None))
    if isinstance(checksum, str) and len(checksum) == 64:
        del config[name]
        if checksum != _checksum(config):
            raise ValueError(
                f"{path} must be as the run wrote it; by its checksum it is damaged, or was edited. Copy it again, or "
                f"delete its last entry, {name!r}, to use it as it is."
            )
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json, and in it as its last entry the checksum of all others."""
    config = in_json(config)
    write_json(folder / "config.json", {**config, "checksum": _checksum(config)})


def _checksum(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def check_output(folder: Path, wanted: Mapping[str, Any], key: str) -> None:
    """Whether a run with the options ``wanted`` may write to a folder, which may be missing.

    Raises:
        ValueError: The folder holds a run with other options that has learned something, or something else than a run:
            a configuration without ``key``.
    """
    present = read_config(folder, key)
    if present is None or not (present.get("finished") or find_checkpoints(folder / "checkpoints")):
        return  # a run that has learned nothing yet may begin anew with other options
    differing = [
        f"--{name.replace('_', '-')} ({json.dumps(present.get(name))} there, {json.dumps(value)} now)"
        for name, value in wanted.items()
        if present.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"--output must be a new folder or that of a run with the same options; in {folder} these differ: "
            f"{', '.join(differing)}. Give another --output."
        )
