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
from ssm_metarl_gym.checks import Rule, check_choice, check_fields, has_bounds
from ssm_metarl_gym.wrappers.adapted_model import encode_rows

__all__ = ["Corrector", "Index", "Predict", "PredictBoth", "solve_where_finite"]

Index = npt.NDArray[np.int64]
# Of the models of some rows: Float[M P D], Int[M P] or Float[M P A], and which rows these are, Int[M], in increasing
# order -> Float[M P D], the predicted changes, normalised.
Predict = Callable[[npt.NDArray[Any], npt.NDArray[Any], Index], Tensor]
# The same of two models.
PredictBoth = Callable[[npt.NDArray[Any], npt.NDArray[Any], Index], tuple[Tensor, Tensor]]
_Ask = Callable[[npt.NDArray[Any]], Tensor]  # [M P ...] -> Float[M P D], at the observations at hand
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
        match: What is to be as it was, ``"change"`` or ``"effect"``.
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
            isinstance(action_space, spaces.Box) and has_bounds(action_space).all() and len(action_space.shape) == 1
        ):
            raise ValueError(f"actions must be Discrete, or of a bounded one-dimensional Box; got {action_space}.")
        if match is not None:
            check_choice("match", match, ["change", "effect"])
        self.match = match or ("effect" if self._is_discrete else "change")
        self.reference = reference
        self.gate = gate
        self.effect_gate = effect_gate
        self.prior_steps = prior_steps
        self.decay = decay
        self.regularisation = regularisation
        check_fields(self, _RULES)
        self._space: Any = action_space
        if isinstance(action_space, spaces.Box):
            # In floating-point numbers: those of a box of small integers would overflow.
            exact = np.result_type(action_space.dtype, np.float32)
            low, high = action_space.low.astype(exact), action_space.high.astype(exact)
            self._middle, self._half = (high + low) / 2, (high - low) / 2
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
        predict_both: PredictBoth,
        observations: npt.NDArray[Any],
        asked: npt.NDArray[Any],
        rows: Flags,
    ) -> None:
        """Estimate what actions do, by the asked ones at their full size there and back.

        Both models have adapted alike, one to what happened and one to what the reference would have done: what
        adapting in few steps leaves out is left out by both. A few steps do not tell a weaker motor from a stronger
        load, so the ratio ``e`` of the effects is shrunk towards 1, as the mean of n steps that say ``e`` and of
        ``prior_steps`` that say 1. It is that of what the effect is along the one in the reference; of several motors,
        whose effect may have turned, no more than the cosine between the two.

        Args:
            predict_both: The adapted model, and the twin.
            observations: ``Float[N D]``.
            asked: The actions that were asked for, ``Float[N A]``.
            rows: ``Bool[N]``, for which it is estimated.
        """
        (index,) = rows.nonzero()
        half, middle = self._half, self._middle
        scaled = (asked[index] - middle) / _units(half)  # M A
        size = np.abs(scaled).max(axis=1, keepdims=True)
        direction = np.where(size > 1e-6, scaled / np.maximum(size, 1e-6), 1.0) * half
        probes = np.stack([middle + direction, middle - direction], axis=1).astype(self._space.dtype)  # M 2 A
        repeated = np.repeat(observations[index, None], 2, axis=1)
        now, before = map(_difference, predict_both(repeated, probes, index))
        size, size_now = (difference.square().sum(1).double() for difference in (before, now))
        along = (now * before).sum(1).double()
        ratio = along / size.clamp(min=1e-12)
        if asked.shape[1] > 1:
            # The effect of several motors can turn: however large it is, it then counts as no more than its cosine.
            ratio = torch.minimum(ratio, along / (size * size_now).sqrt().clamp(min=1e-12))
        num_steps = self._num_steps[index]
        effect = 1.0 + num_steps / np.maximum(num_steps + self.prior_steps, 1.0) * (ratio.numpy() - 1.0)
        known = (size > 1e-12).numpy() & np.isfinite(effect)
        self.effect[index[known]] = effect[known]

    def correct(
        self, predict: Predict, observations: npt.NDArray[Any], asked: npt.NDArray[Any], rows: Flags
    ) -> npt.NDArray[Any]:
        """The actions that do now what the asked ones would do in the reference, ``[N ...]``, whatever the gate.

        Those of other rows than ``rows`` ``[N]`` are the asked ones.
        """
        taken = asked.copy()
        (index,) = rows.nonzero()
        here = observations[index]

        def ask(actions: npt.NDArray[Any]) -> Tensor:
            return predict(np.repeat(here[:, None], actions.shape[1], axis=1), actions, index)

        with torch.no_grad():
            find = self._nearest_choice if self._is_discrete else self._least_squares
            taken[index] = find(ask, here, asked[index])
        return taken

    def _nearest_choice(self, ask: _Ask, observations: npt.NDArray[Any], asked: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The choice whose prediction is nearest to the wanted one; the asked one among equals."""
        n, num_choices = len(asked), int(self._space.n)
        choices = np.broadcast_to(self._space.start + np.arange(num_choices), (n, num_choices))
        now, before = ask(choices), self._predict_reference(observations, choices)  # M P D
        if self.match == "effect":
            now, before = (prediction - prediction.mean(1, keepdim=True) for prediction in (now, before))
        rows, own = torch.arange(n), torch.as_tensor(asked - self._space.start)
        errors = (now - before[rows, own][:, None]).square().sum(2)  # M P
        # Not where some predictions are no numbers, of which the least is none either.
        best = torch.where(errors[rows, own] > errors.amin(1), errors.argmin(1), own)
        taken: npt.NDArray[Any] = (best.numpy() + self._space.start).astype(asked.dtype)
        return taken

    def _least_squares(self, ask: _Ask, observations: npt.NDArray[Any], asked: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``argmin_u |f(o, u) - wanted|^2 + regularisation |u|^2``, by steps of Gauss and Newton, within the bounds."""
        low, high, half, middle = self._space.low, self._space.high, self._half, self._middle
        wanted = self._predict_reference(observations, asked[:, None])  # M 1 D
        if self.match == "effect":
            idle = np.broadcast_to(np.clip(np.zeros_like(low), low, high), asked.shape)[:, None]
            wanted = wanted - self._predict_reference(observations, idle) + ask(idle)
        wanted = wanted.double()

        def costs(u: Tensor) -> tuple[Tensor, Tensor]:
            """Of actions ``Float[M P A]``: what the model predicts ``Float[M P D]``, and the cost ``Float[M P]``."""
            predicted = ask((u.numpy() * half + middle).astype(self._space.dtype)).double()
            return predicted, (predicted - wanted).square().sum(2) + self.regularisation * u.square().sum(2)

        # Begin where it costs least: far from the asked action the model bends.
        starts = _starts(torch.as_tensor((asked - middle) / _units(half)).double())  # M P A, in half ranges
        u, predicted, cost = _cheapest(starts, *costs(starts))
        num_actions = asked.shape[1]
        eye = torch.eye(num_actions, dtype=torch.float64)
        for _ in range(_ITERATIONS):
            around, _ = costs(u[:, None] + _STEP * torch.cat([eye, -eye]))
            ahead, back = around.split(num_actions, dim=1)
            jacobian = (ahead - back) / (2 * _STEP)  # M A D
            residual = (wanted[:, 0] - predicted)[..., None]  # M D 1
            normal = jacobian @ jacobian.mT + self.regularisation * eye
            target = jacobian @ (residual + jacobian.mT @ u[..., None])  # M A 1
            step = self._solve(normal, target)[..., 0].clamp(-1.0, 1.0) - u
            # The whole step or a part of it, or none where none costs less.
            tried = u[:, None] + torch.tensor([1.0, 0.3], dtype=torch.float64)[:, None] * step[:, None]  # M 2 A
            best, best_predicted, least = _cheapest(tried, *costs(tried))
            better = (least < cost)[:, None]
            u, predicted = torch.where(better, best, u), torch.where(better, best_predicted, predicted)
            cost = torch.where(better[:, 0], least, cost)
        taken: npt.NDArray[Any] = np.clip(u.numpy() * half + middle, low, high).astype(self._space.dtype)
        # Where no prediction is a number, nothing was found.
        return np.where(cost.isfinite().numpy()[:, None], taken, asked)

    def _solve(self, normal: Tensor, target: Tensor) -> Tensor:
        """The solutions of ``Float64[M A A]`` and ``Float64[M A 1]``, which without regularisation need not be one."""
        if self.regularisation == 0.0:
            return solve_where_finite(normal, target)
        solution: Tensor = torch.linalg.solve_ex(normal, target)[0]  # several times as fast
        return solution

    def _predict_reference(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """What the reference says of P actions at each observation: ``Float[M D]`` and ``[M P ...]``."""
        encoded = encode_rows(self.reference, np.repeat(observations[:, None], actions.shape[1], axis=1), actions)
        predicted: Tensor = self.reference(encoded.flatten(0, 1)).unflatten(0, encoded.shape[:2])
        return predicted

    def _move(self, mean: npt.NDArray[np.float64], values: npt.NDArray[np.float64], rows: Flags) -> None:
        """Move a running mean, which begins with its first value."""
        rows = rows & np.isfinite(values)
        moved = np.where(np.isnan(mean), values, self.decay * mean + (1.0 - self.decay) * values)
        mean[rows] = moved[rows]


def solve_where_finite(normal: Tensor, target: Tensor) -> Tensor:
    """The solutions of ``Float64[N A A]`` and ``Float64[N A 1]``, which need not be one; nan where not all is finite.

    LAPACK refuses numbers that are not finite, and torch all rows together with them.
    """
    finite = (normal.isfinite().flatten(1).all(1) & target.isfinite().flatten(1).all(1))[:, None, None]
    solution: Tensor = torch.linalg.lstsq(normal.where(finite, 0.0), target.where(finite, 0.0)).solution
    return solution.where(finite, torch.nan)


def _units(half: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What to measure actions in by half their ranges ``Float[A]``: these, and 1 where a range has no length.

    What is found is multiplied by half the range itself, so that such a component of an action stays where it is.
    """
    return np.where(half > 0, half, 1)


def _difference(predictions: Tensor) -> Tensor:
    """Of two predictions ``Float[N 2 D]``: ``Float[N D]``."""
    return predictions[:, 0] - predictions[:, 1]


def _cheapest(u: Tensor, predicted: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``Float[M P ...]`` each: the action, the prediction and the cost where that is least, ``Float[M ...]``."""
    cost, best = cost.min(1)
    rows = torch.arange(len(u))
    return u[rows, best], predicted[rows, best], cost


def _starts(asked: Tensor) -> Tensor:
    """Where to begin the search: the asked action ``Float[N A]``, its reverse, and a few along each axis."""
    num_actions = asked.shape[1]
    along = torch.cat([size * torch.eye(num_actions) for size in (-1.0, -0.5, 0.5, 1.0)]).double()
    fixed = torch.cat([torch.zeros(1, num_actions, dtype=torch.float64), along]).expand(len(asked), -1, -1)
    return torch.cat([asked[:, None], -asked[:, None], fixed], dim=1)
