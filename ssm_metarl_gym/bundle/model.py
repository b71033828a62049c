"""The model of the dynamics, for one robot: what it encodes, what it predicts, and its slopes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ssm_metarl_gym.bundle.action_space import ActionSpace
from ssm_metarl_gym.bundle.layers import Floats, Layers, Network, Weights, add_gradient, fast_to_multiply, linear
from ssm_metarl_gym.bundle.losses import Loss
from ssm_metarl_gym.bundle.state_space import StateSpaceStep
from ssm_metarl_gym.checks import check_choice

__all__ = ["Model", "make_core"]

_HEAD: Final = ("head.weight", "head.bias")
_MAP: Final = ("action_map", "action_offset")


def make_core(described: Mapping[str, Any], prefix: str) -> Network:
    """The core that a bundle describes, whose parameters' names begin with the prefix."""
    if "ssm" in described:
        return StateSpaceStep(described["ssm"]["num_layers"], prefix)
    return Layers(described["layers"], prefix)


class Model:
    """What :class:`ssm_metarl_gym.agents.DynamicsModel` is, with weights that are given in every call where they adapt.

    Args:
        described: ``adapts`` and ``core``.
        weights: All parameters and buffers at their source.
        observation_dim: D.
        space: The space of the actions.

    Attributes:
        adapts: ``"last_layer"``, ``"all"`` or ``"action_map"``.
        source: The parameters that adapt, at their source, by name.
        space: The space of the actions.
        residual_variance: What the model does not explain of each component of the change, ``Float[D]``.
        action_scale: The standard deviations of the actions that it was fitted to, ``Float[A]``; those of a box in half
            ranges.
    """

    def __init__(
        self, described: Mapping[str, Any], weights: Weights, *, observation_dim: int, space: ActionSpace
    ) -> None:
        self.adapts: str = described["adapts"]
        check_choice("adapts", self.adapts, ["last_layer", "all", "action_map"])
        self.space = space
        self._dim = observation_dim
        self._core = make_core(described["core"], "core.")
        self._weights = {name: fast_to_multiply(part) for name, part in weights.items()}
        core_names = [name for name in weights if name.startswith("core.")]
        adapting = {"last_layer": [*_HEAD], "all": [*core_names, *_HEAD], "action_map": [*_MAP]}[self.adapts]
        self.source: Weights = {name: weights[name] for name in adapting}
        self.residual_variance = weights["residual_variance"]
        self._dtype = weights["head.weight"].dtype
        self._shift, self._scale = weights["input_shift"], weights["input_scale"]
        self._target_scale = weights["target_scale"]
        self._own_scale, self._own_shift = self._scale[observation_dim:], self._shift[observation_dim:]
        # Of choices there are none.
        self._middle, self._unit = (
            np.zeros(0) if space.is_discrete else own.astype(self._dtype) for own in (space.middle, space.unit)
        )
        self.action_scale = self._own_scale if space.is_discrete else self._own_scale / self._unit
        # Of the central differences: how far to each side, and an action as it is, beyond itself and short of itself.
        step = self._dtype.type(0.1) * self.action_scale.astype(self._dtype)
        self._widths = 2 * step[:, None]  # A 1
        self._around = np.concatenate([np.zeros_like(step)[None], np.diag(step), -np.diag(step)])  # 2A+1 A
        self._check_shapes()

    def encode(self, observation: Floats, actions: Floats) -> Floats:
        """What :meth:`predict` takes, of N actions in one place: ``Float32[D]`` and ``[N ...]`` -> ``Float[N F]``."""
        actions = self.space.encode(actions)
        joined = np.empty((len(actions), len(self._scale)), dtype=self._scale.dtype)
        joined[:, : self._dim] = observation
        joined[:, self._dim :] = actions
        joined -= self._shift
        joined /= self._scale
        inputs = joined.astype(self._dtype, copy=False)
        if self.adapts == "last_layer":
            return self._core(self._weights, inputs)
        if self.adapts == "action_map":
            inputs[:, self._dim :] = self.commands(actions)
        return inputs

    def commands(self, actions: Floats) -> Floats:
        """Actions of a box in half ranges around the middle, as a map takes them: ``Float[... A]``."""
        in_half_ranges: Floats = (actions.astype(self._dtype, copy=False) - self._middle) / self._unit
        return in_half_ranges

    def targets(self, observations: Floats, next_observations: Floats) -> Floats:
        """The changes to be predicted, normalised: ``Float32[... D]`` twice -> ``Float[... D]``."""
        changes: Floats = (next_observations - observations) / self._target_scale
        return changes.astype(self._dtype, copy=False)

    def predict(self, own: Weights, encoded: Floats) -> Floats:
        """The change ``Float[N D]``, normalised, by weights ``own`` of what adapts."""
        if self.adapts == "last_layer":
            return linear(own, _HEAD, encoded)
        if self.adapts == "all":
            return linear(own, _HEAD, self._core(own, encoded))
        observations, actions = encoded[:, : self._dim], encoded[:, self._dim :]
        return self._predict_executed(observations, _executed(own, actions))

    def descend_by(self, own: Weights, encoded: Floats, targets: Floats, loss: Loss) -> tuple[float, dict[str, Floats]]:
        """The loss of predictions for ``Float[N F]`` and its gradient by all weights that adapt."""
        gradients: dict[str, Floats] = {}
        if self.adapts == "action_map":
            return self._gradient_of_map(own, encoded, targets, loss)
        features, tape = encoded, [encoded]
        if self.adapts == "all":
            features, tape = self._core.forward(own, encoded)
        value, slopes = loss(linear(own, _HEAD, features) - targets)
        add_gradient(gradients, _HEAD, features, slopes)
        if self.adapts == "all":
            self._core.backward(own, tape, slopes @ own[_HEAD[0]], gradients)
        return value, gradients

    def linearise(
        self, encoded: Floats, maps: Floats, offsets: Floats, others: Sequence[Weights]
    ) -> tuple[Floats, Floats, Floats]:
        """The predictions for one transition by K action maps, their slopes, and predictions by L other maps.

        The slopes are central differences over a tenth of the actions' standard deviation to both sides. All
        predictions are rows of one pass through the network: it is little more work than that for a few rows.

        Args:
            encoded: ``Float[D + A]``.
            maps: M, ``Float[K A A]``, on actions in half ranges.
            offsets: c, ``Float[K A]``.
            others: L, by the names of the parameters.

        Returns:
            ``Float[K D]``, the slopes by the executed action M u + c, ``Float[K A D]``, and ``Float[L D]``.
        """
        observation, action = encoded[: self._dim], encoded[self._dim :]
        executed = maps @ action + offsets  # K A
        num_maps, num_actions = executed.shape
        probes = (executed[:, None] + self._around).reshape(-1, num_actions)
        rows = np.concatenate([probes, *(_executed(own, action[None]) for own in others)])
        predictions = self._predict_executed(observation[None].repeat(len(rows), axis=0), rows)
        of_maps = predictions[: len(probes)].reshape(num_maps, -1, self._dim)  # K 2A+1 D
        above, below = of_maps[:, 1 : num_actions + 1], of_maps[:, num_actions + 1 :]
        return of_maps[:, 0], (above - below) / self._widths, predictions[len(probes) :]

    def _gradient_of_map(
        self, own: Weights, encoded: Floats, targets: Floats, loss: Loss
    ) -> tuple[float, dict[str, Floats]]:
        observations, actions = encoded[:, : self._dim], encoded[:, self._dim :]
        executed = actions @ own["action_map"].T + own["action_offset"]
        features, tape = self._core.forward(self._weights, self._with_executed(observations, executed))
        value, slopes = loss(linear(self._weights, _HEAD, features) - targets)
        slopes = self._core.backward(self._weights, tape, slopes @ self._weights[_HEAD[0]], None)
        slopes = slopes[:, self._dim :] / self.action_scale
        gradients: dict[str, Floats] = {}
        add_gradient(gradients, _MAP, actions, slopes)
        return value, gradients

    def _predict_executed(self, observations: Floats, executed: Floats) -> Floats:
        features = self._core(self._weights, self._with_executed(observations, executed))
        return linear(self._weights, _HEAD, features)

    def _with_executed(self, observations: Floats, executed: Floats) -> Floats:
        """The input of the core from normalised observations and executed actions in half ranges."""
        normalised = (executed * self._unit + self._middle - self._own_shift) / self._own_scale
        return np.concatenate([observations, normalised.astype(observations.dtype, copy=False)], axis=1)

    def _check_shapes(self) -> None:
        """What was described must fit together: a transition of zeros goes through."""
        zeros = np.zeros(self._dim, dtype=np.float32)
        predicted = self.predict(self.source, self.encode(zeros, self.space.zero[None]))
        shapes = [predicted.shape[1:], self._target_scale.shape, self.residual_variance.shape]
        if shapes != [(self._dim,)] * 3:
            raise ValueError(f"the model must predict {self._dim} numbers; its parts are of the shapes {shapes}.")


def _executed(own: Weights, actions: Floats) -> Floats:
    """What motors make of actions in half ranges by a map: ``Float[N A]`` -> the same."""
    mapped = np.dot(actions, own["action_map"].T.astype(actions.dtype, copy=False))
    result: Floats = mapped + own["action_offset"].astype(actions.dtype, copy=False)
    return result
