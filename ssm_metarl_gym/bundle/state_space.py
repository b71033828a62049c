"""A state-space model that takes one step from the zero state, as the core of a model of the dynamics does."""

import math
from typing import Final

import numpy as np

from ssm_metarl_gym.bundle.layers import Floats, Weights, add_gradient, linear

__all__ = ["StateSpaceStep"]

_SPACING: Final = 1.0 / 64.0
_LARGEST: Final = 6.0  # beyond which the error function is one, in double precision
_GRID: Final = np.arange(0.0, _LARGEST + _SPACING, _SPACING)
_ERF_ON_GRID: Final = np.array([math.erf(x) for x in _GRID.tolist()])
_SLOPE_ON_GRID: Final = 2.0 / math.sqrt(math.pi) * np.exp(-_GRID * _GRID)
_LEAST_VARIANCE: Final = 1e-5  # of the layer normalisation, as in torch


class StateSpaceStep:
    """What :class:`ssm_metarl_gym.agents.SSM` gives for single observations: a :class:`Network`.

    From the zero state a state is its input alone, ``sqrt(1 - |lambda|^2) B LN(x)``: of the recurrence only the sizes
    ``|lambda| = exp(-exp(nu))`` have an influence.

    Args:
        num_layers: Number of layers.
        prefix: Of the names of the parameters.
    """

    def __init__(self, num_layers: int, prefix: str) -> None:
        self._encoder = (f"{prefix}encoder.weight", f"{prefix}encoder.bias")
        self._decoder = (f"{prefix}decoder.weight", f"{prefix}decoder.bias")
        self._layers = [f"{prefix}layers.{i}." for i in range(num_layers)]

    def __call__(self, weights: Weights, x: Floats) -> Floats:
        """What the model gives: ``Float[N in]`` -> ``Float[N F]``."""
        return self.forward(weights, x)[0]

    def forward(self, weights: Weights, x: Floats) -> tuple[Floats, list[Floats]]:
        """The same, and what :meth:`backward` needs of it."""
        tape = [x]
        x = linear(weights, self._encoder, x)
        for layer in self._layers:
            x = _forward(weights, layer, x, tape)
        return linear(weights, self._decoder, x), [*tape, x]

    def backward(
        self, weights: Weights, tape: list[Floats], slopes: Floats, gradients: dict[str, Floats] | None
    ) -> Floats:
        """See :meth:`Network.backward`."""
        given: dict[str, Floats] = {}
        add_gradient(given, self._decoder, tape[-1], slopes)
        slopes = slopes @ weights[self._decoder[0]]
        for i in range(len(self._layers) - 1, -1, -1):
            slopes = _backward(weights, self._layers[i], tape[1 + 6 * i : 7 + 6 * i], slopes, given)
        add_gradient(given, self._encoder, tape[0], slopes)
        if gradients is not None:
            gradients |= given
        return slopes @ weights[self._encoder[0]]


def _forward(weights: Weights, layer: str, x: Floats, tape: list[Floats]) -> Floats:
    """One layer ``Float[N H]`` -> the same; six arrays join the tape."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + x.dtype.type(_LEAST_VARIANCE))
    whitened = centred / deviation
    normed = whitened * weights[layer + "norm_weight"] + weights[layer + "norm_bias"]
    states = normed @ (_input_scale(weights[layer + "nu"])[:, None] * weights[layer + "b"]).T
    mixed = states @ weights[layer + "c"].T + weights[layer + "d"] * normed
    gates = _gelu(mixed)[0] @ weights[layer + "gate_weight"].T + weights[layer + "gate_bias"]
    tape += [deviation, whitened, normed, states, mixed, gates]
    values, openings = np.split(gates, 2, axis=1)
    result: Floats = x + values * _sigmoid(openings)
    return result


def _backward(weights: Weights, layer: str, tape: list[Floats], slopes: Floats, gradients: dict[str, Floats]) -> Floats:
    """Slopes by what a layer takes, from those by what it gives; those by its parameters are put into ``gradients``."""
    deviation, whitened, normed, states, mixed, gates = tape
    own = {name: weights[layer + name] for name in ("nu", "norm_weight", "b", "c", "d", "gate_weight")}
    values, openings = np.split(gates, 2, axis=1)
    opened = _sigmoid(openings)
    by_gates = np.concatenate([slopes * opened, slopes * values * opened * (1.0 - opened)], axis=1)
    curved, curve = _gelu(mixed)
    add_gradient(gradients, (layer + "gate_weight", layer + "gate_bias"), curved, by_gates)
    by_mixed = (by_gates @ own["gate_weight"]) * curve
    add_gradient(gradients, (layer + "c", None), states, by_mixed)
    by_states = by_mixed @ own["c"]
    scale = _input_scale(own["nu"])
    by_scaled_b = by_states.T @ normed  # 2P H
    gradients[layer + "b"] = scale[:, None] * by_scaled_b
    # Of scale = sqrt(1 - exp(-2 exp(nu))): d scale / d nu = exp(nu) exp(-2 exp(nu)) / scale.
    rate = np.repeat(np.exp(own["nu"]), 2)
    by_scale = (own["b"] * by_scaled_b).sum(axis=1)
    gradients[layer + "nu"] = (by_scale * rate * np.exp(-2.0 * rate) / scale).reshape(-1, 2).sum(axis=1)
    gradients[layer + "theta"] = np.zeros_like(own["nu"])
    gradients[layer + "d"] = (by_mixed * normed).sum(axis=0)
    by_normed = by_states @ (scale[:, None] * own["b"]) + by_mixed * own["d"]
    gradients[layer + "norm_weight"] = (by_normed * whitened).sum(axis=0)
    gradients[layer + "norm_bias"] = by_normed.sum(axis=0)
    by_whitened = by_normed * own["norm_weight"]
    # Of the mean and the deviation that every number of a row has a part in.
    along = (by_whitened * whitened).mean(axis=1, keepdims=True)
    result: Floats = slopes + (by_whitened - by_whitened.mean(axis=1, keepdims=True) - whitened * along) / deviation
    return result


def _input_scale(nu: Floats) -> Floats:
    """sqrt(1 - |lambda|^2) of the real and the imaginary part of each state: ``Float[P]`` -> ``Float[2P]``."""
    scale: Floats = np.sqrt(-np.expm1(-2.0 * np.exp(nu)))
    return np.repeat(scale, 2)


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 1.0 / (1.0 + np.exp(-x))
    return result


def _gelu(x: Floats) -> tuple[Floats, Floats]:
    """X Phi(x), with Phi the distribution function of a normal variable, and its slope."""
    below = 0.5 * (1.0 + _erf(x * math.sqrt(0.5)))
    density = math.sqrt(0.5 / math.pi) * np.exp(-0.5 * x * x)
    return (x * below).astype(x.dtype), (below + x * density).astype(x.dtype)


def _erf(x: Floats) -> Floats:
    """The error function, by its series to the fourth order around the nearest point of a grid; within 1e-10."""
    size = np.minimum(np.abs(x), _LARGEST)
    place = np.rint(np.nan_to_num(size) / _SPACING).astype(np.intp)
    a = _GRID[place]
    h = size - a
    series = 1.0 - a * h + (4.0 * a * a - 2.0) / 6.0 * h**2 - (2.0 * a**3 - 3.0 * a) / 6.0 * h**3
    result: Floats = np.copysign(_ERF_ON_GRID[place] + _SLOPE_ON_GRID[place] * h * series, x)
    return result
