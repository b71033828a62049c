"""A dynamics model as tensors and plain values, and back."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from gymnasium import spaces
from torch import nn

from ssm_metarl_gym.agents.layers import is_altered, layers_in_sequence
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.ssm.model import SSM
from ssm_metarl_gym.agents.stateless import copy_module

__all__ = ["describe_model", "rebuild_model"]

_ACTIVATIONS: Final = {layer.__name__: layer for layer in (nn.ReLU, nn.SiLU, nn.Tanh)}
_SIZES_OF_SSM: Final = ("state_dim", "hidden_dim", "output_dim", "num_layers")


def describe_model(model: DynamicsModel) -> dict[str, Any]:
    """What :func:`rebuild_model` makes the model of again: tensors and plain values.

    The core is described where it is an :class:`SSM`, or an ``nn.Sequential`` of ``Linear``, ``Tanh``, ``ReLU`` and
    ``SiLU``; any other is its weights alone.

    Raises:
        ValueError: The model is of a class of one's own, or has a hook or a ``forward`` of its own beside the core:
            what is made again would compute something else.
    """
    if type(model) is not DynamicsModel or is_altered(model) or is_altered(model.head):
        raise ValueError(
            "the model must be a DynamicsModel without hooks to be saved; got one of "
            f"{type(model).__name__}, or with hooks. Pickle the wrapper in place of it, or put what is its own "
            "into the core."
        )
    return {
        "adapts": model.adapts,
        "core": _describe_core(model.core),
        "weights": model.state_dict(),
        "adapting": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }


def rebuild_model(
    described: Mapping[str, Any],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    core: nn.Module | None = None,
) -> DynamicsModel:
    """The model that :func:`describe_model` described, on the CPU, in evaluation mode.

    Args:
        described: What it gave.
        observation_space: The space of the model's observations.
        action_space: The space of its actions.
        core: A module that is built like the core, to be copied; None for the core that is described.

    Raises:
        ValueError: The core is not described and none is given, or weights and spaces are of another model.
    """
    if core is None and described["core"] is None:
        raise ValueError(
            "core must be given where a model was built on a core of one's own, of which weights alone are stored; got "
            "None. Give a module that is built like it."
        )
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced
        core = _rebuild_core(described["core"]) if core is None else copy_module(core).cpu()
        model = DynamicsModel(observation_space, action_space, core, adapts=described["adapts"])
    try:
        # Not copied into what is there: the numbers stay of the type that they are of.
        model.load_state_dict(described["weights"], assign=True)
    except RuntimeError as error:
        raise ValueError(f"the core must be built like the one that was stored: {error}") from None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in described["adapting"])
    return model


def _describe_core(core: nn.Module) -> dict[str, Any] | None:
    # Of exactly these types: a subclass may compute anything, and so may hooks.
    if any(map(is_altered, core.modules())):
        return None
    if type(core) is SSM:
        return {"ssm": {name: getattr(core, name) for name in _SIZES_OF_SSM}}
    if type(core) is not nn.Sequential or layers_in_sequence(core) is None:  # as where a layer is used twice
        return None
    layers: list[dict[str, Any]] = []
    for layer in core:
        if type(layer) is nn.Linear:
            layers.append({"linear": [layer.in_features, layer.out_features, layer.bias is not None]})
        elif type(layer) in _ACTIVATIONS.values():
            layers.append({"activation": type(layer).__name__})
        else:
            return None
    return {"layers": layers}


def _rebuild_core(described: Mapping[str, Any]) -> nn.Module:
    if "ssm" in described:
        return SSM(**described["ssm"])
    return nn.Sequential(
        *(
            _ACTIVATIONS[layer["activation"]]() if "activation" in layer else nn.Linear(*layer["linear"])
            for layer in described["layers"]
        )
    )
