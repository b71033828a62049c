"""What the loss functions that users bring have in common."""

from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ELEMENTWISE", "ELEMENTWISE_FUNCTIONS", "checked_loss"]

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
