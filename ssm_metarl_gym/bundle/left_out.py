"""Episodes whose predictions an agent is not shown, so that it learns to do without."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.seeding import row_seeds, seed_sequence

__all__ = ["LeftOutEpisodes"]

Flags = npt.NDArray[np.bool_]


class LeftOutEpisodes:
    """Draws for each episode of n rows whether its predictions are left out.

    Every row has a stream of its own, which follows from the seed of its reset alone.

    Args:
        num_rows: The number of rows, n.
        share: The share of episodes that are left out, in [0, 1].

    Attributes:
        rows: ``Bool[n]``, the rows whose episode is left out.
    """

    def __init__(self, num_rows: int, share: float) -> None:
        self._share = share
        self._streams = [np.random.default_rng() for _ in range(num_rows)] if 0.0 < share < 1.0 else None
        self.rows = np.full(num_rows, share == 1.0)

    def seed(self, seed: int | Sequence[int | None] | None, rows: Flags) -> None:
        """Begin the streams of those of these rows ``[n]`` anew that the seed of a reset is for."""
        if self._streams is not None:
            for i, own in row_seeds(seed, rows):
                self._streams[i] = np.random.default_rng(seed_sequence(own, "leave_out"))

    def begin(self, rows: Flags) -> None:
        """Draw for the episodes that begin in these rows ``[n]``."""
        if self._streams is not None:
            for i in np.flatnonzero(rows):
                self.rows[i] = self._streams[i].random() < self._share
