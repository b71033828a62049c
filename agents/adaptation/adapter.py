"""Bounded adaptation of a module at test time."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ssm_metarl_gym.agents.losses import measure
from ssm_metarl_gym.checks import is_number

__all__ = ["AdaptationConfig", "Adapter", "AdapterStats"]


@dataclass(frozen=True)
class AdaptationConfig:
    """The bounds of test-time adaptation.

    Attributes:
        lr: Step size of plain gradient descent; 0 evaluates only. (Adam's first step ignores the size of the gradient,
            which would defeat clipping.)
        grad_clip_norm: Largest global L2 norm of the gradient of a step; inf for no clipping.
        trust_region_eps: Radius of the ball around the source weights, relative to their L2 norm, that the adapted
            weights never leave over all calls; 0 freezes them, inf lets them go anywhere.
        ema_decay: Decay of the running loss statistics and of the averaged weights, in [0, 1).
        entropy_weight: Weight of the entropy of the prediction, where the model predicts a distribution. A positive
            weight lowers the entropy. Without a distribution there is no such term.
        max_steps_per_call: Most gradient steps of one call.

    Raises:
        ValueError: A field is outside its range; the message names all of them.
    """

    lr: float
    grad_clip_norm: float
    trust_region_eps: float
    ema_decay: float
    entropy_weight: float
    max_steps_per_call: int

    def __post_init__(self) -> None:
        rules = (
            ("lr", "a finite number >= 0", lambda value: 0.0 <= value < math.inf),
            ("grad_clip_norm", "a number > 0 (inf for no clipping)", lambda value: value > 0.0),
            ("trust_region_eps", "a number >= 0 (0 freezes the weights, inf is no bound)", lambda value: value >= 0.0),
            ("ema_decay", "a number in [0, 1)", lambda value: 0.0 <= value < 1.0),
            ("entropy_weight", "a finite number", math.isfinite),
            ("max_steps_per_call", "an int >= 1", lambda value: isinstance(value, Integral) and int(value) >= 1),
        )
        broken = [
            f"{name} must be {rule}; got {getattr(self, name)!r}."
            for name, rule, holds in rules
            if not is_number(getattr(self, name)) or not holds(getattr(self, name))
        ]
        if broken:
            raise ValueError(" ".join(broken))


@dataclass(frozen=True)
class AdapterStats:
    """What an :class:`Adapter` has done since it was made or reset.

    Attributes:
        calls: Calls of ``adapt``, empty ones included.
        empty_calls: Calls with an empty batch, which change nothing.
        steps: Accepted gradient steps.
        rejected_steps: Steps undone, or not taken, because a loss, gradient or weight was not finite.
        clipped_steps: Accepted steps whose gradient was clipped.
        projected_steps: Accepted steps that ended on the border of the trust region.
        loss_mean: Running mean of the losses *before* adaptation: a rise of it is a sign of drift.
        loss_variance: Running variance of the same.
        distance: Distance of the weights from the source, relative to the norm of the source.
    """

    calls: int = 0
    empty_calls: int = 0
    steps: int = 0
    rejected_steps: int = 0
    clipped_steps: int = 0
    projected_steps: int = 0
    loss_mean: float = math.nan
    loss_variance: float = 0.0
    distance: float = 0.0


@dataclass(frozen=True)
class _Snapshot:
    """All that ``adapt`` changes: weights and averaged weights as flat vectors, buffers, statistics."""

    weights: Tensor
    averaged: Tensor
    buffers: list[Tensor]
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
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [model.get_parameter(name) for name in self._names]
        if not self._parameters:
            raise ValueError(
                "the model must have a parameter that requires a gradient; it has none. "
                "Unfreeze one with requires_grad_(True)."
            )
        # Walking the module tree takes longer than a step of a small model, so it is done once.
        self._modules = list(model.modules())
        self._buffers = [
            (module, name, buffer) for module in self._modules for name, buffer in module.named_buffers(recurse=False)
        ]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._averaged = self._flat_weights()
        self._stats = AdapterStats()
        self._source = self._snapshot()
        self._source_norm = float(torch.linalg.vector_norm(self._source.weights))
        self._before_call: _Snapshot | None = None

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
        states, targets = _parse_batch(batch_dict)
        before_call = self._before_call = self._snapshot()
        empty = len(states) == 0
        stats = replace(self._stats, calls=self._stats.calls + 1, empty_calls=self._stats.empty_calls + empty)
        if empty:
            self._stats = stats
            return math.nan
        with torch.inference_mode(False), torch.enable_grad(), _frozen_behaviour(self._modules, self._parameters):
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
        return self._unflatten(self._averaged)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain numbers."""
        current = self._snapshot()
        return {
            "weights": self._unflatten(current.weights),
            "averaged_weights": self._unflatten(current.averaged),
            "source_weights": self._unflatten(self._source.weights),
            "buffers": current.buffers,
            "source_buffers": [buffer.clone() for buffer in self._source.buffers],
            "stats": asdict(current.stats),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the weights, source and statistics of another adapter of the same model.

        Raises:
            ValueError: The state is of another model; this adapter is as it was.
        """
        try:
            weights, averaged, source = (
                self._flatten(state_dict[key]) for key in ("weights", "averaged_weights", "source_weights")
            )
            buffers, source_buffers = (
                [_like(own, stored) for own, stored in zip(self._current_buffers(), state_dict[key], strict=True)]
                for key in ("buffers", "source_buffers")
            )
            stats = AdapterStats(**state_dict["stats"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of an adapter of the same model; got one that differs: {error}."
            ) from None
        self._source = _Snapshot(source, source.clone(), source_buffers, AdapterStats())
        self._source_norm = float(torch.linalg.vector_norm(source))
        self._restore(_Snapshot(weights, averaged, buffers, stats))
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
            weights = self._flat_weights()
            self._averaged = torch.lerp(weights, self._averaged, self.cfg.ema_decay)
            offset = float(torch.linalg.vector_norm(weights - self._source.weights))
            # Away from a source of zeros, any distance is infinitely many times its norm.
            relative = offset / self._source_norm if self._source_norm else math.inf
            stats = replace(stats, distance=relative if offset else 0.0)
        if math.isnan(loss):
            self._stats = replace(stats, rejected_steps=stats.rejected_steps + 1)
        else:
            self._stats = self._track(stats, first_loss)
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
        first_loss, objective = self._measure(loss_fn, states, targets, with_gradient=num_steps > 0)
        loss = first_loss
        while len(steps) < num_steps and not math.isnan(loss):
            if steps:
                last_good = self._snapshot()
            step = self._step(objective)
            if step is None:
                loss = math.nan
                break
            loss, objective = self._measure(loss_fn, states, targets, with_gradient=len(steps) + 1 < num_steps)
            if not math.isnan(loss):
                steps.append(step)
        if math.isnan(loss):
            self._restore(last_good)
        return first_loss, loss

    def _measure(
        self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor, *, with_gradient: bool
    ) -> tuple[float, Tensor]:
        """The loss, nan where it or the objective is not finite, and the objective to descend."""
        with torch.set_grad_enabled(with_gradient):
            prediction = self.model(states)
            loss = objective = measure(loss_fn, prediction, targets)
            if self.cfg.entropy_weight and isinstance(prediction, Distribution):
                objective = loss + self.cfg.entropy_weight * _entropy(prediction)
        if with_gradient and not objective.requires_grad:
            raise ValueError("the loss must depend on what the model predicts; got one without a gradient.")
        return (loss.item() if math.isfinite(objective.item()) else math.nan), objective

    def _step(self, objective: Tensor) -> _Step | None:
        """One clipped and projected gradient step; None, and nothing changed, where it would not be finite."""
        gradients = torch.autograd.grad(objective, self._parameters, allow_unused=True)
        with torch.no_grad():
            pairs = zip(self._parameters, gradients, strict=True)
            gradient = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
            norm = float(torch.linalg.vector_norm(gradient))
            if not math.isfinite(norm):
                return None
            clipped = norm > self.cfg.grad_clip_norm
            lr = self.cfg.lr * (self.cfg.grad_clip_norm / norm if clipped else 1.0)
            weights = torch.sub(self._flat_weights(), gradient, alpha=lr)
            offset = weights - self._source.weights
            distance, radius = float(torch.linalg.vector_norm(offset)), self.cfg.trust_region_eps * self._source_norm
            if not math.isfinite(distance):
                return None
            projected = distance > radius
            if projected:
                # Inside by what the rounding of the weights can add, so that it cannot leave the ball.
                rounding = torch.finfo(weights.dtype).eps * (self._source_norm + radius)
                weights = self._source.weights + offset * (max(radius - rounding, 0.0) / distance)
            self._assign(weights)
        return _Step(clipped, projected)

    def _track(self, stats: AdapterStats, loss: float) -> AdapterStats:
        """The statistics with the running mean and variance moved towards a loss before adaptation."""
        if math.isnan(stats.loss_mean):
            return replace(stats, loss_mean=loss)
        decay, deviation = self.cfg.ema_decay, loss - stats.loss_mean
        return replace(
            stats,
            loss_mean=stats.loss_mean + (1.0 - decay) * deviation,
            loss_variance=decay * (stats.loss_variance + (1.0 - decay) * deviation**2),
        )

    def _flat_weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self._parameters])

    def _assign(self, weights: Tensor) -> None:
        for parameter, part in zip(self._parameters, weights.split(self._sizes), strict=True):
            parameter.detach().copy_(part.view_as(parameter))

    def _flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        if set(named) != set(self._names):
            raise ValueError(f"the parameters are {sorted(named)} instead of {sorted(self._names)}")
        parts = [_like(own, named[name]) for name, own in zip(self._names, self._parameters, strict=True)]
        return torch.cat([part.flatten() for part in parts])

    def _unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        parts = zip(self._names, self._parameters, weights.split(self._sizes), strict=True)
        return {name: part.view_as(parameter).clone() for name, parameter, part in parts}

    def _current_buffers(self) -> list[Tensor]:
        # By name, because a module may assign a new tensor instead of writing into its own.
        return [getattr(module, name) for module, name, _ in self._buffers]

    def _snapshot(self) -> _Snapshot:
        buffers = [buffer.detach().clone() for buffer in self._current_buffers()]
        return _Snapshot(self._flat_weights(), self._averaged, buffers, self._stats)

    def _restore(self, snapshot: _Snapshot) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._assign(snapshot.weights)
            for (module, name, own), stored in zip(self._buffers, snapshot.buffers, strict=True):
                own.copy_(stored)
                setattr(module, name, own)
        self._averaged, self._stats = snapshot.averaged, snapshot.stats


def _entropy(prediction: Distribution) -> Tensor:
    try:
        return prediction.entropy().mean()
    except NotImplementedError:
        raise ValueError(
            f"entropy_weight must be 0 where a prediction has no entropy in closed form; got one of "
            f"{type(prediction).__name__}."
        ) from None


def _like(own: Tensor, stored: Tensor) -> Tensor:
    """A copy of ``stored`` with the type and the device of ``own``, whose shape it must have."""
    if stored.shape != own.shape:
        raise ValueError(f"a tensor has the shape {tuple(stored.shape)} instead of {tuple(own.shape)}")
    return stored.to(own, copy=True)


def _parse_batch(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, Mapping) or not all(isinstance(batch.get(key), Tensor) for key in ("states", "targets")):
        is_mapping = isinstance(batch, Mapping)
        got = {key: type(batch[key]).__name__ for key in batch} if is_mapping else type(batch).__name__
        raise ValueError(f"the batch must be a dictionary with the tensors 'states' and 'targets'; got {got}.")
    states, targets = batch["states"], batch["targets"]
    if states.ndim == 0 or targets.ndim == 0 or len(states) != len(targets):
        raise ValueError(
            "states and targets must have the same number of rows; got shapes "
            f"{tuple(states.shape)} and {tuple(targets.shape)}."
        )
    return states, targets


@contextmanager
def _frozen_behaviour(modules: list[nn.Module], parameters: list[nn.Parameter]) -> Iterator[None]:
    """Evaluation mode, distributions that do not refuse NaN, and the random streams of the model's devices.

    All are put back at the end.
    """
    training = [module for module in modules if module.training]
    devices = {parameter.get_device() for parameter in parameters if parameter.is_cuda}
    validates = Distribution._validate_args
    with torch.random.fork_rng(devices=devices):
        # A distribution would raise where a NaN should lead to a loss of NaN, which is undone.
        Distribution.set_default_validate_args(False)
        for module in training:
            # cuDNN's recurrent layers have no gradient in evaluation mode, and no randomness without dropout.
            module.training = isinstance(module, nn.RNNBase) and module.dropout == 0.0
        try:
            yield
        finally:
            Distribution.set_default_validate_args(validates)
            for module in training:
                module.training = True
