"""What judges the transitions of a single robot, in numbers of Python: arrays of one number take ten times as long."""

import math
from typing import NamedTuple

from ssm_metarl_gym.bundle.source_fallback import DECAY, MARGIN
from ssm_metarl_gym.bundle.surprises import MOST, SURPRISES_OF_A_CHANGE, Surprises

__all__ = ["Judge", "Judgement"]


class Judgement(NamedTuple):
    """What a transition is, as :class:`ssm_metarl_gym.bundle.surprises.Verdict` says it of many."""

    is_outlier: bool
    is_suspicion: bool
    is_change: bool

    @property
    def is_doubted(self) -> bool:
        """Whether it must not be learned from."""
        return self.is_outlier or self.is_suspicion


class Judge:
    """The rules of :class:`Surprises` and of :class:`SourceFallback` for one row; see there for what they say.

    Args:
        rules: The numbers of the rules.

    Attributes:
        is_source_used: Whether the running mean of the adapted model's errors is larger than that of the source.
        num_used: The transitions of the episode after which it was.
    """

    def __init__(self, rules: Surprises) -> None:
        self._rules = rules
        self.forget()

    def forget(self) -> None:
        """Judge as if nothing had happened: an episode begins."""
        self._mean = self._rules.error_start
        self._num_suspected, self._is_trusted = 0, False
        self._adapted_error = self._source_error = math.nan
        self.is_source_used, self.num_used = False, 0

    def judge(self, error: float, source_error: float) -> Judgement:
        """What a transition is.

        Args:
            error: The squared error of the adapted model, before it adapted to the transition.
            source_error: That of the source.
        """
        judgement = self._judge(error)
        if not judgement.is_doubted and math.isfinite(error) and math.isfinite(source_error):
            self._adapted_error = _moved(self._adapted_error, error)
            self._source_error = _moved(self._source_error, source_error)
        if judgement.is_change:
            self._adapted_error = self._source_error = math.nan
        self.is_source_used = self._adapted_error > MARGIN * self._source_error
        self.num_used += self.is_source_used
        return judgement

    def _judge(self, error: float) -> Judgement:
        rules = self._rules
        if not (math.isfinite(error) and error <= rules.outlier_error):
            return Judgement(True, False, False)
        is_surprise = error > rules.change_ratio * self._mean
        is_change = is_surprise and self._num_suspected == SURPRISES_OF_A_CHANGE - 1
        is_suspicion = is_surprise and self._is_trusted and not is_change
        if not is_surprise:
            moved = rules.error_decay * self._mean + (1.0 - rules.error_decay) * min(error, MOST * self._mean)
            self._mean = max(rules.error_floor, moved)
        elif not is_suspicion:
            self._mean = max(rules.error_start if is_change else self._mean, error / rules.change_ratio)
        self._num_suspected = self._num_suspected + 1 if is_suspicion else 0
        self._is_trusted = (self._is_trusted or not is_surprise) and not is_change
        return Judgement(False, is_suspicion, is_change)


def _moved(mean: float, error: float) -> float:
    return error if math.isnan(mean) else DECAY * mean + (1.0 - DECAY) * error
