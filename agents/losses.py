"""What the loss functions that users bring have in common."""

import copy
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ELEMENTWISE", "ELEMENTWISE_FUNCTIONS", "checked_loss", "is_mean_over_elements", "masked_loss"]

# Means over elements. Torch broadcasts them, with a warning, over predictions and targets that do not match.
ELEMENTWISE: Final = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)
ELEMENTWISE_FUNCTIONS: Final = (F.huber_loss, F.l1_loss, F.mse_loss, F.smooth_l1_loss)


def checked_loss(loss_fn: Any, prediction: Any, target: Tensor) -> Tensor:
    """The loss of a prediction: a scalar tensor of real numbers.

    Raises:
        ValueError: The loss is something else, or no function, or an elementwise loss is given two shapes.
    """
    if isinstance(loss_fn, type) or not callable(loss_fn):
        got, fix = (
            (f"the class {loss_fn.__name__}", f"{loss_fn.__name__}()")
            if isinstance(loss_fn, type)
            else (repr(loss_fn), "nn.MSELoss()")
        )
        raise ValueError(f"loss_fn must be a function of a prediction and a target; got {got}. Use e.g. {fix}.")
    elementwise = isinstance(loss_fn, ELEMENTWISE) or loss_fn in ELEMENTWISE_FUNCTIONS
    if elementwise and isinstance(prediction, Tensor) and prediction.shape != target.shape:
        raise ValueError(
            f"predictions and targets must have the same shape; got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}. Reshape the targets."
        )
    loss = loss_fn(prediction, target)
    if not isinstance(loss, Tensor) or loss.ndim or loss.is_complex():
        got = repr(loss)
        if isinstance(loss, Tensor):
            got = f"shape {tuple(loss.shape)}" if loss.ndim else f"complex numbers, {loss.dtype}"
        raise ValueError(f"loss_fn must return a scalar tensor; got {got}. Average over the batch.")
    return loss


def is_mean_over_elements(loss_fn: Any) -> bool:
    """Whether rows can be left out of a loss exactly: it is one of torch's elementwise ones.

    Of exactly these types: a subclass may compute anything.
    """
    return type(loss_fn) in ELEMENTWISE or loss_fn in ELEMENTWISE_FUNCTIONS


def masked_loss(loss_fn: Any, prediction: Any, target: Tensor, mask: Tensor) -> Tensor:
    """The loss of the rows that ``mask`` counts, of a loss that is a mean over elements.

    Args:
        loss_fn: The loss, for which :func:`is_mean_over_elements` holds.
        prediction: ``Float[... N D]``, or without the last dimension where the mask has as many.
        target: As the prediction.
        mask: ``Bool[... N]``; leading dimensions are those of batches, each of which has a loss of its own.

    Returns:
        ``Float[...]``; nan where nothing counts.
    """
    checked_loss(loss_fn, prediction, target)  # its complaints are those that the user knows
    if isinstance(loss_fn, nn.Module):
        unreduced: Any = copy.copy(loss_fn)
        unreduced.reduction = "none"
        losses = unreduced(prediction, target)
    else:
        losses = loss_fn(prediction, target, reduction="none")
    counted = mask.view(*mask.shape, *[1] * (losses.ndim - mask.ndim)).expand_as(losses)
    elements = tuple(range(mask.ndim - 1, losses.ndim))
    total: Tensor = torch.where(counted, losses, 0.0).sum(elements)
    return total if getattr(loss_fn, "reduction", "mean") == "sum" else total / counted.sum(elements)
