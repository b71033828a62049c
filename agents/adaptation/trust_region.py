"""The arithmetic of bounded adaptation, for the weights of one model or, with leading dimensions, of many."""

import math
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["LARGEST_TRACKED", "TrustRegion", "moving_moments", "pull_back", "trust_region"]

LARGEST_TRACKED: Final = 1e150  # of the losses: their squares are still numbers
Number = TypeVar("Number", float, Tensor, npt.NDArray[np.float64])


class TrustRegion(NamedTuple):
    """The ball around the source that weights never leave.

    Attributes:
        source: The source, ``Float[W]``.
        norm: Its norm.
        radius: The radius of the ball.
        rounding: How much farther away the rounding of weights within the ball can take them.
    """

    source: Tensor
    norm: float
    radius: float
    rounding: float

    def has(self, weights: Tensor) -> bool:
        """Whether the weights ``Float[W]`` lie in the ball, up to their rounding."""
        return float(torch.linalg.vector_norm(weights - self.source)) <= self.radius + self.rounding


def trust_region(source: Tensor, eps: float) -> TrustRegion:
    """The ball around ``source`` whose radius is ``eps`` times its norm."""
    norm = float(torch.linalg.vector_norm(source))
    radius = eps * norm if eps < math.inf else math.inf
    return TrustRegion(source, norm, radius, torch.finfo(source.dtype).eps * (norm + radius))


def pull_back(offset: Tensor, distance: Tensor, region: TrustRegion) -> Tensor:
    """The offset ``Float[... W]`` from the source, of the norm ``distance`` ``Float[... 1]``, cut to the ball.

    It ends inside by what rounding can add, so that the weights cannot leave the ball.
    """
    radius = max(region.radius - region.rounding, 0.0)
    return offset * (radius / distance.double()).to(offset.dtype)


def moving_moments(mean: Number, variance: Number, value: Number, decay: float) -> tuple[Number, Number]:
    """The exponentially weighted mean and variance of a series after one more value."""
    deviation = value - mean
    return mean + (1.0 - decay) * deviation, decay * (variance + (1.0 - decay) * deviation**2)
