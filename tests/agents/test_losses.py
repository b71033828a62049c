import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.losses import MaskedLoss, has_known_slopes, masked_loss

LOSSES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.L1Loss(),
    nn.HuberLoss(delta=0.4),
    nn.SmoothL1Loss(beta=0.3, reduction="sum"),
    nn.SmoothL1Loss(beta=0.0),
    F.mse_loss,
    F.l1_loss,
    F.huber_loss,
    F.smooth_l1_loss,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss_fn", LOSSES)
def test_losses_and_slopes_are_those_of_autograd(loss_fn, dtype):
    torch.manual_seed(0)
    predictions, targets = 2.0 * torch.randn(2, 3, 4, 5, dtype=dtype)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    targets[1, 0] = torch.nan  # where nothing counts
    predictions[1, 1] = targets[1, 1]  # where a slope may be ambiguous
    predictions.requires_grad_()
    expected = masked_loss(loss_fn, predictions, targets, mask)
    (slopes,) = torch.autograd.grad(expected.sum(), predictions)
    assert has_known_slopes(loss_fn)
    losses, own = MaskedLoss(loss_fn, targets, mask)(predictions.detach())
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(own[mask], slopes[mask])
    assert (own[~mask] == 0.0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_they_are_on_the_device_of_the_targets(reduction):
    """Not on the default one: there the numbers of a model on another device would be divided by one that is not."""
    targets, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with torch.device("meta"):
        losses, slopes = MaskedLoss(nn.MSELoss(reduction=reduction), targets, mask)(targets + 1.0)
    assert losses.device == slopes.device == targets.device


def test_of_half_precision_the_mean_is_finite_where_the_sum_is_not():
    predictions, targets = torch.full((1, 400, 3), 10.0).half(), torch.zeros(1, 400, 3).half()
    mask = torch.ones(1, 400, dtype=torch.bool)
    mask[0, -1] = False
    loss = masked_loss(nn.MSELoss(), predictions, targets, mask)
    assert loss.dtype == torch.float16
    assert loss.item() == 100.0


def test_where_nothing_counts_the_loss_is_zero():
    loss = MaskedLoss(F.mse_loss, torch.zeros(2, 3, 4), torch.tensor([[True] * 3, [False] * 3]))
    losses, slopes = loss(torch.ones(2, 3, 4))
    assert losses.tolist() == [1.0, 0.0]
    assert (slopes[1] == 0.0).all()


class Weighted(nn.MSELoss):
    """May compute anything."""


@pytest.mark.parametrize("loss_fn", [Weighted(), nn.MSELoss(reduction="none"), nn.CrossEntropyLoss(), F.cross_entropy])
def test_other_losses_have_no_known_slopes(loss_fn):
    assert not has_known_slopes(loss_fn)


def test_what_does_not_count_has_no_slope_whatever_it_is():
    prediction = torch.zeros(1, 2, 2, requires_grad=True)
    target = torch.tensor([[[1.0, 1.0], [torch.nan, torch.inf]]])
    masked_loss(nn.MSELoss(), prediction, target, torch.tensor([[True, False]])).sum().backward()
    assert prediction.grad.tolist() == [[[-1.0, -1.0], [0.0, 0.0]]]


def test_two_shapes_are_refused():
    loss = MaskedLoss(F.mse_loss, torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must have the same shape; got \(2, 3, 1\) and \(2, 3, 4\)"):
        loss(torch.zeros(2, 3, 1))
