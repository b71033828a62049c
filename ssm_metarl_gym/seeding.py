"""The one way from a seed and names to independent streams of random numbers."""

import zlib

import numpy as np

__all__ = ["seed_sequence"]


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
