"""The parameters of a module that adapt, as one vector."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["FlatWeights"]


class FlatWeights:
    """Reads and writes the parameters that require a gradient as one real vector ``Float[W]``.

    The vector is of the widest type among them, and at least of single precision: half precision would swallow small
    steps. What a narrower parameter cannot hold of the vector is remembered beside it, so that such steps add up.

    Args:
        model: The module whose parameters these are.

    Raises:
        ValueError: No parameter of the model requires a gradient, or one of them is not finite.

    Attributes:
        names: The names of the parameters.
        parameters: The parameters.
        dtype: The type of the vector.
    """

    def __init__(self, model: nn.Module) -> None:
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names = list(named)
        self.parameters = list(named.values())
        if not self.parameters:
            raise ValueError(
                "the model must have a parameter that requires a gradient; it has none. "
                "Unfreeze one with requires_grad_(True)."
            )
        parts = [_as_real(parameter.detach()) for parameter in self.parameters]
        self.dtype: torch.dtype = functools.reduce(torch.promote_types, (part.dtype for part in parts), torch.float32)
        self._sizes = [part.numel() for part in parts]
        self._is_plain = all(parameter.dtype == self.dtype for parameter in self.parameters)
        # The last vector that was written, and what the parameters hold of it: None where they hold all of it.
        self._exact: Tensor | None = None
        self._held = torch.empty(0)
        for name, part in zip(self.names, parts, strict=True):
            if not part.isfinite().all():
                raise ValueError(f"the parameters that adapt must be finite; got NaN or infinity in {name}.")

    def held(self) -> Tensor:
        """The weights as the parameters hold them, each rounded to its type."""
        return self.flatten([parameter.detach() for parameter in self.parameters])

    def exact(self, held: Tensor) -> Tensor:
        """The weights as they were last written, or as ``held`` where somebody else wrote into a parameter since."""
        return held if self._exact is None else torch.where(held == self._held, self._exact, held)

    def read(self) -> Tensor:
        """The present weights, with what their parameters cannot hold of them."""
        return self.exact(self.held())

    def write(self, weights: Tensor, held: Tensor) -> None:
        """Write ``held``, what the parameters can hold of ``weights``. It must be called without gradients."""
        parts = held.split(self._sizes)
        if self._is_plain:
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.detach().copy_(part.view_as(parameter))
            return
        for parameter, part in zip(self.parameters, parts, strict=True):
            own = _as_real(parameter.detach())
            own.copy_(part.view_as(own))
        self._exact = weights
        self._held = held

    def rounded(self, weights: Tensor) -> Tensor:
        """The nearest vector that the parameters can hold."""
        if self._is_plain:
            return weights
        parts = zip(self.parameters, weights.split(self._sizes), strict=True)
        return torch.cat([part.to(_as_real(parameter.detach()).dtype).to(self.dtype) for parameter, part in parts])

    def rounded_towards(self, source: Tensor, weights: Tensor) -> Tensor:
        """The vector that the parameters can hold, of which no number is farther from the source than in ``weights``.

        The source must be one that they can hold.
        """
        parts = zip(self.parameters, weights.split(self._sizes), source.split(self._sizes), strict=True)
        rounded = []
        for parameter, part, towards in parts:
            dtype = _as_real(parameter.detach()).dtype
            nearest, end = part.to(dtype), towards.to(dtype)
            beyond = (nearest.to(self.dtype) - towards).abs() > (part - towards).abs()
            rounded.append(torch.where(beyond, torch.nextafter(nearest, end), nearest).to(self.dtype))
        return torch.cat(rounded)

    def flatten(self, tensors: list[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes, gradients for example, as one vector."""
        if self._is_plain:
            return torch.cat([tensor.flatten() for tensor in tensors])
        return torch.cat([_as_real(tensor).flatten().to(self.dtype) for tensor in tensors])

    def by_name(self, weights: Tensor, *, exact: bool = False) -> dict[str, Tensor]:
        """A vector as copies by the names of the parameters, of their types, or of the vector's where ``exact``."""
        named = {}
        for name, parameter, part in zip(self.names, self.parameters, weights.split(self._sizes), strict=True):
            own = _as_real(parameter.detach())
            part = part.view_as(own).to(part.dtype if exact else own.dtype, copy=True)
            named[name] = torch.view_as_complex(part) if parameter.is_complex() else part
        return named

    def parse(self, named: Mapping[str, Tensor]) -> Tensor:
        """The reverse of :meth:`by_name`.

        Raises:
            ValueError: There are other names, shapes or kinds of numbers, or they are not finite.
        """
        if set(named) != set(self.names):
            raise ValueError(f"the parameters are {sorted(named)} instead of {sorted(self.names)}")
        parts = []
        for name, own in zip(self.names, self.parameters, strict=True):
            given = named[name]
            if given.shape != own.shape:
                raise ValueError(f"{name} has the shape {tuple(given.shape)} instead of {tuple(own.shape)}")
            if (given.is_floating_point(), given.is_complex()) != (own.is_floating_point(), own.is_complex()):
                raise ValueError(f"{name} is of the type {given.dtype} instead of {own.dtype}")
            if not given.isfinite().all():
                raise ValueError(f"{name} is not finite")
            parts.append(_as_real(given.detach()).flatten().to(own.device, self.dtype, copy=True))
        return torch.cat(parts)


def _as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, in the same memory; any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
