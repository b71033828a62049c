"""The one way from a seed and names to independent streams of random numbers."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["row_seeds", "seed_sequence"]


def seed_sequence(seed: int, *key: int | str) -> np.random.SeedSequence:
    """The stream of a seed that a key names: another key or another seed gives an independent one.

    Adding a stream of another key later changes none of those there are.

    Args:
        seed: The seed, >= 0.
        *key: Whole numbers >= 0 and names, from the general to the particular: a purpose, a split, the index of an
            update.
    """
    # A name counts by its checksum, which is the same in every process, as Python's own hash is not.
    numbers = (zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)
    return np.random.SeedSequence(seed, spawn_key=tuple(numbers))


def row_seeds(seed: int | Sequence[int | None] | None, rows: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """The rows that a reset seeds, each with its seed.

    Args:
        seed: The seed of each row, None for one that goes on; as in Gymnasium, a number stands for itself in row 0, for
            the next one in row 1, and so on.
        rows: ``Bool[N]``, the rows that are reset.
    """
    if seed is None:
        return
    for row in np.flatnonzero(rows).tolist():
        own = seed[row] if isinstance(seed, Sequence) else seed + row
        if own is not None:
            yield row, int(own)
