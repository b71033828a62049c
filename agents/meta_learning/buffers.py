"""The buffers of a model that learns on many tasks: every task begins with them, and they follow what the tasks do."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.meta_learning.distributed import sum_over_processes

__all__ = ["average_buffers", "changed_buffers", "copy_buffers", "write_buffers"]


def copy_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the model's buffers, for a task to change."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def changed_buffers(model: nn.Module, copies: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a task's buffers that are no longer the copies that it began with, or no longer equal to the model's."""
    return {
        name: buffer
        for name, buffer in buffers.items()
        if buffer is not copies[name] or not torch.equal(buffer, model.get_buffer(name))
    }


@torch.no_grad()
def write_buffers(model: nn.Module, buffers: Mapping[str, Tensor | None]) -> None:
    """Let a model have the buffers that a task made of its own: in their memory where they fit, else in their places.

    Args:
        model: The model.
        buffers: By the names of ``named_buffers``; None where a forward dropped one.
    """
    places: dict[int, list[str]] = {}  # one buffer may be in several
    for name, buffer in model.named_buffers(remove_duplicate=False):
        places.setdefault(id(buffer), []).append(name)
    for name, value in buffers.items():
        own = model.get_buffer(name)
        fits = value is not None and (value.shape, value.dtype) == (own.shape, own.dtype)
        if value is not None and fits and own.is_contiguous():
            own.copy_(value)
        elif value is None or not fits or not torch.equal(value, own):
            for place in places[id(own)]:
                path, _, attribute = place.rpartition(".")
                model.get_submodule(path)._buffers[attribute] = None if value is None else value.detach()


@torch.no_grad()
def average_buffers(model: nn.Module, changed: Sequence[dict[str, Tensor]], *, distributed: bool) -> None:
    """Move the model's buffers to the mean of what the tasks made of them.

    Buffers of another shape than before have no mean: they stay what they were. So does each number that is not finite.

    Args:
        model: The model.
        changed: For each task, those buffers that it changed.
        distributed: Whether the mean is over the tasks of all processes.
    """
    if not (distributed or any(changed)):
        return
    own = dict(model.named_buffers())
    wide = {name: buffer.to(torch.promote_types(buffer.dtype, torch.float64)) for name, buffer in own.items()}
    changes = {name: torch.zeros_like(buffer) for name, buffer in wide.items()}
    for task in changed:
        for name, buffer in task.items():
            if buffer.shape == wide[name].shape:
                change = buffer - wide[name]
                changes[name] += torch.where(torch.isfinite(change), change, 0.0)
    count = torch.tensor(float(len(changed)), dtype=torch.float64, device=next(model.parameters()).device)
    if distributed and own:
        sum_over_processes([*changes.values(), count])
    for name, change in changes.items():
        if change.any():  # the others stay bit for bit
            moved = wide[name] + change / count
            whole = not (own[name].is_floating_point() or own[name].is_complex())
            own[name].copy_(moved.round() if whole else moved)
