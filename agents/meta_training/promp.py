"""Proximal meta-policy search (ProMP): the adaptation of a policy to trajectories, and the loss of what comes of it."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop, Weights
from ssm_metarl_gym.agents.meta_training.surrogates import (
    Sample,
    Surrogate,
    adaptation_loss,
    clipped_loss,
    divergence,
)
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept

__all__ = ["ProMP"]


class ProMP:
    """The inner step and the outer loss of proximal meta-policy search, of many tasks at once.

    Rothfuss et al. 2018, https://arxiv.org/abs/1810.06784, algorithm 1. From the weights ``w_0`` that all tasks
    start from, a task takes ``S`` inner steps ``w_s = w_sm1 - rate * grad adaptation_loss(w_sm1; sample_sm1)``, and its
    outer loss is ``clipped_loss(w_S; sample_S) + kl_penalty * mean_s divergence(w_s; sample_s)``, see
    :mod:`surrogates <ssm_metarl_gym.agents.meta_training.surrogates>`. Sample ``s`` is of the trajectories that the
    policy with the weights ``w_s`` of that moment took.

    Args:
        policy: The policy that all weights are of.
        inner: Its inner loop.
        clip_range: How far a ratio of probabilities may profitably leave 1 in the outer loss.
        kl_penalty: Weight of the mean divergence of all policies of a task from those that took the trajectories.
        surrogate: How the inner gradient depends on the weights, see :func:`adaptation_loss`.
    """

    def __init__(
        self,
        policy: MetaPolicy,
        inner: InnerLoop,
        *,
        clip_range: float,
        kl_penalty: float = 0.0,
        surrogate: Surrogate = "lvc",
    ) -> None:
        self._policy = policy
        self._inner = inner
        self._clip_range = clip_range
        self._kl_penalty = kl_penalty
        self._surrogate: Surrogate = surrogate

    def initial_weights(self, num_tasks: int) -> Weights:
        """The weights that each of K tasks starts from, side by side and without a graph: ``[K ...]`` by name."""
        return {
            name: weight.detach().expand(num_tasks, *weight.shape) for name, weight in self._inner.weights().items()
        }

    def adapt(self, weights: Weights, sample: Sample, index: int) -> Weights:
        """One inner step in each of K tasks, without a graph.

        Args:
            weights: ``[K ...]`` by name.
            sample: Of the trajectories that the policies with these weights took.
            index: The index of the step, from 0.

        Returns:
            ``[K ...]`` by name. A task whose step is not finite keeps the weights it had.
        """
        inner = self._inner.detached()

        def step(weights: Weights, sample: Sample) -> Weights:
            return inner.step(partial(self._inner_loss, sample=sample), weights, index)

        with torch.no_grad(), attributes_kept(self._policy):
            adapted: Weights = vmap(step)(weights, sample)
        # With weights that are not finite nobody can act. The outer loss of such a task, for which the step is computed
        # again, is not finite either: it does not count.
        finite = torch.stack([torch.isfinite(weight).flatten(1).all(1) for weight in adapted.values()]).all(0)  # K
        return {
            name: torch.where(finite.view(-1, *[1] * (weight.ndim - 1)), weight, weights[name])
            for name, weight in adapted.items()
        }

    def losses(self, weights: Weights, samples: Sequence[Sample]) -> Tensor:
        """The outer losses of K tasks, ``Float[K]``, differentiable by the weights and by learned step sizes.

        Args:
            weights: The weights that all tasks start from, by name, as :meth:`InnerLoop.weights` gives them.
            samples: One before each inner step, which is computed again from it, and one after the last.
        """
        with attributes_kept(self._policy):
            return vmap(self._outer_loss, in_dims=(None, 0))(weights, list(samples))

    def _outer_loss(self, weights: Weights, samples: Sequence[Sample]) -> Tensor:
        """The outer loss of one task."""
        distribution = self._policy.distribution
        divergences = []
        for index, sample in enumerate(samples[:-1]):
            if self._kl_penalty:
                divergences.append(divergence(distribution, self._parameters(weights, sample), sample))
            weights = self._inner.step(partial(self._inner_loss, sample=sample), weights, index)
        parameters = self._parameters(weights, samples[-1])
        loss = clipped_loss(distribution, parameters, samples[-1], self._clip_range)
        if self._kl_penalty:
            divergences.append(divergence(distribution, parameters, samples[-1]))
            loss = loss + self._kl_penalty * torch.stack(divergences).mean()
        return loss

    def _inner_loss(self, weights: Weights, sample: Sample) -> Tensor:
        parameters = self._parameters(weights, sample)
        return adaptation_loss(self._policy.distribution, parameters, sample, self._surrogate)

    def _parameters(self, weights: Weights, sample: Sample) -> Tensor:
        """What the policy with these weights makes of the observations of one task, ``Float[M T P]``."""
        parameters: Tensor = StatelessModule(self._policy)(weights, (sample.observations,))[0]
        return parameters
