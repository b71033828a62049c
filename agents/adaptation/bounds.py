"""The arithmetic of bounded adaptation, for the weights of one model or, with leading dimensions, of many."""

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.config import AdapterStats

__all__ = ["TrustRegion", "inner_radius", "moving_moments", "pull_back", "track_loss"]

Number = TypeVar("Number", float, Tensor)


class TrustRegion:
    """A ball around the source weights.

    Args:
        source: ``Float[W]``.
        eps: The radius, relative to the norm of the source.

    Attributes:
        source: The source.
        radius: The radius.
        inner_radius: What to project to, so that rounded weights are within the radius.
    """

    def __init__(self, source: Tensor, eps: float) -> None:
        self.source = source
        self._norm = float(torch.linalg.vector_norm(source))
        self.radius = eps * self._norm
        self.inner_radius = inner_radius(self.radius, self._norm, source.dtype)

    def relative_distance(self, weights: Tensor) -> float:
        """The distance of ``Float[W]`` from the source, relative to the norm of the source."""
        distance = float(torch.linalg.vector_norm(weights - self.source))
        # Away from a source of zeros, any distance is infinitely many times its norm.
        relative = distance / self._norm if self._norm else math.inf
        return relative if distance else 0.0

    def project(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets from the source ``Float[B W]`` within the ball, and which were outside, ``Bool[B]``."""
        distances = torch.linalg.vector_norm(offsets, dim=-1, keepdim=True)  # B 1
        outside = distances > self.radius
        return torch.where(outside, pull_back(offsets, distances, self.inner_radius), offsets), outside[:, 0]


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


def track_loss(stats: AdapterStats, loss: float, decay: float) -> AdapterStats:
    """The statistics with the running mean and variance moved towards a loss before adaptation."""
    if math.isnan(stats.loss_mean):
        return replace(stats, loss_mean=loss)
    mean, variance = moving_moments(stats.loss_mean, stats.loss_variance, loss, decay)
    return replace(stats, loss_mean=mean, loss_variance=variance)
