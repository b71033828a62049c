"""Distributions of actions as functions of one tensor of parameters, which suits ``torch.func``."""

import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

__all__ = ["ActionDistribution", "Categorical", "DiagonalGaussian", "action_distribution"]


class ActionDistribution(Protocol):
    """What a policy and its gradient need of a distribution over actions, in any number of leading dimensions."""

    def noise(self, rng: np.random.Generator, *shape: int) -> Tensor:
        """All the random numbers that :meth:`draw` needs for actions ``[*shape ...]``."""
        ...

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Actions from ``Float[... P]`` and noise."""
        ...

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable actions under ``Float[... P]``."""
        ...

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """The logarithms of the probabilities (densities) of actions: ``Float[...]``."""
        ...

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """The Kullback-Leibler divergence KL(old || new) of two of ``Float[... P]``: ``Float[...]``."""
        ...

    def to_environment(self, actions: Tensor) -> npt.NDArray[Any]:
        """Actions as the environment takes them."""
        ...


class Categorical:
    """One of n actions; the parameters are log-probabilities ``Float[... n]``."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions

    def noise(self, rng: np.random.Generator, *shape: int) -> Tensor:
        """The n arrival times of a race of exponential clocks, ``Float[*shape n]``."""
        return torch.from_numpy(rng.standard_exponential((*shape, self.num_actions), dtype=np.float32))

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Actions ``Int64[...]``: of clocks of the rates p, that of an action rings first with its probability."""
        return (parameters - noise.log()).argmax(-1)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable actions, ``Int64[...]``."""
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """The log-probabilities of actions ``Int64[...]``."""
        return parameters.gather(-1, actions[..., None])[..., 0]

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) of log-probabilities ``Float[... n]``: ``Float[...]``."""
        return (old.exp() * (old - new)).sum(-1)

    def to_environment(self, actions: Tensor) -> npt.NDArray[Any]:
        """Actions ``Int64[...]`` as the environment takes them: as they are, in NumPy."""
        return actions.cpu().numpy()


class DiagonalGaussian:
    """Independent normal variables in units of half a Box's width, so that [-1, 1] is the Box.

    The parameters are the means and the logarithms of the standard deviations side by side, ``Float[... 2A]``. A draw
    may lie outside: the environment gets the nearest action of the Box. An unbounded dimension has the unit 1.

    Attributes:
        shift: ``Float64[A]``, the middle of the Box.
        scale: ``Float64[A]``, half its width.
    """

    def __init__(self, space: spaces.Box) -> None:
        self._low = space.low
        self._high = space.high
        self._dtype = space.dtype
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        low, high = (
            np.where(bounded, bound, unit).astype(np.float64) for bound, unit in ((space.low, -1.0), (space.high, 1.0))
        )
        self.shift = (low + high) / 2.0
        self.scale = (high - low) / 2.0

    def noise(self, rng: np.random.Generator, *shape: int) -> Tensor:
        """Standard normal variables ``Float[*shape A]``."""
        return torch.from_numpy(rng.standard_normal((*shape, len(self.scale)), dtype=np.float32))

    def draw(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Mean plus standard deviation times noise: ``Float[... A]``."""
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean + log_std.exp() * noise

    def mode(self, parameters: Tensor) -> Tensor:
        """The means, ``Float[... A]``."""
        return parameters.chunk(2, dim=-1)[0]

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """The log-densities of actions ``Float[... A]``, which are not clipped."""
        mean, log_std = parameters.chunk(2, dim=-1)
        deviations = (actions - mean) * (-log_std).exp()
        return -(0.5 * deviations.square() + log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def divergence(self, old: Tensor, new: Tensor) -> Tensor:
        """KL(old || new) of means and logarithms of deviations ``Float[... 2A]``: ``Float[...]``."""
        (old_mean, old_log_std), (mean, log_std) = old.chunk(2, dim=-1), new.chunk(2, dim=-1)
        squares = (2.0 * old_log_std).exp() + (old_mean - mean).square()
        return (log_std - old_log_std + 0.5 * squares * (-2.0 * log_std).exp() - 0.5).sum(-1)

    def to_environment(self, actions: Tensor) -> npt.NDArray[Any]:
        """Actions in the units of the Box, and within it; its middle instead of those that are not finite.

        No environment takes these. They come of a policy that has diverged, whose loss is not finite either: its task
        does not count, and must not end the training of the others.
        """
        scaled = self.shift + self.scale * actions.cpu().numpy()
        scaled = np.where(np.isfinite(scaled), scaled, self.shift)
        clipped: npt.NDArray[Any] = np.clip(scaled, self._low, self._high)
        return clipped.astype(self._dtype)


def action_distribution(space: spaces.Space[Any]) -> Categorical | DiagonalGaussian:
    """The distribution for a space of actions: ``Discrete`` from 0, or a one-dimensional ``Box``."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Categorical(int(space.n))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return DiagonalGaussian(space)
    raise ValueError(f"the action space must be Discrete (from 0) or a one-dimensional Box; got {space}.")
