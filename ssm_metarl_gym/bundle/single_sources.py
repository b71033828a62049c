"""What a map on the actions is, where each motor most likely obeys a single action."""

import math
from typing import Final

import numpy as np

from ssm_metarl_gym.bundle.layers import Floats

__all__ = ["densities_of_others", "expected_rows"]

_ALONE: Final = 0.1  # an action is alone where the others count for about a tenth of it at most
_MIX: Final = 0.1  # how likely beforehand a motor obeys a mix of the actions, where one alone has 1


def densities_of_others(prior: Floats, source: Floats) -> Floats:
    """For each entry of a map, how probable it is beforehand that all others of its row are zero.

    Args:
        prior: The variances of the entries beforehand, ``Float64[A A]``.
        source: Their means beforehand, ``Float64[A A]``.

    Returns:
        The logarithms of densities, in units of how probable any mix is, but for what is the same for all,
        ``Float64[A A]``.
    """
    before = prior + _ALONE**2
    of_each = source**2 / before + np.log(before)
    result: Floats = math.log(len(prior) * _MIX) - 0.5 * (of_each.sum(axis=1, keepdims=True) - of_each)
    return result


def expected_rows(means: Floats, covariance: Floats, beforehand: Floats) -> Floats:
    """The map to be expected where each row of it has a single entry, whichever, or else is any mix.

    What :func:`ssm_metarl_gym.wrappers.single_sources.expected_rows` computes for every entry with a covariance of all
    others of its row, by one inverse P for the whole row: of a normal variable the density of all numbers but j is that
    of all, divided by that of j given the others, which has the precision P_jj.

    Args:
        means: What a filter of any mix expects, ``Float64[A A]``.
        covariance: Of the entries, row by row of the map, ``Float64[A*A A*A]``.
        beforehand: What :func:`densities_of_others` gives, ``Float64[A A]``.
    """
    num_actions = len(means)
    if num_actions == 1:
        return means
    # A A A: of each row, that of its entries; one is as good as zero where it is about a tenth.
    of_rows = covariance.reshape((num_actions,) * 4).diagonal(axis1=0, axis2=2).transpose(2, 0, 1)
    blurred = of_rows + _ALONE**2 * np.eye(num_actions)
    precision = np.linalg.inv(blurred)
    own = precision.diagonal(axis1=1, axis2=2)  # A A
    z = (precision @ means[:, :, None])[:, :, 0]
    alone = z / own  # what an entry is if the others are zero
    # How probable it is that all others are zero, in units of that beforehand.
    size = (means * z).sum(axis=1, keepdims=True) - z * alone
    volume = np.linalg.slogdet(blurred)[1][:, None] + np.log(own)
    evidence = -0.5 * (size + volume) - beforehand
    # Beside any mix, whose evidence is zero.
    largest = np.maximum(evidence.max(axis=1, keepdims=True), 0.0)
    weights, weight_of_mix = np.exp(evidence - largest), np.exp(-largest)
    total = weights.sum(axis=1, keepdims=True) + weight_of_mix
    result: Floats = (weights * alone + weight_of_mix * means) / total
    return result
