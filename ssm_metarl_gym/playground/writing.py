"""Writing what the page reads: a policy, and all that corrects its actions, in one file of safetensors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from ssm_metarl_gym.agents import Adapter
from ssm_metarl_gym.agents.models.description import describe_model
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel

__all__ = ["write_bundle"]

Tensors = dict[str, npt.NDArray[Any]]

_FORMAT: Final = "ssm-metarl-gym bundle 1"
_DTYPES: Final = {"float32": "F32", "float64": "F64"}


def write_bundle(
    path: Path,
    policy: PPO,
    normaliser: VecNormalize,
    adapter: Adapter,
    reference: DynamicsModel,
    *,
    online: Mapping[str, Any],
    correction: Mapping[str, Any],
) -> None:
    """Write a bundle.

    Args:
        path: The file.
        policy: A policy of plain layers.
        normaliser: What scales its observations.
        adapter: The adapter, at its source.
        reference: The model of the physics that the policy knows.
        online: The options of :class:`OnlineAdaptation`, beside the loss, a mean squared error.
        correction: Those of :class:`ActionCorrection`.
    """
    tensors: Tensors = {}
    space, bounds = policy.action_space, asdict(adapter.cfg)
    described: dict[str, Any] = {
        "observation_dim": reference.observation_dim,
        "action_space": _describe_space(space),
        "policy": {
            "normaliser": _describe_normaliser(normaliser, tensors),
            "layers": _describe_layers([*policy.policy.mlp_extractor.policy_net, policy.policy.action_net], tensors),
            "output": "argmax" if isinstance(space, spaces.Discrete) else "clip",
        },
        "model": _describe_model("model", adapter.model, tensors),
        "reference": _describe_model("reference", reference, tensors),
        "adapter": {"kind": "Adapter", "budget_ms": None}
        | {name: bounds[name] for name in ("lr", "grad_clip_norm", "trust_region_eps", "max_steps_per_call")},
        "online": {**online, "loss": {"name": "mse", "reduction": "mean", "bound": 1.0}},
        "correction": dict(correction),
    }
    entries: dict[str, dict[str, Any]] = {}
    raw = [np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values()]
    for (name, tensor), numbers in zip(tensors.items(), raw, strict=True):
        entries[name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": list(tensor.shape)}
        entries[name]["sha256"] = hashlib.sha256(numbers).hexdigest()
    text = json.dumps({"tensors": entries, **described})
    header: dict[str, Any] = {
        "__metadata__": {"format": _FORMAT, "bundle": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    }
    ends = np.cumsum([0, *map(len, raw)]).tolist()
    for (name, entry), begin, end in zip(entries.items(), ends, ends[1:], strict=False):
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(raw))


def _describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    box: Any = space
    return {"low": box.low.tolist(), "high": box.high.tolist(), "dtype": str(box.dtype)}


def _describe_normaliser(normaliser: VecNormalize, tensors: Tensors) -> dict[str, Any]:
    statistics: Any = normaliser.obs_rms
    tensors["policy.normaliser.mean"] = statistics.mean
    tensors["policy.normaliser.scale"] = np.sqrt(statistics.var + normaliser.epsilon)
    return {"clip": normaliser.clip_obs}


def _describe_layers(layers: list[nn.Module], tensors: Tensors) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = []
    for i, layer in enumerate(layers):
        for name, weight in layer.state_dict().items():
            tensors[f"policy.layers.{i}.{name}"] = weight.numpy()
        if isinstance(layer, nn.Linear):
            described.append({"linear": [layer.in_features, layer.out_features, layer.bias is not None]})
        else:
            described.append({"activation": type(layer).__name__})
    return described


def _describe_model(prefix: str, model: nn.Module, tensors: Tensors) -> dict[str, Any]:
    described = describe_model(model)  # type: ignore[arg-type] # that of an adapter is a DynamicsModel here
    tensors |= {f"{prefix}.{name}": weight.numpy() for name, weight in described["weights"].items()}
    return {name: described[name] for name in ("adapts", "core")}
