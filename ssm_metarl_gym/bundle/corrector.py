"""Actions whose effect now is what the asked ones had in the physics of the reference, for one robot."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from ssm_metarl_gym.bundle.adapters import AdaptingWeights
from ssm_metarl_gym.bundle.kalman import KalmanFilter
from ssm_metarl_gym.bundle.layers import Floats, clipped
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.bundle.online import Learned
from ssm_metarl_gym.checks import Rule, check_choice, check_fields
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["Corrector", "Expected", "MapCorrector", "make_corrector"]

_STEP: Final = 0.05  # of the finite differences, in half ranges of the action
_BOTH_WAYS: Final = np.array([[1.0], [-1.0]], dtype=np.float32)
_PARTS: Final = np.array([[1.0], [0.3]])  # of a step, which are tried
_ITERATIONS: Final = 2  # of Gauss and Newton
_KNOWN_VARIANCE: Final = 0.05  # of an entry of a map, on average: below it, there is nothing to explore
_NUMBER: Rule = ("a number >= 0", lambda value: value >= 0.0)
_FINITE: Rule = ("a finite number >= 0", lambda value: 0.0 <= value < math.inf)
_RULES: Final[dict[str, Rule]] = {
    "gate": _NUMBER,
    "effect_gate": ("a number", lambda value: not math.isnan(value)),
    "prior_steps": _FINITE,
    "map_gate": _NUMBER,
    "decay": ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0),
    "regularisation": _FINITE,
    "exploration": _FINITE,
}


class Expected(NamedTuple):
    """What is expected to follow from an action.

    Attributes:
        encoded: What the adapting model encodes of it, ``Float[1 F]``.
        by_adapted: What that model predicts, ``Float[1 D]``.
        by_reference: What the reference predicts, ``Float[1 D]``.
    """

    encoded: Floats
    by_adapted: Floats
    by_reference: Floats


class Corrector:
    """What the corrector of :class:`ssm_metarl_gym.wrappers.ActionCorrection` does for one environment.

    Args:
        adapter: What adapts.
        reference: The model of the physics that the policy knows.
        options: Those of the wrapper.

    Attributes:
        adapted_error: Running mean of the adapted model's squared errors; NaN at first.
        reference_error: That of the reference.
        effect: What actions do, in units of what they do in the reference; NaN where that is not known.
    """

    def __init__(self, adapter: AdaptingWeights, reference: Model, options: Mapping[str, Any]) -> None:
        self.gate: float = options["gate"]
        self.effect_gate: float = options["effect_gate"]
        self.prior_steps: float = options["prior_steps"]
        self.map_gate: float = options["map_gate"]
        self.decay: float = options["decay"]
        self.regularisation: float = options["regularisation"]
        self.exploration: float = options["exploration"]
        check_fields(self, _RULES)
        check_choice("match", options["match"], ["change", "effect"])
        self._matches_effect = options["match"] == "effect"
        self._adapter = adapter
        self._reference = reference
        self._space = reference.space
        if not self._space.is_discrete:
            # In half ranges: where a search begins, but for the asked action and its reverse, and the probes of its
            # finite differences.
            self._eye = np.eye(len(self._space.half))
            along = [size * self._eye for size in (-1.0, -0.5, 0.5, 1.0)]
            self._starts = np.concatenate([np.zeros_like(self._eye[:1]), *along])
            self._around = _STEP * np.concatenate([self._eye, -self._eye])
        self.begin()

    @property
    def compares_effects(self) -> bool:
        """Whether the gate asks what actions do, which takes a twin."""
        return not self._space.is_discrete and self.effect_gate < math.inf

    def seed(self, seed: int) -> None:
        """Seed what is random, which is nothing here."""

    def begin(self) -> None:
        """Forget what was seen."""
        self.adapted_error = self.reference_error = self.effect = math.nan
        self._num_steps = 0

    def is_open(self) -> bool:
        """Whether actions are corrected: the physics differ, and what actions do is weaker or turned."""
        # Comparisons with NaN are false: without evidence the gate is closed.
        differs = self.reference_error > self.gate * self.adapted_error
        return differs and (not self.compares_effects or self.effect < self.effect_gate)

    def learn(self, learned: Learned) -> None:
        """Move the running means towards the errors of a step."""
        if learned.is_change:
            self.begin()
        if learned.is_kept:
            self.adapted_error = self._moved(self.adapted_error, learned.error)
            self.reference_error = self._moved(self.reference_error, learned.reference_error)
            self._num_steps += 1

    def expect(self, observation: Floats, action: Floats) -> Expected:
        """What is expected to follow from an action."""
        model, actions = self._adapter.model, action[None]
        encoded = model.encode(observation, actions)
        if self._reference is model:
            return Expected(encoded, *self._adapter.foresee(encoded))
        return Expected(encoded, self._adapter.predict(encoded), self._ask_reference(observation, actions))

    def compare_effects(self, twin: AdaptingWeights, observation: Floats, asked: Floats) -> None:
        """Estimate what actions do, by the asked one at its full size there and back, as both models see it."""
        space = self._space
        scaled = (asked - space.middle) / space.unit
        size = float(np.abs(scaled).max())
        direction = scaled / size * space.half if size > 1e-6 else space.half
        probes = (space.middle + _BOTH_WAYS * direction).astype(space.dtype, copy=False)
        encoded = self._adapter.model.encode(observation, probes)
        now, before = (one[0] - one[1] for one in (self._adapter.predict(encoded), twin.predict(encoded)))
        power, along = float(before.dot(before)), float(now.dot(before))
        ratio = along / max(power, 1e-12)
        if len(asked) > 1:  # the effect of several motors can turn, however large it is
            ratio = min(ratio, along / max(math.sqrt(power * float(now.dot(now))), 1e-12))
        weight = self._num_steps / max(self._num_steps + self.prior_steps, 1.0)
        effect = 1.0 + weight * (ratio - 1.0)
        if power > 1e-12 and math.isfinite(effect):
            self.effect = effect

    def correct(self, observation: Floats, asked: Floats) -> Floats:
        """The action that does now what the asked one would do in the reference, whatever the gate."""
        if self._space.is_discrete:
            return self._nearest_choice(observation, asked)
        return self._least_squares(observation, asked)

    def _nearest_choice(self, observation: Floats, asked: Floats) -> Floats:
        """The choice whose prediction is nearest to the wanted one; the asked one among equals."""
        start, own = self._space.start, int(asked) - self._space.start
        choices = start + np.arange(self._space.n)
        now, before = self._ask(observation, choices), self._ask_reference(observation, choices)  # P D
        if self._matches_effect:
            now, before = now - now.mean(axis=0), before - before.mean(axis=0)
        errors = ((now - before[own]) ** 2).sum(axis=1)  # P
        # Not where some predictions are no numbers, of which the least is none either.
        best = int(errors.argmin()) if errors[own] > errors.min() else own
        return np.asarray(start + best, dtype=asked.dtype)

    def _least_squares(self, observation: Floats, asked: Floats) -> Floats:
        """``argmin_u |f(o, u) - wanted|^2 + regularisation |u|^2``, by steps of Gauss and Newton, within the bounds."""
        space = self._space
        wanted = self._ask_reference(observation, asked[None])[0]
        if self._matches_effect:
            idle = space.zero[None]
            wanted = wanted - self._ask_reference(observation, idle)[0] + self._ask(observation, idle)[0]

        def costs(u: Floats) -> tuple[Floats, Floats]:
            """Of actions ``Float64[P A]``: what the model predicts ``Float64[P D]``, and the cost ``Float64[P]``."""
            predicted = predict(u)
            errors = predicted - wanted
            squares = np.einsum("pd,pd->p", errors, errors)
            return predicted, squares + self.regularisation * np.einsum("pa,pa->p", u, u)

        def predict(u: Floats) -> Floats:
            """What the model predicts."""
            actions = (u * space.half + space.middle).astype(space.dtype)
            return self._ask(observation, actions).astype(np.float64)

        # Begin where it costs least: far from the asked action the model bends.
        own = ((asked - space.middle) / space.unit).astype(np.float64)
        starts = np.concatenate([own[None], -own[None], self._starts])  # P A, in half ranges
        u, predicted, cost = _cheapest(starts, *costs(starts))
        for _ in range(_ITERATIONS):
            around = predict(u + self._around)
            jacobian = (around[: len(u)] - around[len(u) :]) / (2 * _STEP)  # A D
            target = np.dot(jacobian, wanted - predicted + np.dot(u, jacobian))
            goal = self._solve(np.dot(jacobian, jacobian.T) + self.regularisation * self._eye, target)
            # The whole step or a part of it, or none where none costs less: nor would any do so the next time.
            tried = u + _PARTS * (clipped(goal, -1.0, 1.0) - u)
            best, best_predicted, least = _cheapest(tried, *costs(tried))
            if not least < cost:
                break
            u, predicted, cost = best, best_predicted, least
        if not math.isfinite(cost):  # no prediction is a number: nothing was found
            return asked
        return clipped(u * space.half + space.middle, space.low, space.high).astype(space.dtype)

    def _solve(self, normal: Floats, target: Floats) -> Floats:
        """The solution of ``Float64[A A]`` and ``Float64[A]``, which without regularisation need not be one."""
        try:
            if self.regularisation > 0.0 and len(target) == 1:  # a division, for which `solve` takes ten times as long
                quotient: Floats = target / normal[0]
                return quotient
            if self.regularisation > 0.0:
                return np.linalg.solve(normal, target)
            return np.linalg.lstsq(normal, target, rcond=None)[0]
        except np.linalg.LinAlgError:  # of what is not finite: no step costs less than none
            return np.full_like(target, np.nan)

    def _ask(self, observation: Floats, actions: Floats) -> Floats:
        """What the adapted model says of P actions: ``[P ...]`` -> ``Float[P D]``."""
        return self._adapter.predict(self._adapter.model.encode(observation, actions))

    def _ask_reference(self, observation: Floats, actions: Floats) -> Floats:
        """What the reference says of them."""
        model = self._reference
        return model.predict(model.source, model.encode(observation, actions))

    def _moved(self, mean: float, value: float) -> float:
        """A running mean, which begins with its first value, after one more."""
        if not math.isfinite(value):
            return mean
        return value if math.isnan(mean) else self.decay * mean + (1.0 - self.decay) * value


class MapCorrector(Corrector):
    """Where a map on the actions is all that adapts: in closed form, and where the map is known to differ.

    Args:
        adapter: What adapts the map.
        reference: The model with the map that the policy knows.
        options: Those of the wrapper.
    """

    def __init__(self, adapter: AdaptingWeights, reference: Model, options: Mapping[str, Any]) -> None:
        super().__init__(adapter, reference, options)
        own_map, own_offset = (reference.source[name] for name in ("action_map", "action_offset"))
        self._map, self._offset = own_map.astype(np.float64), own_offset.astype(np.float64)
        self._filter = adapter if isinstance(adapter, KalmanFilter) else None
        self._is_known = self._filter is None or self._filter.source_is(own_map, own_offset)
        self._half, self._middle = self._space.half.astype(np.float64), self._space.middle.astype(np.float64)
        self._can_move = self._half > 0.0
        self._rng = np.random.default_rng(seed_sequence(0, "exploration"))

    @property
    def compares_effects(self) -> bool:
        """Never: what actions do is what the map says."""
        return False

    def seed(self, seed: int) -> None:
        """Seed the noise."""
        self._rng = np.random.default_rng(seed_sequence(seed, "exploration"))

    def is_open(self) -> bool:
        """Whether another map than that of the source is believed in."""
        if self._filter is None:
            return super().is_open()
        if math.inf in (self.gate, self.map_gate):
            return False
        unchanged = self._filter.belief_in_source
        return not self._is_known or 1.0 - unchanged >= self.map_gate * unchanged

    def correct(self, observation: Floats, asked: Floats) -> Floats:
        """The action that does now, through the map, what the asked one would do in the reference."""
        space, own = self._space, self._adapter.weights
        if self._filter is None:
            action_map, offset, variance = own["action_map"].astype(float), own["action_offset"].astype(float), 0.0
        else:
            action_map, offset, variance = self._filter.estimate()
        wanted = np.dot(self._map, self._reference.commands(asked).astype(np.float64)) + self._offset
        found = self._undo(action_map, wanted - offset)
        if variance > _KNOWN_VARIANCE:
            found = found + self.exploration * self._rng.standard_normal(len(found))
        return clipped(self._middle + self._half * found, space.low, space.high).astype(asked.dtype)

    def _undo(self, action_map: Floats, wanted: Floats) -> Floats:
        """``argmin_v |A v - w|^2 + regularisation |v|^2``, in half ranges around the middle, within the bounds."""
        moving = action_map * self._can_move
        v = self._solve(np.dot(moving.T, moving) + self.regularisation * self._eye, np.dot(wanted, moving))
        return clipped(v, -1.0, 1.0)


def make_corrector(adapter: AdaptingWeights, reference: Model, options: Mapping[str, Any]) -> Corrector:
    """The corrector of these models."""
    of_maps = adapter.model.adapts == reference.adapts == "action_map"
    return (MapCorrector if of_maps else Corrector)(adapter, reference, options)


def _cheapest(u: Floats, predicted: Floats, cost: Floats) -> tuple[Floats, Floats, float]:
    """Of ``Float64[P ...]`` each: the action, the prediction and the cost where that is least."""
    best = int(cost.argmin())
    return u[best], predicted[best], float(cost[best])
