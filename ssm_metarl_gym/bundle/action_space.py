"""Spaces of actions, without Gymnasium."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ActionSpace"]


class ActionSpace:
    """A choice among a few actions, or a bounded box of numbers.

    Args:
        described: ``n`` and ``start``, or ``low``, ``high`` and ``dtype``.

    Raises:
        ValueError: It describes no such space.

    Attributes:
        is_discrete: Whether it is a choice.
        n: The number of choices; 0 of a box.
        start: The first choice.
        low: The lower bounds of a box, ``Float[A]``.
        high: The upper bounds.
        half: Half the ranges, of at least single precision.
        unit: What lengths are measured in: the same, and 1 where a range has no length.
        middle: Their middles.
        dtype: Of the numbers of an action.
    """

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.is_discrete = "n" in described
        self.n = int(described.get("n", 0))
        self.start = int(described.get("start", 0))
        self.dtype = np.dtype("int64" if self.is_discrete else described["dtype"])
        if not self.is_discrete and self.dtype.kind != "f":
            raise ValueError(
                f"actions of a box must be floating-point numbers; got {self.dtype}. Let the environment take floats."
            )
        self.low, self.high = (np.array(described.get(name, []), dtype=self.dtype) for name in ("low", "high"))
        self._one_hot = np.eye(self.n, dtype=np.float32)
        exact = np.result_type(self.dtype, np.float32)
        low, high = self.low.astype(exact), self.high.astype(exact)
        with np.errstate(over="ignore"):  # what is too wide is refused below
            width = self.high - self.low  # as a policy computes it
            self.half, self.middle = (high - low) / 2, (high + low) / 2
        self.unit = np.where(self.half > 0, self.half, 1)
        if self.is_discrete and self.n < 1:
            raise ValueError(f"there must be an action to choose; got {self.n}.")
        if not self.is_discrete and not (
            self.low.ndim == 1 and self.low.shape == self.high.shape and np.isfinite(width).all()
        ):
            raise ValueError(
                f"bounds must be of one length, and they and their distance finite in {self.dtype}; got "
                f"{described['low']} and {described['high']}. Let the environment take smaller actions."
            )

    @property
    def zero(self) -> npt.NDArray[Any]:
        """What is done where nobody knows what to do: the first choice, or the action of a box nearest to zero."""
        if self.is_discrete:
            return np.array(self.start, dtype=self.dtype)
        nearest: npt.NDArray[Any] = np.clip(np.zeros_like(self.low), self.low, self.high)
        return nearest

    def contains(self, action: npt.NDArray[Any]) -> bool:
        """Whether an action of the right shape is one of the space."""
        if self.is_discrete:
            return bool(self.start <= action < self.start + self.n)
        return bool(((self.low <= action) & (action <= self.high)).all())

    def encode(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Actions as a model takes them, choices one-hot: ``[N ...]`` -> ``Float32[N A]``."""
        if self.is_discrete:
            one_hot: npt.NDArray[np.float32] = self._one_hot[actions - self.start]
            return one_hot
        return np.asarray(actions, dtype=np.float32)
