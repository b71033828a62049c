"""The outer loop of meta-learning: an ordinary optimiser's step on the mean loss over tasks."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ssm_metarl_gym.agents.losses import NO_GRADIENT
from ssm_metarl_gym.agents.meta_learning.distributed import sum_over_processes
from ssm_metarl_gym.checks import as_number, check_integer, check_number, shown

__all__ = ["OuterLoop"]

# What optimisers of PyTorch remember number by number.
_MOMENTS: Final = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")
_logger = logging.getLogger(__name__)


class OuterLoop:
    """Steps of an optimiser on the mean loss over tasks.

    Tasks whose loss or gradient is not finite are left out and counted; the mean is over the others.

    Args:
        parameters: What is trained.
        optimizer: Any optimiser of them.
        rates: Those of the parameters that are learned step sizes, by name: no module holds them, so that they are
            saved here.
        task_chunk_size: The most tasks whose graph is held at once; None for all. The result is the same.
        grad_clip_norm: The largest L2 norm of the mean gradient; inf for no bound.
        distributed: Whether every process of the default process group takes the same step at the same time, each with
            tasks of its own. The mean is over the tasks of all of them.

    Attributes:
        parameters: What is trained.
        optimizer: The optimiser.
        task_chunk_size: The most tasks whose graph is held at once.
        grad_clip_norm: The largest L2 norm of the mean gradient.
        distributed: Whether all processes take the same step.
        num_dropped: The number of tasks that were left out so far, in all processes.
        last_dropped: The indices of the tasks of this process that the last step left out.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        rates: Mapping[str, Tensor] | None = None,
        task_chunk_size: int | None = None,
        grad_clip_norm: float = math.inf,
        distributed: bool = False,
    ) -> None:
        if task_chunk_size is not None:
            check_integer("task_chunk_size", task_chunk_size)
        grad_clip_norm = as_number(grad_clip_norm)
        check_number("grad_clip_norm", grad_clip_norm, ("> 0 (inf for no bound)", lambda value: value > 0.0))
        self.parameters = tuple(parameters)
        self.optimizer = optimizer
        self.task_chunk_size = task_chunk_size
        self.grad_clip_norm = grad_clip_norm
        self.distributed = distributed
        self._rates = dict(rates or {})
        self.num_dropped = 0
        self.last_dropped: list[int] = []

    def step(self, losses_of: Callable[[Sequence[int]], Tensor], num_tasks: int) -> float:
        """One step.

        Args:
            losses_of: The losses of the tasks of these indices, which are consecutive, ``Float[len(indices)]``, with
                the graph behind them. May be called more than once with the same index.
            num_tasks: The number of tasks, of this process.

        Returns:
            The mean loss over the tasks that count, from before the step.

        Raises:
            FloatingPointError: No task counts, or the square of their mean gradient overflows; the parameters are as
                they were.
        """
        # Sum losses and gradients over the tasks, chunk by chunk.
        total = _Total(self.parameters)
        self.last_dropped = []
        size = max(num_tasks, 1) if self.task_chunk_size is None else self.task_chunk_size
        for start in range(0, num_tasks, size):
            self._add(total, losses_of, range(start, min(start + size, num_tasks)))
        if self.distributed:
            total.sum_over_processes()
        # Leave out the tasks that are not finite.
        loss, num_kept, num_dropped = total.counts.tolist()
        gradients = total.mean_gradients()
        if num_dropped:
            _logger.warning(
                "%d of %d tasks were left out: their loss or gradient is not finite",
                num_dropped,
                num_kept + num_dropped,
            )
            self.num_dropped += int(num_dropped)
        if not num_kept or not _has_finite_square(gradients):
            found = (
                "their sum over the tasks, or its square, overflows"
                if num_kept
                else f"they are so in none of {num_dropped:.0f} tasks"
            )
            raise FloatingPointError(
                f"the loss and its gradient must be finite; {found}, and the weights were left as they were. "
                "Lower inner_lr or outer_lr, or normalise the data."
            )
        # Step along the mean gradient of the others.
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.grad_clip_norm < math.inf:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss / num_kept)

    def state_dict(self) -> dict[str, Any]:
        """All that is learned and counted here, as it is now: the optimiser's state and the learned step sizes."""
        return {
            "optimizer_class": type(self.optimizer).__name__,
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),  # whose tensors would change with the next step
            "rates": {name: rate.detach().clone() for name, rate in self._rates.items()},
            "num_dropped": self.num_dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, of an object made with the same arguments.

        Raises:
            ValueError: The state is of something else; what is here is as it was.
        """
        missing = sorted({"optimizer", "rates", "num_dropped"} - state.keys())
        if missing:
            raise ValueError(f"the state must be what state_dict() gave; got one without {', '.join(missing)}.")
        optimizer = type(self.optimizer).__name__
        found = state.get("optimizer_class", optimizer)  # which some older files do not name
        if found != optimizer:
            raise ValueError(f"the state must be one of {optimizer}; got one of {found}. Use the same optimizer_class.")
        own, theirs = (
            {name: tuple(rate.shape) for name, rate in rates.items()} for rates in (self._rates, state["rates"])
        )
        if own != theirs:
            raise ValueError(f"the learned rates must be of {own}; got {theirs}. Use the same learned_rates.")
        self._check_moments(state["optimizer"])
        self.optimizer.load_state_dict(self._in_groups(copy.deepcopy(state["optimizer"])))
        with torch.no_grad():
            for name, rate in self._rates.items():
                rate.copy_(state["rates"][name])
        self.num_dropped = state["num_dropped"]

    def _in_groups(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimiser in the groups of this one: older ones had weights and step sizes in one group."""
        own, theirs = self.optimizer.param_groups, state["param_groups"]
        if len(own) == 2 and len(theirs) == 1:
            size = len(own[0]["params"])
            first, second = theirs[0]["params"][:size], theirs[0]["params"][size:]
            decay = own[1]["weight_decay"]
            state["param_groups"] = [
                {**theirs[0], "params": first},
                {**theirs[0], "params": second, "weight_decay": decay},
            ]
        return state

    def _check_moments(self, state: Any) -> None:
        """What an optimiser remembers of each parameter must be of its shape."""
        moments = state.get("state") if isinstance(state, Mapping) else None
        if not isinstance(moments, Mapping):
            raise ValueError(f"the optimizer's state must be what its state_dict() gave; got {shown(state)}.")
        own = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(own):
            for name, moment in moments.get(index, {}).items():
                if name in _MOMENTS and isinstance(moment, Tensor) and moment.shape != parameter.shape:
                    raise ValueError(
                        f"the state must be of parameters of the same shapes; got {name} of shape "
                        f"{tuple(moment.shape)} for one of {tuple(parameter.shape)}. Use the same model."
                    )

    def _add(self, total: "_Total", losses_of: Callable[[Sequence[int]], Tensor], indices: Sequence[int]) -> None:
        """Add the tasks of a chunk; where it is not finite as a whole, half by half."""
        found = self._differentiate(losses_of(indices))
        if found is not None:
            total.add(*found)
        elif len(indices) == 1:
            total.counts[2] += 1
            self.last_dropped += indices
        else:
            middle = len(indices) // 2
            self._add(total, losses_of, indices[:middle])
            self._add(total, losses_of, indices[middle:])

    def _differentiate(self, losses: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]] | None:
        """The losses and the gradients of their sum; None where one of them is not finite."""
        if not torch.isfinite(losses).all():
            return None
        if not losses.requires_grad:
            raise ValueError(NO_GRADIENT)
        gradients = torch.autograd.grad(losses.sum(), self.parameters, allow_unused=True)
        return (losses.detach(), gradients) if _finite(gradients) else None


class _Total:
    """Sums over tasks.

    Attributes:
        gradients: One for each parameter.
        used: ``Float64[P]``, how many chunks depended on each parameter.
        counts: ``Float64[3]``: the sum of the losses, the number of tasks that count, the number of those that do not.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        self.used = torch.zeros(len(parameters), dtype=torch.float64)
        self.counts = torch.zeros(3, dtype=torch.float64)

    def add(self, losses: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Add the losses of tasks, and the gradients of their sum."""
        for total, gradient in zip(self.gradients, gradients, strict=True):
            if gradient is not None:
                total += gradient
        self.used += torch.tensor([gradient is not None for gradient in gradients])
        self.counts[0] += losses.cpu().double().sum()  # not every device has double precision
        self.counts[1] += len(losses)

    def sum_over_processes(self) -> None:
        """Replace all sums by those over the tasks of all processes."""
        device = self.gradients[0].device  # NCCL takes nothing from the CPU
        self.used, self.counts = self.used.to(device), self.counts.to(device)
        sum_over_processes([*self.gradients, self.used, self.counts])

    def mean_gradients(self) -> list[Tensor | None]:
        """The mean gradients; None for a parameter on which no loss depends, so that the optimiser skips it."""
        num_tasks = max(float(self.counts[1]), 1.0)
        return [
            gradient / num_tasks if used else None
            for gradient, used in zip(self.gradients, self.used.tolist(), strict=True)
        ]


def _finite(tensors: Sequence[Tensor | None]) -> bool:
    return all(tensor is None or bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _has_finite_square(gradients: Sequence[Tensor | None]) -> bool:
    """Whether the gradient is finite, and small enough for the sum of its squares to be so.

    Adam would remember an infinite square for ever and never move a weight again, and clipping by an infinite norm
    gives zero: training would go on and change nothing.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    largest = torch.nn.utils.get_total_norm(present, math.inf)
    largest = largest.to(torch.promote_types(largest.dtype, torch.float32))
    return bool(torch.isfinite(largest.square() * sum(gradient.numel() for gradient in present)))
