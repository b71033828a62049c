"""The inner loop of plain networks, with fast weights that are never written out."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.layers import Layer, layers_in_sequence
from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop

__all__ = ["LowRankNetwork", "find_layers"]

# Measured: with more rows of support sets than so many times the layers' own rank, writing the weights out is faster.
_WORTH_IT: Final = 2.5


def find_layers(inner: InnerLoop) -> list[Layer] | None:
    """The layers of a network that :class:`LowRankNetwork` can compute; None for all other networks.

    It must be nothing but linear and elementwise layers in sequence, none used twice, with fixed step sizes and without
    clipping; and where the bias of a layer adapts, so must its weight.
    """
    layers = layers_in_sequence(inner.model)
    if layers is None or inner.rates or inner.grad_clip_norm < math.inf:
        return None
    half = any(f"{name}bias" in inner.adapted and f"{name}weight" not in inner.adapted for name, _ in layers)
    return None if half else layers


class LowRankNetwork:
    """A network for K tasks, each with weights of its own after inner steps.

    The gradient of a linear layer's weight is ``sum_n delta_n x_n^T`` over the rows of the support set: ``x`` the
    layer's inputs, ``delta`` the slopes of the loss by its outputs. So after steps of size ``a`` the layer computes
    ``W z + b - a sum_n (x_n . z + 1) delta_n``. Nothing but these rows is kept: the product with the weights from which
    all tasks set out is one matrix product, and no task's weights or gradients are ever written out. It is exact, and
    may be differentiated any number of times.

    Args:
        layers: The layers, see :func:`find_layers`.
        inner: The inner loop that the model belongs to.
    """

    def __init__(self, layers: Sequence[Layer], inner: InnerLoop) -> None:
        self._layers = layers
        self._inner = inner
        self._weights = inner.weights()
        self._updates: dict[str, tuple[Tensor, Tensor]] = {}  # x and a * delta of all steps, K R in and K R out

    @staticmethod
    def pays(layers: Sequence[Layer], num_rows: int) -> bool:
        """Whether it is faster than weights that are written out, after steps on ``num_rows`` rows altogether."""
        shapes = [layer.weight.shape for _, layer in layers if isinstance(layer, nn.Linear)]
        return num_rows * sum(map(sum, shapes)) <= _WORTH_IT * sum(map(math.prod, shapes))

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs of each task's network: ``Float[K N ... in]`` -> ``Float[K N ... out]``."""
        return self._run(x)[0]

    def step(self, x: Tensor, losses_of: Callable[[Tensor], Tensor]) -> None:
        """One inner step of every task.

        Args:
            x: The inputs of the support sets, ``Float[K N ... in]``.
            losses_of: Gives the losses ``Float[K]`` of outputs ``Float[K N ... out]``.
        """
        first_order = self._inner.first_order
        with torch.enable_grad():
            y, passed = self._run(x, watched=True)
            outputs = [output for _, output in passed.values()]
            slopes = torch.autograd.grad(losses_of(y).sum(), outputs, create_graph=not first_order)
        for (name, (inputs, _)), slope in zip(passed.items(), slopes, strict=True):
            rows = inputs, self._inner.inner_lr * slope
            if first_order:
                rows = rows[0].detach(), rows[1].detach()
            if name in self._updates:
                past = self._updates[name]
                rows = torch.cat([past[0], rows[0]], dim=1), torch.cat([past[1], rows[1]], dim=1)
            self._updates[name] = rows

    def _run(self, x: Tensor, watched: bool = False) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """The outputs, and the inputs and outputs of the layers that adapt, ``Float[K R ...]`` each."""
        rows, passed = x.flatten(1, -2), {}
        for name, layer in self._layers:
            if not isinstance(layer, nn.Linear):
                rows = layer(rows)
                continue
            weight = self._weights.get(f"{name}weight", layer.weight)
            bias = self._weights.get(f"{name}bias", layer.bias)
            inputs, rows = rows, F.linear(rows, weight, bias)
            if f"{name}weight" not in self._inner.adapted:
                continue
            if name in self._updates:
                past, slopes = self._updates[name]
                products = torch.bmm(inputs, past.mT)  # K R R
                if f"{name}bias" in self._inner.adapted:
                    products = products + 1.0
                rows = torch.baddbmm(rows, products, slopes, alpha=-1.0)
            if watched and not rows.requires_grad:
                rows.requires_grad_()  # with detached weights nothing else asks for the slopes
            passed[name] = inputs, rows
        return rows.view(*x.shape[:-1], rows.shape[-1]), passed
