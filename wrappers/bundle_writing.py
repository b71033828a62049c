"""A policy and both wrappers around its environment as one file, which a robot runs on numpy alone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter
from ssm_metarl_gym.agents.adaptation.rls import RecursiveLeastSquares
from ssm_metarl_gym.agents.layers import is_altered, layers_in_sequence
from ssm_metarl_gym.agents.losses import is_mean_over_elements
from ssm_metarl_gym.agents.models.description import describe_model
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.ssm.export import check_normalised, export_onnx
from ssm_metarl_gym.agents.ssm.policies import SSMPolicy
from ssm_metarl_gym.bundle.bundle import load_bundle
from ssm_metarl_gym.bundle.bundle_file import write_bundle
from ssm_metarl_gym.bundle.layers import ACTIVATIONS
from ssm_metarl_gym.checks import shown
from ssm_metarl_gym.wrappers.adapted_model import parse_change_ratio, parse_probes
from ssm_metarl_gym.wrappers.correction_archive import SavedCorrection

__all__ = ["BundledPolicy", "save_bundle"]

# What a user may give as a policy.
BundledPolicy = BaseAlgorithm | BasePolicy | MetaPolicy

_OPTIONS: Final[dict[type, tuple[str, ...]]] = {
    Adapter: ("lr", "grad_clip_norm", "trust_region_eps", "max_steps_per_call"),
    RecursiveLeastSquares: ("forgetting", "ridge", "trust_region_eps"),
    KalmanAdapter: ("prior_variance", "process_noise", "noise_scale", "surprise", "mixed", "trust_region_eps"),
}
_ONLINE: Final = (
    "window", "every", "warmup", "restore", "observe_predictions", "clip", "leave_out",
    "outlier_error", "change_ratio", "error_start", "error_decay", "error_floor",
)  # fmt: skip
_LOSSES: Final = {"MSELoss": "mse", "L1Loss": "l1", "HuberLoss": "huber", "SmoothL1Loss": "smooth_l1"}
_EXPORTED: Final = "policy.onnx"

Arrays = dict[str, "np.typing.NDArray[Any]"]


def save_bundle(
    path: str | Path, saved: SavedCorrection, match: str, policy: BundledPolicy, normalizer: VecNormalize | None
) -> None:
    """Write what :meth:`ActionCorrection.save_bundle` describes.

    Args:
        path: The file.
        saved: Both models, the adapter and the options of both wrappers.
        match: What is matched, as the wrapper has decided.
        policy: The policy, or an algorithm that has one.
        normalizer: What normalises its observations.

    Raises:
        ValueError: Something is of a kind that a bundle cannot hold.
    """
    adapter, model = saved.adapter, cast("DynamicsModel", saved.adapter.model)
    described_adapter = _describe_adapter(adapter)
    space = model.action_space
    online = saved.online | {"change_ratio": parse_change_ratio(saved.online["change_ratio"], adapter)}
    probes = parse_probes(space, online["probe_actions"]) if online["observe_predictions"] else None
    num_shown = model.observation_dim * (1 + (0 if probes is None else len(probes)))
    described_policy, policy_arrays = _describe_policy(policy, normalizer, num_shown, space)
    described_model, arrays = _describe_model("the model", model)
    reference, reference_arrays = _describe_model("the reference", saved.reference)
    is_same = described_model == reference and all(
        np.array_equal(arrays[name], reference_arrays[name]) for name in arrays
    )
    described = {
        "observation_dim": model.observation_dim,
        "action_space": _describe_space(space),
        "policy": described_policy,
        "model": described_model,
        "reference": None if is_same else reference,
        "adapter": described_adapter,
        "online": {
            **{name: online[name] for name in _ONLINE},
            "probe_actions": probes,
            "loss": _describe_loss(online["loss_fn"]),
        },
        "correction": saved.correction | {"match": match},
    }
    parts = {"policy": policy_arrays, "model": arrays} | ({} if is_same else {"reference": reference_arrays})
    _check_that_it_loads(described, parts)
    write_bundle(path, described, parts)


def _check_that_it_loads(described: dict[str, Any], parts: dict[str, Arrays]) -> None:
    """What a robot could not load is told here, where it can be mended."""
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "bundle"
        write_bundle(aside, described, parts)
        try:
            load_bundle(aside)
        except ImportError:  # of a runtime that the robot needs, not this machine
            pass
        except ValueError as error:
            reason = str(error).removeprefix(f"{aside} does not fit: ")
            raise ValueError(f"what is given cannot be a bundle: {reason}") from error


def _describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    box = cast("spaces.Box", space)  # a correction takes no other
    return {"low": box.low, "high": box.high, "dtype": str(box.dtype)}


def _describe_model(what: str, model: DynamicsModel) -> tuple[dict[str, Any], Arrays]:
    """What a bundle says of a model, and its parameters and buffers."""
    described = describe_model(model)
    if described["core"] is None:
        raise ValueError(
            f"the core of {what} must be an SSM, or an nn.Sequential of Linear, Tanh, ReLU and SiLU, to be part of a "
            f"bundle; got {model.core}. Train a model with such a core."
        )
    expected = {"last_layer": ("head.",), "all": ("core.", "head."), "action_map": ("action_",)}[model.adapts]
    adapting = [name for name, _ in model.named_parameters() if name.startswith(expected)]
    if described["adapting"] != adapting:
        raise ValueError(
            f"just {adapting} must require a gradient in {what} to be part of a bundle; got {described['adapting']}. "
            "Call model.prepare_to_adapt()."
        )
    weights: dict[str, Tensor] = described["weights"]
    types = {part.dtype for part in weights.values()}
    if not types <= {torch.float32, torch.float64}:
        raise ValueError(
            f"{what} must be of single or double precision to be part of a bundle; got {sorted(map(str, types))}. Use "
            "its float()."
        )
    kept = {"adapts": described["adapts"], "core": described["core"]}
    return kept, {name: _array(part) for name, part in weights.items()}


def _describe_adapter(adapter: Adapter) -> dict[str, Any]:
    kind = type(adapter)
    if kind not in _OPTIONS:
        raise ValueError(
            f"the adapter must be one of {', '.join(one.__name__ for one in _OPTIONS)} to be part of a bundle; got "
            f"{kind.__name__}. Use one of these."
        )
    if adapter.cfg.entropy_weight:
        raise ValueError(
            f"entropy_weight must be 0 to be part of a bundle; got {adapter.cfg.entropy_weight}. A DynamicsModel "
            "predicts no distribution: leave it out."
        )
    if isinstance(adapter, KalmanAdapter) and adapter.largest_delay:
        raise ValueError(
            f"largest_delay must be 0 to be part of a bundle, which knows no delays; got {adapter.largest_delay}. Make "
            "a KalmanAdapter without it."
        )
    options = {name: getattr(adapter if hasattr(adapter, name) else adapter.cfg, name) for name in _OPTIONS[kind]}
    return {"kind": kind.__name__, **options, "budget_ms": adapter.budget_ms}


def _describe_loss(loss_fn: Any) -> dict[str, Any]:
    if not is_mean_over_elements(loss_fn):
        raise ValueError(
            "loss_fn must be one of torch's mean squared, absolute, Huber's or smooth absolute errors to be part of a "
            f"bundle; got {loss_fn!r}. Use torch.nn.functional.mse_loss."
        )
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"the reduction of loss_fn must be 'mean' or 'sum'; got {reduction!r}. Use 'mean'.")
    name = _LOSSES.get(type(loss_fn).__name__) or loss_fn.__name__.removesuffix("_loss")
    bound = getattr(loss_fn, "delta", getattr(loss_fn, "beta", 1.0))
    return {"name": name, "reduction": reduction, "bound": float(bound)}


def _describe_policy(
    given: BundledPolicy, normalizer: VecNormalize | None, num_shown: int, space: spaces.Space[Any]
) -> tuple[dict[str, Any], Arrays]:
    """What a bundle says of a policy, and its arrays."""
    if isinstance(given, BaseAlgorithm):
        normalizer = given.get_vec_normalize_env() if normalizer is None else normalizer
        policy: Any = given.policy
    else:
        policy = given.to_sb3() if isinstance(given, MetaPolicy) else given
    if not isinstance(policy, BasePolicy):
        raise ValueError(
            f"policy must be an algorithm or a policy of Stable-Baselines3, or a MetaPolicy; got {shown(given)}. Give "
            "one that was made or loaded."
        )
    if normalizer is not None and not isinstance(normalizer, VecNormalize):
        raise ValueError(
            f"normalizer must be a VecNormalize or None; got {shown(normalizer)}. Give what VecNormalize.load gives."
        )
    if policy.observation_space.shape != (num_shown,) or policy.action_space != space:
        raise ValueError(
            f"the policy must take the {num_shown} numbers that the wrappers show, and act in {space}; it is for "
            f"{policy.observation_space} and {policy.action_space}. Train it behind these wrappers, or put it behind "
            "those that it was trained behind."
        )
    found = _plain_layers(policy)
    if found is None:
        return _export(policy, normalizer)
    layers, output = found
    described: list[dict[str, Any]] = []
    arrays: Arrays = {}
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            described.append({"linear": [layer.in_features, layer.out_features, layer.bias is not None]})
            arrays |= {f"layers.{i}.{name}": _array(part) for name, part in layer.named_parameters()}
        else:
            described.append({"activation": type(layer).__name__})
    statistics = None
    if normalizer is not None and normalizer.norm_obs:
        moments: Any = normalizer.obs_rms
        check_normalised(moments.mean.shape, policy.observation_space)
        statistics = {"clip": float(normalizer.clip_obs)}
        arrays["normaliser.mean"] = np.asarray(moments.mean, dtype=np.float64)
        arrays["normaliser.scale"] = np.sqrt(np.asarray(moments.var, dtype=np.float64) + normalizer.epsilon)
    return {"normaliser": statistics, "layers": described, "output": output}, arrays


def _plain_layers(policy: Any) -> tuple[Sequence[nn.Module], str] | None:
    """The layers from observations to the deterministic action, and how that is made; None where it is not so simple.

    Of exactly these types: a subclass may compute anything.
    """
    discrete = isinstance(policy.action_space, spaces.Discrete)
    if type(policy) is ActorCriticPolicy and not policy.use_sde:
        parts, output = [policy.mlp_extractor.policy_net, policy.action_net], "argmax" if discrete else "clip"
        extractor = policy.pi_features_extractor
    elif type(policy) is SACPolicy and not policy.actor.use_sde:
        parts, output = [policy.actor.latent_pi, policy.actor.mu, nn.Tanh()], "squash"
        extractor = policy.actor.features_extractor
    elif type(policy) is TD3Policy:
        parts, output, extractor = [policy.actor.mu], "squash", policy.actor.features_extractor
    elif type(policy) is DQNPolicy:
        parts, output, extractor = [policy.q_net.q_net], "argmax", policy.q_net.features_extractor
    else:
        return None
    found = layers_in_sequence(nn.Sequential(*parts))
    if type(extractor) is not FlattenExtractor or is_altered(policy) or found is None:
        return None
    layers = [layer for _, layer in found if type(layer) is not nn.Identity]
    known = all(type(layer) is nn.Linear or type(layer).__name__ in ACTIVATIONS for layer in layers)
    is_single = all(part.dtype == torch.float32 for layer in layers for part in layer.parameters())
    return (layers, output) if known and is_single else None


def _export(policy: BasePolicy, normalizer: VecNormalize | None) -> tuple[dict[str, Any], Arrays]:
    """A policy as an ONNX file within the bundle."""
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(policy, Path(folder) / _EXPORTED, normalizer=normalizer)
        data = (Path(folder) / _EXPORTED).read_bytes()
    state = list(policy.initial_state(1).shape[1:]) if isinstance(policy, SSMPolicy) else None
    return {"onnx": {"state": state}}, {"onnx": np.frombuffer(data, dtype=np.uint8)}


def _array(tensor: Tensor) -> "np.typing.NDArray[Any]":
    array: np.typing.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
