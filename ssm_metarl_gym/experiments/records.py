"""A file of results that grows by a line for each run, so that what was interrupted goes on where it was."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeAlias

from ssm_metarl_gym.files import replacing

__all__ = ["Records", "append_line"]

_Groups: TypeAlias = dict[tuple[Any, ...], list[dict[str, Any]]]  # lines by some of their values


class Records:
    """The lines of a file in JSON Lines, one object in each; lines that are added are written at once.

    What a process that was killed left of its last line is removed from the file: no other process may write to it
    meanwhile. Where many do, one makes the records before the others start, and these use :func:`append_line`. A last
    line that lacks nothing but its end, as some editors leave it, counts as any other.

    Args:
        path: The file; where there is none, there are no lines yet.
        is_read_only: Whether the file stays as it is, for those who add nothing (and may not).

    Raises:
        ValueError: Another line is no object in JSON.
        OSError: The file cannot be read, or not be written without its half line.

    Example:
        >>> records = Records(Path("runs.jsonl"))
        >>> if not records.find(agent="told", seed=3):
        ...     records.add(agent="told", seed=3, returns=[1.0, 2.0])
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self._path, self._is_read_only = path, is_read_only
        self._lines: list[dict[str, Any]] = []
        # The lines by their values of the names that were asked for: a report asks thousands of times.
        self._groups: dict[tuple[str, ...], _Groups] = {}
        *whole, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if _parse(rest) is not None:
            whole.append(rest)
        for number, text in enumerate(whole, start=1):
            line = _parse(text)
            if line is None:
                raise ValueError(
                    f"each line of {path} must be an object in JSON; line {number} is damaged. Delete that line: what "
                    "it held is measured again."
                )
            self._lines.append(line)
        if rest and not is_read_only:
            with replacing(path) as temporary:
                temporary.write_bytes(b"".join(text + b"\n" for text in whole))

    def find(self, **values: Any) -> list[dict[str, Any]]:
        """The lines that have these values, numbers and texts, in the order in which they were added."""
        names = tuple(values)
        if names not in self._groups:
            self._groups[names] = {}
            for line in self._lines:
                _put(line, names, self._groups[names])
        return list(self._groups[names].get(tuple(values.values()), ()))

    def add(self, **line: Any) -> None:
        """Write a line at once, as :func:`append_line` does."""
        if self._is_read_only:
            raise ValueError(f"{self._path} was opened to be read only. Make the records without is_read_only.")
        append_line(self._path, **line)
        self._lines.append(line)
        for names, groups in self._groups.items():
            _put(line, names, groups)


def _put(line: dict[str, Any], names: tuple[str, ...], groups: _Groups) -> None:
    """Put a line among those that have the same values of these names."""
    key = tuple(line.get(name) for name in names)
    if all(isinstance(value, Hashable) for value in key):  # a list is no number and no text
        groups.setdefault(key, []).append(line)


def _parse(text: bytes) -> dict[str, Any] | None:
    """A line of such a file; None if it is no object in JSON."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def append_line(path: Path, /, **line: Any) -> None:
    """Write a line at the end of a file of records, to which other processes may append at the same time.

    Args:
        path: The file.
        **line: What the line holds.

    Raises:
        TypeError: It holds what JSON cannot hold; nothing is written.
        OSError: It cannot be written.
    """
    text = json.dumps(line).encode() + b"\n"
    with path.open(
        "ab", buffering=len(text) + 1
    ) as file:  # all of it is written by one call, so that none come between
        file.write(text)
