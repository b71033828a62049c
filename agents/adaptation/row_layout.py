"""How the parameters of a row lie in its vector of weights."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor

__all__ = ["RowLayout"]


class RowLayout:
    """The parameters one after the other, some of the matrices among them turned round.

    Args:
        parameters: The parameters by name, of which each row has its own.
        turned: The names of the matrices that lie there transposed, because they are multiplied so.
    """

    def __init__(self, parameters: Mapping[str, Tensor], turned: AbstractSet[str] = frozenset()) -> None:
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self._turned = turned

    def weights(self, vectors: Tensor) -> Tensor:
        """The weights of rows ``Float[... W]`` from the parameters as they are, one after the other."""
        if not self._turned:
            return vectors
        parts = zip(self._shapes.items(), vectors.split(self._sizes, dim=-1), strict=True)
        return torch.cat(
            [
                part.unflatten(-1, shape).mT.flatten(-2) if name in self._turned else part
                for (name, shape), part in parts
            ],
            dim=-1,
        )

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """The parameters of rows: ``Float[... W]`` -> ``{name: Float[... shape]}``, in the same memory."""
        parts = zip(self._shapes.items(), weights.split(self._sizes, dim=-1), strict=True)
        return {
            name: part.unflatten(-1, shape[::-1]).mT if name in self._turned else part.unflatten(-1, shape)
            for (name, shape), part in parts
        }
