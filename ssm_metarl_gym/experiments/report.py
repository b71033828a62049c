"""What a script reports: means with their intervals, and tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.experiments.statistics import interval_over_seeds

__all__ = ["Estimate", "estimate", "format_markdown", "print_markdown"]


class Estimate(NamedTuple):
    """A mean and its 95 % interval, all three formatted alike: ``f"{estimate:.1f}"`` is ``"12.3 [11.0, 13.5]"``.

    Attributes:
        mean: The mean.
        low: The lower end of the interval.
        high: The upper end of the interval.
    """

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self, mean: str = "mean") -> dict[str, float]:
        """What a file of results holds, with a name for the mean."""
        return {mean: self.mean, "ci_low": self.low, "ci_high": self.high}


def estimate(values: Sequence[npt.ArrayLike], seed: int) -> Estimate:
    """The mean over seeds and tasks, with an interval as :func:`interval_over_seeds` gives it.

    Args:
        values: ``Float[num_seeds num_tasks]``.
        seed: Seeds the bootstrap over tasks.
    """
    return Estimate(float(np.mean(np.asarray(values, dtype=np.float64))), *interval_over_seeds(values, seed))


def format_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, each row as soon as it is known."""
    print(format_markdown(header, []), flush=True)
    for row in rows:
        print(format_markdown(row, []).partition("\n")[0], flush=True)
