"""Memory that is used again and again."""

import math
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Buffers", "LastSeen"]

_Made = TypeVar("_Made")
_NUM_SEEN: Final = 3


class Buffers:
    """Tensors to write into, by name. Made anew in every call, large ones cost more than what is written into them.

    What is in them lasts until the same name is asked for again. Copies of this object begin without memory.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": {}, "_views": {}}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A contiguous tensor of this shape and of the type of ``like``, with anything in it.

        It is the same object as long as the shape of a name stays the same.
        """
        view = self._views.get(name)
        if view is not None and view.shape == shape and view.dtype == like.dtype:
            return view
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.dtype != like.dtype:
            held = self._held[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        view = self._views[name] = held[:size].view(shape)
        return view


class LastSeen(Generic[_Made]):
    """What was made of the last few tensors, for those that come again and again: views, which follow what is in them.

    Copies of this object begin anew.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, _Made]] = []  # the last one last

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": []}

    def get(self, tensor: Tensor, make: Callable[[Tensor], _Made]) -> _Made:
        """What was made of this very object, or is made of it now."""
        index = next((i for i, (seen, _) in enumerate(self._seen) if seen is tensor), None)
        entry = (tensor, make(tensor)) if index is None else self._seen.pop(index)
        self._seen = [*self._seen[-_NUM_SEEN + 1 :], entry]
        return entry[1]
