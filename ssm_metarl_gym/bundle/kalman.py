"""The extended Kalman filter on a map of the actions, and what it expects the map to be."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from ssm_metarl_gym.bundle.layers import Floats
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.bundle.recursive import Recursive
from ssm_metarl_gym.bundle.single_sources import densities_of_others, expected_rows
from ssm_metarl_gym.checks import Rule, check_fields

__all__ = ["KalmanFilter"]

_FREEDOM: Final = 4.0  # degrees, of how much the errors of a model differ in size
_UNEXPLAINED: Final = 10.0  # times the residual variance, where something else has changed
_POSITIVE: Rule = ("a finite number > 0", lambda value: 0.0 < value < math.inf)
_RULES: Final[dict[str, Rule]] = {
    "prior_variance": _POSITIVE,
    "process_noise": ("a finite number >= 0", lambda value: 0.0 <= value < math.inf),
    "noise_scale": _POSITIVE,
    "surprise": ("a number > 0", lambda value: value > 0.0),
}


class KalmanFilter(Recursive):
    """What :class:`ssm_metarl_gym.agents.KalmanAdapter` is, for an action map alone; see there for what it does.

    Args:
        model: A model whose action map adapts.
        options: ``prior_variance``, ``process_noise``, ``noise_scale``, ``surprise``, ``mixed`` and
            ``trust_region_eps``.
    """

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        super().__init__(model, options["trust_region_eps"])
        self.prior_variance: float = options["prior_variance"]
        self.process_noise: float = options["process_noise"]
        self.noise_scale: float = options["noise_scale"]
        self.surprise: float = options["surprise"]
        check_fields(self, _RULES)
        if model.adapts != "action_map" or not (model.residual_variance > 0.0).all():
            raise ValueError("a filter must have a fitted model with an action map to adapt.")
        self._mixed: bool = options["mixed"]
        self._num_actions = len(model.source["action_offset"])
        self._forgetting = self.process_noise / self.prior_variance
        self._source_mean = self._source.astype(np.float64)
        self._num_entries = self._num_actions**2
        variances = self.prior_variance * _hypotheses(model.action_scale, options["mixed"])  # K W
        # Of K hypotheses all but the first and the last let something move: F. These two are the source, with more or
        # less noise: no filter is needed.
        self._prior_variances = variances[1:-1]  # F W
        self._prior_covariances = self._prior_variances[:, :, None] * np.eye(variances.shape[1])
        # The means beforehand, from the source: of a random mix nothing is expected but a map of zeros.
        self._prior_offsets = np.zeros_like(self._prior_variances)  # F W
        if options["mixed"]:
            self._prior_offsets[:, : self._num_entries] = -self._source_mean[: self._num_entries]
        self._precision_root = 1.0 / np.sqrt(self.noise_scale * model.residual_variance.astype(np.float64))  # D
        # Beforehand a hypothesis is the less likely, the more parameters it lets change; something else is as likely
        # as the one with most of them.
        num_free = (variances > 0.0).sum(axis=1)
        num_free[-1] = num_free.max()
        weights = 1.0 / (1.0 + num_free)
        self._prior_beliefs = weights / weights.sum()
        self._added_beliefs = self._forgetting * self._prior_beliefs
        # What a step between two transitions adds, and what is kept of the distance from the source.
        self._added = np.minimum(self._prior_variances, self.process_noise)
        share = np.divide(self._added, self._prior_variances, out=np.zeros_like(self._added), where=self._added > 0.0)
        self._kept = np.sqrt(1.0 - share)  # F W
        self._kept_pairs = self._kept[:, :, None] * self._kept[:, None]  # F W W
        # Of an action u, the slopes of what is executed, M u + c, by the weights, row by row of M: A W. It is memory
        # that is used again, u in the place of the ones of `own`.
        self._eye = np.eye(self._num_actions)
        self._by_weights = np.concatenate([np.repeat(self._eye, self._num_actions, axis=1), self._eye], axis=1)
        self._own = self._view_of_own()  # A A
        self._mixes = {} if options["mixed"] else self._any_mix()
        self._foreseen: _Linearised | None = None
        self._forget()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__setstate__(state)
        self._own = self._view_of_own()

    def reset(self) -> None:
        """Go back to the prior."""
        super().reset()
        self._forget()

    def source_is(self, action_map: Floats, action_offset: Floats) -> bool:
        """Whether the source is this map."""
        return np.array_equal(self._source, np.concatenate([action_map.ravel(), action_offset]))

    @property
    def belief_in_source(self) -> float:
        """How probable it is that the map is that of the source: nothing has changed, or something else."""
        return float(self._beliefs[0] + self._beliefs[-1])

    def estimate(self) -> tuple[Floats, Floats, float]:
        """What is expected: the map ``Float64[A A]``, the offset ``Float64[A]``, and the entries' mean variance.

        Of any mix of the actions, unless it is known to be one, that motors obey a single one each is likely.
        """
        num_entries, beliefs = self._num_entries, self._beliefs[1:-1]
        mean = np.dot(beliefs, self._offsets)  # W
        # How uncertain the entries are, whichever hypothesis holds.
        spread = np.dot(beliefs, _diagonals(self._covariances) + self._offsets**2) - mean**2
        expected = self._source_mean + mean
        action_map = expected[:num_entries].reshape(self._eye.shape)
        for k, beforehand in self._mixes.items():
            of_mix = (self._source_mean + self._offsets[k])[:num_entries].reshape(self._eye.shape)
            rows = expected_rows(of_mix, self._covariances[k, :num_entries, :num_entries], beforehand)
            action_map = action_map + beliefs[k] * (rows - of_mix)
        return action_map, expected[num_entries:], float(spread[:num_entries].sum()) / num_entries

    def foresee(self, encoded: Floats) -> tuple[Floats, Floats]:
        """What the model predicts, and in the same pass what the filters need to take the transition in."""
        around = self._foreseen = self._linearised(encoded[0])
        return around.by_others[:1], around.by_others[1:]

    def _forget(self) -> None:
        self._foreseen = None
        self._offsets = self._prior_offsets  # F W, of the means from the source
        self._covariances = self._prior_covariances  # F W W
        self._beliefs = self._prior_beliefs  # K
        self._surprised = np.zeros(len(self._prior_variances), dtype=np.bool_)

    def _view_of_own(self) -> Floats:
        blocks = self._by_weights[:, : self._num_entries].reshape((self._num_actions,) * 3)
        own: Floats = np.einsum("iij->ij", blocks)
        return own

    def _any_mix(self) -> dict[int, Floats]:
        """Which filters are those of any mix of the actions, and what :func:`expected_rows` needs to know of each."""
        priors = self._prior_variances[:, : self._num_entries].reshape(-1, *self._eye.shape)
        source = self._source_mean[: self._num_entries].reshape(self._eye.shape)
        return {k: densities_of_others(prior, source) for k, prior in enumerate(priors) if (prior > 0.0).all()}

    def _absorb(self, state: Floats, target: Floats) -> Floats | None:
        if not np.isfinite(state).all():
            return None
        try:
            candidate = self._updated(state, target)
        except np.linalg.LinAlgError:  # what is expected of the innovation is no covariance
            return None
        offsets, _, beliefs, _ = candidate
        weights: Floats = self._source_mean + np.dot(beliefs[1:-1], offsets)
        if not self._can_be_held(weights):
            return None
        self._offsets, self._covariances, self._beliefs, self._surprised = candidate
        self._foreseen = None
        return weights

    def _updated(self, state: Floats, target: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Offsets, covariances, beliefs and surprises after one more transition."""
        # Predict: the parameters may have moved since the last transition.
        around = self._foreseen
        if around is None or around.state != state.tobytes():
            around = self._linearised(state)
        offsets = self._predicted_offsets()
        covariances = self._kept_pairs * self._covariances
        variances = _diagonals(covariances)
        variances += self._added
        evidence, size_of_source = self._observe(state, target, around)
        spread = covariances @ self._by_weights.T  # F W A
        update = _update(spread, evidence)
        size, likelihood = update.size, update.likelihood
        # Tell outliers from changes: what is more probable had the parameters changed, and a second surprise in a row.
        surprising = size > self.surprise
        if surprising.any():
            prior_spread = self._prior_variances[:, :, None] * self._by_weights.T
            anew = _update(prior_spread, evidence)
            is_likelier = self._forgetting * np.exp(anew.likelihood - likelihood) > 1.0
            changed = surprising & (self._surprised | is_likelier)
            covariances[changed], spread[changed] = self._prior_covariances[changed], prior_spread[changed]
            likelihood = np.where(changed, anew.likelihood, likelihood)
            # Update with the less weight the greater the surprise.
            times = np.maximum(np.where(changed, anew.size, size) / self.surprise, 1.0)  # F
            update = _update(spread, evidence.doubted(times))
            surprising = surprising & ~changed
        # Believe the hypotheses that predict well.
        logits = np.log((1.0 - self._forgetting) * self._beliefs + self._added_beliefs)
        logits[1:-1] += likelihood
        logits[0] += _log_likelihood(size_of_source, 0.0, len(target))
        logits[-1] += _log_likelihood(size_of_source / _UNEXPLAINED, len(target) * math.log(_UNEXPLAINED), len(target))
        beliefs = np.exp(logits - max(logits.tolist()))
        beliefs /= np.add.reduce(beliefs)
        offsets += update.step
        covariances -= update.gain @ spread.transpose(0, 2, 1)
        return self._project(offsets), covariances, beliefs, surprising

    def _predicted_offsets(self) -> Floats:
        """Those of the means a step later, ``Float64[F W]``."""
        predicted: Floats = self._prior_offsets + self._kept * (self._offsets - self._prior_offsets)
        return predicted

    def _linearised(self, state: Floats) -> "_Linearised":
        """The predictions for the next transition that is taken in, if it begins so."""
        single = (self._source_mean + self._predicted_offsets()).astype(self._source.dtype, copy=False)
        maps, offsets = single[:, : self._num_entries].reshape(-1, *self._eye.shape), single[:, self._num_entries :]
        parts = self.model.linearise(state, maps, offsets, [self.weights, self.model.source])
        return _Linearised(state.tobytes(), *parts)

    def _observe(self, state: Floats, target: Floats, around: "_Linearised") -> tuple["_Evidence", float]:
        """What a transition tells of the weights, and how far off the source is: v' R^-1 v / D, with R the noise."""
        # In standard deviations of the noise.
        innovations = np.subtract(target, around.predictions, dtype=np.float64) * self._precision_root  # F D
        of_source = np.subtract(target, around.by_others[1], dtype=np.float64) * self._precision_root  # D
        both = np.concatenate([around.slopes * self._precision_root, innovations[:, None]], axis=1)  # F A+1 D
        self._own[:] = state[-self._num_actions :]
        evidence = _Evidence(both @ both.transpose(0, 2, 1), self._by_weights, len(target))
        return evidence, float(of_source.dot(of_source)) / len(target)


def _hypotheses(scale: Floats, mixed: bool) -> Floats:
    """What may be the matter with actions, as relative variances of map and offset, ``Float64[K A * A + A]``.

    Nothing; each motor has a sign and a gain of its own; the same with offsets; any mix with offsets; something else.

    Args:
        scale: The actions' standard deviations, ``Float[A]``.
        mixed: Whether there is nothing but the first and the last two.
    """
    scale = scale.astype(np.float32)
    num_actions = len(scale)
    own = 4.0 * np.eye(num_actions, dtype=np.float32).ravel()
    mix = np.full((num_actions, num_actions), 1.0 / num_actions, dtype=np.float32)
    np.fill_diagonal(mix, 1.0)
    offset = (np.float32(0.5) * scale) ** 2
    nothing = 0.0 * own, 0.0 * offset
    if mixed:
        rows = [nothing, (np.ones_like(own), offset), nothing]
    else:
        rows = [nothing, (own, 0.0 * offset), (own, offset), (mix.ravel(), offset), nothing]
    return np.stack([np.concatenate(row) for row in rows]).astype(np.float64)


class _Linearised(NamedTuple):
    """What a model predicts for a transition, around the weights of F hypotheses.

    Attributes:
        state: The bytes of what the model encodes of the transition.
        predictions: ``Float[F D]``.
        slopes: Those by the executed action, ``Float[F A D]``.
        by_others: The predictions by the adapted weights and by the source, ``Float[2 D]``.
    """

    state: bytes
    predictions: Floats
    slopes: Floats
    by_others: Floats


class _Evidence(NamedTuple):
    """What a transition tells of the weights w of F hypotheses.

    They have an influence on the D targets through the A executed actions x alone, y = G x with the noise R: numbers
    for x tell all, and no matrix of D times D is needed.

    Attributes:
        products: [G, v]' R^-1 [G, v], with v the innovation, ``Float64[F A+1 A+1]``.
        by_weights: M = dx / dw, ``Float64[A W]``.
        num_targets: D.
    """

    products: Floats
    by_weights: Floats
    num_targets: int

    def doubted(self, times: Floats) -> "_Evidence":
        """The same with so many times the noise, ``Float64[F]``."""
        return self._replace(products=self.products / times[:, None, None])


class _Update(NamedTuple):
    """What evidence makes of the weights of F hypotheses.

    Attributes:
        step: What is added to the means, ``Float64[F W]``.
        gain: G' S^-1 G P M', with S the covariance that was to be expected of v, ``Float64[F W A]``.
        size: v' S^-1 v / D, ``Float64[F]``.
        likelihood: The logarithm of that of the evidence, ``Float64[F]``.
    """

    step: Floats
    gain: Floats
    size: Floats
    likelihood: Floats


def _update(spread: Floats, evidence: _Evidence) -> _Update:
    """The Kalman update of weights with the covariances P, of which P M' ``Float64[F W A]`` is all that is needed.

    With Q = M P M' and I = G' R^-1 G, by Woodbury's identity G' S^-1 [G, v] = (1 + I Q)^-1 G' R^-1 [G, v], and
    |S| = |R| |1 + I Q|.
    """
    products, by_weights, num_targets = evidence
    system = products[:, :-1, :-1] @ (by_weights @ spread)  # F A A
    variances = _diagonals(system)
    variances += 1.0
    moved = spread @ np.linalg.solve(system, products[:, :-1])  # P M' G' S^-1 [G, v], F W A+1
    step = moved[:, :, -1]
    # v' S^-1 v = v' R^-1 v - v' R^-1 G M step.
    size = (products[:, -1, -1] - ((step @ by_weights.T) * products[:, -1, :-1]).sum(axis=1)) / num_targets
    signs, log_volume = np.linalg.slogdet(system)
    # Not a number where rounding has left no covariance.
    likelihood = _log_likelihood(size, log_volume + np.log(signs), num_targets)
    return _Update(step, moved[:, :, :-1], size, likelihood)


def _log_likelihood(size: Any, log_volume: Any, num_targets: int) -> Any:
    """The logarithm of a density of Student's t, but for what is the same for all hypotheses.

    Args:
        size: Of the innovation, v' S^-1 v / D, ``Float64[...]``.
        log_volume: log |S| / |R|, ``Float64[...]``.
        num_targets: D.
    """
    return -0.5 * ((_FREEDOM + num_targets) * np.log(1.0 + size * (num_targets / _FREEDOM)) + log_volume)


def _diagonals(matrices: Floats) -> Floats:
    """A view of ``Float[F W W]`` as ``Float[F W]``."""
    return matrices.reshape(len(matrices), -1)[:, :: matrices.shape[1] + 1]
