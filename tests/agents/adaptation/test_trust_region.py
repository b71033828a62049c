import math

import pytest
import torch

from ssm_metarl_gym.agents.adaptation.trust_region import moving_moments, pull_back, trust_region


def test_a_hand_computed_ball():
    region = trust_region(torch.tensor([3.0, 4.0]), 0.5)
    assert (region.norm, region.radius) == (5.0, 2.5)
    assert region.rounding == torch.finfo(torch.float32).eps * 7.5
    assert region.has(torch.tensor([3.0, 6.5]))
    assert not region.has(torch.tensor([3.0, 6.51]))


@pytest.mark.parametrize("source", [torch.zeros(2), torch.ones(2)])
def test_an_infinite_ball_has_everything(source):
    assert trust_region(source, math.inf).has(torch.tensor([1e30, 0.0]))


def test_a_pull_of_many_rows_is_that_of_each():
    region = trust_region(torch.tensor([3.0, 4.0]), 0.5)
    offsets = torch.tensor([[6.0, 8.0], [-30.0, 0.0], [0.1, 100.0]])
    pulled = pull_back(offsets, torch.linalg.vector_norm(offsets, dim=-1, keepdim=True), region)
    torch.testing.assert_close(pulled[0], torch.tensor([1.5, 2.0]))  # 2.5 in the direction of 3 to 4
    for offset, row in zip(offsets, pulled, strict=True):
        assert torch.equal(pull_back(offset, torch.linalg.vector_norm(offset), region), row)
        assert float(torch.linalg.vector_norm(row)) <= 2.5


def test_hand_computed_moments_of_numbers_and_of_rows():
    # A deviation of 2 moves the mean by 2/4 and the variance to 3/4 * (0 + 4/4).
    assert moving_moments(1.0, 0.0, 3.0, 0.75) == (1.5, 0.75)
    means, variances = moving_moments(
        torch.tensor([1.0, 1.5]), torch.tensor([0.0, 0.75]), torch.tensor([3.0, 2.5]), 0.75
    )
    assert (means.tolist(), variances.tolist()) == ([1.5, 1.75], [0.75, 0.75])
