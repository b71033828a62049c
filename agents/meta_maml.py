"""Model-agnostic meta-learning (MAML) for any module."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ssm_metarl_gym.agents.losses import measure
from ssm_metarl_gym.checks import check_integer

__all__ = ["LossFunction", "MetaMAML", "MetaTask"]

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
MetaTask: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
_Weights: TypeAlias = dict[str, Tensor]

_logger = logging.getLogger(__name__)
_ONE_BY_ONE = "tasks are computed one after the other, because torch.func.vmap does not suit the model: %s"


class MetaMAML:
    """Meta-learns the weights from which a few gradient steps on a task's support set suffice.

    Finn et al. 2017, https://arxiv.org/abs/1703.03400, equation 1: the weights ``w`` minimise the mean over tasks of
    ``loss(query; w - inner_lr * grad loss(support; w))``, here with Adam outside. By default the outer gradient is
    exact, through the inner gradient (second order); ``first_order`` takes the inner gradient as a constant.

    Tasks of equal shapes are computed together, others (and modules that ``torch.func.vmap`` refuses or gets wrong,
    such as ``nn.LSTM`` and ``nn.LayerNorm``) one after the other; the result is the same. (A module that calls
    ``F.layer_norm`` with weights itself is not recognised: scale the result in a second operation.) Frozen parameters
    (``requires_grad=False``) stay as they are.

    Example:
        >>> maml = MetaMAML(nn.Linear(4, 1), inner_lr=0.01, outer_lr=0.001)
        >>> x, y = torch.randn(10, 4), torch.randn(10, 1)
        >>> loss = maml.meta_update([(x, y, x, y)] * 8, nn.MSELoss())
        >>> adapted = maml.adapt(x, y, nn.MSELoss(), num_steps=5)

    Args:
        model: The module whose weights are meta-learned, in place.
        inner_lr: Step size of the gradient steps on a support set.
        outer_lr: Step size of Adam on the weights themselves.
        first_order: Whether the outer gradient ignores how the inner gradient depends on the weights.
        inner_steps: Number of inner steps in :meth:`meta_update`.
        adapts: Says by name which parameters the inner steps change; None for all. With the last layer only this is
            ANIL (Raghu et al. 2020, https://arxiv.org/abs/1909.09157). The outer step changes all of them regardless.

    Attributes:
        optimizer: The outer optimiser.

    Raises:
        ValueError: A step size is not finite and positive, ``inner_steps`` is not positive, or nothing can be trained.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float,
        outer_lr: float,
        first_order: bool = False,
        *,
        inner_steps: int = 1,
        adapts: Callable[[str], bool] | None = None,
    ) -> None:
        for name, value in (("inner_lr", inner_lr), ("outer_lr", outer_lr)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be finite and > 0; got {value!r}.")
        check_integer("inner_steps", inner_steps)
        self.model = model
        self.inner_lr = inner_lr
        self.first_order = first_order
        self.inner_steps = inner_steps
        self._trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._adapted = [name for name in self._trained if adapts is None or adapts(name)]
        if not self._adapted:
            raise ValueError(
                "the model must have a parameter that requires a gradient and that `adapts` accepts; it has none. "
                "Unfreeze one with requires_grad_(True)."
            )
        self.optimizer = torch.optim.Adam((model.get_parameter(name) for name in self._trained), lr=outer_lr)
        # What vmap refuses, and what it gets wrong in second order: https://github.com/pytorch/functorch/issues/534.
        unfit = (nn.RNNBase,) if first_order else (nn.RNNBase, nn.LayerNorm, nn.modules.batchnorm._NormBase)
        found = {type(module).__name__ for module in model.modules() if isinstance(module, unfit)}
        self._together = not found
        if found:
            _logger.warning(_ONE_BY_ONE, f"it contains {', '.join(sorted(found))}")

    def adapt(self, support_x: Tensor, support_y: Tensor, loss_fn: LossFunction, num_steps: int) -> nn.Module:
        """A copy of the model after ``num_steps`` gradient steps on a support set; the model itself is untouched.

        Args:
            support_x: ``Float[N ...]``, the inputs.
            support_y: ``Float[N ...]``, the targets.
            loss_fn: Takes a prediction and a target, gives a scalar.
            num_steps: Number of steps, >= 0.

        Raises:
            ValueError: The support is empty, not finite or of two lengths.
        """
        self._check_mode()
        _check_set("support", support_x, support_y)
        check_integer("num_steps", num_steps, least=0)
        adapted_model = copy.deepcopy(self.model)
        weights = {name: adapted_model.get_parameter(name).detach() for name in self._trained}
        with torch.no_grad():
            adapted = self._inner_loop(adapted_model, weights, support_x, support_y, loss_fn, num_steps)
            for name in self._adapted:
                adapted_model.get_parameter(name).copy_(adapted[name])
        return adapted_model

    def meta_update(self, tasks: Sequence[MetaTask], loss_fn: LossFunction) -> float:
        """One outer step on a batch of tasks.

        Args:
            tasks: Tuples ``(support_x, support_y, query_x, query_y)``.
            loss_fn: Takes a prediction and a target, gives a scalar.

        Returns:
            The mean loss on the query sets after adaptation, from the weights before this step.

        Raises:
            ValueError: A set is empty, not finite or of two lengths.
            FloatingPointError: The loss or its gradient is not finite; the model is as it was.
        """
        loss = self.query_losses(tasks, loss_fn, self.inner_steps).mean()
        parameters = [self.model.get_parameter(name) for name in self._trained]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if not all(g is None or torch.isfinite(g).all() for g in (loss, *gradients)):
            raise FloatingPointError(
                f"the loss ({loss.item()}) and its gradient must be finite; the weights were left as they were. "
                f"Lower inner_lr ({self.inner_lr}) or normalise the targets."
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def query_losses(self, tasks: Sequence[MetaTask], loss_fn: LossFunction, num_steps: int) -> Tensor:
        """The loss on each query set after ``num_steps`` on its support set: ``Float[K]``, with the graph behind it."""
        if not tasks:
            raise ValueError("tasks must hold at least one tuple (support_x, support_y, query_x, query_y); got none.")
        self._check_mode()
        for index, (support_x, support_y, query_x, query_y) in enumerate(tasks):
            _check_set(f"support of task {index}", support_x, support_y)
            _check_set(f"query of task {index}", query_x, query_y)
        weights: _Weights = {name: self.model.get_parameter(name) for name in self._trained}

        def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            adapted = self._inner_loop(self.model, weights, support_x, support_y, loss_fn, num_steps)
            return _loss(self.model, adapted, query_x, query_y, loss_fn)

        if self._together and all(_shapes(task) == _shapes(tasks[0]) for task in tasks):
            try:
                return vmap(query_loss, randomness="different")(
                    *(torch.stack(part) for part in zip(*tasks, strict=True))
                )
            except RuntimeError as error:
                losses = [query_loss(*task) for task in tasks]  # a fault of the tasks themselves is raised again here
                self._together = False
                _logger.warning(_ONE_BY_ONE, error)
                return torch.stack(losses)
        return torch.stack([query_loss(*task) for task in tasks])

    def _check_mode(self) -> None:
        running = (module for module in self.model.modules() if isinstance(module, nn.modules.batchnorm._NormBase))
        if any(module.training and module.track_running_stats for module in running):
            raise ValueError("a model with running statistics must be in evaluation mode; call model.eval() first.")

    def _inner_loop(
        self, model: nn.Module, weights: _Weights, x: Tensor, y: Tensor, loss_fn: LossFunction, num_steps: int
    ) -> _Weights:
        adapted = {name: weights[name] for name in self._adapted}

        def support_loss(adapted: _Weights) -> Tensor:
            return _loss(model, weights | adapted, x, y, loss_fn)

        for _ in range(num_steps):
            if self.first_order:
                gradients = grad(support_loss)({name: weight.detach() for name, weight in adapted.items()})
                gradients = {name: gradient.detach() for name, gradient in gradients.items()}
            else:
                gradients = grad(support_loss)(adapted)
            adapted = {name: weight - self.inner_lr * gradients[name] for name, weight in adapted.items()}
        return weights | adapted


def _loss(model: nn.Module, weights: _Weights, x: Tensor, y: Tensor, loss_fn: LossFunction) -> Tensor:
    return measure(loss_fn, functional_call(model, weights, (x,)), y)


def _shapes(task: MetaTask) -> list[torch.Size]:
    return [part.shape for part in task]


def _check_set(what: str, x: Tensor, y: Tensor) -> None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"the {what} must be tensors; got {type(x).__name__} and {type(y).__name__}.")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"the {what} must have as many inputs as targets, at least one; got shapes {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise ValueError(f"the {what} must be finite; got NaN or infinity. Drop those rows.")
