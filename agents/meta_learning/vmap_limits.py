"""May the tasks of a model be computed together? What ``torch.func.vmap`` refuses or gets wrong, found and avoided."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ssm_metarl_gym.agents.stateless import is_out_of_memory

__all__ = ["VmapLimits"]

_logger = logging.getLogger(__name__)
_Norm: Final = nn.modules.batchnorm._NormBase
# Functions whose gradients vmap gets wrong where an argument is given, by its name and place, and what means that it is
# not. In any order the row of an embedding's padding gets a gradient:
_WRONG: Final = ((F.embedding, "padding_idx", 2, None), (torch.embedding, "padding_idx", 2, -1))
# And in second order (of scales: https://github.com/pytorch/functorch/issues/534):
_WRONG_TWICE: Final = (
    (F.embedding, "scale_grad_by_freq", 5, False),
    (torch.embedding, "scale_grad_by_freq", 3, False),
    (F.layer_norm, "weight", 2, None),
    (torch.layer_norm, "weight", 2, None),
    (torch.native_layer_norm, "weight", 2, None),
    (F.batch_norm, "weight", 3, None),
    (torch.batch_norm, "weight", 1, None),
    (torch.native_batch_norm, "weight", 1, None),
    (F.instance_norm, "weight", 3, None),
    (torch.instance_norm, "weight", 1, None),
)


class VmapLimits:
    """Computes the tasks of a model together as long as that gives what one after the other gives.

    What vmap refuses shows itself by an error. What it gets wrong is looked for: among the model's modules, and the
    first time in each order, and in each mode of the modules, among all functions that the model calls. Once there is a
    reason, it is logged, and tasks are computed one after the other from then on.

    Args:
        model: The model.
        second_order: Whether inner gradients will be differentiated.
    """

    def __init__(self, model: nn.Module, *, second_order: bool) -> None:
        self._model = model
        self._together = True
        self._watched: set[tuple[bool, ...]] = set()
        unfit = (nn.RNNBase, nn.LayerNorm, _Norm) if second_order else (nn.RNNBase,)
        found = {type(module).__name__ for module in model.modules() if isinstance(module, unfit)}
        if found:
            self._give_up(f"it contains {', '.join(sorted(found))}")

    def compute(
        self, together: Callable[[], Tensor], one_by_one: Callable[[], Tensor], *, second_order: bool
    ) -> Tensor:
        """The losses of tasks, computed together where the model allows that.

        Args:
            together: Computes them with vmap. A ``RuntimeError`` says why that cannot be.
            one_by_one: Computes the same without.
            second_order: Whether inner gradients are differentiated.
        """
        if self._together and any(map(_mixes_rows, self._model.modules())):
            self._give_up("it contains batch normalisation in training, whose statistics belong to one task")
        if not self._together:
            return one_by_one()
        try:
            key = second_order, *(module.training for module in self._model.modules())
            return together() if key in self._watched else self._watch(together, key)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise  # a matter of task_chunk_size
            reason = str(error).partition("\n")[0]
        losses = one_by_one()
        self._give_up(reason)  # only now: a fault of the tasks themselves was raised again
        return losses

    def _watch(self, together: Callable[[], Tensor], key: tuple[bool, ...]) -> Tensor:
        """What ``together`` gives, unless the model calls something that vmap gets wrong.

        The key is whether it is in second order, and the modes of the modules.
        """
        with _WrongCalls(_WRONG + _WRONG_TWICE if key[0] else _WRONG) as calls:
            losses = together()
        self._watched.add(key)
        if calls.found:
            raise RuntimeError(f"it calls {', '.join(sorted(calls.found))}")
        return losses

    def _give_up(self, reason: str) -> None:
        self._together = False
        _logger.warning(
            "tasks are computed one after the other, because torch.func.vmap does not suit the model or the loss: %s",
            reason,
        )


class _WrongCalls(TorchFunctionMode):
    """Finds calls of functions with arguments that vmap gets wrong, in whatever module they are."""

    def __init__(self, wrong: Sequence[tuple[Any, str, int, Any]]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._wrong = wrong

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for function, name, place, nothing in self._wrong:
            values = (kwargs.get(name, nothing), *args[place : place + 1])
            if func is function and any(isinstance(value, Tensor) or value != nothing for value in values):
                self.found.add(f"{func.__name__} with {name}")
        return func(*args, **kwargs)


def _mixes_rows(module: nn.Module) -> bool:
    """Whether the module normalises by statistics of the rows that it is given, with padding and all."""
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_batch_norm and (module.training or module.running_mean is None)
