"""Where an adapted model predicts worse than its source does, the source is used."""

from typing import Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.bundle.surprises import Verdict

__all__ = ["DECAY", "MARGIN", "SourceFallback"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DECAY: Final = 0.9  # of the running means, as of those of the correction's gates
MARGIN: Final = 1.01  # beyond what rounding can do: at first, both models are one


class SourceFallback:
    """Compares the adapted model of each of n rows with the source, on transitions that neither had seen.

    Args:
        num_rows: The number of rows, n.

    Attributes:
        num_used: ``Int[n]``, the transitions of the episode after which the source was used.
    """

    def __init__(self, num_rows: int) -> None:
        self._means = np.full((2, num_rows), np.nan)  # of the errors of the adapted model, and of those of the source
        self.num_used = np.zeros(num_rows, dtype=np.int64)

    @property
    def used(self) -> Flags:
        """``Bool[n]``, where the running mean of the adapted model's errors is the larger one."""
        # Without evidence they are nan, of which none is larger.
        result: Flags = self._means[0] > MARGIN * self._means[1]
        return result

    def forget(self, rows: Flags) -> None:
        """Begin an episode in these rows."""
        self._restart_means(rows)
        self.num_used[rows] = 0

    def learn(self, adapted_errors: Floats, source_errors: Floats, rows: Flags, verdict: Verdict) -> None:
        """Take in the errors on the last transitions. Doubted ones say nothing; after a change evidence begins anew.

        Args:
            adapted_errors: ``Float[n]``, the squared error of the adapted model of each row on its transition, before
                it adapted to it.
            source_errors: ``Float[n]``, that of the source.
            rows: ``Bool[n]``, which rows have a transition.
            verdict: What these are.
        """
        errors = np.array([adapted_errors, source_errors])
        kept = np.isfinite(errors).all(axis=0) & rows & ~verdict.doubted
        moved = np.where(np.isnan(self._means), errors, DECAY * self._means + (1.0 - DECAY) * errors)
        np.copyto(self._means, moved, where=kept)
        self._restart_means(verdict.changes)
        self.num_used += rows & self.used

    def _restart_means(self, rows: Flags) -> None:
        self._means[:, rows] = np.nan
