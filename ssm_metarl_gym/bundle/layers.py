"""Networks of plain layers, forwards and backwards, on rows of numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACTIVATIONS",
    "Floats",
    "Layers",
    "Network",
    "Weights",
    "add_gradient",
    "clipped",
    "fast_to_multiply",
    "linear",
]

Floats: TypeAlias = npt.NDArray[Any]
# Of parameters, or gradients by them, by the name of the parameter.
Weights: TypeAlias = Mapping[str, Floats]


class Network(Protocol):
    """What a core is: features of rows, and their derivatives."""

    def __call__(self, weights: Weights, x: Floats) -> Floats:
        """What the network gives: ``Float[N in]`` -> ``Float[N F]``."""
        ...

    def forward(self, weights: Weights, x: Floats) -> tuple[Floats, list[Floats]]:
        """The same, and what :meth:`backward` needs of it."""
        ...

    def backward(
        self, weights: Weights, tape: list[Floats], slopes: Floats, gradients: dict[str, Floats] | None
    ) -> Floats:
        """Slopes by what the network takes ``Float[N in]`` from those by what it gives ``Float[N F]``.

        Those by its own parameters are put into ``gradients``, unless that is None.
        """
        ...


def _silu(x: Floats) -> Floats:
    result: Floats = x / (1.0 + np.exp(-x))
    return result


def _silu_backward(slopes: Floats, x: Floats, _: Floats) -> Floats:
    gate = 1.0 / (1.0 + np.exp(-x))
    result: Floats = slopes * (gate * (1.0 + x * (1.0 - gate)))
    return result


# What a layer gives for x, and its slopes by x from those by what it gives, x and what it gave.
ACTIVATIONS: Final[dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats, Floats, Floats], Floats]]]] = {
    "Tanh": (np.tanh, lambda slopes, _, y: slopes * (1.0 - y * y)),
    "ReLU": (lambda x: np.maximum(x, 0.0), lambda slopes, _, y: slopes * (y > 0.0)),
    "SiLU": (_silu, _silu_backward),
}


class Layers:
    """Linear layers and activations in sequence.

    Args:
        described: The layers, ``{"linear": [in, out, bias]}`` or ``{"activation": name}`` each.
        prefix: Of the names of their parameters, ``<prefix><place>.weight`` and ``<prefix><place>.bias``.

    Raises:
        ValueError: A layer is of another kind.
    """

    def __init__(self, described: Sequence[Mapping[str, Any]], prefix: str) -> None:
        # The name of the weight and of the bias, of those that have any, or the activation.
        self._layers: list[tuple[str, str | None] | str] = []
        for place, layer in enumerate(described):
            if "linear" in layer:
                self._layers.append(
                    (f"{prefix}{place}.weight", f"{prefix}{place}.bias" if layer["linear"][2] else None)
                )
            elif layer.get("activation") in ACTIVATIONS:
                self._layers.append(layer["activation"])
            else:
                raise ValueError(f"layers must be linear or one of {list(ACTIVATIONS)}; got {layer}.")

    def __call__(self, weights: Weights, x: Floats) -> Floats:
        """What the layers give: ``Float[N in]`` -> ``Float[N F]``."""
        for layer in self._layers:
            x = ACTIVATIONS[layer][0](x) if isinstance(layer, str) else linear(weights, layer, x)
        return x

    def forward(self, weights: Weights, x: Floats) -> tuple[Floats, list[Floats]]:
        """The same, and what each layer took and the last one gave."""
        tape = [x]
        for layer in self._layers:
            tape.append(ACTIVATIONS[layer][0](tape[-1]) if isinstance(layer, str) else linear(weights, layer, tape[-1]))
        return tape[-1], tape

    def backward(
        self, weights: Weights, tape: list[Floats], slopes: Floats, gradients: dict[str, Floats] | None
    ) -> Floats:
        """See :meth:`Network.backward`."""
        for i in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[i]
            if isinstance(layer, str):
                slopes = ACTIVATIONS[layer][1](slopes, tape[i], tape[i + 1])
                continue
            if gradients is not None:
                add_gradient(gradients, layer, tape[i], slopes)
            slopes = slopes @ weights[layer[0]]
        return slopes


def linear(weights: Weights, names: tuple[str, str | None], x: Floats) -> Floats:
    """What the linear layer of these names gives: ``Float[N in]`` -> ``Float[N out]``."""
    weight, bias = names
    result: Floats = np.dot(x, weights[weight].T)  # of few rows in half the time that `@` takes
    if bias is not None:
        result += weights[bias]
    return result


def clipped(x: Floats, low: Floats | float, high: Floats | float) -> Floats:
    """``np.clip``, which for a few numbers takes four times as long."""
    result: Floats = np.minimum(np.maximum(x, low), high)
    return result


def fast_to_multiply(weight: Floats) -> Floats:
    """The same numbers, of a matrix column by column: rows are multiplied by it in two thirds of the time."""
    return np.asfortranarray(weight)


def add_gradient(gradients: dict[str, Floats], names: tuple[str, str | None], x: Floats, slopes: Floats) -> None:
    """Put the slopes by the parameters of a linear layer, which took x, into ``gradients``."""
    weight, bias = names
    gradients[weight] = np.dot(slopes.T, x)
    if bias is not None:
        gradients[bias] = np.add.reduce(slopes, axis=0)
