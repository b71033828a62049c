"""The arithmetic of bounded adaptation, for the weights of one model or, with leading dimensions, of many."""

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["inner_radius", "moving_moments", "pull_back"]

Number = TypeVar("Number", float, Tensor)


def inner_radius(radius: float, source_norm: float, dtype: torch.dtype) -> float:
    """The radius to aim at, so that rounded weights are within ``radius`` of a source of the norm ``source_norm``."""
    rounding = torch.finfo(dtype).eps * (source_norm + radius)
    return max(radius - rounding, 0.0)


def pull_back(offset: Tensor, distance: Tensor, radius: float) -> Tensor:
    """The offset from the source ``Float[... W]``, whose norm is ``distance`` ``Float[... 1]``, cut to ``radius``."""
    return offset * (radius / distance.double()).to(offset.dtype)


def moving_moments(mean: Number, variance: Number, value: Number, decay: float) -> tuple[Number, Number]:
    """The exponentially weighted mean and variance of a series after one more value."""
    deviation = value - mean
    return mean + (1.0 - decay) * deviation, decay * (variance + (1.0 - decay) * deviation**2)
