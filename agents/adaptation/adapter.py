"""Bounded adaptation of a module at test time."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ssm_metarl_gym.agents.adaptation.batches import parse_batch
from ssm_metarl_gym.agents.adaptation.bounds import TrustRegion, pull_back, track_loss
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig, AdapterStats
from ssm_metarl_gym.agents.adaptation.module_state import ModuleSnapshot, ModuleState
from ssm_metarl_gym.agents.losses import checked_loss

__all__ = ["Adapter"]


@dataclass(frozen=True)
class _Snapshot:
    """All that ``adapt`` changes.

    Attributes:
        module: The weights and the buffers of the model.
        averaged: The averaged weights, ``Float[W]``.
        stats: The statistics.
    """

    module: ModuleSnapshot
    averaged: Tensor
    stats: AdapterStats


@dataclass(frozen=True)
class _Step:
    """An accepted gradient step: was its gradient clipped, did it end on the border of the trust region?"""

    clipped: bool
    projected: bool


class Adapter:
    """Takes a few bounded gradient steps on a module, in place, whenever it is given a batch.

    Only parameters that require a gradient adapt. Each step is clipped and then projected onto a ball around the
    *source*, the weights at construction. A step that leads to anything that is not finite is undone bit for bit.
    Whatever is not a weight comes back as it was: training modes, ``requires_grad``, ``.grad`` and the global random
    streams; dropout is off and running statistics of normalisation layers stand still. It works under ``no_grad``
    and ``inference_mode`` alike.

    Example:
        >>> config = AdaptationConfig(
        ...     lr=0.01, grad_clip_norm=1.0, trust_region_eps=0.01, ema_decay=0.99, entropy_weight=0.0,
        ...     max_steps_per_call=5,
        ... )
        >>> adapter = Adapter(nn.Linear(4, 1), config)
        >>> loss = adapter.adapt(nn.MSELoss(), {"states": torch.randn(16, 4), "targets": torch.randn(16, 1)})

    Args:
        model: The module to adapt, in place. Two adapters must not share it.
        cfg: The bounds.

    Raises:
        ValueError: No parameter of the model requires a gradient.
    """

    def __init__(self, model: nn.Module, cfg: AdaptationConfig) -> None:
        if not isinstance(cfg, AdaptationConfig):
            raise ValueError(f"cfg must be an AdaptationConfig; got {cfg!r}.")
        self.model = model
        self.cfg = cfg
        self._state = ModuleState(model)
        self._averaged = self._state.weights()
        self._stats = AdapterStats()
        self._before_call: _Snapshot | None = None
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
            ValueError: The batch lacks a key, holds something else than tensors, or has two lengths.
        """
        states, targets = parse_batch(batch_dict)
        before_call = self._before_call = self._snapshot()
        empty = len(states) == 0
        stats = replace(self._stats, calls=self._stats.calls + 1, empty_calls=self._stats.empty_calls + empty)
        if empty:
            self._stats = stats
            return math.nan
        with torch.inference_mode(False), torch.enable_grad(), self._state.frozen_behaviour():
            if states.is_inference() or targets.is_inference():
                states, targets = states.clone(), targets.clone()  # autograd cannot save tensors of inference mode
            try:
                return self._descend(loss_fn, states, targets, before_call, stats)
            except BaseException:
                self._restore(before_call)
                raise

    def reset(self) -> None:
        """Go back to the source: weights, buffers, averaged weights and statistics are those of construction."""
        self._restore(self._source)
        self._before_call = None

    def rollback(self) -> None:
        """Undo the last call of :meth:`adapt`.

        Raises:
            RuntimeError: There is no call to undo: one call can be undone once.
        """
        if self._before_call is None:
            raise RuntimeError("rollback() undoes the last call of adapt(), once; there is none to undo.")
        self._restore(self._before_call)
        self._before_call = None

    def averaged_weights(self) -> dict[str, Tensor]:
        """The exponential moving average of the weights over the calls, by name of the parameter."""
        return self._state.by_name(self._averaged)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain numbers."""
        current, source = self._snapshot(), self._source.module
        return {
            "weights": self._state.by_name(current.module.weights),
            "averaged_weights": self._state.by_name(current.averaged),
            "source_weights": self._state.by_name(source.weights),
            "buffers": current.module.buffers,
            "source_buffers": [buffer.clone() for buffer in source.buffers],
            "stats": asdict(current.stats),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the weights, source and statistics of another adapter of the same model.

        Raises:
            ValueError: The state is of another model; this adapter is as it was.
        """
        try:
            weights, averaged, source = (
                self._state.parse_weights(state_dict[key]) for key in ("weights", "averaged_weights", "source_weights")
            )
            buffers, source_buffers = (
                self._state.parse_buffers(state_dict[key]) for key in ("buffers", "source_buffers")
            )
            stats = AdapterStats(**state_dict["stats"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of an adapter of the same model; got one that differs: {error}."
            ) from None
        self._set_source(_Snapshot(ModuleSnapshot(source, source_buffers), source.clone(), AdapterStats()))
        self._restore(_Snapshot(ModuleSnapshot(weights, buffers), averaged, stats))
        self._before_call = None

    def _descend(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        before_call: _Snapshot,
        stats: AdapterStats,
    ) -> float:
        """Take the steps, and put what happened into the statistics."""
        steps: list[_Step] = []
        first_loss, loss = self._take_steps(loss_fn, states, targets, before_call, steps)
        stats = replace(
            stats,
            steps=stats.steps + len(steps),
            clipped_steps=stats.clipped_steps + sum(step.clipped for step in steps),
            projected_steps=stats.projected_steps + sum(step.projected for step in steps),
        )
        if steps:
            weights = self._state.weights()
            self._averaged = torch.lerp(weights, self._averaged, self.cfg.ema_decay)
            stats = replace(stats, distance=self._ball.relative_distance(weights))
        if math.isnan(loss):
            self._stats = replace(stats, rejected_steps=stats.rejected_steps + 1)
        else:
            self._stats = track_loss(stats, first_loss, self.cfg.ema_decay)
        return loss

    def _take_steps(
        self,
        loss_fn: Callable[[Any, Tensor], Tensor],
        states: Tensor,
        targets: Tensor,
        before_call: _Snapshot,
        steps: list[_Step],
    ) -> tuple[float, float]:
        """The losses before the first step and after the last, nan where the last was undone.

        The accepted steps are appended to ``steps``.
        """
        # With nowhere to go, evaluating is all there is to do.
        frozen = self.cfg.lr == 0.0 or self.cfg.trust_region_eps == 0.0
        num_steps = 0 if frozen else self.cfg.max_steps_per_call
        last_good = before_call
        first_loss, objective = self._evaluate(loss_fn, states, targets, with_gradient=num_steps > 0)
        loss = first_loss
        while len(steps) < num_steps and not math.isnan(loss):
            if steps:
                last_good = self._snapshot()
            step = self._step(objective)
            if step is None:
                loss = math.nan
                break
            loss, objective = self._evaluate(loss_fn, states, targets, with_gradient=len(steps) + 1 < num_steps)
            if not math.isnan(loss):
                steps.append(step)
        if math.isnan(loss):
            self._restore(last_good)
        return first_loss, loss

    def _evaluate(
        self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor, *, with_gradient: bool
    ) -> tuple[float, Tensor]:
        """The loss, nan where it or the objective is not finite, and the objective to descend."""
        with torch.set_grad_enabled(with_gradient):
            prediction = self.model(states)
            loss = objective = checked_loss(loss_fn, prediction, targets)
            if self.cfg.entropy_weight and isinstance(prediction, Distribution):
                objective = loss + self.cfg.entropy_weight * _entropy(prediction)
        if with_gradient and not objective.requires_grad:
            raise ValueError("the loss must depend on what the model predicts; got one without a gradient.")
        return (loss.item() if math.isfinite(objective.item()) else math.nan), objective

    def _step(self, objective: Tensor) -> _Step | None:
        """One clipped and projected gradient step; None, and nothing changed, where it would not be finite."""
        parameters, source = self._state.parameters, self._ball.source
        gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
        with torch.no_grad():
            pairs = zip(parameters, gradients, strict=True)
            gradient = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])  # W
            norm = float(torch.linalg.vector_norm(gradient))
            if not math.isfinite(norm):
                return None
            # Clip the gradient to its largest norm, and descend.
            clipped = norm > self.cfg.grad_clip_norm
            lr = self.cfg.lr * (self.cfg.grad_clip_norm / norm if clipped else 1.0)
            weights = torch.sub(self._state.weights(), gradient, alpha=lr)
            # Project onto the ball around the source.
            offset = weights - source
            distance = torch.linalg.vector_norm(offset)
            if not math.isfinite(distance):
                return None
            projected = float(distance) > self._ball.radius
            if projected:
                weights = source + pull_back(offset, distance, self._ball.inner_radius)
            self._state.set_weights(weights)
        return _Step(clipped, projected)

    def _set_source(self, source: _Snapshot) -> None:
        """Make the ball around the source, and the state that :meth:`reset` goes back to."""
        self._source = source
        self._ball = TrustRegion(source.module.weights, self.cfg.trust_region_eps)

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self._state.snapshot(), self._averaged, self._stats)

    def _restore(self, snapshot: _Snapshot) -> None:
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
