"""Arrays with an entry for each row, as the infos of a vector environment hold them."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["copies_of_rows", "read_only"]


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
