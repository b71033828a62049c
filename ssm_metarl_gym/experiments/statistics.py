"""How sure a mean is."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap_interval", "hierarchical_interval", "interquartile_mean", "interval_over_seeds"]

CONFIDENCE: Final = 0.95
_DRAWS: Final = 2000
_AT_ONCE: Final = 100


def interquartile_mean(values: npt.ArrayLike, axis: int = 0) -> Any:
    """The mean of the middle half of the values along an axis (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264)."""
    return _stats().trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(
    values: npt.ArrayLike, seed: int, num_resamples: int = 2000, *, statistic: Callable[..., Any] = np.mean
) -> tuple[float, float]:
    """A 95 % interval of the mean of ``values``, ``Float[n]``, by the percentile bootstrap (Efron 1979).

    Of one value it is that value, and of values that are not finite it is NaN. Another ``statistic`` must take an axis.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1 or not np.isfinite(values).all():
        mean = float(np.mean(values)) if len(values) == 1 else np.nan
        return mean, mean
    with np.errstate(over="ignore"):  # in a standard error, which nobody asked for
        result = _stats().bootstrap(
            (values,),
            statistic,
            n_resamples=num_resamples,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = result.confidence_interval
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
    half_width = _stats().t.ppf(0.5 + CONFIDENCE / 2, len(means) - 1) * _stats().sem(means)
    return float(np.mean(means) - half_width), float(np.mean(means) + half_width)


def hierarchical_interval(
    values: npt.ArrayLike, seed: int, *, statistic: Callable[[Any], Any], draws_tasks: bool = True
) -> tuple[float, float]:
    """A 95 % interval by the percentile bootstrap that draws seeds, and within each seed tasks.

    Of few seeds it is too narrow: the interquartile mean of five that are normal lies in 89 % of such intervals, of ten
    in 94 %, and the mean in 84 % and 91 %.

    Args:
        values: ``Float[... num_seeds num_tasks]``, of several agents for instance, whose seeds and tasks are the same
            ones and are drawn together.
        seed: Seeds the draws.
        statistic: Of the draws, ``Float[... num_draws num_seeds num_tasks]``, ``Float[num_draws]``; draws of which it
            is nan are left out.
        draws_tasks: Whether tasks are drawn; not where every seed has the same ones.
    """
    values = np.asarray(values, dtype=np.float64)
    num_seeds, num_tasks = values.shape[-2:]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS // _AT_ONCE):  # all at once would take much memory
        rows = rng.integers(num_seeds, size=(_AT_ONCE, num_seeds, 1))
        tasks = rng.integers(num_tasks, size=(_AT_ONCE, num_seeds, num_tasks)) if draws_tasks else np.arange(num_tasks)
        drawn.append(statistic(values[..., rows, tasks]))
    edge = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.nanpercentile(np.concatenate(drawn), [edge, 100.0 - edge])
    return float(low), float(high)


def _stats() -> Any:
    """SciPy's statistics. They take a second to import, for which no script waits that has nothing to measure yet."""
    return importlib.import_module("scipy.stats")
