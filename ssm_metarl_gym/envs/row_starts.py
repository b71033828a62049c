"""The starting states of n rows, drawn from a box that every reset may change."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["RowStarts"]

Rows = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]

# The lowest starting state and how far above it others lie: ``Float64[n S]``, or one number where all are the same,
# since arithmetic with one number is faster.
_Box: TypeAlias = tuple[Floats | float, Floats | float]


class RowStarts:
    """Where the episodes of n rows start.

    Args:
        num_rows: Number of rows n.
        bounds: The lowest and the highest starting state by default, ``Float64[S]`` each.
    """

    def __init__(self, num_rows: int, bounds: tuple[Floats, Floats]) -> None:
        self._shape = num_rows, len(bounds[0])
        self._default = _low_and_spread(bounds)
        # Those of each row; None as long as no reset has given any.
        self._own: tuple[Floats, Floats] | None = None

    def begin(self, rows: Rows, bounds: tuple[Floats, Floats] | None = None) -> None:
        """Set the bounds ``Float64[n S]`` of ``rows``, which hold until their episodes end; None for the default."""
        if bounds is None and self._own is None:
            return
        if self._own is None:
            low, spread = self._default
            self._own = np.broadcast_to(low, self._shape).copy(), np.broadcast_to(spread, self._shape).copy()
        box = self._default if bounds is None else _low_and_spread(bounds)
        for own, new in zip(self._own, box, strict=True):
            own[rows] = np.broadcast_to(new, self._shape)[rows]

    def draw(self, rows: Rows, rng: np.random.Generator) -> Floats:
        """Starting states of ``rows``, ``Float64[k S]``."""
        low, spread = self._default if self._own is None else (bound[rows] for bound in self._own)
        # As Generator.uniform computes it, which takes longer.
        states = rng.random((len(rows), self._shape[1]))
        states *= spread
        states += low
        return states


def _low_and_spread(bounds: tuple[Floats, Floats]) -> _Box:
    low, high = bounds
    spread = high - low
    if (low == low.flat[0]).all() and (spread == spread.flat[0]).all():
        return float(low.flat[0]), float(spread.flat[0])
    return low, spread
