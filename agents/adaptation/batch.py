"""What an adapter is given, which of it is new, and what a loss of it may come to."""

import functools
import operator
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "LinAlgError",
    "constant",
    "finite_rows",
    "is_of_numbers",
    "num_shared_rows",
    "parse_batch",
    "row_bytes",
]

LinAlgError: Final = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class Batch(NamedTuple):
    """What an adapter is given.

    Attributes:
        states: The inputs of the model, ``Float[N ...]``.
        targets: What it should have predicted, ``Float[N ...]``.
        arrivals: Numbers that tell rows apart which are alike, ``Int[N]``; None where nobody gave them.
    """

    states: Tensor
    targets: Tensor
    arrivals: Tensor | None


def parse_batch(batch: Mapping[str, Tensor]) -> Batch:
    """The parts of a batch.

    Raises:
        ValueError: The states or the targets are missing, a part is no tensor, or they have different lengths.
    """
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(key), Tensor) for key in ("states", "targets")):
        is_mapping = isinstance(batch, Mapping)
        got = {key: type(batch[key]).__name__ for key in batch} if is_mapping else type(batch).__name__
        raise ValueError(f"the batch must be a dictionary with the tensors 'states' and 'targets'; got {got}.")
    states, targets = batch["states"], batch["targets"]
    if states.ndim == 0 or targets.ndim == 0 or states.shape[0] != targets.shape[0]:
        raise ValueError(
            "states and targets must have the same number of rows; got shapes "
            f"{tuple(states.shape)} and {tuple(targets.shape)}."
        )
    arrivals = batch.get("arrivals")
    if arrivals is not None and not (isinstance(arrivals, Tensor) and arrivals.shape == states.shape[:1]):
        got = f"shape {tuple(arrivals.shape)}" if isinstance(arrivals, Tensor) else type(arrivals).__name__
        raise ValueError(f"arrivals must be a tensor of a number for each of the {len(states)} rows; got {got}.")
    return Batch(states, targets, arrivals)


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


def finite_rows(*columns: Tensor) -> Tensor:
    """Which rows are finite in every column: ``Float[N ...]`` each -> ``Bool[N]``."""
    return functools.reduce(operator.and_, (column.isfinite().reshape(len(column), -1).all(1) for column in columns))


def row_bytes(*columns: Tensor) -> Tensor:
    """The bits of the rows, side by side: ``[N ...]`` each -> ``UInt8[N bytes]``. A NaN equals itself in them."""
    return torch.cat([column.reshape(len(column), -1).contiguous().view(torch.uint8) for column in columns], dim=1)


def num_shared_rows(last: Tensor, rows: Tensor) -> int:
    """How many rows at the start of ``rows`` are those that ``last`` ends with: the most there can be.

    Args:
        last: ``UInt8[M bytes]``.
        rows: ``UInt8[N bytes]``, N >= 1.
    """
    if last.shape[1:] != rows.shape[1:]:
        return 0
    starts = (last == rows[:1]).all(dim=1).nonzero().flatten().tolist()
    overlaps = (len(last) - start for start in starts)
    return next((n for n in overlaps if n <= len(rows) and torch.equal(last[-n:], rows[:n])), 0)
