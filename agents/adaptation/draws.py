"""Random draws that leave the global streams as they are."""

import functools
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import Self

__all__ = ["DrawsApart", "PrivateDraws"]

# A mode keeps a note of itself that is global to the process, and so is a stream that is exchanged.
_ONE_AT_A_TIME: Final = threading.RLock()


class DrawsApart:
    """Lets a model draw while torch's global streams stay, or come back, as they were.

    Where this is the only thread, the streams are put back. Beside others, who may draw meanwhile, the model draws from
    streams of its own; that takes time, so it is done no more for a model that drew nothing the first time.

    Args:
        devices: The accelerators that the model may draw on.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._devices = {torch.device("cpu"), *devices}
        self._drew: bool | None = None  # not known yet
        self._private: PrivateDraws | None = None
        self._streams: dict[torch.device, Tensor] = {}

    def begin(self) -> AbstractContextManager[object]:
        """What the model is to be called in. It must be followed by :meth:`end`."""
        self._private = None
        self._streams = {}
        if threading.active_count() == 1:
            self._streams = {device: _read(device) for device in self._devices}
        elif self._drew is not False:
            self._private = PrivateDraws()
        return nullcontext() if self._private is None else self._private

    def end(self) -> None:
        """Put back what was disturbed. It may be called again."""
        if self._private is not None:
            self._drew = self._drew or self._private.drew
        for device, stream in self._streams.items():
            _write(device, stream)  # in less time than it takes to see whether it is needed


class PrivateDraws(TorchDispatchMode):
    """Within it, what this thread draws from torch's global streams comes from copies of them.

    The copies start where the streams are. These go on undisturbed, whatever other threads draw from them meanwhile.
    Only for operations that take no generator, dropout for one, a stream is exchanged as long as they run. One thread
    at a time can be within.

    Attributes:
        drew: Whether anything was drawn.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.drew = False
        self._generators: dict[torch.device, torch.Generator] = {}

    def __enter__(self) -> Self:
        _ONE_AT_A_TIME.acquire()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        _ONE_AT_A_TIME.release()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch; where it draws from a global stream, on the copy."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()) or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        device = _device(args, kwargs)
        if device.type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        generator = self._generator(device)
        seeded = _taking_a_generator(func)
        if seeded is not None:
            self.drew = True
            return seeded(*args, **kwargs, generator=generator)
        stream, own = _read(device), generator.get_state()
        try:
            _write(device, own)
            result = func(*args, **kwargs)
            generator.set_state(_read(device))
        finally:
            _write(device, stream)
        self.drew |= not torch.equal(generator.get_state(), own)
        return result

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
            self._generators[device].set_state(_read(device))
        return self._generators[device]


def _device(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.device:
    """The device on which an operation draws."""
    tensors = (arg.device for arg in args if isinstance(arg, Tensor))
    device = torch.device(kwargs.get("device") or next(tensors, "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@functools.cache
def _taking_a_generator(func: Any) -> Any:
    """The operation, or its twin with one argument more, that takes a generator; None if there is none."""
    names = [argument.name for argument in func._schema.arguments]
    if "generator" in names:
        return func
    for overload in func.overloadpacket.overloads():
        twin = getattr(func.overloadpacket, overload)
        others = [argument.name for argument in twin._schema.arguments]
        if "generator" in others and [name for name in others if name != "generator"] == names:
            return twin
    return None


def _read(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _write(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
