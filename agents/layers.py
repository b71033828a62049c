"""What is known of plain networks: the layers that they apply one after the other, and nothing else."""

from typing import Final, TypeAlias

from torch import nn

__all__ = ["Layer", "check_embeddings", "is_altered", "layers_in_sequence", "names_weight_first"]

Layer: TypeAlias = tuple[str, nn.Module]  # the prefix of its parameters' names, and the layer

# Modules without parameters that treat every number alike.
_ELEMENTWISE: Final = (
    nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Tanh
)  # fmt: skip


def layers_in_sequence(module: nn.Module, prefix: str = "") -> list[Layer] | None:
    """The layers of a network in the order of their calls; None where it is not known what it computes.

    It must be nothing but linear and elementwise layers in sequence, which share no parameter.

    Args:
        module: The network.
        prefix: Of the names of its parameters.
    """
    layers = _flatten(module, prefix)
    parameters = [parameter for _, layer in layers or [] for parameter in layer.parameters()]
    return layers if len({id(parameter) for parameter in parameters}) == len(parameters) else None


def check_embeddings(model: nn.Module) -> None:
    """No embedding of a model may change its weights by itself, frozen or not.

    Raises:
        ValueError: One has a ``max_norm``, to which every call scales rows of its weight.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise ValueError(
                f"an embedding, which else changes its weights by itself, must have max_norm=None; got "
                f"{module.max_norm} in {type(module).__name__} {name!r}. Make it without max_norm."
            )


def is_altered(module: nn.Module) -> bool:
    """Whether hooks or a replaced ``forward`` may make a module compute something else than its class does."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def names_weight_first(layer: nn.Linear) -> bool:
    """Whether a layer names its weight before its bias: after ``prune.remove``, for example, it does not."""
    return next(iter(layer._parameters), None) == "weight"


def _flatten(module: nn.Module, prefix: str) -> list[Layer] | None:
    # Exact types only: a subclass or a parametrisation may compute anything. What works in place overwrites the outputs
    # by which the loss is differentiated.
    if is_altered(module) or getattr(module, "inplace", False):
        return None
    if type(module) is not nn.Sequential:
        is_linear = type(module) is nn.Linear and names_weight_first(module)
        return [(prefix, module)] if is_linear or type(module) in _ELEMENTWISE else None
    layers: list[Layer] = []
    for name, child in module._modules.items():  # and not named_children(), which leaves out what is used again
        part = None if child is None else _flatten(child, f"{prefix}{name}.")
        if part is None:
            return None
        layers += part
    return layers
