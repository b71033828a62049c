"""How sure a mean is."""

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap_interval"]


def bootstrap_interval(values: npt.ArrayLike, seed: int, num_resamples: int = 2000) -> tuple[float, float]:
    """A 95 % interval of the mean of ``values``, ``Float[n]``, by the percentile bootstrap (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    resampled = np.random.default_rng(seed).choice(values, size=(num_resamples, len(values))).mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)
