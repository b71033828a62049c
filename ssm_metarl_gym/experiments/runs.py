"""The folder of a training run: its configuration, its checkpoints, and how long the run took."""

import importlib.metadata
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssm_metarl_gym._version import __version__
from ssm_metarl_gym.files import write_json

__all__ = [
    "Stopwatch",
    "check_output",
    "find_checkpoints",
    "find_versions",
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


def save_checkpoint(folder: Path, number: int, write: Callable[[Path], object]) -> None:
    """Save a checkpoint as one folder, which appears at once or not at all; keep the last two.

    Args:
        folder: The folder of all checkpoints.
        number: The number of the checkpoint, greater than that of any other.
        write: Writes what belongs to it into the folder that it is given.
    """
    temporary = folder / "unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    temporary.rename(folder / f"{number:010d}")
    for old in find_checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def read_config(folder: Path, key: str) -> dict[str, Any] | None:
    """The configuration of the run in a folder, None where there is none.

    Raises:
        ValueError: There is one of something else: it lacks ``key``.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, dict) or key not in config:
        raise ValueError(f"--output must be a new folder or that of a run; {folder}/config.json is of something else.")
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    write_json(folder / "config.json", config)


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
