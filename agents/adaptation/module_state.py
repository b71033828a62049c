"""The state of a module, put back bit for bit: weights and buffers when asked, modes after each use."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["ModuleSnapshot", "ModuleState"]


@dataclass(frozen=True)
class ModuleSnapshot:
    """The weights of a module as one vector, and its buffers.

    Attributes:
        weights: ``Float[W]``.
        buffers: In the order of the modules.
    """

    weights: Tensor
    buffers: list[Tensor]


class ModuleState:
    """Reads and writes the weights that adapt, as one vector ``Float[W]``, and the buffers of a module.

    Args:
        model: The module. The parameters that require a gradient now are the weights.

    Raises:
        ValueError: No parameter of the model requires a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parameters = [model.get_parameter(name) for name in self.names]
        if not self.parameters:
            raise ValueError(
                "the model must have a parameter that requires a gradient; it has none. "
                "Unfreeze one with requires_grad_(True)."
            )
        self._sizes = [parameter.numel() for parameter in self.parameters]
        # Walking the module tree takes longer than a step of a small model, so it is done once.
        self._modules = list(model.modules())
        self._buffers = [
            (module, name, buffer) for module in self._modules for name, buffer in module.named_buffers(recurse=False)
        ]

    def weights(self) -> Tensor:
        """A copy of the present weights."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def set_weights(self, weights: Tensor) -> None:
        """Write into the parameters. It must be called without gradients."""
        for parameter, part in zip(self.parameters, weights.split(self._sizes), strict=True):
            parameter.detach().copy_(part.view_as(parameter))

    def snapshot(self) -> ModuleSnapshot:
        """A copy of the weights and the buffers."""
        # By name, because a module may assign a new tensor instead of writing into its own.
        buffers = [getattr(module, name).detach().clone() for module, name, _ in self._buffers]
        return ModuleSnapshot(self.weights(), buffers)

    def restore(self, snapshot: ModuleSnapshot) -> None:
        """Put back weights and buffers, into the tensors that the module had when this object was made."""
        with torch.inference_mode(False), torch.no_grad():
            self.set_weights(snapshot.weights)
            for (module, name, own), stored in zip(self._buffers, snapshot.buffers, strict=True):
                own.copy_(stored)
                setattr(module, name, own)

    def by_name(self, weights: Tensor) -> dict[str, Tensor]:
        """A vector of weights as copies by the names of the parameters."""
        parts = zip(self.names, self.parameters, weights.split(self._sizes), strict=True)
        return {name: part.view_as(parameter).clone() for name, parameter, part in parts}

    def rows_by_name(self, rows: Tensor) -> dict[str, Tensor]:
        """Many vectors of weights ``Float[B W]`` as copies by the names of the parameters, ``Float[B ...]`` each."""
        parts = zip(self.names, self.parameters, rows.split(self._sizes, dim=1), strict=True)
        return {name: part.unflatten(1, parameter.shape).to(parameter.dtype) for name, parameter, part in parts}

    def parse_weights(self, named: Mapping[str, Tensor]) -> Tensor:
        """The reverse of :meth:`by_name`.

        Raises:
            ValueError: There are other names or shapes.
        """
        if set(named) != set(self.names):
            raise ValueError(f"the parameters are {sorted(named)} instead of {sorted(self.names)}")
        parts = [_like(own, named[name]) for name, own in zip(self.names, self.parameters, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    def parse_buffers(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """Copies of the buffers of a snapshot of another module of the same kind.

        Raises:
            ValueError: There are more or fewer, or others.
        """
        return [
            _like(getattr(module, name), other) for (module, name, _), other in zip(self._buffers, stored, strict=True)
        ]

    @contextmanager
    def frozen_behaviour(self) -> Iterator[None]:
        """Evaluation mode, distributions that do not refuse NaN, and the random streams of the model's devices.

        All are put back at the end.
        """
        training = [module for module in self._modules if module.training]
        devices = {parameter.get_device() for parameter in self.parameters if parameter.is_cuda}
        validates = Distribution._validate_args
        with torch.random.fork_rng(devices=devices):
            # A distribution would raise where a NaN should lead to a loss of NaN, which is undone.
            Distribution.set_default_validate_args(False)
            for module in training:
                # cuDNN's recurrent layers have no gradient in evaluation mode, and no randomness without dropout.
                module.training = isinstance(module, nn.RNNBase) and module.dropout == 0.0
            try:
                yield
            finally:
                Distribution.set_default_validate_args(validates)
                for module in training:
                    module.training = True


def _like(own: Tensor, stored: Tensor) -> Tensor:
    """A copy of ``stored`` with the type and the device of ``own``, whose shape it must have."""
    if stored.shape != own.shape:
        raise ValueError(f"a tensor has the shape {tuple(stored.shape)} instead of {tuple(own.shape)}")
    return stored.to(own, copy=True)
