"""Arrays with an entry for each row, as the infos of a vector environment hold them."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["AttributeOfARow", "copies_of_rows", "read_only"]


def copies_of_rows(array: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.object_]:
    """A copy of the entry of each row of ``mask``, None for the others: ``Object[n]``, as ``infos["final_obs"]`` is."""
    rows = np.full(len(array), None, dtype=object)
    for row in mask.nonzero()[0].tolist():
        rows[row] = array[row].copy()
    return rows


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, which can no longer be written."""
    array.setflags(write=False)  # twice as fast as the attribute of the flags
    return array


class AttributeOfARow:
    """What a single environment has and many together have not: setting it must not pass for setting the tasks."""

    def __init__(self, name: str) -> None:
        self._message = f"a batched environment has no {name!r} but one for each row: use its attribute 'tasks'."

    def __get__(self, env: Any, owner: type | None = None) -> Any:
        raise AttributeError(self._message)

    def __set__(self, env: Any, value: Any) -> None:
        raise AttributeError(self._message)
