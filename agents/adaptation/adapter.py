"""Bounded adaptation of a module at test time."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from typing_extensions import Self

from ssm_metarl_gym.agents.adaptation.batch import Batch, LinAlgError, constant, is_of_numbers, parse_batch
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig, AdapterStats, parse_stats
from ssm_metarl_gym.agents.adaptation.draws import DrawsApart
from ssm_metarl_gym.agents.adaptation.module_state import ModuleSnapshot, ModuleState, set_evaluation, set_training
from ssm_metarl_gym.agents.adaptation.trust_region import LARGEST_TRACKED, moving_moments, pull_back, trust_region
from ssm_metarl_gym.agents.losses import NO_GRADIENT, checked_loss
from ssm_metarl_gym.agents.stateless import CopiesGraphs, is_out_of_memory
from ssm_metarl_gym.budget import StepTimer, check_budget

__all__ = ["Adapter", "AdapterSnapshot"]

# What torch raises, by exactly these types, where shapes, types or indices do not go together.
_TORCH_ERRORS: Final = (RuntimeError, IndexError, NotImplementedError)


@dataclass(frozen=True)
class AdapterSnapshot:
    """All that ``adapt`` changes.

    Attributes:
        module: The weights and the buffers of the model.
        averaged: The averaged weights, ``Float[W]``.
        stats: The statistics.
    """

    module: ModuleSnapshot
    averaged: Tensor
    stats: AdapterStats


class _Step(NamedTuple):
    """An accepted gradient step.

    Attributes:
        weights: Where it led, ``Float[W]``.
        held: What the parameters hold of that.
        clipped: Whether its gradient was clipped.
        projected: Whether it ended on the border of the trust region.
        distance: Of ``weights`` from the source.
    """

    weights: Tensor
    held: Tensor
    clipped: bool
    projected: bool
    distance: float


class Adapter:
    """Takes a few bounded gradient steps on a module, in place, whenever it is given a batch.

    Only parameters that require a gradient adapt. Each step is clipped and then projected onto a ball around the
    *source*, the weights at construction. A step that leads to anything that is not finite is undone bit for bit.
    Steps are computed in single precision at least, and rounded to the type of each parameter when they are written.
    Whatever is not a weight comes back as it was: training modes, ``requires_grad``, ``.grad`` and the global random
    streams; dropout is off and running statistics of normalisation layers stand still. It works under ``no_grad``
    and ``inference_mode`` alike, and beside other threads.

    Example:
        >>> config = AdaptationConfig(
        ...     lr=0.01, grad_clip_norm=1.0, trust_region_eps=0.01, ema_decay=0.99, entropy_weight=0.0,
        ...     max_steps_per_call=5,
        ... )
        >>> adapter = Adapter(nn.Linear(4, 1), config)
        >>> loss = adapter.adapt(nn.MSELoss(), {"states": torch.randn(16, 4), "targets": torch.randn(16, 1)})

    Args:
        model: The module to adapt, in place. Two adapters must not share it, and its modules and parameters must stay
            what they are: for a model that was changed make a new adapter.
        cfg: The bounds.
        budget_ms: The milliseconds that a call of :meth:`adapt` may take; None for no bound. No step begins that would
            end later if it took as long as the longest one before it in the call. With a budget, results depend on the
            machine and on what else it does.

    Raises:
        ValueError: No parameter of the model requires a gradient, one of those is not finite, or an argument is outside
            its range.
    """

    def __init__(self, model: nn.Module, cfg: AdaptationConfig, *, budget_ms: float | None = None) -> None:
        if not isinstance(cfg, AdaptationConfig):
            raise ValueError(f"cfg must be an AdaptationConfig; got {cfg!r}.")
        self.model = model
        self.cfg = cfg
        self.budget_ms = check_budget(budget_ms)
        self._state = ModuleState(model)
        self._weights = self._state.weights
        self._draws = DrawsApart(one.device for one in self._weights.parameters if one.is_cuda)
        self._averaged = self._weights.read()
        self._stats = AdapterStats()
        self._before_call: AdapterSnapshot | None = None
        self._set_source(self._snapshot())

    @property
    def stats(self) -> AdapterStats:
        """What was done since construction or the last :meth:`reset`."""
        return self._stats

    def adapt(self, loss_fn: Callable[[Any, Tensor], Tensor], batch_dict: Mapping[str, Tensor]) -> float:
        """Take up to ``max_steps_per_call`` gradient steps on a batch.

        Args:
            loss_fn: Takes a prediction of the model and the targets, gives a scalar.
            batch_dict: ``{"states": Float[N ...], "targets": Float[N ...]}``, the inputs of the model and what it
                should have predicted.

        Returns:
            The loss after the last accepted step; nan where a step was undone, or where the batch was empty.

        Raises:
            ValueError: The batch lacks a key, holds something else than tensors, has two lengths, or does not fit the
                model or the loss. Or the model is no longer made of the parameters that it had at construction.
        """
        self._state.check()
        timer = StepTimer(self.budget_ms)
        before_call = self._before_call = self._snapshot()
        batch = parse_batch(batch_dict)
        states, targets, _ = batch
        if states.shape[0] == 0:
            self._stats = replace(self._stats, calls=self._stats.calls + 1, empty_calls=self._stats.empty_calls + 1)
            return math.nan
        training = self._state.training_modules()
        apart = self._draws.begin()
        try:
            try:
                with torch.inference_mode(False), torch.enable_grad(), apart:
                    set_evaluation(training)
                    batch = batch._replace(states=constant(states), targets=constant(targets))
                    return self._descend(loss_fn, batch, before_call, timer)
            finally:
                self._leave(training)
        except BaseException as error:
            self._leave(training)  # again, as Ctrl-C may have come in between
            self._restore(before_call)
            if type(error) in _TORCH_ERRORS and not is_out_of_memory(error):
                raise ValueError(
                    "the model must take the states, and loss_fn its predictions and the targets; got states of shape "
                    f"{tuple(states.shape)} and {states.dtype}, targets of shape {tuple(targets.shape)} and "
                    f"{targets.dtype}, for which torch says: {error}"
                ) from error
            raise

    def reset(self) -> None:
        """Go back to the source: weights, buffers, averaged weights and statistics are those of construction."""
        self._state.check()
        self._restore(self._source)
        self._before_call = None

    def rollback(self) -> None:
        """Undo the last call of :meth:`adapt`; of one that raised an error there is nothing to undo.

        Raises:
            RuntimeError: There is no call to undo: one call can be undone once.
        """
        if self._before_call is None:
            raise RuntimeError("rollback() undoes the last call of adapt(), once; there is none to undo.")
        self._state.check()
        self._restore(self._before_call)
        self._before_call = None

    def averaged_weights(self) -> dict[str, Tensor]:
        """The exponential moving average of the weights over the calls, by name of the parameter and of its type."""
        return self._weights.by_name(self._averaged)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain numbers."""
        self._state.check()
        current, source = self._snapshot(), self._source.module
        return {
            "weights": self._weights.by_name(current.module.weights, exact=True),
            "averaged_weights": self._weights.by_name(current.averaged, exact=True),
            "source_weights": self._weights.by_name(source.weights, exact=True),
            "buffers": self._state.buffers_by_name(current.module),
            "source_buffers": self._state.buffers_by_name(source),
            "stats": asdict(current.stats),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the weights, source and statistics of another adapter of the same model.

        Raises:
            ValueError: The state is of another model, holds something that is not finite, or weights outside the trust
                region. This adapter is as it was.
        """
        self._state.check()
        try:
            weights, averaged, source = (
                self._weights.parse(state_dict[key]) for key in ("weights", "averaged_weights", "source_weights")
            )
            buffers, source_buffers = (
                self._state.parse_buffers(state_dict[key]) for key in ("buffers", "source_buffers")
            )
            stats = parse_stats(state_dict["stats"])
            region = trust_region(source, self.cfg.trust_region_eps)
            if not region.has(weights) or not region.has(averaged):
                raise ValueError("its weights are outside the trust region")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of an adapter of the same model; got one that differs: {error}."
            ) from None
        self._set_source(
            AdapterSnapshot(ModuleSnapshot(source, source, source_buffers), source.clone(), AdapterStats())
        )
        held = self._held(weights)
        self._restore(
            AdapterSnapshot(ModuleSnapshot(weights, weights if held is None else held, buffers), averaged, stats)
        )
        self._before_call = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        with CopiesGraphs():  # which a module may have kept as an attribute
            vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def _descend(
        self, loss_fn: Callable[[Any, Tensor], Tensor], batch: Batch, before_call: AdapterSnapshot, timer: StepTimer
    ) -> float:
        """Take the steps, and put what happened into the statistics."""
        steps: list[_Step] = []
        first_loss, loss = self._take_steps(loss_fn, batch.states, batch.targets, before_call, timer, steps)
        stats = self._stats
        changes: dict[str, Any] = {"calls": stats.calls + 1}
        if steps:
            self._averaged = torch.lerp(steps[-1].weights, self._averaged, self.cfg.ema_decay)
            changes["steps"] = stats.steps + len(steps)
            changes["clipped_steps"] = stats.clipped_steps + sum(step.clipped for step in steps)
            changes["projected_steps"] = stats.projected_steps + sum(step.projected for step in steps)
            offset = steps[-1].distance
            # Away from a source of zeros, any distance is infinitely many times its norm.
            relative = offset / self._region.norm if self._region.norm else math.inf
            changes["distance"] = relative if offset else 0.0
        if timer.ran_out:
            changes["cut_calls"] = stats.cut_calls + 1
        if math.isnan(loss):
            changes["rejected_steps"] = stats.rejected_steps + 1
        else:
            changes["loss_mean"], changes["loss_variance"] = self._loss_moments(first_loss)
        self._stats = replace(stats, **changes)
        return loss

    def _take_steps(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        before_call: AdapterSnapshot,
        timer: StepTimer,
        steps: list[_Step],
    ) -> tuple[float, float]:
        """The losses before the first step and after the last, nan where the last was undone.

        The accepted steps are appended to ``steps``.
        """
        # With nowhere to go, evaluating is all there is to do.
        frozen = self.cfg.lr == 0.0 or self.cfg.trust_region_eps == 0.0
        num_steps = 0 if frozen else self.cfg.max_steps_per_call
        last_good = before_call.module
        first_loss, objective = self._evaluate(loss_fn, states, targets, with_gradient=num_steps > 0)
        loss = first_loss
        while len(steps) < num_steps and not math.isnan(loss) and timer.has_time():
            if steps:
                last_good = ModuleSnapshot(steps[-1].weights, steps[-1].held, self._state.buffers())
            step = self._step(objective, last_good.weights)
            if step is None:
                loss = math.nan
                break
            loss, objective = self._evaluate(loss_fn, states, targets, with_gradient=len(steps) + 1 < num_steps)
            if not math.isnan(loss):
                steps.append(step)
        if math.isnan(loss):
            self._state.restore(last_good)
        return first_loss, loss

    def _evaluate(
        self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor, *, with_gradient: bool
    ) -> tuple[float, Tensor]:
        """The loss, nan where it or the objective is not finite, and the objective to descend."""
        try:
            with torch.set_grad_enabled(with_gradient):
                prediction = self.model(states)
                loss = objective = checked_loss(loss_fn, prediction, targets)
                if self.cfg.entropy_weight and isinstance(prediction, Distribution):
                    objective = loss + self.cfg.entropy_weight * _entropy(prediction)
        except (ValueError, LinAlgError) as error:
            if not is_of_numbers(error, targets):
                raise
            return math.nan, targets
        if with_gradient and not objective.requires_grad:
            raise ValueError(NO_GRADIENT)
        value = float(loss.item())
        is_finite = math.isfinite(value if objective is loss else objective.item())
        return (value if is_finite else math.nan), objective

    def _step(self, objective: Tensor, weights: Tensor) -> _Step | None:
        """One clipped and projected step from the present weights; None, and nothing changed, where not finite."""
        parameters, region = self._weights.parameters, self._region
        gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
        with torch.no_grad():
            pairs = zip(parameters, gradients, strict=True)
            gradient = self._weights.flatten([torch.zeros_like(p) if g is None else _dense(g) for p, g in pairs])
            slope = float(torch.linalg.vector_norm(gradient))
            if not math.isfinite(slope):
                return None
            # Clip the gradient to its largest norm, and descend.
            clipped = slope > self.cfg.grad_clip_norm
            lr = self.cfg.lr * (self.cfg.grad_clip_norm / slope if clipped else 1.0)
            weights = torch.sub(weights, gradient, alpha=min(lr, torch.finfo(gradient.dtype).max))
            # Project onto the ball around the source.
            offset = weights - region.source
            norm = torch.linalg.vector_norm(offset)
            distance = float(norm)
            if not math.isfinite(distance):
                return None
            projected = distance > region.radius
            if projected:
                weights = region.source + pull_back(offset, norm, region)
                distance = float(torch.linalg.vector_norm(weights - region.source))
            # Round to the types of the parameters.
            held = self._held(weights)
            if held is None:
                return None
            self._weights.write(weights, held)
        return _Step(weights, held, clipped, projected, distance)

    def _held(self, weights: Tensor) -> Tensor | None:
        """What the parameters are to hold of weights in the ball: no less in it; None where they overflow."""
        held = self._weights.rounded(weights)
        if held is not weights:
            distance = float(torch.linalg.vector_norm(held - self._region.source))
            if not math.isfinite(distance):
                return None
            if distance > self._region.radius:
                return self._weights.rounded_towards(self._region.source, weights)
        return held

    def _loss_moments(self, loss: float) -> tuple[float, float]:
        """The running mean and variance, moved towards a loss before adaptation."""
        loss = max(-LARGEST_TRACKED, min(loss, LARGEST_TRACKED))
        if math.isnan(self._stats.loss_mean):
            return loss, self._stats.loss_variance
        return moving_moments(self._stats.loss_mean, self._stats.loss_variance, loss, self.cfg.ema_decay)

    def _leave(self, training: list[nn.Module]) -> None:
        """Put back modes and random streams."""
        set_training(training)
        self._draws.end()

    def _set_source(self, source: AdapterSnapshot) -> None:
        """Make the ball around the source, and the state that :meth:`reset` goes back to."""
        self._source = source
        self._region = trust_region(source.module.weights, self.cfg.trust_region_eps)

    def _snapshot(self) -> AdapterSnapshot:
        return AdapterSnapshot(self._state.snapshot(), self._averaged, self._stats)

    def _restore(self, snapshot: AdapterSnapshot) -> None:
        self._state.restore(snapshot.module)
        self._averaged = snapshot.averaged
        self._stats = snapshot.stats


def _entropy(prediction: Distribution) -> Tensor:
    try:
        return prediction.entropy().mean()
    except NotImplementedError:
        raise ValueError(
            f"entropy_weight must be 0 where a prediction has no entropy in closed form; got one of "
            f"{type(prediction).__name__}."
        ) from None


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()
