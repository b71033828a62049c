"""The time that one call of adaptation may take."""

from time import perf_counter

from ssm_metarl_gym.checks import Rule, check_number

__all__ = ["StepTimer", "check_budget"]

_RULE: Rule = ("a number > 0 (None takes all steps, however long they take)", lambda value: value > 0.0)


def check_budget(budget_ms: float | None) -> float | None:
    """The budget as a number of Python.

    Raises:
        ValueError: It is not a number > 0.
    """
    if budget_ms is None:
        return None
    check_number("budget_ms", budget_ms, _RULE)
    return float(budget_ms)


class StepTimer:
    """Says whether one more gradient step of a call fits into what is left of its budget.

    A step is taken to last as long as the longest one of the call so far and, before the first one, as long as the
    evaluation of the loss that comes before it. Nothing is remembered from one call to the next: an interruption of one
    call has no influence on those after it.

    Args:
        budget_ms: What the call may take, in milliseconds; None for a call without a bound, which reads no clock.

    Attributes:
        ran_out: Whether there was no time for a step.
    """

    def __init__(self, budget_ms: float | None) -> None:
        self._budget_ms = budget_ms
        self._longest_ms = 0.0
        self.ran_out = False
        if budget_ms is not None:
            self._start = self._last = perf_counter()

    def has_time(self) -> bool:
        """Whether a step that begins now would end in time. Asked before each step."""
        if self._budget_ms is None:
            return True
        now = perf_counter()
        self._longest_ms = max(self._longest_ms, 1000.0 * (now - self._last))
        self._last = now
        self.ran_out = 1000.0 * (now - self._start) + self._longest_ms > self._budget_ms
        return not self.ran_out
