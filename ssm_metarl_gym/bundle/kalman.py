"""The extended Kalman filter on a map of the actions, and what it expects the map to be."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ssm_metarl_gym.bundle.layers import Floats
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.bundle.recursive import Recursive
from ssm_metarl_gym.checks import Rule, check_fields

__all__ = ["KalmanFilter", "expected_rows"]

_FREEDOM: Final = 4.0  # degrees, of how much the errors of a model differ in size
_UNEXPLAINED: Final = 10.0  # times the residual variance, where something else has changed
_ALONE: Final = 0.1  # an action is alone where the others count for about a tenth of it at most
_MIX: Final = 0.1  # how likely beforehand a motor obeys a mix of the actions, where one alone has 1
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
        self._prior_mean = self._source.astype(np.float64)
        variances = self.prior_variance * _hypotheses(model.action_scale, options["mixed"])  # K W
        # Of K hypotheses F let something move. The others are the source with more or less noise: no filter is needed.
        self._is_free = (variances > 0.0).any(axis=1)  # K
        self._prior_variances = variances[self._is_free]  # F W
        self._prior_covariances = self._prior_variances[:, :, None] * np.eye(variances.shape[1])
        self._noise = self.noise_scale * model.residual_variance.astype(np.float64)  # D
        self._fixed_noise = np.array([[1.0], [_UNEXPLAINED]]) * self._noise  # K-F D
        # Beforehand a hypothesis is the less likely, the more parameters it lets change; something else is as likely
        # as the one with most of them.
        num_free = (variances > 0.0).sum(axis=1)
        num_free[-1] = num_free.max()
        weights = 1.0 / (1.0 + num_free)
        self._prior_beliefs = weights / weights.sum()
        # What a step between two transitions adds, and what is kept of the distance from the source.
        self._added = np.minimum(self._prior_variances, self.process_noise)
        share = np.divide(self._added, self._prior_variances, out=np.zeros_like(self._added), where=self._added > 0.0)
        self._kept = np.sqrt(1.0 - share)  # F W
        self._kept_pairs = self._kept[:, :, None] * self._kept[:, None]  # F W W
        self._forget()

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
        return float(self._beliefs[~self._is_free].sum())

    def estimate(self) -> tuple[Floats, Floats, float]:
        """What is expected: the map ``Float64[A A]``, the offset ``Float64[A]``, and the entries' mean variance.

        Of any mix of the actions, unless it is known to be one, that motors obey a single one each is likely.
        """
        num_actions, num_entries = self._num_actions, self._num_actions**2
        maps = self._means[:, :num_entries].reshape(-1, num_actions, num_actions).copy()
        prior = self._prior_variances[:, :num_entries]
        source = self._prior_mean[:num_entries].reshape(num_actions, num_actions)
        for k in [] if self._mixed else np.flatnonzero((prior > 0.0).all(axis=1)):
            covariance = self._covariances[k, :num_entries, :num_entries]
            maps[k] = expected_rows(maps[k], covariance, prior[k].reshape(num_actions, num_actions), source)
        beliefs = self._beliefs[self._is_free]
        mean = self._mean(self._means, self._beliefs)
        # How uncertain the entries are, whichever hypothesis holds.
        entries = np.arange(num_entries)
        spread = self._covariances[:, entries, entries] + (self._means - mean)[:, :num_entries] ** 2
        variances = beliefs @ spread + self.belief_in_source * (self._prior_mean - mean)[:num_entries] ** 2
        action_map = np.tensordot(beliefs, maps, axes=1) + self.belief_in_source * source
        return action_map, mean[num_entries:], float(variances.mean())

    def _forget(self) -> None:
        self._means = np.repeat(self._prior_mean[None], len(self._prior_variances), axis=0)  # F W
        self._covariances = self._prior_covariances  # F W W
        self._beliefs = self._prior_beliefs  # K
        self._surprised = np.zeros(len(self._prior_variances), dtype=np.bool_)

    def _absorb(self, state: Floats, target: Floats) -> Floats | None:
        if not (np.isfinite(state).all() and np.isfinite(target).all()):
            return None
        try:
            candidate = self._updated(state, target)
        except np.linalg.LinAlgError:  # what is expected of the innovation is no covariance
            return None
        means, _, beliefs, _ = candidate
        weights = self._mean(means, beliefs)
        if not self._can_be_held(weights):
            return None
        self._means, self._covariances, self._beliefs, self._surprised = candidate
        return weights

    def _updated(self, state: Floats, target: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Means, covariances, beliefs and surprises after one more transition."""
        num_targets = len(target)
        # Predict: the parameters may have moved since the last transition.
        mean = self._prior_mean + self._kept * (self._means - self._prior_mean)
        covariance = self._kept_pairs * self._covariances
        diagonal = np.arange(mean.shape[1])
        covariance[:, diagonal, diagonal] += self._added
        prediction, jacobian = self._linearised(state, mean)
        innovation = target - prediction  # F D
        whitened, log_volume = _whiten(covariance, innovation, jacobian, self._noise)
        size = _normalised(whitened)  # F
        likelihood = _log_likelihood(size, log_volume, num_targets)
        # Tell outliers from changes: what is more probable had the parameters changed, and a second surprise in a row.
        surprising = size > self.surprise
        changed = np.zeros_like(surprising)
        if surprising.any():
            anew, anew_volume = _whiten(self._prior_covariances, innovation, jacobian, self._noise)
            anew_size = _normalised(anew)
            anew_likelihood = _log_likelihood(anew_size, anew_volume, num_targets)
            is_likelier = self._forgetting * np.exp(anew_likelihood - likelihood) > 1.0
            changed = surprising & (self._surprised | is_likelier)
            covariance = np.where(changed[:, None, None], self._prior_covariances, covariance)
            whitened = np.where(changed[:, None, None], anew, whitened)
            size = np.where(changed, anew_size, size)
            likelihood = np.where(changed, anew_likelihood, likelihood)
        # Believe the hypotheses that predict well.
        beliefs = self._beliefs + self._forgetting * (self._prior_beliefs - self._beliefs)
        logits = np.log(beliefs)
        logits[self._is_free] += likelihood
        logits[~self._is_free] += self._fixed_likelihood(state, target)
        beliefs = np.exp(logits - logits.max())
        beliefs /= beliefs.sum()
        # Update, with the less weight the greater the surprise.
        if (size > self.surprise).any():
            noise = self._noise * np.maximum(size / self.surprise, 1.0)[:, None]  # F D
            whitened, _ = _whiten(covariance, innovation, jacobian, noise)
        v, e = whitened[:, :, :-1], whitened[:, :, -1:]
        turned = v.transpose(0, 2, 1)
        offset = self._project(mean + (turned @ e)[:, :, 0] - self._prior_mean)
        return self._prior_mean + offset, covariance - turned @ v, beliefs, surprising & ~changed

    def _linearised(self, state: Floats, means: Floats) -> tuple[Floats, Floats]:
        """The predictions by maps and offsets ``Float64[F W]``, ``Float64[F D]``, and their slopes."""
        num_entries = self._num_actions**2
        single = means.astype(self._source.dtype)
        maps = single[:, :num_entries].reshape(-1, self._num_actions, self._num_actions)
        prediction, jacobian = self.model.linearise(state, maps, single[:, num_entries:])
        return prediction.astype(np.float64), jacobian.astype(np.float64)

    def _fixed_likelihood(self, state: Floats, target: Floats) -> Floats:
        """That of the hypotheses in which nothing moves, ``Float64[K-F]``."""
        by_source = self.model.predict(self.model.source, state[None])[0].astype(np.float64)
        size = ((target - by_source) ** 2 / self._fixed_noise).mean(axis=1)
        return _log_likelihood(size, np.log(self._fixed_noise).sum(axis=1), len(target))

    def _mean(self, means: Floats, beliefs: Floats) -> Floats:
        """The weights that are to be expected, ``Float64[W]``."""
        unmoved = beliefs[~self._is_free].sum()
        mean: Floats = beliefs[self._is_free] @ means + unmoved * self._prior_mean
        return mean


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


def _whiten(covariance: Floats, innovation: Floats, jacobian: Floats, noise: Floats) -> tuple[Floats, Floats]:
    """L^-1 [H P, v] ``Float64[F D W+1]`` and log |S| ``Float64[F]``, where L L' = S = H P H' + R."""
    projected = jacobian @ covariance  # F D W
    expected = projected @ jacobian.transpose(0, 2, 1)
    diagonal = np.arange(len(expected[0]))
    expected[:, diagonal, diagonal] += noise
    factor = np.linalg.cholesky(expected)
    both = np.concatenate([projected, innovation[:, :, None]], axis=2)
    log_volume = 2.0 * np.log(factor.diagonal(axis1=1, axis2=2)).sum(axis=1)
    return np.linalg.inv(factor) @ both, log_volume


def _normalised(whitened: Floats) -> Floats:
    """V' S^-1 v / D ``Float64[K]``."""
    result: Floats = (whitened[:, :, -1] ** 2).mean(axis=1)
    return result


def _log_likelihood(size: Floats, log_volume: Floats, num_targets: int) -> Floats:
    """The logarithm of a density of Student's t, but for what is the same for all hypotheses: ``Float64[K]``."""
    tail = np.log(1.0 + size * (num_targets / _FREEDOM))
    result: Floats = -0.5 * ((_FREEDOM + num_targets) * tail + log_volume)
    return result


def expected_rows(means: Floats, covariance: Floats, prior: Floats, source: Floats) -> Floats:
    """The map to be expected where each row of it has a single entry, whichever, or else is any mix.

    What :func:`ssm_metarl_gym.wrappers.single_sources.expected_rows` computes for every entry with a covariance of all
    others of its row, by one inverse P for the whole row: of a normal variable the density of all numbers but j is that
    of all, divided by that of j given the others, which has the precision P_jj.

    Args:
        means: What a filter of any mix expects, ``Float64[A A]``.
        covariance: Of the entries, row by row of the map, ``Float64[A*A A*A]``.
        prior: Their variances beforehand, ``Float64[A A]``.
        source: Their means beforehand, ``Float64[A A]``.
    """
    num_actions = len(means)
    if num_actions == 1:
        return means
    every = np.arange(num_actions)
    # A A A: of each row, that of its entries; one is as good as zero where it is about a tenth.
    blurred = covariance.reshape((num_actions,) * 4)[every, :, every] + _ALONE**2 * np.eye(num_actions)
    precision = np.linalg.inv(blurred)
    own = precision[:, every, every]  # A A
    z = (precision @ means[:, :, None])[:, :, 0]
    # How probable it is that all others are zero, in units of that beforehand.
    size = (means * z).sum(axis=1, keepdims=True) - z * z / own
    volume = np.linalg.slogdet(blurred)[1][:, None] + np.log(own)
    before = prior + _ALONE**2
    of_each = source**2 / before + np.log(before)
    evidence = 0.5 * (of_each.sum(axis=1, keepdims=True) - of_each - size - volume) - math.log(num_actions)
    logits = np.concatenate([evidence, np.full((num_actions, 1), math.log(_MIX))], axis=1)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    # An entry is z / own if the others are zero.
    result: Floats = weights[:, :-1] * (z / own) + weights[:, -1:] * means
    return result
