"""What a map on the actions is, where each motor most likely obeys a single action."""

import math
from typing import Final

import torch
from torch import Tensor

__all__ = ["expected_rows"]

_ALONE: Final = 0.1  # an action is alone where the others count for about a tenth of it at most
_MIX: Final = 0.1  # how likely beforehand a motor obeys a mix of the actions, where one alone has 1


def expected_rows(means: Tensor, covariances: Tensor, prior_variances: Tensor, source: Tensor) -> Tensor:
    """The maps to be expected where each row of a map has a single entry, whichever, or else is any mix.

    A filter of any mix takes as many transitions as there are actions to see one. Motors that are swapped obey a single
    action each, and that takes two or three: for every entry of a row the evidence that all others of the row are zero
    is the density at zero after what was seen, in units of that before it (Dickey and Lientz 1970, "The weighted
    likelihood ratio, sharp hypotheses about chances, the order of a Markov chain"), and the entry is what it is if they
    are. Rows are taken for themselves.

    Args:
        means: What a filter of any mix expects, ``Float64[N A A]``.
        covariances: Of the entries, row by row of a map, ``Float64[N A*A A*A]``.
        prior_variances: Of the entries beforehand, ``Float64[A A]``.
        source: Their means beforehand, ``Float64[A A]``.

    Returns:
        ``Float64[N A A]``.
    """
    num_rows, num_actions, _ = means.shape
    if num_actions == 1:
        return means
    # N A A A: of each row of a map the covariance of its entries.
    by_row = covariances.view(num_rows, *(num_actions,) * 4).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    every = torch.arange(num_actions)
    others = torch.stack([every[every != j] for j in every])  # A A-1
    mean = means[:, :, others]  # N A A A-1, of the others of each entry of a row
    covariance = by_row[:, :, others[:, :, None], others[:, None]]  # N A A A-1 A-1
    factor = torch.linalg.cholesky(covariance + _ALONE**2 * torch.eye(num_actions - 1, dtype=means.dtype))
    whitened = torch.linalg.solve_triangular(factor, mean[..., None], upper=False)[..., 0]
    density = -0.5 * whitened.square().sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # N A A
    prior = prior_variances[:, others] + _ALONE**2  # A A A-1
    prior_density = -0.5 * (source[:, others].square() / prior + prior.log()).sum(-1)  # A A
    # What an entry is if the others are zero.
    gain = torch.cholesky_solve(mean[..., None], factor)[..., 0]
    alone = means - (by_row[:, :, every[:, None], others] * gain).sum(-1)  # N A A
    evidence = density - prior_density - math.log(num_actions)
    mix = evidence.new_full((num_rows, num_actions, 1), math.log(_MIX))
    weights = torch.cat([evidence, mix], dim=-1).softmax(dim=-1)  # N A A+1
    return weights[..., :-1] * alone + weights[..., -1:] * means
