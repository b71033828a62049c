"""Reptile, which moves the weights towards the adapted ones, written as a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop
from ssm_metarl_gym.agents.meta_learning.tasks import SetLoss, TaskSet

__all__ = ["ReptileLoss"]


@dataclass(frozen=True)
class ReptileLoss:
    """The query loss after inner steps, whose gradient is the way back from the adapted weights to the weights.

    The steps take support and query set in turn, as two minibatches of one task. (Reptile of Nichol et al. 2018,
    https://arxiv.org/abs/1803.02999.)

    Attributes:
        num_steps: The number of steps.
    """

    num_steps: int

    def __call__(
        self, inner: InnerLoop, loss_of: SetLoss, support: TaskSet, query: TaskSet, functional: bool
    ) -> Tensor:
        """The loss of one task, ``Float[1]``; the arguments are those of :class:`QueryLosses`."""
        origin, inner = inner.weights(), inner.detached()
        weights = inner.weights()
        for index in range(self.num_steps):
            part = query if index % 2 else support
            weights = inner.step(lambda w, part=part: loss_of(w, part), weights, index, functional=functional)  # type: ignore[misc]
        loss = loss_of(weights, query).detach()
        # As large as the loss, and as steep as half the squared distance from the adapted weights.
        ways = [(origin[name].conj() * (origin[name] - weights[name]).detach()).real.sum() for name in inner.adapted]
        way = torch.stack(ways).sum()
        return (loss + (way - way.detach()))[None]
