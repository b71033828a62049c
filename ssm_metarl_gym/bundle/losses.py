"""The losses that a bundle knows: means or sums over elements, and their slopes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ssm_metarl_gym.bundle.layers import Floats
from ssm_metarl_gym.checks import check_choice

__all__ = ["Loss", "make_loss"]

# Of the errors of predictions, Float[N D]: the loss, and its slopes by them, Float[N D].
Loss: TypeAlias = Callable[[Floats], tuple[float, Floats]]


def make_loss(described: Mapping[str, Any]) -> Loss:
    """The loss that a bundle names.

    Args:
        described: ``name``: ``"mse"``, ``"l1"``, ``"huber"`` or ``"smooth_l1"``; ``reduction``: ``"mean"`` or
            ``"sum"``; ``bound``: where Huber's loss and its kin become linear.

    Raises:
        ValueError: It is another one.
    """
    name, bound = described["name"], float(described["bound"])
    check_choice("the loss", name, ["mse", "l1", "huber", "smooth_l1"])
    check_choice("the reduction of the loss", described["reduction"], ["mean", "sum"])
    return functools.partial(_loss, name, bound, described["reduction"] == "mean")


def _loss(name: str, bound: float, is_mean: bool, errors: Floats) -> tuple[float, Floats]:
    total, slopes = _sum_and_slopes(name, bound, errors)
    scale = 1.0 / errors.size if is_mean else 1.0
    return float(total) * scale, slopes * errors.dtype.type(scale)


def _sum_and_slopes(name: str, bound: float, errors: Floats) -> tuple[Any, Floats]:
    """The sum of the losses of all elements, and the slope of each."""
    if name == "mse":
        return np.vdot(errors, errors), errors + errors
    if name == "l1" or not bound:
        return np.abs(errors).sum(), np.sign(errors)
    # Quadratic up to the bound, linear beyond it.
    ends = np.clip(errors, -bound, bound)
    scale = errors.dtype.type(1.0 if name == "huber" else 1.0 / bound)
    return (scale * ends * (errors - ends / 2)).sum(), scale * ends
