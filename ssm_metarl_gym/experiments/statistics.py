"""How sure a mean is."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap_interval", "interval_over_seeds"]

# The 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last one is used beyond, as it is the safer.
_STUDENT_T: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306),
    *(2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
)


def bootstrap_interval(values: npt.ArrayLike, seed: int, num_resamples: int = 2000) -> tuple[float, float]:
    """A 95 % interval of the mean of ``values``, ``Float[n]``, by the percentile bootstrap (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    resampled = np.random.default_rng(seed).choice(values, size=(num_resamples, len(values))).mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def interval_over_seeds(values: Sequence[npt.ArrayLike], seed: int) -> tuple[float, float]:
    """A 95 % interval of the mean: by Student's t over seeds where there are several, else over the tasks of the one.

    Args:
        values: ``Float[num_seeds num_tasks]``.
        seed: Seeds the bootstrap over tasks.
    """
    if len(values) == 1:
        return bootstrap_interval(values[0], seed)
    means = np.mean(np.asarray(values, dtype=np.float64), axis=1)
    quantile = _STUDENT_T[min(len(means) - 1, len(_STUDENT_T)) - 1]
    half_width = quantile * np.std(means, ddof=1) / np.sqrt(len(means))
    return float(np.mean(means) - half_width), float(np.mean(means) + half_width)
