"""What a policy asks for: a normaliser and a plain network, or a whole one that onnxruntime runs."""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ssm_metarl_gym.bundle.action_space import ActionSpace
from ssm_metarl_gym.bundle.layers import Floats, Layers, clipped, fast_to_multiply
from ssm_metarl_gym.checks import check_choice

__all__ = ["Policy", "make_policy"]


class Policy(Protocol):
    """From observations to actions."""

    def reset(self) -> None:
        """Begin an episode."""

    def __call__(self, observation: Floats) -> Floats:
        """The action that is asked for, of an observation ``Float64[D]`` as it comes from the sensors.

        NaN where a policy gives no number.
        """
        ...


class NetworkPolicy:
    """The deterministic action of a network of plain layers.

    Args:
        described: ``normaliser``, ``layers`` and ``output``.
        weights: Those of the layers, and of the normaliser.
        space: The space of the actions.
    """

    def __init__(self, described: Mapping[str, Any], weights: Mapping[str, Floats], space: ActionSpace) -> None:
        self._layers = Layers(described["layers"], "layers.")
        self._weights = {name: fast_to_multiply(part) for name, part in weights.items()}
        self._space = space
        self._clip = None if described["normaliser"] is None else described["normaliser"]["clip"]
        self._output: str = described["output"]
        check_choice("output", self._output, ["argmax"] if space.is_discrete else ["clip", "squash"])
        taken = [layer["linear"][0] for layer in described["layers"] if "linear" in layer]
        shapes = [] if self._clip is None else [weights[f"normaliser.{name}"].shape for name in ("mean", "scale")]
        if any(shape != (taken[0],) for shape in shapes):
            raise ValueError(f"the normaliser must have the {taken[0]} numbers of the policy; got the shapes {shapes}.")

    def reset(self) -> None:
        """Begin an episode; nothing is remembered."""

    def __call__(self, observation: Floats) -> Floats:
        """The action: ``Float64[D]`` -> ``Int[]`` (``Float[]`` where that is no number) or ``Float[A]``."""
        if self._clip is not None:
            scaled = (observation - self._weights["normaliser.mean"]) / self._weights["normaliser.scale"]
            observation = clipped(scaled, -self._clip, self._clip)
        output = self._layers(self._weights, observation.astype(np.float32)[None])[0]
        space = self._space
        if self._output == "argmax":
            if not np.isfinite(output).all():
                return np.asarray(np.nan)
            return np.asarray(space.start + int(output.argmax()), dtype=space.dtype)
        if self._output == "squash":
            output = space.low + 0.5 * (output + 1.0) * (space.high - space.low)
        return clipped(output, space.low, space.high).astype(space.dtype, copy=False)


class OnnxPolicy:
    """The action of an ONNX file, as :func:`ssm_metarl_gym.agents.export_onnx` writes it, by onnxruntime.

    Args:
        described: ``state``: the shape of the memory, without the rows; None of a policy without one.
        data: The file, ``UInt8[bytes]``.
        space: The space of the actions.
    """

    def __init__(self, described: Mapping[str, Any], data: Floats, space: ActionSpace) -> None:
        self._data = data.tobytes()
        self._session = _open_session(self._data)
        # Its input has the type of the observation space.
        kind = self._session.get_inputs()[0].type.removeprefix("tensor(").removesuffix(")")
        self._dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
        self._space = space
        self._state_shape: list[int] | None = described["state"]
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_session": None}  # which cannot be copied

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._session = _open_session(self._data)

    def reset(self) -> None:
        """Begin an episode without memory."""
        self._is_first = True
        if self._state_shape is not None:
            self._state = np.zeros((1, *self._state_shape), dtype=np.float32)

    def __call__(self, observation: Floats) -> Floats:
        """The action: ``Float64[D]`` -> ``Int[]`` (``Float[]`` where that is no number) or ``Float[A]``."""
        inputs: dict[str, Any] = {"observation": observation.astype(self._dtype)[None]}
        if self._state_shape is None:
            (actions,) = self._run(inputs)
        else:
            inputs |= {"state": self._state, "start": np.array([self._is_first])}
            actions, state = self._run(inputs)
            if not np.isfinite(state).all():
                # Numbers too large for it: it remembers what was before them.
                return np.full(actions[0].shape, np.nan)
            self._state = state
        self._is_first = False
        space = self._space
        action: Floats = np.asarray(actions[0])
        return (action if space.is_discrete else clipped(action, space.low, space.high)).astype(space.dtype, copy=False)

    def _run(self, inputs: Mapping[str, Any]) -> list[Any]:
        try:
            outputs: list[Any] = self._session.run(None, inputs)
        except Exception as error:  # of types of its own
            raise ValueError(f"the ONNX file of the policy cannot be run: {error}") from error
        return outputs


def make_policy(described: Mapping[str, Any], weights: Mapping[str, Floats], space: ActionSpace) -> Policy:
    """The policy that a bundle describes."""
    if "onnx" in described:
        return OnnxPolicy(described["onnx"], weights["onnx"], space)
    return NetworkPolicy(described, weights, space)


def _open_session(data: bytes) -> Any:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        raise ImportError(
            "this policy is no plain network: onnxruntime must be installed to run it. Run pip install onnxruntime."
        ) from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of types of its own
        raise ValueError(f"the ONNX file of the policy cannot be run: {error}") from error
