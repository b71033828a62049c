import math

import pytest
import torch

from ssm_metarl_gym.wrappers.single_sources import expected_rows

EYE = torch.eye(3).double()
PRIOR = torch.full((3, 3), 1 / 3).double().fill_diagonal_(1.0)


def after(executed, actions, noise=0.01):
    """Mean and covariance of a map, after what its motors did for some actions: ``Float[T 3]`` twice."""
    mean, covariance = EYE.flatten(), torch.diag(PRIOR.flatten())
    for x, u in zip(executed, actions, strict=True):
        jacobian = torch.kron(EYE, u[None])
        gain = covariance @ jacobian.T @ torch.linalg.inv(jacobian @ covariance @ jacobian.T + noise**2 * EYE)
        mean, covariance = mean + gain @ (x - jacobian @ mean), covariance - gain @ jacobian @ covariance
    return mean.view(1, 3, 3), covariance[None]


ACTIONS = torch.tensor([[0.5, -0.3, 0.8], [-0.2, 0.9, 0.4]]).double()


def test_swapped_motors_are_seen_before_any_mix_is():
    swapped = torch.tensor([[0.0, -0.7, 0.0], [0.0, 0.0, 1.2], [0.9, 0.0, 0.0]]).double()
    mean, covariance = after(ACTIONS @ swapped.T, ACTIONS)
    found = expected_rows(mean, covariance, PRIOR, EYE)
    assert (mean[0] - swapped).abs().max() > 0.3
    torch.testing.assert_close(found[0], swapped, atol=0.15, rtol=0.0)


def test_a_mix_that_is_known_stays():
    mixed = torch.tensor([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.5, 0.5, 0.5]]).double()
    actions = torch.cat([ACTIONS, torch.tensor([[0.9, 0.8, -0.7]]).double()])
    mean, covariance = after(actions @ mixed.T, actions)
    torch.testing.assert_close(expected_rows(mean, covariance, PRIOR, EYE), mean, atol=1e-3, rtol=0.0)


def test_hand_computed():
    # Nothing was seen but one entry, with certainty: -2 of a prior of 1 with the variance 1, the other 0 with 1/2.
    prior = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    means = torch.tensor([[[-2.0, 0.0], [0.0, 1.0]]]).double()
    covariances = torch.diag(torch.tensor([0.0, 0.5, 0.5, 1.0])).double()[None]
    found = expected_rows(means, covariances, prior, torch.eye(2).double())[0]
    # The first row: that the other is zero is as likely as before, that this one is zero, exp(-199.5) times as likely.
    # So the odds of one alone, half of those of any of two, and of a mix are 1/2 and 1/10, of which both say -2.
    assert found[0].tolist() == pytest.approx([-2.0, 0.0])
    # The second one: as before, so alone -> [0, 1] or [0, 0], each 1/2, or the mean, 1/10.
    assert found[1].tolist() == pytest.approx([0.0, (0.5 * 1.0 + 0.1 * 1.0) / 1.1])


def test_a_single_motor_has_a_single_action():
    means = torch.tensor([[[-0.5]]]).double()
    assert torch.equal(expected_rows(means, torch.ones(1, 1, 1).double(), torch.ones(1, 1), torch.ones(1, 1)), means)


def test_every_row_is_for_itself():
    pairs = [after(scale * ACTIONS, ACTIONS) for scale in (1.0, -0.5)]
    means, covariances = (torch.cat(column) for column in zip(*pairs, strict=True))
    both = expected_rows(means, covariances, PRIOR, EYE)
    for row, (mean, covariance) in enumerate(pairs):
        torch.testing.assert_close(both[row], expected_rows(mean, covariance, PRIOR, EYE)[0])
        assert math.isfinite(both[row].sum().item())
