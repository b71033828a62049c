"""Gymnasium's infos of many rows, divided into one info for each row."""

from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Memory", "split_infos"]

# What nested infos held in the last step, and the rows that this gave.
Memory: TypeAlias = dict[str, tuple[dict[str, npt.NDArray[Any]], list[dict[str, Any]]]]


def split_infos(
    infos: dict[str, Any], rows: npt.NDArray[np.intp] | slice, num_rows: int, memory: Memory | None = None
) -> list[dict[str, Any]]:
    """The info of each of the rows, as its single environment gave it: nothing in it is shared, numbers are Python's.

    Args:
        infos: Gymnasium's vector infos: columns, arrays of an entry for each row or infos again, and under ``_<name>``
            a mask of the rows that have an entry (all where there is none).
        rows: The rows to take.
        num_rows: How many these are.
        memory: Where to look for nested infos of the same content, if ``rows`` are all.
    """
    split: list[dict[str, Any]] = [{} for _ in range(num_rows)]
    full: Any = None  # a mask that is known to be true in all rows: most columns have the same
    for name, column in infos.items():
        if name[:1] == "_" and name[1:] in infos:
            continue  # a mask
        if isinstance(column, dict) and memory is not None:
            entries = _split_or_recall(name, column, num_rows, memory)
        else:
            entries = _entries(column, rows, num_rows)
        mask: Any = infos.get("_" + name)
        if mask is full or mask is None or np.count_nonzero(mask[rows]) == num_rows:
            full = mask
            # Faster than dict(zip(...)), row by row.
            for info, entry in zip(split, entries, strict=True):
                info[name] = entry
        else:
            for i in mask[rows].nonzero()[0].tolist():
                split[i][name] = entries[i]
    return split


def _split_or_recall(name: str, infos: dict[str, Any], num_rows: int, memory: Memory) -> list[dict[str, Any]]:
    """Nested infos, split; only the rows that changed anew, because those of a task seldom do."""
    before, rows = memory.pop(name, ({}, []))
    if len(rows) != num_rows or before.keys() != infos.keys():
        before, rows = {}, split_infos(infos, slice(None), num_rows)
    changed = np.zeros(num_rows, dtype=np.bool_)
    for key, column in infos.items():
        present = before.get(key)
        if column is present:
            continue
        if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in "biuf":
            return split_infos(infos, slice(None), num_rows)
        if present is not None:
            # By bits, which tell -0.0 from 0.0 and find nan equal to itself.
            changed |= _bits(column) != _bits(present) if column.dtype == present.dtype else True
        before[key] = column if _is_frozen(column) else column.copy()
    (which,) = changed.nonzero()
    if len(which):
        for i, info in zip(which.tolist(), split_infos(infos, which, len(which)), strict=True):
            rows[i] = info
    memory[name] = before, rows
    return [info.copy() for info in rows]


def _bits(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return column.view(f"u{column.itemsize}") if column.dtype.kind == "f" and column.itemsize <= 8 else column


def _is_frozen(column: npt.NDArray[Any]) -> bool:
    """Whether nobody can write to an array, so that the same array has the same content."""
    base = column.base
    return not column.flags.writeable and (base is None or (isinstance(base, np.ndarray) and not base.flags.writeable))


def _entries(column: Any, rows: npt.NDArray[np.intp] | slice, num_rows: int) -> list[Any]:
    """The entries of a column in the given rows."""
    if isinstance(column, dict):
        return split_infos(column, rows, num_rows)
    # A list may hold entries of any kind, also sequences of one length; a single value is that of every row.
    array = np.fromiter(column, dtype=object, count=len(column)) if isinstance(column, list) else np.asarray(column)
    if array.ndim == 0:
        return [deepcopy(column) for _ in range(num_rows)]
    taken = array[rows]
    if taken.dtype == object:
        return [deepcopy(entry) for entry in taken]
    if taken.ndim == 1:
        return taken.tolist()  # type: ignore[no-any-return]
    return list(taken.copy())
