"""What autograd refuses by default, made differentiable: attention, and whatever is done in inference mode."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["differentiable"]


@contextmanager
def differentiable(*, second_order: bool) -> Iterator[None]:
    """In the block gradients are recorded, whatever mode is on around it, and attention can be differentiated.

    The fused forms of attention have no second derivative, and that of ``nn.MultiheadAttention`` and
    ``nn.TransformerEncoderLayer`` in evaluation mode has not even a first one. PyTorch's switches for them hold for the
    whole process; they go back to where they were when no block is left, in whatever thread.

    Args:
        second_order: Whether gradients of gradients are taken.

    Raises:
        ValueError: Something in the block has no gradient of its gradient.
    """
    with torch.inference_mode(False), _no_fast_path, _plain_attention if second_order else nullcontext():
        try:
            yield
        except RuntimeError as error:
            if second_order and re.search("derivative for .* is not implemented", str(error)):
                raise ValueError(
                    f"in second order, all that the model and the loss call must be differentiable twice; PyTorch says "
                    f"that {error} Use first_order=True."
                ) from error
            raise


class _Switch(AbstractContextManager[None]):
    """A context that changes what the whole process shares: the first thread enters it, and the last one leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[object]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._context = self._make()
                self._context.__enter__()
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._context.__exit__(None, None, None)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


_no_fast_path: Final = _Switch(_without_fast_path)
_plain_attention: Final = _Switch(lambda: sdpa_kernel(SDPBackend.MATH))
