"""Random draws that leave the global streams as they are."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["PrivateDraws"]

_EXCHANGE: Final = threading.Lock()


class PrivateDraws(TorchDispatchMode):
    """Within it, what this thread draws from a global stream of torch comes from copies of the streams.

    The copies start where the streams are. A global stream is exchanged only for the time of an operation that draws,
    so that it goes on undisturbed where another thread draws from it meanwhile.

    Args:
        devices: The accelerators whose streams there are, besides the processor's.

    Attributes:
        drew: Whether anything was drawn.
    """

    def __init__(self, devices: Sequence[str] = ()) -> None:
        super().__init__()
        self.drew = False
        self._devices = devices
        self._own = self._read()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch, one that draws from a global stream on the copies."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        self.drew = True
        with _EXCHANGE:
            streams = self._read()
            try:
                self._write(self._own)
                drawn = func(*args, **kwargs)
                self._own = self._read()
            finally:
                self._write(streams)
        return drawn

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]

    def _write(self, streams: list[Tensor]) -> None:
        torch.set_rng_state(streams[0])
        for device, stream in zip(self._devices, streams[1:], strict=True):
            torch.cuda.set_rng_state(stream, device)
