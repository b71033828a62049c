"""What the processes of one training run share, through ``torch.distributed``; nothing where there is but one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["copy_from_first_process", "own_share", "rank", "sum_over_processes", "world_size"]


def rank() -> int:
    """The index of this process, 0 without a process group."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if _together() else 1


def own_share(num: int) -> range:
    """Which of ``num`` things this process works on: a contiguous part, as long as any other's or one longer."""
    return range(rank() * num // world_size(), (rank() + 1) * num // world_size())


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in place, with one exchange for each type of number."""
    if world_size() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for group in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        dist.all_reduce(flat)
        for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(total.view_as(tensor))


def copy_from_first_process(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by that of process 0, in place: two processors may differ in the last bit."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _together() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()
