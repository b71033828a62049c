"""The inner loop of meta-learning: gradient steps on a task's loss, as a differentiable function of the weights."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import grad

from ssm_metarl_gym.agents.layers import check_embeddings
from ssm_metarl_gym.agents.losses import NO_GRADIENT
from ssm_metarl_gym.checks import as_number, check_choice, check_flag, check_integer, check_number

__all__ = ["InnerLoop", "LearnedRates", "Weights"]

Weights: TypeAlias = dict[str, Tensor]
LearnedRates: TypeAlias = Literal["tensor", "step", "element"]


class InnerLoop:
    """Gradient steps on a task's loss, as a differentiable function of the weights and of learned step sizes.

    ``w_s = w_sm1 - rate * grad loss(w_sm1)``, equation 1 of Finn et al. 2017 (https://arxiv.org/abs/1703.03400).

    Args:
        model: The module whose parameters are adapted. Those that are frozen (``requires_grad=False``) stay so.
        inner_lr: The step size; where step sizes are learned, their first value.
        first_order: Whether gradients count as constants, which ignores how they depend on the weights.
        adapts: Says by name which parameters the steps change; None for all.
        learned_rates: What has a step size of its own that is learned: each parameter (``"tensor"``), each parameter in
            each step (``"step"``, Antoniou et al. 2019, https://arxiv.org/abs/1810.09502), or each number in each
            parameter (``"element"``, Meta-SGD of Li et al. 2017, https://arxiv.org/abs/1707.09835). Learned are
            logarithms: a step size never turns negative. None for ``inner_lr`` throughout.
        num_steps: For how many steps ``"step"`` has step sizes; later ones use the last.
        grad_clip_norm: The largest L2 norm of a task's gradient; inf for no bound.

    Attributes:
        model: The model.
        inner_lr: The step size, or the first value of those that are learned.
        first_order: Whether gradients count as constants.
        learned_rates: What has a step size of its own that is learned.
        grad_clip_norm: The largest L2 norm of a task's gradient.
        trained: The names of all parameters that require a gradient.
        adapted: The names of those that the steps change.
        rates: The logarithms of the learned step sizes by the names of their parameters; empty without any.

    Raises:
        ValueError: ``inner_lr`` is not finite and positive, ``grad_clip_norm`` not positive, ``learned_rates`` is
            unknown, there is nothing to adapt, or the model is none or changes its weights by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_lr: float,
        *,
        first_order: bool = False,
        adapts: Callable[[str], bool] | None = None,
        learned_rates: LearnedRates | None = None,
        num_steps: int = 1,
        grad_clip_norm: float = math.inf,
    ) -> None:
        _check_model(model)
        inner_lr, grad_clip_norm = as_number(inner_lr), as_number(grad_clip_norm)
        check_number("inner_lr", inner_lr, ("finite and > 0", lambda value: 0.0 < value < math.inf))
        check_number("the norm to clip at", grad_clip_norm, ("> 0", lambda value: value > 0.0))
        if learned_rates is not None:
            check_choice("learned_rates", learned_rates, get_args(LearnedRates))
        check_integer("num_steps", num_steps, least=0)
        check_flag("first_order", first_order)
        self.model = model
        self.inner_lr = inner_lr
        self.first_order = first_order
        self.learned_rates: LearnedRates | None = learned_rates
        self.grad_clip_norm = grad_clip_norm
        if adapts is not None and not callable(adapts):
            raise ValueError(
                f"adapts must be a function from a parameter's name to whether it adapts; got {adapts!r}. Use "
                "lambda name: name.startswith(...)."
            )
        self._parameters = _trainable(model)
        for name, parameter in self._parameters.items():
            if nn.parameter.is_lazy(parameter):
                raise ValueError(f"a parameter must have a shape; got {name}, which has none yet. Call the model once.")
        self.trained = tuple(self._parameters)
        self.adapted = tuple(name for name in self.trained if adapts is None or adapts(name))
        if not self.adapted:
            raise ValueError(
                "the model must have a parameter that requires a gradient and that `adapts` accepts; of "
                f"{list(self.trained)} it has none. Unfreeze one with requires_grad_(True), or accept one of these."
            )
        self._detached = False
        self.rates: Weights = {}
        if learned_rates is not None:
            shapes = {"tensor": (), "step": (max(num_steps, 1),)}
            for name, weight in self.weights().items():
                if name in self.adapted:
                    shape = shapes.get(learned_rates, weight.shape)
                    # Of a complex weight, too, the step size is a real number; half precision is too coarse for it.
                    dtype = torch.promote_types(weight.dtype.to_real(), torch.float32)
                    rate = torch.full(shape, math.log(inner_lr), dtype=dtype, device=weight.device)
                    self.rates[name] = rate.requires_grad_()

    def check_parameters(self) -> None:
        """Check that the model still has the parameters that this object was made for: no others are trained.

        Raises:
            ValueError: One of them was replaced, frozen or unfrozen, or there is another one.
        """
        now = _trainable(self.model)
        changed = [name for name in {**self._parameters, **now} if now.get(name) is not self._parameters.get(name)]
        if changed:
            raise ValueError(
                "the model must have the parameters that it had when its training began, frozen or not; "
                f"since then these were replaced, added or (un)frozen: {changed}. Make a new MetaMAML, or trainer."
            )

    def weights(self) -> Weights:
        """All parameters that require a gradient, as they are now."""
        weights: Weights = {name: self.model.get_parameter(name) for name in self.trained}
        return {name: weight.detach() for name, weight in weights.items()} if self._detached else weights

    def rate(self, name: str, index: int) -> Tensor | float:
        """The step size of a parameter in step ``index``: a number, a scalar, or as many numbers as the parameter."""
        if not self.rates:
            return self.inner_lr
        rates = self.rates[name].detach() if self._detached else self.rates[name]
        weight = self.model.get_parameter(name)
        if rates.device != (device := weight.device):
            raise ValueError(
                f"the model must be on the device of its learned step sizes, {rates.device}; got {device}. Move the "
                "model before its step sizes are made."
            )
        if self.learned_rates == "step":
            rates = rates[min(index, len(rates) - 1)]
        return rates.exp().to(weight.dtype.to_real())

    def step(
        self, loss_fn: Callable[[Weights], Tensor], weights: Weights, index: int = 0, *, functional: bool = True
    ) -> Weights:
        """One step, which may be mapped over tasks with ``torch.vmap`` and differentiated.

        Args:
            loss_fn: The task's loss as a function of all trained weights, a scalar.
            weights: The weights before the step, of the names ``trained``.
            index: The number of the step, from 0.
            functional: Whether to differentiate with ``torch.func``, without which there is no ``vmap``. Plain autograd
                also takes what ``torch.func`` refuses: buffers that change, and functions that cannot be transformed.

        Returns:
            The weights after it.

        Raises:
            ValueError: Step sizes are learned, and the model is no longer on their device; or a gradient is sparse.
        """
        adapted = {name: weights[name] for name in self.adapted}
        if self.first_order:
            adapted = {name: weight.detach() for name, weight in adapted.items()}

        def loss_of(adapted: Weights) -> Tensor:
            return loss_fn(weights | adapted)

        gradients = grad(loss_of)(adapted) if functional else _gradients(loss_of, adapted, not self.first_order)
        sparse = [name for name, gradient in gradients.items() if gradient.is_sparse]
        if sparse:
            raise ValueError(f"gradients must be dense; got sparse ones of {sparse}. Use sparse=False.")
        if self.first_order:
            gradients = {name: gradient.detach() for name, gradient in gradients.items()}
        gradients = self._clipped(gradients)
        return weights | {name: weights[name] - self.rate(name, index) * gradients[name] for name in gradients}

    def detached(self) -> "InnerLoop":
        """The same steps from the same weights, but nothing behind them: what they give has no graph."""
        twin = copy.copy(self)
        twin.first_order = twin._detached = True
        return twin

    def _clipped(self, gradients: Weights) -> Weights:
        """The gradients of a task, scaled down where their norm is larger than allowed."""
        if self.grad_clip_norm == math.inf:
            return gradients
        square = torch.stack([(gradient * gradient.conj()).real.sum() for gradient in gradients.values()]).sum()
        # The square root of the bound has no infinite slope where the gradient is zero.
        factor = self.grad_clip_norm / square.clamp(min=self.grad_clip_norm**2).sqrt()
        return {name: factor * gradient for name, gradient in gradients.items()}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _check_model(model: Any) -> None:
    """A model must be a module whose weights are there, and change by steps along dense gradients alone."""
    if isinstance(model, type):
        raise ValueError(
            f"the model must be a torch.nn.Module; got the class {model.__name__}. Make an instance of it."
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model must be a torch.nn.Module; got {model!r}. Call a function in the forward of one.")
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
            raise ValueError(
                f"a model must be of plain modules; got {type(module).__name__} {name!r}, which takes no other weights "
                "than its own. Use the module that it was made of."
            )
        is_embedding = isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        if is_embedding and module.sparse and module.weight.requires_grad:
            raise ValueError(
                f"a trained embedding must have sparse=False; got True in {type(module).__name__} {name!r}. Make it "
                "without sparse, or freeze it."
            )
    check_embeddings(model)


def _gradients(loss_of: Callable[[Weights], Tensor], weights: Weights, create_graph: bool) -> Weights:
    """The gradients by plain autograd."""
    with torch.enable_grad():
        if not create_graph:
            weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        loss = loss_of(weights)
        if not loss.requires_grad:
            raise ValueError(NO_GRADIENT)
        found = torch.autograd.grad(loss, tuple(weights.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(weights, found, strict=True))
