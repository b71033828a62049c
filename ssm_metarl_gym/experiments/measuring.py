"""How many times as fast one thing is as another, on a machine that is never quiet, and how much memory one takes."""

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssm_metarl_gym.experiments.report import print_markdown

__all__ = ["Comparison", "compare_in_turns", "peak_memory", "resident_memory", "show_comparisons"]

CHUNK_SECONDS = 0.04


@dataclass(frozen=True)
class Comparison:
    """How many times as fast one side is as another.

    Attributes:
        ours: The name of the one.
        against: The name of the other.
        median: Of the ratios of all pairs of neighbouring chunks.
        low: What 10 % of them do not exceed.
        high: What 90 % of them do not exceed.
        target: What the median should reach, or None.
        case: What was compared, by the name of its column in a table.
    """

    ours: str
    against: str
    median: float
    low: float
    high: float
    target: float | None = None
    case: Mapping[str, str | int] = field(default_factory=dict)


def compare_in_turns(
    sides: Mapping[str, Callable[[], object]],
    num_pairs: int,
    *,
    case: Mapping[str, str | int] | None = None,
    targets: Mapping[str, float] | None = None,
    clock: Callable[[], float] | None = None,
) -> list[Comparison]:
    """How many times as fast as the first side each of the others is.

    The sides run in turns, a short chunk of calls each, so that whatever else slows the machine slows all of them. A
    ratio is that of the times in two neighbouring chunks. A chunk lasts ``CHUNK_SECONDS``, or one call where that takes
    longer.

    Args:
        sides: The sides by name, the one to compare with first.
        num_pairs: Number of chunks of each side.
        case: What is compared, by the name of its column in a table.
        targets: What medians should reach, by the name of the side.
        clock: The CPU time of this process for None; ``time.perf_counter`` where a side has threads or processes.
    """
    clock = clock or time.process_time
    lengths = {name: _chunk_length(call, clock) for name, call in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()  # else one side pays for what the other leaves behind
    try:
        for _, (name, call) in itertools.product(range(num_pairs), sides.items()):
            started = clock()
            for _ in range(lengths[name]):
                call()
            seconds[name].append((clock() - started) / lengths[name])
    finally:
        gc.enable()
    (against, baseline), *others = seconds.items()
    comparisons = []
    for ours, own in others:
        median, low, high = np.quantile(np.divide(baseline, own), [0.5, 0.1, 0.9]).tolist()
        comparisons.append(Comparison(ours, against, median, low, high, (targets or {}).get(ours), case or {}))
    return comparisons


def _chunk_length(call: Callable[[], object], clock: Callable[[], float]) -> int:
    """The number of calls that a chunk holds."""
    length, started = 0, clock()
    while not length or clock() - started < CHUNK_SECONDS:
        call()
        length += 1
    return length


def show_comparisons(comparisons: Iterable[Comparison], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Print a table in Markdown, row by row as comparisons come in.

    Args:
        comparisons: Its rows.
        columns: The columns of their cases.

    Returns:
        What JSON holds of them.
    """
    shown: list[dict[str, Any]] = []

    def rows() -> Iterator[list[str]]:
        for comparison in comparisons:
            row = asdict(comparison)
            shown.append(row.pop("case") | row)
            median, low, high = map(_format_ratio, (comparison.median, comparison.low, comparison.high))
            target = "" if comparison.target is None else f"{comparison.target:.3g}"
            case = [str(comparison.case[column]) for column in columns]
            yield [*case, comparison.ours, comparison.against, median, f"{low} to {high}", target]

    print_markdown([*columns, "ours", "against", "times as fast", "10 to 90 %", "target"], rows())
    return shown


def _format_ratio(ratio: float) -> str:
    """Three digits, or all before the point."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def peak_memory() -> float:
    """The most memory that this process has held so far, in MiB."""
    # Linux tells it of the process alone; its getrusage counts what the parent held when it started this one.
    peak = _read_status("VmHWM")
    if peak is not None:
        return peak
    import resource  # which Windows lacks

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_memory() -> float:
    """The memory that this process holds, in MiB; the most that it ever held where the system tells no more."""
    resident = _read_status("VmRSS")
    return peak_memory() if resident is None else resident


def _read_status(name: str) -> float | None:
    """A line of what Linux tells of this process, in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**10
