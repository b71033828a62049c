"""What the loss functions that users bring have in common."""

import copy
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ELEMENTWISE",
    "ELEMENTWISE_FUNCTIONS",
    "NO_GRADIENT",
    "MaskedLoss",
    "checked_loss",
    "has_known_slopes",
    "is_mean_over_elements",
    "masked_loss",
]

# Means over elements. Torch broadcasts them, with a warning, over predictions and targets that do not match.
ELEMENTWISE: Final = (nn.HuberLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)
ELEMENTWISE_FUNCTIONS: Final = (F.huber_loss, F.l1_loss, F.mse_loss, F.smooth_l1_loss)

NO_GRADIENT: Final = "the loss must depend on what the model predicts; got one without a gradient."


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
    if elementwise and isinstance(prediction, Tensor):
        _check_shapes(prediction, target)
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
    # What does not count may be anything, and the gradient of what is left out is 0 times that.
    target = target.masked_fill(~mask.view(*mask.shape, *[1] * (target.ndim - mask.ndim)), 0)
    if isinstance(loss_fn, nn.Module):
        unreduced: Any = copy.copy(loss_fn)
        unreduced.reduction = "none"
        losses = unreduced(prediction, target)
    else:
        losses = loss_fn(prediction, target, reduction="none")
    counted = mask.view(*mask.shape, *[1] * (losses.ndim - mask.ndim)).expand_as(losses)
    elements = tuple(range(mask.ndim - 1, losses.ndim))
    # Of half precision the sum can overflow where the mean does not.
    wide = torch.promote_types(losses.dtype, torch.float32)
    total: Tensor = torch.where(counted, losses, 0.0).sum(elements, dtype=wide)
    mean = total if getattr(loss_fn, "reduction", "mean") == "sum" else total / counted.sum(elements)
    return mean.to(losses.dtype)


def has_known_slopes(loss_fn: Any) -> bool:
    """Whether :class:`MaskedLoss` takes a loss."""
    return is_mean_over_elements(loss_fn) and getattr(loss_fn, "reduction", "mean") in ("mean", "sum")


class MaskedLoss:
    """:func:`masked_loss` as a function of the predictions alone, and with its slopes, without a graph.

    Args:
        loss_fn: The loss, for which :func:`has_known_slopes` holds.
        targets: ``Float[B N D]``.
        mask: ``Bool[B N]``. The loss of a row in which nothing counts is 0.
    """

    def __init__(self, loss_fn: Any, targets: Tensor, mask: Tensor) -> None:
        self._loss_fn = loss_fn
        self._targets = targets
        self._mask = None if mask.all() else mask[..., None]
        is_sum = getattr(loss_fn, "reduction", "mean") == "sum"
        self._num_elements = (
            torch.ones(1, dtype=torch.long, device=targets.device)
            if is_sum
            else mask.sum(1).clamp(min=1) * targets.shape[-1]
        )  # that the loss is a mean of

    def __call__(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """The losses and their slopes by the predictions: ``Float[B N D]`` -> ``Float[B]`` and ``Float[B N D]``."""
        _check_shapes(predictions, self._targets)
        errors = predictions - self._targets
        if self._mask is not None:
            errors = torch.where(self._mask, errors, 0.0)
        values, slopes = _values_and_slopes(self._loss_fn, errors)
        return values.sum((1, 2)) / self._num_elements, slopes.div_(self._num_elements[:, None, None])


def _values_and_slopes(loss_fn: Any, error: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of every element, and its slope."""
    if isinstance(loss_fn, nn.MSELoss) or loss_fn is F.mse_loss:
        return error.square(), 2.0 * error
    # Huber's loss is quadratic up to a bound and linear beyond it; the others are its kin.
    bound, scale = 0.0, 1.0
    if isinstance(loss_fn, nn.HuberLoss) or loss_fn is F.huber_loss:
        bound = getattr(loss_fn, "delta", 1.0)
    elif isinstance(loss_fn, nn.SmoothL1Loss) or loss_fn is F.smooth_l1_loss:
        bound = getattr(loss_fn, "beta", 1.0)
        scale = 1.0 / bound if bound else 1.0
    if not bound:
        return error.abs(), error.sign()
    ends = error.clamp(-bound, bound)
    return scale * ends * (error - 0.5 * ends), scale * ends


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"predictions and targets must have the same shape; got {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}. Reshape the targets."
        )
