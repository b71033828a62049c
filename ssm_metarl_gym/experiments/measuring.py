"""How many times as fast one thing is as another, on a machine that is never quiet."""

import gc
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Ratio", "compare_in_turns"]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one side is as another.

    Attributes:
        median: Over the pairs of neighbouring chunks.
        low: What 10 % of the pairs do not exceed.
        high: What 90 % of the pairs do not exceed.
    """

    median: float
    low: float
    high: float


def compare_in_turns(
    sides: Mapping[str, Callable[[], object]], num_pairs: int, chunk_seconds: float = 0.04
) -> dict[str, Ratio]:
    """How many times as fast as the first side each of the others is.

    The sides run in turns, a short chunk of calls each, so that whatever else slows the machine slows all of them. A
    ratio is that of the CPU times in two neighbouring chunks.

    Args:
        sides: The sides by name, the one to compare with first.
        num_pairs: Number of chunks of each side.
        chunk_seconds: What a chunk lasts, in CPU seconds; one call where that takes longer.
    """
    lengths = {name: _chunk_length(call, chunk_seconds) for name, call in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()  # else one side pays for what the other leaves behind
    try:
        for _, (name, call) in itertools.product(range(num_pairs), sides.items()):
            started = time.process_time()
            for _ in range(lengths[name]):
                call()
            seconds[name].append((time.process_time() - started) / lengths[name])
    finally:
        gc.enable()
    (_, baseline), *others = seconds.items()
    ratios = {name: np.divide(baseline, own) for name, own in others}
    return {name: Ratio(*(float(q) for q in np.quantile(r, [0.5, 0.1, 0.9]))) for name, r in ratios.items()}


def _chunk_length(call: Callable[[], object], seconds: float) -> int:
    """The number of calls that a chunk holds."""
    length, started = 0, time.process_time()
    while not length or time.process_time() - started < seconds:
        call()
        length += 1
    return length
