"""The bounds of adaptation at test time, and what an adapter says that it did."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Final

from ssm_metarl_gym.checks import Rule, check_fields, is_number

__all__ = ["AdaptationConfig", "AdapterStats", "parse_stats"]


_RULES: Final[Mapping[str, Rule]] = {
    "lr": ("a finite number >= 0", lambda value: 0.0 <= value < math.inf),
    "grad_clip_norm": ("a number > 0 (inf for no clipping)", lambda value: value > 0.0),
    "trust_region_eps": ("a number >= 0 (0 freezes the weights, inf is no bound)", lambda value: value >= 0.0),
    "ema_decay": ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0),
    "entropy_weight": ("a finite number", math.isfinite),
    "max_steps_per_call": ("an int >= 1", lambda value: isinstance(value, Integral) and int(value) >= 1),
}


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
        check_fields(self, _RULES)
        # As numbers of Python: torch refuses NumPy's where it takes a flag.
        for name in _RULES:
            convert = int if name == "max_steps_per_call" else float
            object.__setattr__(self, name, convert(getattr(self, name)))


@dataclass(frozen=True)
class AdapterStats:
    """What an adapter has done since it was made or reset.

    A step is a gradient step of an :class:`Adapter`, and a transition that was taken in of an adapter in closed form.

    Attributes:
        calls: Calls of ``adapt``, empty ones included.
        empty_calls: Calls with an empty batch, which change nothing.
        steps: Accepted steps.
        rejected_steps: Steps undone, or not taken, because something was not finite: a loss, gradient, weight or input.
        clipped_steps: Accepted steps whose gradient was clipped, or transitions that counted for less than one.
        projected_steps: Accepted steps that ended on the border of the trust region.
        loss_mean: Running mean of the losses *before* adaptation: a rise of it is a sign of drift.
        loss_variance: Running variance of the same.
        distance: Distance of the weights from the source, relative to the norm of the source.
        covariance_resets: How often the covariance of an adapter in closed form was put back to its prior.
        cut_calls: Calls whose ``budget_ms`` left no time for the next step.
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
    covariance_resets: int = 0
    cut_calls: int = 0


def parse_stats(stored: Mapping[str, Any]) -> AdapterStats:
    """Statistics as they were saved.

    Raises:
        ValueError: A field is missing, unknown, or holds what no adapter says.
    """
    if set(stored) != {field.name for field in fields(AdapterStats)}:
        raise ValueError(f"the statistics are {sorted(map(str, stored))}")
    counts = [stored[field.name] for field in fields(AdapterStats) if field.type is int]
    numbers = [stored[field.name] for field in fields(AdapterStats) if field.type is float]
    if (
        not all(isinstance(count, int) and is_number(count) and count >= 0 for count in counts)
        or not all(isinstance(number, float) for number in numbers)
        or math.isinf(stored["loss_mean"])
        or not 0.0 <= stored["loss_variance"] < math.inf
        or not stored["distance"] >= 0.0
    ):
        raise ValueError(f"the statistics are {dict(stored)}")
    return AdapterStats(**stored)
