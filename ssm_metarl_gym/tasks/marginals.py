"""The distribution of one parameter: uniform, uniform in its logarithm, or over a few values."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import check_choice, check_generator, is_number, shown

__all__ = ["Choice", "LogUniform", "Marginal", "Uniform", "marginal_from_dict", "overlap"]

Floats = npt.NDArray[np.float64]

_TINY: Final = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Marginal:
    """The distribution of one parameter: a ``Uniform``, a ``LogUniform`` or a ``Choice``, and no other."""

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """``size`` draws, for each of which ``rng`` is called exactly once: ``Float64[size]``."""
        raise NotImplementedError

    def contains(self, value: float) -> bool:
        """Whether a draw can give ``value``."""
        raise NotImplementedError

    def normalise(self, values: Floats) -> Floats:
        """The values, scaled so that this distribution fills [-1, 1]."""
        low, high = self.bounds
        return (2.0 * values - low - high) / (high - low if high > low else 1.0)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: one entry, from the name of the distribution to its numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Intervals(Marginal):
    """What the distributions over a union of disjoint intervals share."""

    intervals: tuple[tuple[float, float], ...]
    name: ClassVar[str]

    def contains(self, value: float) -> bool:
        """Whether a draw can give ``value``."""
        return any(low <= value <= high for low, high in self.intervals)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        return min(low for low, _ in self.intervals), max(high for _, high in self.intervals)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, which knows no tuples: one entry, from the name of the distribution to its intervals."""
        return {self.name: [list(interval) for interval in self.intervals]}


@dataclass(frozen=True, init=False)
class Uniform(_Intervals):
    """The uniform distribution over a union of disjoint intervals, e.g. ``Uniform((1, 5), (15, 20))``."""

    name = "uniform"

    def __init__(self, *intervals: tuple[float, float]) -> None:
        if not intervals or not all(_is_interval(interval) for interval in intervals):
            raise ValueError(
                f"Uniform needs at least one interval (low, high) with low <= high; got {shown(intervals)}. "
                "Use Uniform((0, 1)) for one, or Uniform((0, 1), (2, 3)) for two."
            )
        object.__setattr__(self, "intervals", _disjoint(intervals))
        if not math.isfinite(sum(high - low for low, high in self.intervals)):
            raise ValueError(f"Uniform needs intervals of a finite width; got {shown(intervals)}. Use narrower ones.")

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """``size`` draws, for each of which ``rng`` is called exactly once: ``Float64[size]``."""
        check_generator(rng)
        position = rng.uniform(0.0, sum(high - low for low, high in self.intervals), size)
        if len(self.intervals) == 1:
            ((low, high),) = self.intervals
            return np.minimum(low + position, high)
        draws = np.full(size, self.intervals[-1][1])
        found = np.zeros(size, dtype=np.bool_)
        for low, high in self.intervals:
            here = ~found & (position <= high - low)
            draws[here] = np.minimum(low + position[here], high)  # rounding may carry the sum past the interval
            found |= here
            position -= high - low
        return draws


@dataclass(frozen=True, init=False)
class LogUniform(_Intervals):
    """The distribution of a positive parameter whose logarithm is uniform over a union of disjoint intervals.

    ``LogUniform((0.5, 2))`` halves as often as it doubles, as a multiplier of a physical parameter should.
    """

    name = "log_uniform"

    def __init__(self, *intervals: tuple[float, float]) -> None:
        if not intervals or not all(_is_interval(interval) and interval[0] > 0.0 for interval in intervals):
            raise ValueError(
                f"LogUniform needs at least one interval (low, high), 0 < low <= high; got {shown(intervals)}. "
                "Use LogUniform((0.5, 2)) for one, or LogUniform((0.5, 1), (2, 4)) for two."
            )
        object.__setattr__(self, "intervals", _disjoint(intervals))

    @functools.cached_property
    def _logarithm(self) -> Uniform:
        # Not by the constructor: intervals that are disjoint may have logarithms that rounding brings together.
        logarithm = object.__new__(Uniform)
        object.__setattr__(
            logarithm, "intervals", tuple((math.log(low), math.log(high)) for low, high in self.intervals)
        )
        return logarithm

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """``size`` draws, for each of which ``rng`` is called exactly once: ``Float64[size]``."""
        draws: Floats = np.exp(self._logarithm.sample(rng, size))
        if len(self.intervals) == 1:
            # Rounding may carry a draw out of its interval by one unit in the last place.
            return draws.clip(*self.intervals[0])
        nearest = np.stack([draws.clip(low, high) for low, high in self.intervals])
        best: npt.NDArray[np.intp] = np.abs(nearest - draws).argmin(axis=0)
        return nearest[best, np.arange(size)]

    def normalise(self, values: Floats) -> Floats:
        """The logarithms of the values, scaled so that this distribution fills [-1, 1].

        A value that is not positive, which has none, counts as the least positive number, so that all are finite.
        """
        return self._logarithm.normalise(np.log(np.maximum(values, _TINY)))


@dataclass(frozen=True, init=False)
class Choice(Marginal):
    """The uniform distribution over a few values, e.g. ``Choice(-1, 1)``; what is named twice is twice as likely."""

    values: tuple[float, ...]
    name: ClassVar[str] = "choice"

    def __init__(self, *values: float) -> None:
        if not values or not all(is_number(value) and math.isfinite(value) for value in values):
            raise ValueError(
                f"Choice needs at least one value, and finite numbers only; got {shown(values)}. Use Choice(-1, 1)."
            )
        object.__setattr__(self, "values", tuple(float(value) for value in values))

    def sample(self, rng: np.random.Generator, size: int) -> Floats:
        """``size`` draws, for each of which ``rng`` is called exactly once: ``Float64[size]``."""
        check_generator(rng)
        draws: Floats = np.array(self.values)[rng.integers(len(self.values), size=size)]
        return draws

    def contains(self, value: float) -> bool:
        """Whether a draw can give ``value``."""
        return value in self.values

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest interval that holds every draw."""
        return min(self.values), max(self.values)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold: one entry, from the name of the distribution to its values."""
        return {self.name: list(self.values)}


_MARGINALS: Final[dict[str, type[Marginal]]] = {marginal.name: marginal for marginal in (Uniform, LogUniform, Choice)}


def marginal_from_dict(name: str, data: Any) -> Marginal:
    """The marginal of the parameter ``name`` whose ``to_dict`` gave ``data``."""
    if not isinstance(data, Mapping) or len(data) != 1 or not isinstance(next(iter(data.values())), list | tuple):
        raise ValueError(f"the distribution of {name} must be like {Uniform((0, 1)).to_dict()}; got {shown(data)}.")
    kind, numbers = next(iter(data.items()))
    check_choice(f"the distribution of {name}", kind, list(_MARGINALS))
    return _MARGINALS[kind](*(tuple(number) if isinstance(number, list) else number for number in numbers))


def overlap(one: Marginal, other: Marginal) -> bool:
    """Whether draws of two distributions may be the same, other than by a chance of probability 0."""
    intervals = [each.intervals if isinstance(each, _Intervals) else () for each in (one, other)]
    # What is drawn with a probability of its own: values, and an interval that is one.
    values = [
        each.values if isinstance(each, Choice) else [low for low, high in own if low == high]
        for each, own in zip((one, other), intervals, strict=True)
    ]
    wide = any(max(a[0], b[0]) < min(a[1], b[1]) for a in intervals[0] for b in intervals[1])
    return wide or any(map(one.contains, values[1])) or any(map(other.contains, values[0]))


def _disjoint(intervals: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The intervals as floats, or a ValueError where two overlap or one of several is a point, which is never drawn."""
    ordered = sorted((float(low), float(high)) for low, high in intervals)
    overlap = any(high > low for (_, high), (low, _) in itertools.pairwise(ordered))
    if overlap or (len(ordered) > 1 and any(low == high for low, high in ordered)):
        raise ValueError(f"several intervals must be disjoint and none of them a point; got {tuple(intervals)}.")
    return tuple((float(low), float(high)) for low, high in intervals)


def _is_interval(interval: Any) -> bool:
    return (
        isinstance(interval, tuple | list)
        and len(interval) == 2
        and all(is_number(bound) and math.isfinite(bound) for bound in interval)
        and float(interval[0]) <= float(interval[1])
    )
