"""The arithmetic of corrected actions, for the rows of many environments or for the one row of a single one."""

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.checks import Rule, check_choice, check_fields
from ssm_metarl_gym.wrappers.adapted_model import encode_rows

__all__ = ["Corrector", "Predict"]

# Float[N P D] and Int[N P] or Float[N P A] -> Float[N P D], the predicted changes, normalised.
Predict = Callable[[npt.NDArray[Any], npt.NDArray[Any]], Tensor]
Flags = npt.NDArray[np.bool_]
_STEP: Final = 0.05  # of the finite differences, in half ranges of the action
_ITERATIONS: Final = 2  # of Gauss and Newton: from a good start the models bend little
_RULES: Final[dict[str, Rule]] = {
    "gate": ("a number >= 0 (inf corrects nothing)", lambda value: value >= 0.0),
    "effect_gate": ("a number (inf leaves it to the other gate)", lambda value: not math.isnan(value)),
    "prior_steps": ("a finite number >= 0", lambda value: 0.0 <= value < math.inf),
    "decay": ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0),
    "regularisation": ("a finite number >= 0", lambda value: 0.0 <= value < math.inf),
}


class Corrector:
    """Finds the actions whose effect now is what the asked ones had in the physics of the reference.

    Args:
        reference: The model of the physics that the policy knows.
        action_space: ``Discrete``, or a bounded one-dimensional ``Box``.
        num_rows: Number of rows N.
        match: See :class:`ActionCorrection`, and so for all that follow.
        gate: How many times as large the error of the reference must be.
        effect_gate: Below which effect a ``Box`` of actions is corrected.
        prior_steps: How many steps of evidence it takes to believe half of what the models say of the effect.
        decay: Decay of the running means.
        regularisation: Weight of the size of an action of a ``Box``, in half ranges, beside the error of a prediction.

    Raises:
        ValueError: An argument is not valid.

    Attributes:
        adapted_error: ``Float64[N]``, running mean of the adapted model's squared one-step errors, in variances of the
            change, each of what was predicted before the step; nan at first. After a change of the physics it begins
            with the error on the step that told of it as the model is after that step, which has adapted to it where
            it was time to adapt (with ``every`` > 1 it may not have been).
        reference_error: ``Float64[N]``, that of the reference.
        effect: ``Float64[N]``, what actions do, in units of what they do in the reference, as far as it is believed;
            nan at first and where effects are not compared.
    """

    def __init__(
        self,
        reference: DynamicsModel,
        action_space: spaces.Space[Any],
        num_rows: int,
        *,
        match: str | None,
        gate: float,
        effect_gate: float,
        prior_steps: float,
        decay: float,
        regularisation: float,
    ) -> None:
        self._is_discrete = isinstance(action_space, spaces.Discrete)
        if not self._is_discrete and not (
            isinstance(action_space, spaces.Box) and action_space.is_bounded() and len(action_space.shape) == 1
        ):
            raise ValueError(f"actions must be Discrete, or of a bounded one-dimensional Box; got {action_space}.")
        if match is not None:
            check_choice("match", match, ["change", "effect"])
        self._match = match or ("effect" if self._is_discrete else "change")
        self.reference = reference
        self.gate = gate
        self.effect_gate = effect_gate
        self.prior_steps = prior_steps
        self.decay = decay
        self.regularisation = regularisation
        check_fields(self, _RULES)
        self._space: Any = action_space
        self.adapted_error = np.full(num_rows, np.nan)
        self.reference_error = np.full(num_rows, np.nan)
        self.effect = np.full(num_rows, np.nan)
        self._num_steps = np.zeros(num_rows, dtype=np.int64)

    def begin(self, rows: Flags) -> None:
        """Forget what these rows ``[N]`` have seen."""
        for mean in (self.adapted_error, self.reference_error, self.effect):
            mean[rows] = np.nan
        self._num_steps[rows] = 0

    def seed(self, row: int, seed: int) -> None:
        """Seed what is random in a row, which is nothing here."""

    @property
    def compares_effects(self) -> bool:
        """Whether the gate asks what actions do, which takes a twin: not of choices, and not where it is inf."""
        return not self._is_discrete and self.effect_gate < math.inf

    def is_open(self) -> Flags:
        """The rows ``[N]`` whose actions are corrected: the physics differ, and what actions do is weaker or turned."""
        # Comparisons with nan are false: without evidence the gate is closed.
        with np.errstate(invalid="ignore"):
            differs = self.reference_error > self.gate * self.adapted_error
            return differs & (self.effect < self.effect_gate) if self.compares_effects else differs

    def learn(
        self, adapted_error: npt.NDArray[np.float64], reference_error: npt.NDArray[np.float64], rows: Flags
    ) -> None:
        """Move the running means of these rows ``[N]`` towards the errors ``Float64[N]`` of a step, where finite."""
        for mean, error in ((self.adapted_error, adapted_error), (self.reference_error, reference_error)):
            self._move(mean, error, rows)
        self._num_steps += rows

    @torch.no_grad()
    def compare_effects(
        self,
        predict: Predict,
        predict_twin: Predict,
        observations: npt.NDArray[Any],
        asked: npt.NDArray[Any],
        rows: Flags,
    ) -> None:
        """Estimate what actions do, by the asked ones at their full size there and back.

        Both models have adapted alike, one to what happened and one to what the reference would have done: what
        adapting in few steps leaves out is left out by both. A few steps do not tell a weaker motor from a stronger
        load, so the ratio ``e`` of the effects is shrunk towards 1, as the mean of n steps that say ``e`` and of
        ``prior_steps`` that say 1.

        Args:
            predict: The adapted model.
            predict_twin: The twin.
            observations: ``Float[N D]``.
            asked: The actions that were asked for, ``Float[N A]``.
            rows: ``Bool[N]``, for which it is estimated.
        """
        half, middle = (self._space.high - self._space.low) / 2, (self._space.high + self._space.low) / 2
        scaled = (asked - middle) / half  # N A
        size = np.abs(scaled).max(axis=1, keepdims=True)
        direction = np.where(size > 1e-6, scaled / np.maximum(size, 1e-6), 1.0) * half
        probes = np.stack([middle + direction, middle - direction], axis=1).astype(self._space.dtype)  # N 2 A
        repeated = np.repeat(observations[:, None], 2, axis=1)
        now, before = (_difference(model(repeated, probes)) for model in (predict, predict_twin))
        size = before.square().sum(1).double()
        ratio = ((now * before).sum(1).double() / size.clamp(min=1e-12)).numpy()
        weight = self._num_steps / np.maximum(self._num_steps + self.prior_steps, 1.0)
        effect = 1.0 + weight * (ratio - 1.0)
        rows = rows & (size > 1e-12).numpy() & np.isfinite(effect)
        self.effect[rows] = effect[rows]

    def correct(
        self, predict: Predict, observations: npt.NDArray[Any], asked: npt.NDArray[Any], rows: Flags
    ) -> npt.NDArray[Any]:
        """The actions that do now what the asked ones would do in the reference, ``[N ...]``, whatever the gate.

        Those of other rows than ``rows`` ``[N]`` are the asked ones.
        """
        taken = asked.copy()
        with torch.no_grad():
            find = self._nearest_choice if self._is_discrete else self._least_squares
            taken[rows] = find(predict, observations, asked)[rows]
        return taken

    def _nearest_choice(
        self, predict: Predict, observations: npt.NDArray[Any], asked: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """The choice whose prediction is nearest to the wanted one; the asked one among equals."""
        n, num_choices = len(asked), int(self._space.n)
        choices = np.broadcast_to(self._space.start + np.arange(num_choices), (n, num_choices))
        repeated = np.repeat(observations[:, None], num_choices, axis=1)
        now, before = predict(repeated, choices), self._predict_reference(repeated, choices)  # N P D
        if self._match == "effect":
            now, before = (prediction - prediction.mean(1, keepdim=True) for prediction in (now, before))
        rows, own = torch.arange(n), torch.as_tensor(asked - self._space.start)
        errors = (now - before[rows, own][:, None]).square().sum(2)  # N P
        best = torch.where(errors[rows, own] <= errors.amin(1), own, errors.argmin(1))
        taken: npt.NDArray[Any] = (best.numpy() + self._space.start).astype(asked.dtype)
        return taken

    def _least_squares(
        self, predict: Predict, observations: npt.NDArray[Any], asked: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """``argmin_u |f(o, u) - wanted|^2 + regularisation |u|^2``, by steps of Gauss and Newton, within the bounds."""
        low, high = self._space.low, self._space.high
        half, middle = (high - low) / 2, (high + low) / 2
        wanted = self._predict_reference(observations[:, None], asked[:, None])[:, 0]  # N D
        if self._match == "effect":
            idle = np.broadcast_to(np.clip(np.zeros_like(low), low, high), asked.shape)[:, None]
            wanted = wanted - self._predict_reference(observations[:, None], idle)[:, 0]
            wanted = wanted + predict(observations[:, None], idle)[:, 0]
        u = torch.as_tensor((asked - middle) / half).double()  # N A, in half ranges

        def costs(u: Tensor) -> tuple[Tensor, Tensor]:
            """Of actions ``Float[N P A]``: what the model predicts ``Float[N P D]``, and the cost ``Float[N P]``."""
            repeated = np.repeat(observations[:, None], u.shape[1], axis=1)
            predicted = predict(repeated, (u.numpy() * half + middle).astype(self._space.dtype)).double()
            errors = (predicted - wanted[:, None].double()).square().sum(2)
            return predicted, errors + self.regularisation * u.square().sum(2)

        # Begin where it costs least: far from the asked action the model bends.
        starts = _starts(u)  # N P A
        _, cost = costs(starts)
        cost, best = cost.min(1)
        u = starts[torch.arange(len(u)), best]
        num_actions = asked.shape[1]
        steps = (
            _STEP * torch.cat([torch.zeros(1, num_actions), torch.eye(num_actions), -torch.eye(num_actions)]).double()
        )
        for _ in range(_ITERATIONS):
            predicted, _ = costs(u[:, None] + steps)  # N 1+2A D
            ahead, back = predicted[:, 1:].split(num_actions, dim=1)
            jacobian = (ahead - back) / (2 * _STEP)  # N A D
            residual = (wanted.double() - predicted[:, 0])[..., None]  # N D 1
            normal = jacobian @ jacobian.mT + self.regularisation * torch.eye(num_actions, dtype=torch.float64)
            target = jacobian @ (residual + jacobian.mT @ u[..., None])  # N A 1
            step = torch.linalg.lstsq(normal, target).solution[..., 0].clamp(-1.0, 1.0) - u
            # The whole step or a part of it, or none where none costs less.
            tried = u[:, None] + torch.tensor([1.0, 0.3], dtype=torch.float64)[:, None] * step[:, None]  # N 2 A
            _, tried_costs = costs(tried)
            least, which = tried_costs.min(1)
            better = least < cost
            u = torch.where(better[:, None], tried[torch.arange(len(u)), which], u)
            cost = torch.where(better, least, cost)
        taken: npt.NDArray[Any] = np.clip(u.numpy() * half + middle, low, high).astype(self._space.dtype)
        return taken

    def _predict_reference(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        encoded = encode_rows(self.reference, observations, actions)
        predicted: Tensor = self.reference(encoded.flatten(0, 1)).unflatten(0, encoded.shape[:2])
        return predicted

    def _move(self, mean: npt.NDArray[np.float64], values: npt.NDArray[np.float64], rows: Flags) -> None:
        """Move a running mean, which begins with its first value."""
        rows = rows & np.isfinite(values)
        moved = np.where(np.isnan(mean), values, self.decay * mean + (1.0 - self.decay) * values)
        mean[rows] = moved[rows]


def _difference(predictions: Tensor) -> Tensor:
    """Of two predictions ``Float[N 2 D]``: ``Float[N D]``."""
    return predictions[:, 0] - predictions[:, 1]


def _starts(asked: Tensor) -> Tensor:
    """Where to begin the search: the asked action ``Float[N A]``, its reverse, and a few along each axis."""
    num_actions = asked.shape[1]
    along = torch.cat([size * torch.eye(num_actions) for size in (-1.0, -0.5, 0.5, 1.0)]).double()
    fixed = torch.cat([torch.zeros(1, num_actions, dtype=torch.float64), along]).expand(len(asked), -1, -1)
    return torch.cat([asked[:, None], -asked[:, None], fixed], dim=1)
