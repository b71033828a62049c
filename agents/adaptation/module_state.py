"""The state of a module, put back bit for bit: weights and buffers when asked, modes after each use."""

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.flat_weights import FlatWeights
from ssm_metarl_gym.agents.layers import check_embeddings

__all__ = ["ModuleSnapshot", "ModuleState", "set_evaluation", "set_training"]


class Buffers(NamedTuple):
    """The buffers of one module, without those of modules in it.

    Attributes:
        tensors: By name; None for a buffer that holds nothing.
        transient: The names of those that are no part of the module's ``state_dict``.
    """

    tensors: dict[str, Tensor | None]
    transient: frozenset[str]


class ModuleSnapshot(NamedTuple):
    """The weights and the buffers of a model.

    Attributes:
        weights: ``Float[W]``, see :class:`FlatWeights`.
        held: What the parameters hold of ``weights``.
        buffers: Of the modules that have any, by their index.
    """

    weights: Tensor
    held: Tensor
    buffers: dict[int, Buffers]


class ModuleState:
    """Reads, writes and puts back the weights, the buffers and the modes of a model.

    Args:
        model: The model. Its parameters that require a gradient now are the weights.

    Raises:
        ValueError: The model is no module, or changes its weights by itself; or no parameter of it requires a gradient,
            or one of them is not finite.

    Attributes:
        weights: The weights as a vector.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"the model must be a torch.nn.Module; got {model!r}. Make one that calls it.")
        check_embeddings(model)
        self.weights = FlatWeights(model)
        # Walking the tree of modules takes longer than a step of a small model, so it is done once.
        modules = dict(model.named_modules())
        self._prefixes = [f"{path}." if path else "" for path in modules]
        self._modules = list(modules.values())
        # The dictionaries in which modules keep what they are made of.
        self._places = [place for module in self._modules for place in (module._modules, module._parameters)]
        self._parts = self._present_parts()
        self._parameters = dict(model.named_parameters())
        self._kinds = self._present_kinds()
        # A module may put new tensors in the place of these. What is put back is written into these where it fits.
        self._buffers = [dict(module._buffers.items()) for module in self._modules]

    def check(self) -> None:
        """The model must be made of the modules and parameters that it had when this object was made.

        Raises:
            ValueError: One was added, removed or replaced, or a parameter is of another kind by now.
        """
        parts = self._present_parts()
        if len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
            raise ValueError(
                "the model must have the modules and parameters that it had when the adapter was made; one was added, "
                "removed or replaced since. Make a new adapter."
            )
        kinds = self._present_kinds()
        if kinds != self._kinds:
            change = next(
                f"{name} was {then} and is {now}"
                for name, then, now in zip(self._parameters, self._kinds, kinds, strict=True)
                if then != now
            )
            raise ValueError(
                "the parameters must have the requires_grad, type, device and shape that they had when the adapter was "
                f"made; {change}. Make a new adapter."
            )

    def snapshot(self) -> ModuleSnapshot:
        """A copy of the weights and the buffers."""
        held = self.weights.held()
        return ModuleSnapshot(self.weights.exact(held), held, self.buffers())

    def buffers(self) -> dict[int, Buffers]:
        """A copy of the buffers."""
        return {
            index: Buffers(
                {name: _copy(tensor) for name, tensor in module._buffers.items()},
                frozenset(module._non_persistent_buffers_set),
            )
            for index, module in enumerate(self._modules)
            if module._buffers
        }

    def restore(self, snapshot: ModuleSnapshot) -> None:
        """Put back weights and buffers, and take away the buffers that were registered since."""
        with torch.inference_mode(False), torch.no_grad():
            self.weights.write(snapshot.weights, snapshot.held)
            for index, module in enumerate(self._modules):
                stored = snapshot.buffers.get(index, Buffers({}, frozenset()))
                for name in set(module._buffers.keys()) - stored.tensors.keys():
                    delattr(module, name)
                for name, tensor in stored.tensors.items():
                    restored = _written(self._buffers[index].get(name), tensor)
                    if name in module._buffers:
                        setattr(module, name, restored)
                    else:
                        module.register_buffer(name, restored, persistent=name not in stored.transient)

    def training_modules(self) -> list[nn.Module]:
        """The modules that are in training mode."""
        return [module for module in self._modules if module.training]

    def buffers_by_name(self, snapshot: ModuleSnapshot) -> dict[str, Tensor | None]:
        """Copies of the buffers in a snapshot, by their names in the model."""
        return {
            self._prefixes[index] + name: _copy(tensor)
            for index, buffers in snapshot.buffers.items()
            for name, tensor in buffers.tensors.items()
        }

    def parse_buffers(self, named: Mapping[str, Any]) -> dict[int, Buffers]:
        """The reverse of :meth:`buffers_by_name`.

        Raises:
            ValueError: Those are of another model: one is missing, in no module, no tensor, or of another shape. Only
                the length may differ, because there are buffers that grow.
        """
        own = {prefix + name for prefix, buffers in zip(self._prefixes, self._buffers, strict=True) for name in buffers}
        if not own <= set(named):
            raise ValueError(f"the buffers {sorted(own - set(named))} are missing")
        parsed: dict[int, Buffers] = {}
        for full_name, tensor in named.items():
            path, _, name = full_name.rpartition(".")
            index = self._prefixes.index(f"{path}." if path else "")
            buffers = parsed.setdefault(index, Buffers({}, frozenset(self._modules[index]._non_persistent_buffers_set)))
            buffers.tensors[name] = _like(self._buffers[index].get(name), tensor, full_name)
        return parsed

    def _present_parts(self) -> list[nn.Module | nn.Parameter | None]:
        return [part for place in self._places for part in place.values()]

    def _present_kinds(self) -> list[tuple[bool, torch.dtype, torch.device, torch.Size]]:
        return [(one.requires_grad, one.dtype, one.device, one.shape) for one in self._parameters.values()]


def set_evaluation(modules: list[nn.Module]) -> None:
    """Let modules that are in training mode behave as in evaluation mode."""
    for module in modules:
        # cuDNN's recurrent layers have no gradient in evaluation mode, and no randomness without dropout.
        module.training = isinstance(module, nn.RNNBase) and module.dropout == 0.0


def set_training(modules: list[nn.Module]) -> None:
    """Put these modules, and none within them, into training mode."""
    for module in modules:
        module.training = True


def _copy(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.detach().clone() if tensor.requires_grad else tensor.clone()


def _written(own: Tensor | None, stored: Tensor | None) -> Tensor | None:
    """``stored``, in the memory of ``own`` where it fits."""
    if stored is None or own is None or own.is_inference():
        return _copy(stored)
    if (own.shape, own.dtype, own.device) != (stored.shape, stored.dtype, stored.device):
        return _copy(stored)
    own.copy_(stored)
    return own


def _like(own: Tensor | None, stored: object, name: str) -> Tensor | None:
    """A copy of ``stored`` on the device of ``own``, whose shape it must have but for its length."""
    if stored is None:
        return None
    if not isinstance(stored, Tensor):
        raise ValueError(f"{name} is {stored!r} instead of a tensor")
    if own is None:
        return _copy(stored)
    if stored.ndim != own.ndim or stored.shape[1:] != own.shape[1:]:
        raise ValueError(f"{name} has the shape {tuple(stored.shape)} instead of {tuple(own.shape)}")
    return stored.detach().to(own.device, copy=True)
