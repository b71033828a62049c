"""Writing files so that a half-written one never replaces a good one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


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
