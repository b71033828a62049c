"""Modules as functions: called with other weights than their own, and left and copied as they were."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

__all__ = ["CopiesGraphs", "StatelessModule", "attributes_kept", "copy_module", "is_out_of_memory"]

# What every module has. Hooks are left alone: a handle that removes one knows the dictionary that it is in.
_OWN_ATTRIBUTES: Final = frozenset(vars(nn.Module()))
_REGISTERED: Final = ("_parameters", "_buffers", "_modules")

_Module = TypeVar("_Module")


class StatelessModule:
    """A module as a function of its parameters and buffers, whose own are never used where others are given.

    It is ``torch.func.functional_call``, which alone puts back the wrong tensors where two paths lead to one module
    (https://github.com/pytorch/pytorch/issues/164759). What is shared may be a module, a parameter or a buffer.

    Args:
        module: The module. What it consists of must not change as long as this object is used.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        names: dict[int, list[str]] = {}
        for path, part in module.named_modules():  # each of them once
            parameters = part.named_parameters(path, recurse=False, remove_duplicate=False)
            buffers = part.named_buffers(path, recurse=False, remove_duplicate=False)
            for name, tensor in chain(parameters, buffers):
                names.setdefault(id(tensor), []).append(name)
        self._other_names = {first: others for first, *others in names.values() if others}

    def __call__(self, tensors: dict[str, Tensor], args: tuple[Any, ...]) -> Any:
        """What the module gives.

        Args:
            tensors: In place of parameters and buffers, by the names of ``named_parameters`` and ``named_buffers``.
                Where the module replaces one of them, so does this call.
            args: The arguments of the module.
        """
        if not self._other_names:
            return functional_call(self._module, tensors, args, tie_weights=False)
        shared = {other: tensors[name] for name in tensors for other in self._other_names.get(name, ())}
        everywhere = tensors | shared
        output = functional_call(self._module, everywhere, args, tie_weights=False)
        tensors.update((name, everywhere[name]) for name in tensors)
        return output

    def checked(self, tensors: dict[str, Tensor], args: tuple[Tensor, ...]) -> Any:
        """The same, for inputs of which it is not known yet whether the module takes them.

        Raises:
            ValueError: The module raises a ``RuntimeError``, of inputs that are too wide, say.
        """
        try:
            return self(tensors, args)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            inputs = " and ".join(f"{tuple(arg.shape)} of {arg.dtype} on {arg.device}" for arg in args)
            raise ValueError(
                f"the model must take the inputs of the tasks; got {inputs}, of which {type(self._module).__name__} "
                f"says: {error}. Give it inputs of the shape, type and device that it is made for."
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch raised this because there is too little memory, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """In the block, a module may change its attributes in any way: it works on copies, and gets its own back.

    So that attention maps, auxiliary losses, hidden states, caches and what hooks compute do not outlive the block.
    Copied are tensors, and the containers and dataclasses that hold them; parameters are not.
    """
    attributes = _Attributes()
    try:
        for part in module.modules():
            attributes.replace(part)
        yield
    finally:
        attributes.put_back()


def copy_module(module: _Module) -> _Module:
    """A deep copy of a module, or of what holds one, also where attributes have a graph: the copy's have none."""
    with CopiesGraphs():
        return copy.deepcopy(module)


class _Attributes:
    """The attributes of modules, replaced by copies until they are put back."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._before: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}

    def replace(self, module: nn.Module) -> None:
        """Let a module work on copies."""
        if id(module) in self._before:
            return
        attributes = vars(module)
        self._before[id(module)] = attributes, attributes.copy()
        for name in attributes.keys() - _OWN_ATTRIBUTES:
            attributes[name] = self._copy(attributes[name])
        for name in _REGISTERED:
            attributes[name] = attributes[name].copy()

    def put_back(self) -> None:
        """Give all modules their own attributes, and none that they did not have."""
        for attributes, before in self._before.values():
            attributes.clear()
            attributes.update(before)

    def _copy(self, value: Any) -> Any:
        """The one copy of a value, which stays the same value in all places that hold it."""
        if id(value) not in self._copies:
            self._copies[id(value)] = value  # for what holds itself
            self._copies[id(value)] = self._new_copy(value)
        return self._copies[id(value)]

    def _new_copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            trained = isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad)
            return value if trained else value.clone()
        if isinstance(value, nn.Module):  # in a container, where no module looks for it
            self.replace(value)
            return value
        if isinstance(value, tuple):
            items = map(self._copy, value)
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if not (isinstance(value, (dict, list, deque, set)) or (is_dataclass(value) and not isinstance(value, type))):
            return value
        twin: Any = copy.copy(value)
        self._copies[id(value)] = twin
        if isinstance(value, dict):
            twin.update((key, self._copy(item)) for key, item in value.items())
        elif isinstance(value, (list, deque)):
            for index, item in enumerate(value):
                twin[index] = self._copy(item)
        elif is_dataclass(value):
            for field in fields(value):
                object.__setattr__(twin, field.name, self._copy(getattr(value, field.name)))
        return twin


class CopiesGraphs(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that have a graph, without it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            # Not with the given memory: it goes by ids, and that of what is detached is soon one of something else.
            args = (args[0].detach(), {})
        return func(*args, **(kwargs or {}))
