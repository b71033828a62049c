"""What adapts the weights of a model: the surface that all ways share, and gradient steps."""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssm_metarl_gym.budget import StepTimer, check_budget
from ssm_metarl_gym.bundle.layers import Floats, Weights
from ssm_metarl_gym.bundle.losses import Loss
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.checks import Rule, check_fields, check_integer

__all__ = ["AdaptingWeights", "GradientSteps", "Report"]

_FINITE: Rule = ("a finite number >= 0", lambda value: 0.0 <= value < math.inf)
_RADIUS: Rule = ("a number >= 0", lambda value: value >= 0.0)


@dataclass(frozen=True)
class Report:
    """What was done since the last reset, as in :class:`ssm_metarl_gym.agents.AdapterStats`.

    Attributes:
        steps: Accepted steps, or transitions that were taken in.
        rejected_steps: Those that were not, because something was not finite.
        distance: Of the weights from the source, relative to the norm of the source.
        cut_calls: Calls whose budget left no time for the next step.
    """

    steps: int = 0
    rejected_steps: int = 0
    distance: float = 0.0
    cut_calls: int = 0


class AdaptingWeights(ABC):
    """The weights of a model that adapt, within a ball around their source.

    Args:
        model: The model.
        trust_region_eps: The radius of the ball, relative to the norm of the source.

    Attributes:
        model: The model.
        weights: The weights by the names of the parameters: the same arrays for good, in which the numbers change.
    """

    def __init__(self, model: Model, trust_region_eps: float) -> None:
        self.model = model
        self.trust_region_eps = trust_region_eps
        check_fields(self, {"trust_region_eps": _RADIUS})
        self._source = np.concatenate([part.ravel() for part in model.source.values()])  # W
        self._flat = self._source.copy()
        self.weights = self._by_name(self._flat)
        self._norm = _size(self._source)
        self._radius = trust_region_eps * self._norm if trust_region_eps < math.inf else math.inf
        # How much farther away the rounding of weights within the ball can take them.
        self._rounding = float(np.finfo(self._source.dtype).eps) * (self._norm + self._radius)
        self._num_steps = self._num_rejected = self._num_cut = 0

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.weights = self._by_name(self._flat)  # a copy of a view is none

    @abstractmethod
    def adapt(self, loss: Loss, states: Floats, targets: Floats, arrivals: Sequence[int]) -> Callable[[], float]:
        """Adapt to transitions, the oldest first.

        Args:
            loss: What to measure, or to descend.
            states: ``Float[N F]``.
            targets: ``Float[N D]``.
            arrivals: A number of each transition, greater than those of all that came before it.

        Returns:
            What gives the loss afterwards, until the next call, nan where a step was undone: who does not ask for it
            need not wait for it.
        """

    def reset(self) -> None:
        """Go back to the source."""
        self._flat[:] = self._source
        self._num_steps = self._num_rejected = self._num_cut = 0

    @property
    def report(self) -> Report:
        """What was done."""
        distance = _size((self._flat - self._source).astype(np.float64))
        relative = distance / self._norm if self._norm else math.inf
        return Report(self._num_steps, self._num_rejected, relative if distance else 0.0, self._num_cut)

    def predict(self, encoded: Floats) -> Floats:
        """What the model predicts by the present weights: ``Float[N F]`` -> ``Float[N D]``."""
        return self.model.predict(self.weights, encoded)

    def foresee(self, encoded: Floats) -> tuple[Floats, Floats]:
        """What the model predicts for one transition ``Float[1 F]``, by the present weights and at its source."""
        return self.predict(encoded), self.model.predict(self.model.source, encoded)

    def _measure(self, loss: Loss, states: Floats, targets: Floats) -> float:
        """The loss by the present weights, nan where it is not finite."""
        value = loss(self.predict(states) - targets)[0]
        return value if math.isfinite(value) else math.nan

    def _by_name(self, flat: Floats) -> Weights:
        """Views of a vector ``Float[W]`` as the parameters, by name."""
        ends = np.cumsum([part.size for part in self.model.source.values()])
        parts = np.split(flat, ends[:-1])
        return {
            name: part.reshape(own.shape) for (name, own), part in zip(self.model.source.items(), parts, strict=True)
        }

    def _pull_back(self, offset: Floats, distance: float) -> Floats:
        """An offset from the source of this size, cut to the ball: it ends inside by what rounding can add."""
        result: Floats = offset * offset.dtype.type(max(self._radius - self._rounding, 0.0) / distance)
        return result


class GradientSteps(AdaptingWeights):
    """A few clipped gradient steps at every call, as :class:`ssm_metarl_gym.agents.Adapter` takes them.

    Args:
        model: The model.
        options: ``lr``, ``grad_clip_norm``, ``trust_region_eps``, ``max_steps_per_call`` and ``budget_ms``.
    """

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        super().__init__(model, options["trust_region_eps"])
        self.lr: float = options["lr"]
        self.grad_clip_norm: float = options["grad_clip_norm"]
        self._budget_ms = check_budget(options["budget_ms"])
        check_fields(self, {"lr": _FINITE, "grad_clip_norm": ("a number > 0", lambda value: value > 0.0)})
        check_integer("max_steps_per_call", options["max_steps_per_call"])
        # With nowhere to go, evaluating is all there is to do.
        frozen = self.lr == 0.0 or self.trust_region_eps == 0.0
        self._max_steps: int = 0 if frozen else options["max_steps_per_call"]
        self._largest = float(np.finfo(self._flat.dtype).max)

    def adapt(self, loss: Loss, states: Floats, targets: Floats, arrivals: Sequence[int]) -> Callable[[], float]:
        """Take up to ``max_steps_per_call`` steps; one that leads to what is not finite is undone."""
        timer = StepTimer(self._budget_ms)
        if not self._max_steps:
            return self._measured(self._measure(loss, states, targets))
        value, gradients = self.model.descend_by(self.weights, states, targets, loss)
        value = value if math.isfinite(value) else math.nan
        taken = 0
        while taken < self._max_steps and not math.isnan(value) and timer.has_time():
            before = self._flat.copy()
            is_finite = self._step(gradients)
            if is_finite and taken + 1 < self._max_steps:
                value, gradients = self.model.descend_by(self.weights, states, targets, loss)
            elif is_finite:
                value = self._measure(loss, states, targets)
            if is_finite and math.isfinite(value):
                taken += 1
            else:
                self._flat[:] = before
                value = math.nan
        self._num_steps += taken
        self._num_cut += timer.ran_out
        return self._measured(value)

    def _measured(self, value: float) -> Callable[[], float]:
        self._num_rejected += math.isnan(value)
        return functools.partial(float, value)

    def _step(self, gradients: Mapping[str, Floats]) -> bool:
        """One clipped and projected step, and whether all of it is finite."""
        gradient = np.concatenate([gradients[name].ravel() for name in self.weights])
        slope = _size(gradient)
        if not math.isfinite(slope):
            return False
        # Clip the gradient to its largest norm, and descend.
        lr = self.lr * (self.grad_clip_norm / slope if slope > self.grad_clip_norm else 1.0)
        self._flat -= gradient.dtype.type(min(lr, self._largest)) * gradient
        # Project onto the ball around the source.
        offset = self._flat - self._source
        distance = _size(offset)
        if not math.isfinite(distance):
            return False
        if distance > self._radius:
            self._flat[:] = self._source + self._pull_back(offset, distance)
        return True


def _size(vector: Floats) -> float:
    """The L2 norm."""
    return math.sqrt(float(vector.dot(vector)))
