"""Writing bundles, by the format that docs/playground.md describes."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from ssm_metarl_gym.agents.models.description import describe_model
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation

__all__ = ["write_bundle"]


def write_bundle(path: Path, policy: PPO, normaliser: VecNormalize, env: ActionCorrection) -> None:
    online = env.env
    assert isinstance(online, OnlineAdaptation)
    tensors: dict[str, Any] = {}
    net = policy.policy
    layers = []
    for i, layer in enumerate([*net.mlp_extractor.policy_net, net.action_net]):
        if isinstance(layer, nn.Linear):
            tensors[f"policy.layers.{i}.weight"] = layer.weight.detach().numpy()
            tensors[f"policy.layers.{i}.bias"] = layer.bias.detach().numpy()
            layers.append({"linear": [layer.in_features, layer.out_features, True]})
        else:
            layers.append({"activation": type(layer).__name__})
    rms = normaliser.obs_rms
    tensors["policy.normaliser.mean"] = rms.mean
    tensors["policy.normaliser.scale"] = np.sqrt(rms.var + normaliser.epsilon)
    models = {}
    for name, model in (("model", online.source.model), ("reference", env._correction.corrector.reference)):
        described = describe_model(model)
        for key, value in described["weights"].items():
            tensors[f"{name}.{key}"] = value.numpy()
        models[name] = {"adapts": described["adapts"], "core": described["core"]}
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        action_space = {"n": int(space.n), "start": int(space.start)}
    else:
        action_space = {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}
    cfg = online.adapter.cfg
    arguments = {k: v for k, v in online.arguments.items() if k != "loss_fn"}
    arguments["change_ratio"] = 5.0
    arguments["loss"] = {"name": "mse", "reduction": "mean", "bound": 1.0}
    options = dict(env._correction._options)
    options["match"] = env._correction.corrector._match
    bundle = {
        "tensors": {
            name: {
                "dtype": "F64" if value.dtype == np.float64 else "F32",
                "shape": list(value.shape),
                "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
            }
            for name, value in tensors.items()
        },
        "observation_dim": online.model.observation_dim,
        "action_space": action_space,
        "policy": {
            "normaliser": {"clip": normaliser.clip_obs},
            "layers": layers,
            "output": "argmax" if isinstance(space, spaces.Discrete) else "clip",
        },
        **models,
        "adapter": {
            "kind": "Adapter",
            "lr": cfg.lr,
            "grad_clip_norm": cfg.grad_clip_norm,
            "trust_region_eps": cfg.trust_region_eps,
            "max_steps_per_call": cfg.max_steps_per_call,
            "budget_ms": None,
        },
        "online": arguments,
        "correction": {k: ("inf" if v == math.inf else v) for k, v in options.items()},
    }
    text = json.dumps(bundle)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "ssm-metarl-gym bundle 1",
            "bundle": text,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
    }
    raw = b""
    for name, value in tensors.items():
        data = np.ascontiguousarray(value).tobytes()
        header[name] = {
            "dtype": bundle["tensors"][name]["dtype"],
            "shape": list(value.shape),
            "data_offsets": [len(raw), len(raw) + len(data)],
        }
        raw += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw)
