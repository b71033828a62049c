"""Checks of what a script is asked for, before it begins to work; they change nothing, and raise a ValueError."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

__all__ = ["check_device", "check_env", "check_output_file", "check_output_folder", "explaining"]


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Tell whatever a block raises as a ValueError of one sentence, ``what`` and the reason.

    What a user asks for may raise anything: a module of theirs, an environment, an algorithm, a file that they name.

    Example:
        >>> with explaining("--env Pendulum-v1 cannot be made"):
        ...     env = gym.make("Pendulum-v1", g="heavy")

    Raises:
        ValueError: The block raised something.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # a module that is imported may even end the process
        text = " ".join(str(error).split())
        if not isinstance(error, ValueError | gym.error.Error):
            text = f"{type(error).__name__}{': ' * bool(text)}{text}"
        raise ValueError(f"{what}: {text}") from error


def check_env(env_id: str, env_kwargs: Mapping[str, Any], flag: str = "--env") -> None:
    """An environment can be made and reset.

    Args:
        env_id: Its id; ``"module:id"`` imports first the module that registers it.
        env_kwargs: Its arguments, those of ``--env-kwargs``.
        flag: The option that names the id.

    Raises:
        ValueError: It cannot, or it would show itself while agents learn.
    """
    if "render_mode" in env_kwargs:
        raise ValueError(
            f"--env-kwargs must leave out render_mode, as nobody watches; got {env_kwargs['render_mode']!r} there."
        )
    with explaining(f"{flag} {env_id} with --env-kwargs {json.dumps(env_kwargs)} cannot be made"):
        env = gym.make(env_id, **env_kwargs)
        env.reset(seed=0)
        env.close()


def check_device(device: str, flag: str = "--device") -> None:
    """PyTorch can compute on a device, and read what came of it.

    Raises:
        ValueError: It cannot.
    """
    with explaining(f"{flag} must be a device that PyTorch can compute on; got {device!r}"):
        torch.ones(1, device=device).cpu()  # which "meta" cannot do


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
