"""Model-agnostic meta-learning (MAML) for any module, and what descends from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.meta_learning.autograd_limits import differentiable
from ssm_metarl_gym.agents.meta_learning.buffers import average_buffers, copy_buffers, write_buffers
from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop, LearnedRates, Weights
from ssm_metarl_gym.agents.meta_learning.outer_loop import OuterLoop
from ssm_metarl_gym.agents.meta_learning.reptile import ReptileLoss
from ssm_metarl_gym.agents.meta_learning.task_losses import BatchedTasks, QueryLosses, TaskLoss, set_loss
from ssm_metarl_gym.agents.meta_learning.tasks import Inputs, LossFunction, MetaTask, TaskSet, check_set, check_tasks
from ssm_metarl_gym.agents.stateless import StatelessModule, attributes_kept, copy_module
from ssm_metarl_gym.checks import as_number, check_choice, check_flag, check_integer, check_number

__all__ = ["LossFunction", "MetaMAML", "MetaTask"]

_Algorithm = Literal["maml", "reptile"]


class MetaMAML:
    """Meta-learns the weights from which a few gradient steps on a task's support set suffice.

    Finn et al. 2017, https://arxiv.org/abs/1703.03400, equation 1: the weights ``w`` minimise the mean over tasks of
    ``loss(query; w - inner_lr * grad loss(support; w))``. By default the outer gradient is exact, through the inner
    gradient (second order).

    What else there is of this kind is chosen by keyword: first-order MAML (``first_order=True``), ANIL of Raghu et al.
    2020, https://arxiv.org/abs/1909.09157 (``adapts=lambda name: name.startswith("head.")``), Meta-SGD of Li et al.
    2017, https://arxiv.org/abs/1707.09835 (``learned_rates="element"``, here never negative), MAML++ of Antoniou et al.
    2019, https://arxiv.org/abs/1810.09502 (``learned_rates="step", multi_step_updates=5000``), Reptile of Nichol et al.
    2018, https://arxiv.org/abs/1803.02999 (``algorithm="reptile"``) and plain multi-task training (``inner_steps=0``).

    All tasks are computed together, with ``torch.func.vmap``, or faster still where the model is linear and elementwise
    layers in sequence. Tasks may differ in their numbers of rows: they are padded, and the padding masked, where the
    loss is one of torch's elementwise ones (the rows of a batch must then not depend on each other, as they do in
    attention over rows), else those of equal shapes are computed together. Modules that vmap refuses or gets wrong
    (``nn.LSTM``, ``nn.LayerNorm`` in second order, batch normalisation in training, embeddings with padding) have their
    tasks computed one after the other, which is logged once. The result is the same.

    A task whose loss or gradient is not finite is left out, logged and counted. Frozen parameters
    (``requires_grad=False``) stay as they are. Every task begins with the model's buffers and attributes; after an
    outer step the buffers are the mean of what the tasks made of them, and the attributes are as they were.

    Example:
        >>> maml = MetaMAML(nn.Linear(4, 1), inner_lr=0.01, outer_lr=0.001)
        >>> x, y = torch.randn(10, 4), torch.randn(10, 1)
        >>> loss = maml.meta_update([(x, y, x, y)] * 8, nn.MSELoss())
        >>> adapted = maml.adapt(x, y, nn.MSELoss(), num_steps=5)

    Args:
        model: The module whose weights are meta-learned, in place.
        inner_lr: Step size of the gradient steps on a support set; where it is learned, its first value.
        outer_lr: Step size of the optimiser of the weights themselves, and of learned inner step sizes.
        first_order: Whether the outer gradient ignores how the inner gradient depends on the weights.
        inner_steps: Number of inner steps in :meth:`meta_update`.
        adapts: Says by name which parameters the inner steps change; None for all. The outer step changes the others,
            too, except in Reptile.
        algorithm: ``"maml"``, or ``"reptile"``: the outer gradient is the way from the adapted weights back to the
            weights, whose inner steps take support and query set in turn, as two minibatches of one task.
        learned_rates: Which inner step sizes are learned: None, or one for each parameter (``"tensor"``), for each
            parameter in each step (``"step"``), or for each number in each parameter (``"element"``).
        multi_step_updates: Over so many updates, the query losses after all earlier inner steps count too, at first as
            much as the last one, then ever less (MAML++). 0 for the last one alone.
        inner_grad_clip_norm: The largest L2 norm of a task's gradient in an inner step.
        grad_clip_norm: The largest L2 norm of the outer gradient.
        optimizer_class: The class of the outer optimiser, whose ``step`` takes no closure.
        optimizer_kwargs: More of its arguments. For a schedule give :attr:`optimizer` to one of
            ``torch.optim.lr_scheduler``.
        task_chunk_size: The most tasks that are computed together, which bounds the memory; None for all.
        distributed: Whether each process of ``torch.distributed``'s default group calls :meth:`meta_update` with tasks
            of its own, and all take the step of the mean over all tasks.

    Attributes:
        model: The model.
        inner_steps: The number of inner steps.
        algorithm: ``"maml"`` or ``"reptile"``.
        multi_step_updates: For how many updates the losses after earlier inner steps count.
        distributed: Whether all processes take the step together.
        optimizer: The outer optimiser.
        num_updates: The number of outer steps so far.
        num_dropped: The number of tasks that were left out so far because they were not finite.

    Raises:
        ValueError: An argument is out of its range, two contradict each other, or nothing can be trained.
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
        algorithm: _Algorithm = "maml",
        learned_rates: LearnedRates | None = None,
        multi_step_updates: int = 0,
        inner_grad_clip_norm: float = math.inf,
        grad_clip_norm: float = math.inf,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        task_chunk_size: int | None = None,
        distributed: bool = False,
    ) -> None:
        outer_lr = as_number(outer_lr)
        check_number("outer_lr", outer_lr, ("finite and > 0", lambda value: 0.0 < value < math.inf))
        check_integer("inner_steps", inner_steps, least=0)
        check_integer("multi_step_updates", multi_step_updates, least=0)
        check_flag("distributed", distributed)
        check_choice("algorithm", algorithm, get_args(_Algorithm))
        if algorithm == "reptile" and (learned_rates is not None or multi_step_updates or inner_steps == 0):
            raise ValueError(
                "Reptile takes at least one inner step, learns no step sizes and has no query losses after earlier "
                f"steps; got inner_steps={inner_steps}, learned_rates={learned_rates!r} and "
                f"multi_step_updates={multi_step_updates}. Use algorithm='maml' for these."
            )
        self.model = model
        self.inner_steps = inner_steps
        self.algorithm: _Algorithm = algorithm
        self.multi_step_updates = multi_step_updates
        self.distributed = distributed
        self.num_updates = 0
        self._inner = InnerLoop(
            model,
            inner_lr,
            first_order=first_order or algorithm == "reptile",
            adapts=adapts,
            learned_rates=learned_rates,
            num_steps=inner_steps,
            grad_clip_norm=inner_grad_clip_norm,
        )
        parameters: list[Any] = [*self._inner.weights().values(), *self._inner.rates.values()]
        options: dict[str, Any] = {"lr": outer_lr, **(optimizer_kwargs or {})}
        optimizer = optimizer_class(parameters, **options)
        if self._inner.rates and optimizer.defaults.get("weight_decay"):
            # A decay of logarithms would pull every step size to 1.
            optimizer.param_groups[0]["params"] = list(self._inner.weights().values())
            optimizer.add_param_group({"params": list(self._inner.rates.values()), "weight_decay": 0.0})
        self._outer = OuterLoop(
            parameters,
            optimizer,
            rates=self._inner.rates,
            task_chunk_size=task_chunk_size,
            grad_clip_norm=grad_clip_norm,
            distributed=distributed,
        )
        self._tasks = BatchedTasks(model, self._inner)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The outer optimiser."""
        return self._outer.optimizer

    @property
    def num_dropped(self) -> int:
        """The number of tasks that were left out so far because they were not finite."""
        return self._outer.num_dropped

    def adapt(self, support_x: Inputs, support_y: Tensor, loss_fn: LossFunction, num_steps: int) -> nn.Module:
        """A copy of the model after ``num_steps`` gradient steps on a support set; the model itself is untouched.

        The copy shares no memory with the model and has no graph behind it: it can be saved, copied and trained on.

        Args:
            support_x: ``Float[N ...]``, the inputs; a tuple of them for a model that takes several.
            support_y: ``Float[N ...]``, the targets.
            loss_fn: Takes a prediction and a target, gives a scalar. The attributes of the model are not those of the
                copy: what a loss needs should be in the prediction.
            num_steps: Number of steps, >= 0.

        Raises:
            ValueError: The support is empty, not finite, of two lengths or nothing that the model takes; or the model
                has other parameters than at first.
        """
        check_set("support", support_x, support_y)
        check_integer("num_steps", num_steps, least=0)
        self._inner.check_parameters()
        with differentiable(second_order=False):
            support = TaskSet.of(support_x, support_y)
            if not all(torch.isfinite(tensor).all() for tensor in (*support.x, support.y)):
                raise ValueError("the support must be finite; got NaN or infinity. Drop those rows.")
            adapted = copy_module(self.model)
            module = StatelessModule(adapted)
            inner = self._inner.detached()
            weights = {name: adapted.get_parameter(name).detach() for name in inner.trained}

            buffers = copy_buffers(adapted)
            loss_of_set = set_loss(module.checked, loss_fn, buffers)
            with attributes_kept(adapted):
                for index in range(num_steps):
                    weights = inner.step(lambda w: loss_of_set(w, support), weights, index, functional=False)
            with torch.no_grad():
                for name in inner.adapted:
                    adapted.get_parameter(name).copy_(weights[name])
            write_buffers(adapted, buffers)
        return adapted

    def meta_update(self, tasks: Sequence[MetaTask], loss_fn: LossFunction) -> float:
        """One outer step on a batch of tasks.

        Args:
            tasks: Tuples ``(support_x, support_y, query_x, query_y)``.
            loss_fn: Takes a prediction and a target, gives a scalar.

        Returns:
            The mean loss on the query sets after adaptation, from the weights before this step (with
            ``multi_step_updates``, weighted over the inner steps).

        Raises:
            ValueError: A set is empty, of two lengths or nothing that the model takes; or the model has other
                parameters than at first.
            FloatingPointError: No task has a finite loss and gradient; the model is as it was.
        """
        if tasks or not self.distributed:  # of many processes, some may have nothing to do
            check_tasks(tasks)
        self._inner.check_parameters()
        changed: dict[int, Weights] = {}  # buffers
        loss_weights = self._loss_weights()
        task_loss: TaskLoss = ReptileLoss(self.inner_steps)
        if self.algorithm == "maml":
            task_loss = QueryLosses(list(loss_weights))

        def losses_of(indices: Sequence[int]) -> Tensor:
            # For all tasks T_i: w_i' = w - inner_lr * grad loss(support of T_i; w), and its loss on the query set.
            losses = self._tasks.losses(tasks, indices, loss_fn, self._inner, task_loss, changed)  # K S
            # MAML++ also counts the losses on the way there.
            return losses @ losses.new_tensor(list(loss_weights.values())) if len(loss_weights) > 1 else losses[:, 0]

        with differentiable(second_order=not self._inner.first_order):
            # The outer step: w <- w - outer_lr * grad mean_i loss(query of T_i; w_i').
            loss = self._outer.step(losses_of, len(tasks))
        # What no gradient trains follows the tasks that counted.
        kept = [index for index in range(len(tasks)) if index not in self._outer.last_dropped]
        average_buffers(self.model, [changed.get(index, {}) for index in kept], distributed=self.distributed)
        self.num_updates += 1
        return loss

    def query_losses(self, tasks: Sequence[MetaTask], loss_fn: LossFunction, num_steps: Sequence[int]) -> Tensor:
        """The loss on each query set after each of these numbers of steps on its support set: ``Float[S K]``."""
        check_tasks(tasks)
        if not isinstance(num_steps, Sequence) or not num_steps:
            raise ValueError(f"num_steps must be a sequence of ints, at least one; got {num_steps!r}. Use [0, 1], say.")
        for steps in num_steps:
            check_integer("num_steps", steps, least=0)
        self._inner.check_parameters()
        inner, task_loss = self._inner.detached(), QueryLosses(num_steps)
        size = self._outer.task_chunk_size or len(tasks)
        chunks = (range(start, min(start + size, len(tasks))) for start in range(0, len(tasks), size))
        with differentiable(second_order=False), torch.no_grad():
            return torch.cat([self._tasks.losses(tasks, chunk, loss_fn, inner, task_loss) for chunk in chunks]).t()

    def state_dict(self) -> dict[str, Any]:
        """All that is learned and counted here: not the model, but the optimiser and the learned step sizes."""
        return {**self._outer.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, of an object made with the same arguments.

        Raises:
            ValueError: The state is of something else.
        """
        check_integer("num_updates of the state", state.get("num_updates"), least=0)
        self._outer.load_state_dict(state)
        self.num_updates = state["num_updates"]

    def _loss_weights(self) -> dict[int, float]:
        """The weights in the outer loss of the query losses after numbers of inner steps, by these numbers."""
        last = self.inner_steps
        if last < 2 or self.num_updates >= self.multi_step_updates:
            return {last: 1.0}
        earlier = (1.0 - self.num_updates / self.multi_step_updates) / last
        return {**dict.fromkeys(range(1, last), earlier), last: 1.0 - (last - 1) * earlier}
