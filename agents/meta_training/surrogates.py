"""Policy gradients that can be differentiated again: advantages, and surrogates for the two loops of meta-learning."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssm_metarl_gym.agents.meta_training.trajectories import Trajectories
from ssm_metarl_gym.agents.models.action_distributions import ActionDistribution

__all__ = [
    "Sample",
    "Surrogate",
    "adaptation_loss",
    "clipped_loss",
    "discounted_sums",
    "divergence",
    "generalised_advantages",
    "linear_baseline",
    "make_sample",
]

Surrogate = Literal["lvc", "dice"]

_RIDGE = 1e-5


class Sample(NamedTuple):
    """What the surrogates need of the trajectories of K tasks. Of one task the shapes are without the K.

    Attributes:
        observations: ``Float[K M T D]``.
        actions: ``Int64[K M T]`` or ``Float[K M T A]``.
        parameters: ``Float[K M T P]``, of the distributions that the actions were drawn from.
        advantages: ``Float[K M T]``.
        weights: ``Float[K M T]``, the weight of each step in a mean over the steps of a task: zero where not valid.
    """

    observations: Tensor
    actions: Tensor
    parameters: Tensor
    advantages: Tensor
    weights: Tensor

    def select(self, tasks: slice) -> "Sample":
        """The sample of some of the tasks."""
        return Sample(*(part[tasks] for part in self))


def make_sample(
    trajectories: Trajectories, inputs: Tensor, scale: Tensor, *, gamma: float, gae_lambda: float
) -> Sample:
    """The sample that trajectories are to the surrogates: with advantages, and with weights of the steps.

    An episode is worth the rewards up to its end, be that a termination or the time limit: what the linear baseline,
    which knows the time, predicts and what :meth:`Trajectories.returns` measures. A restart in a trial ends nothing.

    Args:
        trajectories: Of K tasks.
        inputs: ``Float[K M T D]``, their observations, normalised, from which the baseline predicts.
        scale: The unit of the advantages, a scalar. It is the same for all tasks and all steps of the inner loop: with
            advantages normalised one by one, a policy that has solved its task would be moved as far as one that has
            not.
        gamma: The discount factor.
        gae_lambda: The weight of longer against shorter estimates.
    """
    rewards, valid = trajectories.rewards, trajectories.valid
    values = linear_baseline(inputs, discounted_sums(rewards, gamma), valid)
    advantages = generalised_advantages(rewards, values, valid, gamma=gamma, gae_lambda=gae_lambda) / scale
    weights = valid / valid.sum((1, 2), keepdim=True)  # K M T
    return Sample(trajectories.observations, trajectories.actions, trajectories.parameters, advantages, weights)


def discounted_sums(x: Tensor, decay: float) -> Tensor:
    """``y_t = x_t + decay * y_tp1``: ``Float[... T]`` -> ``Float[... T]``."""
    times = torch.arange(x.shape[-1], device=x.device)
    ahead = times[:, None] - times  # from the column's time to the row's
    powers = torch.where(ahead >= 0, decay ** ahead.clamp(min=0).to(x), 0.0)  # T T
    return x @ powers


def generalised_advantages(
    rewards: Tensor, values: Tensor, valid: Tensor, *, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, equation 16).

    Args:
        rewards: ``Float[... T]``, zero where not valid.
        values: ``Float[... T]``, of the observations before the rewards.
        valid: ``Bool[... T]``, true up to the last step of the episode, after which the value is zero.
        gamma: The discount factor.
        gae_lambda: The weight of longer against shorter estimates.

    Returns:
        ``Float[... T]``, zero where not valid.
    """
    values_t = torch.where(valid, values, 0.0)
    values_tp1 = torch.cat([values_t[..., 1:], torch.zeros_like(values_t[..., :1])], dim=-1)
    return discounted_sums(rewards + gamma * values_tp1 - values_t, gamma * gae_lambda)


def linear_baseline(inputs: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """The values that a linear function of the observation and the time predicts, fitted to each task by itself.

    Its features are the observation, its square, the time in hundreds of steps, its square and cube, and one (Duan et
    al. 2016, https://arxiv.org/abs/1604.06778); it is fitted by ridge regression.

    Args:
        inputs: ``Float[K M T D]``.
        targets: ``Float[K M T]``, what to predict.
        valid: ``Bool[K M T]``, the steps to fit.

    Returns:
        ``Float[K M T]``.
    """
    clipped = inputs.clamp(-10.0, 10.0).double()
    times = torch.arange(inputs.shape[2], device=inputs.device, dtype=torch.float64) / 100.0
    powers = torch.stack([times, times**2, times**3, torch.ones_like(times)], dim=-1)  # T 4
    features = torch.cat([clipped, clipped.square(), powers.expand(*inputs.shape[:3], 4)], dim=-1).flatten(1, 2)
    counted = (features * valid.flatten(1)[..., None]).mT  # K F MT
    moments = counted @ features + _RIDGE * torch.eye(features.shape[-1], dtype=torch.float64, device=inputs.device)
    solution = torch.linalg.solve(moments, counted @ targets.flatten(1)[..., None].double())  # K F 1
    values: Tensor = features @ solution
    return values.view_as(targets).to(targets)


def adaptation_loss(
    distribution: ActionDistribution, parameters: Tensor, sample: Sample, surrogate: Surrogate = "lvc"
) -> Tensor:
    """The loss whose gradient is the policy gradient of one task, and whose second derivative has the right mean too.

    The advantages are times the ratio of the probability of the action now and when it was drawn. Where these are
    equal the loss says nothing, but its derivatives do: those of the ratio are ``grad log p`` and
    ``hessian log p + grad log p grad log p^T``, of which the last term is how sampling itself depends on the weights. A
    surrogate of ``log p`` lacks it, and the meta-gradient with it.

    ``"lvc"`` has the ratio of each action alone: the low-variance curvature of Rothfuss et al. 2018
    (https://arxiv.org/abs/1810.06784, equation 11), exact up to how later advantages change with earlier weights.
    ``"dice"`` has the change of the product of the ratios up to each action (Foerster et al. 2018,
    https://arxiv.org/abs/1802.05098, with advantages as Farquhar et al. 2019, https://arxiv.org/abs/1909.10549), exact,
    at a variance that grows with the length of episodes.

    Args:
        distribution: What the parameters mean.
        parameters: ``Float[M T P]``, of the distributions as they are now.
        sample: Of one task.
        surrogate: ``"lvc"`` or ``"dice"``.
    """
    log_ratios = _log_ratios(distribution, parameters, sample)
    if surrogate == "dice":
        so_far = log_ratios.cumsum(-1)
        return -(sample.weights * sample.advantages * (so_far.exp() - (so_far - log_ratios).exp())).sum()
    return -(sample.weights * sample.advantages * log_ratios.exp()).sum()


def clipped_loss(distribution: ActionDistribution, parameters: Tensor, sample: Sample, clip_range: float) -> Tensor:
    """The clipped surrogate of proximal policy optimisation, of one task.

    Schulman et al. 2017, https://arxiv.org/abs/1707.06347, equation 7: the ratio of the probabilities now and when the
    action was drawn earns nothing beyond ``1 +- clip_range``. Arguments as for :func:`adaptation_loss`.
    """
    ratios = _log_ratios(distribution, parameters, sample).exp()
    clipped = ratios.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -(sample.weights * torch.minimum(ratios * sample.advantages, clipped * sample.advantages)).sum()


def divergence(distribution: ActionDistribution, parameters: Tensor, sample: Sample) -> Tensor:
    """The mean divergence KL(then || now) of the distributions over the steps of a task."""
    divergences = distribution.divergence(sample.parameters, parameters)
    return (sample.weights * torch.where(sample.weights > 0.0, divergences, 0.0)).sum()


def _log_ratios(distribution: ActionDistribution, parameters: Tensor, sample: Sample) -> Tensor:
    """``log p_now(action) - log p_then(action)``; zero where not valid, so that padding cannot overflow nor count."""
    now = distribution.log_prob(parameters, sample.actions)
    then = distribution.log_prob(sample.parameters, sample.actions)
    return torch.where(sample.weights > 0.0, now - then, 0.0)
