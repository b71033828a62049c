"""Where an adapted model predicts worse than its source does, the source is used."""

from typing import Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.bundle.surprises import Verdict

__all__ = ["SourceFallback"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_DECAY: Final = 0.9  # of the running means, as of those of the correction's gates
_MARGIN: Final = 1.01  # beyond what rounding can do: at first, both models are one


class SourceFallback:
    """Compares the adapted model of each of n rows with the source, on transitions that neither had seen.

    Args:
        num_rows: The number of rows, n.

    Attributes:
        num_used: ``Int[n]``, the transitions of the episode after which the source was used.
    """

    def __init__(self, num_rows: int) -> None:
        self._adapted_errors = np.full(num_rows, np.nan)
        self._source_errors = np.full(num_rows, np.nan)
        self.num_used = np.zeros(num_rows, dtype=np.int64)

    @property
    def used(self) -> Flags:
        """``Bool[n]``, where the running mean of the adapted model's errors is the larger one."""
        # Without evidence they are nan, of which none is larger.
        return self._adapted_errors > _MARGIN * self._source_errors

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
        kept = rows & ~verdict.doubted & np.isfinite(adapted_errors) & np.isfinite(source_errors)
        for means, errors in ((self._adapted_errors, adapted_errors), (self._source_errors, source_errors)):
            moved = np.where(np.isnan(means), errors, _DECAY * means + (1.0 - _DECAY) * errors)
            means[kept] = moved[kept]
        self._restart_means(verdict.changes)
        self.num_used += rows & self.used

    def _restart_means(self, rows: Flags) -> None:
        self._adapted_errors[rows] = np.nan
        self._source_errors[rows] = np.nan
