"""Plain networks with weights per row, and their gradients, by batched products in place of vmap and autograd."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.buffers import Buffers, LastSeen
from ssm_metarl_gym.agents.layers import layers_in_sequence
from ssm_metarl_gym.agents.losses import MaskedLoss, has_known_slopes

__all__ = ["BatchedNetwork", "find_network"]

# What an elementwise layer does, and from the slopes by what it gives, and what it gives, those by what it takes: both
# write their result into a tensor, which may be one of those that they are given.
_FORWARD: Final[Mapping[type[nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: lambda x, out: torch.clamp(x, min=0.0, out=out),
    nn.Sigmoid: lambda x, out: torch.sigmoid(x, out=out),
    nn.Tanh: lambda x, out: torch.tanh(x, out=out),
}
_BACKWARD: Final[Mapping[type[nn.Module], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.Identity: lambda slopes, y: slopes,
    nn.ReLU: lambda slopes, y: torch.ops.aten.threshold_backward.grad_input(slopes, y, 0.0, grad_input=slopes),
    nn.Sigmoid: lambda slopes, y: torch.ops.aten.sigmoid_backward.grad_input(slopes, y, grad_input=slopes),
    nn.Tanh: lambda slopes, y: torch.ops.aten.tanh_backward.grad_input(slopes, y, grad_input=slopes),
}
# What a linear layer multiplies with in each row, Float[R in out], and what it adds, Float[R 1 out] or Float[out].
_Matrices: TypeAlias = tuple[Tensor, Tensor | None]


class BatchedNetwork:
    """Linear and elementwise layers in sequence, for R rows with weights of their own.

    A matrix of weights lies turned round in those of a row, ``[in out]``: so the products are fast.

    Args:
        layers: The layers. Their parameters that require a gradient are of each row, the others of all.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        self._buffers = Buffers()
        self._seen: LastSeen[list[_Matrices | None]] = LastSeen()
        # Which of the parts of a row's weights are the weight and the bias of a layer; None where they are of all.
        self._places: list[tuple[int | None, int | None]] = []
        self._sizes: list[int] = []
        for layer in layers:
            places: list[int | None] = [None, None]
            for i, parameter in enumerate((getattr(layer, "weight", None), getattr(layer, "bias", None))):
                if parameter is not None and parameter.requires_grad:
                    places[i] = len(self._sizes)
                    self._sizes.append(parameter.numel())
            self._places.append((places[0], places[1]))
        # Before the first layer that adapts, nobody asks for slopes.
        self._first = next(i for i, places in enumerate(self._places) if places != (None, None))

    @property
    def kernels(self) -> list[Tensor]:
        """The parameters that lie turned round in the weights of a row."""
        return [layer.weight for layer in self._layers if isinstance(layer, nn.Linear)]

    def __call__(self, weights: Tensor, states: Tensor) -> Tensor:
        """What the network of each row gives: ``Float[R W]`` and ``Float[R N in]`` -> ``Float[R N out]``."""
        rows = states
        for layer, matrices in zip(self._layers, self._own(weights), strict=True):
            rows = layer(rows) if matrices is None else _linear(matrices, rows, None)
        return rows

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
            ``Float[R]`` and ``Float[R W]``. The gradient lasts until the next call.
        """
        own = self._seen.get(weights, self._own)
        outputs = self._outputs(own, states)
        losses, slopes = loss(outputs[-1])
        if not with_gradient:
            return losses, weights
        # Backwards, from the slopes by what a layer gives to those by what it takes.
        gradients: list[Tensor] = []  # the last first
        for i in range(len(self._layers) - 1, self._first - 1, -1):
            layer, (weight, bias) = self._layers[i], self._places[i]
            if not isinstance(layer, nn.Linear):
                slopes = _BACKWARD[type(layer)](slopes, outputs[i + 1])
                continue
            x = outputs[i]
            if bias is not None:
                gradients.append(slopes.sum(1))
            if weight is not None:
                out = self._buffers.take(f"gradient {i}", (len(x), x.shape[2], slopes.shape[2]), x)
                gradients.append(torch.bmm(x.mT, slopes, out=out).flatten(1))
            if i > self._first:
                matrices = own[i]
                kernel = layer.weight.expand(len(x), -1, -1) if matrices is None else matrices[0].mT
                slopes = torch.bmm(slopes, kernel, out=self._buffers.take(f"slopes {i}", x.shape, x))
        gradient = self._buffers.take("gradient", weights.shape, weights)
        return losses, torch.cat(gradients[::-1], dim=1, out=gradient)

    def _outputs(self, own: Sequence[_Matrices | None], states: Tensor) -> list[Tensor]:
        """What the layers give one after the other, after what the first one takes.

        What an elementwise layer gives takes the place of what a linear one before it gave, whom nobody asks for it.
        """
        outputs = [states]
        before: nn.Module | None = None
        for i, (layer, matrices) in enumerate(zip(self._layers, own, strict=True)):
            rows = outputs[-1]
            if matrices is not None:
                shape = (*rows.shape[:2], layer.out_features)
                outputs.append(_linear(matrices, rows, self._buffers.take(f"output {i}", shape, rows)))
            elif type(layer) not in _FORWARD:
                outputs.append(layer(rows))
            else:
                is_free = isinstance(before, nn.Linear)
                out = rows if is_free else self._buffers.take(f"output {i}", rows.shape, rows)
                outputs.append(_FORWARD[type(layer)](rows, out))
            before = layer
        return outputs

    def _own(self, weights: Tensor) -> list[_Matrices | None]:
        """What the layers multiply with and add in each row of ``Float[R W]``; None where nothing of them adapts."""
        num_rows = weights.shape[0]
        parts = weights.split(self._sizes, dim=1)
        own: list[_Matrices | None] = []
        for layer, (weight, bias) in zip(self._layers, self._places, strict=True):
            if not isinstance(layer, nn.Linear) or weight is bias is None:
                own.append(None)
                continue
            shape = num_rows, layer.in_features, layer.out_features
            kernel = layer.weight.mT.expand(shape) if weight is None else parts[weight].view(shape)
            own.append((kernel, layer.bias if bias is None else parts[bias][:, None]))
        return own


def find_network(model: nn.Module) -> BatchedNetwork | None:
    """A model of plain layers, or one whose ``adapted_network`` is of such; None for all other models."""
    network = getattr(model, "adapted_network", model)
    layers = None if network is None else layers_in_sequence(network)
    if layers is None:
        return None
    # The weights of a row lie as the model names them.
    own, in_order = ([id(p) for p in module.parameters() if p.requires_grad] for module in (model, network))
    return BatchedNetwork([layer for _, layer in layers]) if own == in_order else None


def _linear(matrices: _Matrices, rows: Tensor, out: Tensor | None) -> Tensor:
    """What a linear layer gives, in the memory of ``out`` if there is one."""
    kernel, shift = matrices
    result = torch.bmm(rows, kernel, out=out)
    return result if shift is None else result.add_(shift)
