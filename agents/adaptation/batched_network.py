"""Plain networks with weights per row, and their gradients, by batched products in place of vmap and autograd."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.layers import layers_in_sequence
from ssm_metarl_gym.agents.losses import MaskedLoss, has_known_slopes

__all__ = ["BatchedNetwork", "find_network"]

# From the slopes of a loss by what an elementwise layer gives, and what it gives, to the slopes by what it takes.
_BACKWARD: Final[Mapping[type[nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.Identity: lambda slopes, y: slopes,
    nn.ReLU: lambda slopes, y: slopes * (y > 0),
    nn.Sigmoid: lambda slopes, y: slopes * (y - y.square()),
    nn.Tanh: lambda slopes, y: torch.addcmul(slopes, slopes, y.square(), value=-1.0),
}


class BatchedNetwork:
    """Linear and elementwise layers in sequence, for R rows with weights of their own.

    Args:
        layers: The layers. Their parameters that require a gradient are of each row, the others of all.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        # Where the weight and the bias of a layer lie in the weights of a row, Float[W]; None where they are of all.
        self._places: list[tuple[slice | None, slice | None]] = []
        start = 0
        for layer in layers:
            places: list[slice | None] = [None, None]
            for i, parameter in enumerate((getattr(layer, "weight", None), getattr(layer, "bias", None))):
                if parameter is not None and parameter.requires_grad:
                    places[i] = slice(start, start + parameter.numel())
                    start += parameter.numel()
            self._places.append((places[0], places[1]))
        # Before the first layer that adapts, nobody asks for slopes.
        self._first = next(i for i, places in enumerate(self._places) if places != (None, None))

    def __call__(self, weights: Tensor, states: Tensor) -> Tensor:
        """What the network of each row gives: ``Float[R W]`` and ``Float[R N in]`` -> ``Float[R N out]``."""
        return self._outputs(weights, states)[-1]

    def knows_gradient(self, loss_fn: Any) -> bool:
        """Whether :meth:`losses` takes a loss."""
        known = all(isinstance(layer, nn.Linear) or type(layer) in _BACKWARD for layer in self._layers)
        return known and has_known_slopes(loss_fn)

    def losses(
        self, loss: MaskedLoss, states: Tensor, weights: Tensor, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss of each row, and its gradient where that is wanted, without a graph.

        Args:
            loss: The loss of each row, one of which :meth:`knows_gradient` is true.
            states: ``Float[R N in]``, finite where the mask of the loss is false.
            weights: ``Float[R W]``.
            with_gradient: Whether the gradient is wanted.

        Returns:
            ``Float[R]`` and ``Float[R W]``.
        """
        outputs = self._outputs(weights, states)
        losses, slopes = loss(outputs[-1])
        if not with_gradient:
            return losses, weights
        # Backwards, from the slopes by what a layer gives to those by what it takes.
        parts: list[Tensor] = []  # of the gradient, the last first
        for i in range(len(self._layers) - 1, self._first - 1, -1):
            layer, (weight, bias) = self._layers[i], self._places[i]
            if not isinstance(layer, nn.Linear):
                slopes = _BACKWARD[type(layer)](slopes, outputs[i + 1])
                continue
            if bias is not None:
                parts.append(slopes.sum(1))
            if weight is not None:
                parts.append(torch.bmm(slopes.mT, outputs[i]).flatten(1))
            if i > self._first:
                slopes = torch.bmm(slopes, _of_rows(layer.weight, weight, weights))
        return losses, torch.cat(parts[::-1], dim=1)

    def _outputs(self, weights: Tensor, states: Tensor) -> list[Tensor]:
        """What the layers give one after the other, after what the first one takes."""
        outputs = [states]
        for layer, (weight, bias) in zip(self._layers, self._places, strict=True):
            rows = outputs[-1]
            if not isinstance(layer, nn.Linear) or weight is bias is None:
                outputs.append(layer(rows))
                continue
            kernel = _of_rows(layer.weight, weight, weights).mT
            if layer.bias is None:
                outputs.append(torch.bmm(rows, kernel))
            else:
                outputs.append(torch.baddbmm(_of_rows(layer.bias, bias, weights)[:, None], rows, kernel))
        return outputs


def find_network(model: nn.Module) -> BatchedNetwork | None:
    """A model of plain layers, or one whose ``adapted_network`` is of such; None for all other models."""
    network = getattr(model, "adapted_network", model)
    layers = None if network is None else layers_in_sequence(network)
    if layers is None:
        return None
    # The weights of a row lie as the model names them.
    own, in_order = ([id(p) for p in module.parameters() if p.requires_grad] for module in (model, network))
    return BatchedNetwork([layer for _, layer in layers]) if own == in_order else None


def _of_rows(parameter: Tensor, place: slice | None, weights: Tensor) -> Tensor:
    """A parameter in each row: ``Float[R ...]``."""
    if place is None:
        return parameter.expand(weights.shape[0], *parameter.shape)
    return weights[:, place].view(weights.shape[0], *parameter.shape)
