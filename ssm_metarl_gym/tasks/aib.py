"""The contexts of AIB, the Actuator Inversion Benchmark: finite sets of tasks to train on and to test on.

Benad et al. 2026, "DMA*-SH", https://arxiv.org/abs/2602.06550. Of each parameter 50 values lie evenly over its range (a
sign has its two); of all pairs of values, in order, 20 are taken at even distances. Interpolation does the same on the
range without 1 % of its width at both ends. In extrapolation 25 of the values lie from the lower end of an outer range
to 1 % below the range of training, and 25 from 1 % above it to the upper end.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.tasks.classic import ComplexODETask, DoubleIntegratorTask
from ssm_metarl_gym.tasks.distributions import TaskSet
from ssm_metarl_gym.tasks.families import TaskFamily
from ssm_metarl_gym.tasks.task import Task

__all__ = ["AIB_CONTEXTS", "choose_contexts"]

_NUM_VALUES: Final = 50
_NUM_CONTEXTS: Final = 20
# Of the width of the range.
_MARGIN: Final = 0.01
_SIGNS: Final = [-1.0, 1.0]


def _spread(low: float, high: float, size: int = _NUM_VALUES) -> list[float]:
    values: list[float] = np.linspace(low, high, size).tolist()
    return values


def _values(split: str, low: float, high: float, least: float, most: float) -> list[float]:
    """The values of a parameter in a split: [low, high] is its range, [least, most] the outer one."""
    margin = _MARGIN * (high - low)
    if split == "train":
        return _spread(low, high)
    if split == "interpolation":
        return _spread(low + margin, high - margin)
    half = _NUM_VALUES // 2
    return _spread(least, low - margin, half) + _spread(high + margin, most, half)


def _contexts(task_type: type[Task], names: tuple[str, str], columns: Sequence[Sequence[float]]) -> TaskSet:
    """The tasks at even distances among all pairs of values, sorted."""
    pairs = sorted(itertools.product(*columns))
    chosen = np.linspace(0, len(pairs) - 1, _NUM_CONTEXTS).round().astype(int)
    return TaskSet([task_type.from_dict(dict(zip(names, pairs[i], strict=True))) for i in chosen])


def _sets(
    task_type: type[Task], names: tuple[str, str], low: float, high: float, least: float, most: float
) -> TaskFamily:
    """Those of the three splits, of parameters that have the same ranges but for a sign."""
    sets = {}
    for split in ("train", "interpolation", "extrapolation"):
        values = _values(split, low, high, least, most)
        sets[split] = _contexts(task_type, names, [_SIGNS if name in task_type.signs else values for name in names])
    return TaskFamily(**sets)


# By the name of the family whose ranges they are of.
AIB_CONTEXTS: Final = {
    "DoubleIntegrator": _sets(DoubleIntegratorTask, ("sign", "mass"), 0.5, 1.5, 0.1, 2.0),
    "DoubleIntegratorFriction": _sets(DoubleIntegratorTask, ("mass", "friction"), 0.5, 1.5, 0.1, 2.0),
    "ComplexODE": _sets(ComplexODETask, ("c0", "c1"), -5.0, 5.0, -10.0, 10.0),
}


def choose_contexts(family: Any, contexts: str) -> Any:
    """The family that an environment draws from.

    Args:
        family: What the user gave.
        contexts: ``"ranges"`` for it itself, ``"aib"`` for AIB's sets out of the ranges that its name stands for.

    Raises:
        ValueError: ``contexts`` is another one, or ``family`` is no name of one that AIB has sets of.
    """
    check_choice("contexts", contexts, ("ranges", "aib"))
    if contexts == "ranges":
        return family
    check_choice("family (with contexts='aib')", family, list(AIB_CONTEXTS))
    return AIB_CONTEXTS[family]
