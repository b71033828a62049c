"""What an adapter is given, and what a loss of it may come to."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

__all__ = ["LinAlgError", "constant", "is_of_numbers", "parse_batch"]

LinAlgError: Final = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def parse_batch(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The states and the targets of a batch.

    Raises:
        ValueError: One of them is missing or no tensor, or they have two lengths.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(key), Tensor) for key in ("states", "targets")):
        is_mapping = isinstance(batch, Mapping)
        got = {key: type(batch[key]).__name__ for key in batch} if is_mapping else type(batch).__name__
        raise ValueError(f"the batch must be a dictionary with the tensors 'states' and 'targets'; got {got}.")
    states, targets = batch["states"], batch["targets"]
    if states.ndim == 0 or targets.ndim == 0 or len(states) != len(targets):
        raise ValueError(
            "states and targets must have the same number of rows; got shapes "
            f"{tuple(states.shape)} and {tuple(targets.shape)}."
        )
    return states, targets


def constant(tensor: Tensor) -> Tensor:
    """The tensor without its graph, and where it was made in inference mode, a copy that autograd can save."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def is_of_numbers(error: Exception, targets: Tensor) -> bool:
    """Whether an error says that numbers are not finite or not valid, rather than that the caller made a mistake."""
    if isinstance(error, LinAlgError):
        return True
    # Distributions check their parameters, which the model computed, and the values whose probability is asked for.
    if "to be within the support" in str(error):
        return not bool(targets.isfinite().all())
    return "to satisfy the constraint" in str(error)
