"""The steps of a Kalman filter on many rows at once, and how probable each found what came."""

from typing import Final

import torch
from torch import Tensor

__all__ = ["kalman_predict", "kalman_update", "log_likelihood", "normalised_innovation", "whiten"]

_FREEDOM: Final = 4.0  # degrees, of how much the errors of a model differ in size


def kalman_predict(
    mean_tm1: Tensor, covariance_tm1: Tensor, source: Tensor, prior_variances: Tensor, process_noise: float
) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of w_t - source = a (w_tm1 - source) + noise, with a^2 = 1 - noise / prior.

    So the prior stays the prior: a^2 prior + noise = prior. A weight whose prior has no variance stays as it was.

    Args:
        mean_tm1: ``Float[... W]``.
        covariance_tm1: ``Float[... W W]``.
        source: What the weights are in the long run, ``Float[W]`` or ``Float[... W]``.
        prior_variances: The variance of each weight in the long run, ``Float[... W]``.
        process_noise: The variance of the noise; no more than that of the prior, where that is less.
    """
    noise = prior_variances.clamp(max=process_noise)
    kept = (1.0 - torch.where(noise > 0.0, noise / prior_variances, 0.0)).sqrt()  # a
    covariance = kept[..., None] * covariance_tm1 * kept[..., None, :]
    return source + kept * (mean_tm1 - source), covariance + torch.diag_embed(noise)


def whiten(covariance: Tensor, innovation_t: Tensor, jacobian_t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """L^-1 [H P, v] ``Float[... D W+1]`` and log |S| ``Float[...]``.

    L L' = S = H P H' + R is the covariance that is expected of v.

    Args:
        covariance: P, ``Float[... W W]``.
        innovation_t: v, ``Float[... D]``.
        jacobian_t: H, ``Float[... D W]``.
        noise: The diagonal of R, ``Float[D]`` or ``Float[... D]``.

    Returns:
        Both NaN in a row whose S is not positive definite.
    """
    projected = jacobian_t @ covariance  # ... D W
    expected = projected @ jacobian_t.mT + torch.diag_embed(noise)  # ... D D
    factor, failed = torch.linalg.cholesky_ex(expected)
    both = torch.cat([projected, innovation_t[..., None]], dim=-1)
    whitened = torch.linalg.solve_triangular(factor, both, upper=False)
    log_volume = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return torch.where(failed[..., None, None] == 0, whitened, torch.nan), torch.where(
        failed == 0, log_volume, torch.nan
    )


def normalised_innovation(whitened: Tensor) -> Tensor:
    """V' S^-1 v / D ``Float[...]``, about one where all is as assumed, from what :func:`whiten` gave."""
    return whitened[..., -1].square().mean(dim=-1)


def log_likelihood(size: Tensor, log_volume: Tensor, num_targets: int) -> Tensor:
    """The logarithm of a density of Student's t of v, but for what depends on D and the degrees of freedom n alone.

    ``-(n + D) / 2 log(1 + m D / n) - log |S| / 2``: where a model errs, it errs in all that belongs to a transition, at
    a contact ten times as much as elsewhere, and one transition of those tells little of what is the matter.

    Args:
        size: M, what :func:`normalised_innovation` gave, ``Float[...]``.
        log_volume: Log |S|, what :func:`whiten` gave, ``Float[...]``.
        num_targets: D.
    """
    tail = (1.0 + size * (num_targets / _FREEDOM)).log()
    return -0.5 * ((_FREEDOM + num_targets) * tail + log_volume)


def kalman_update(mean: Tensor, covariance: Tensor, whitened: Tensor) -> tuple[Tensor, Tensor]:
    """The mean m + K v and the covariance P - K S K', with the gain K = P H' S^-1 (Kalman 1960).

    With V = L^-1 H P and e = L^-1 v they are m + V' e and P - V' V, which is symmetric as it stands.

    Args:
        mean: m, ``Float[... W]``.
        covariance: P, ``Float[... W W]``.
        whitened: V and e, side by side, as :func:`whiten` gave them.
    """
    v, e = whitened[..., :-1], whitened[..., -1:]
    return mean + (v.mT @ e)[..., 0], covariance - v.mT @ v
