"""Outliers and changes of the physics, told apart by how much they surprise a model."""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.checks import Rule, check_fields

__all__ = ["MOST", "SURPRISES_OF_A_CHANGE", "Surprises", "Verdict"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# In a row. Of one transition in ten that is wrong, two in a row are found twice in an episode of 200 steps.
SURPRISES_OF_A_CHANGE: Final = 3
# In means: how much of an unsurprising error counts for the mean. It is to be that of what the model knows.
MOST: Final = 3.0
_POSITIVE: Rule = ("a number > 0 (inf for never)", lambda value: value > 0.0)


class Verdict(NamedTuple):
    """What the last transitions of n rows are.

    Attributes:
        outliers: ``Bool[n]``, whether to leave a row's transition out.
        suspicions: ``Bool[n]``, whether to hold it back, until the next ones tell that it is the first of a change.
        changes: ``Bool[n]``, whether the physics of a row have changed: with the first of the transitions that were
            held back, which were right.
    """

    outliers: Flags
    suspicions: Flags
    changes: Flags

    @property
    def doubted(self) -> Flags:
        """``Bool[n]``, what must not be learned from: outliers, and suspicions while they are no more than that."""
        return self.outliers | self.suspicions

    @classmethod
    def nothing(cls, num_rows: int) -> "Verdict":
        """That of rows without a transition."""
        return cls(*np.zeros((3, num_rows), dtype=np.bool_))


class Surprises:
    """Judges each row's transitions by the errors of a model that did not yet adapt to them.

    An error beyond ``outlier_error`` is that of no physics: an outlier. One that is more than ``change_ratio`` times
    the running mean of unsurprising errors is a surprise: a suspicion, as a wrong transition makes one, and the third,
    with nothing but outliers between, a change. After a change the mean starts anew. A model that has not predicted a
    single transition well, at the start of an episode or after a change, is in no position to doubt one.

    Args:
        num_rows: The number of rows, n.
        outlier_error: In variances of what is predicted; a number that is not finite is beyond it in any case.
        change_ratio: How many times the mean an unsurprising error may be.
        error_start: The mean before the first error.
        error_decay: The decay of the mean, in [0, 1).
        error_floor: The least mean.

    Raises:
        ValueError: A number is outside its range.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        outlier_error: float = 50.0,
        change_ratio: float = 5.0,
        error_start: float = 0.02,
        error_decay: float = 0.9,
        error_floor: float = 0.001,
    ) -> None:
        self.outlier_error = outlier_error
        self.change_ratio = change_ratio
        self.error_start = error_start
        self.error_decay = error_decay
        self.error_floor = error_floor
        size: Rule = ("a finite number > 0", lambda value: 0.0 < value < math.inf)
        decay: Rule = ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0)
        rules = {"outlier_error": _POSITIVE, "change_ratio": _POSITIVE, "error_start": size, "error_decay": decay}
        check_fields(self, rules | {"error_floor": size})
        self._means = np.full(num_rows, float(error_start))
        self._num_suspected = np.zeros(num_rows, dtype=np.int64)  # in a row
        self._is_trusted = np.zeros(num_rows, dtype=np.bool_)

    def forget(self, rows: Flags) -> None:
        """Judge these rows as if nothing had happened in them: an episode begins."""
        self._means[rows] = self.error_start
        self._num_suspected[rows] = 0
        self._is_trusted[rows] = False

    def judge(self, errors: Floats, rows: Flags) -> Verdict:
        """The verdict on the transitions of the given rows.

        Args:
            errors: ``Float[n]``, squared errors of the model before it adapts to the transitions.
            rows: ``Bool[n]``, which rows have a transition; of the others the verdict says nothing.
        """
        kept = rows & np.isfinite(errors) & (errors <= self.outlier_error)
        errors = np.where(kept, errors, 0.0)
        surprises = errors > self.change_ratio * self._means
        # The mean is that of unsurprising errors, and starts anew with other physics, where what led to the verdict is
        # no surprise again: in physics that the model cannot learn, there would be no end of changes.
        counted = np.minimum(errors, MOST * self._means)
        means = np.maximum(self.error_floor, self.error_decay * self._means + (1.0 - self.error_decay) * counted)
        suspicions = changes = surprises
        if surprises.any():  # which is seldom
            changes = surprises & (self._num_suspected == SURPRISES_OF_A_CHANGE - 1)
            suspicions = surprises & self._is_trusted & ~changes
            anew = np.maximum(np.where(changes, self.error_start, self._means), errors / self.change_ratio)
            means = np.where(surprises, np.where(suspicions, self._means, anew), means)
            np.copyto(self._num_suspected, (self._num_suspected + 1) * suspicions, where=kept)
            np.copyto(self._is_trusted, (self._is_trusted | ~surprises) & ~changes, where=kept)
        else:
            self._num_suspected[kept] = 0
            self._is_trusted |= kept
        np.copyto(self._means, means, where=kept)
        return Verdict(rows & ~kept, suspicions, changes)
