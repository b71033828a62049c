"""An extended Kalman filter on the few parameters that a model lets it adapt."""

from dataclasses import dataclass, replace
from typing import Final, Protocol, cast

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.recursive import FilterState, RecursiveAdapter
from ssm_metarl_gym.checks import Rule, check_fields

__all__ = [
    "FilteredModel",
    "KalmanAdapter",
    "KalmanState",
    "kalman_predict",
    "kalman_update",
    "normalised_innovation",
    "whiten",
]

_RULES: Final[dict[str, Rule]] = {
    "prior_variance": ("a finite number > 0", lambda value: 0.0 < value < float("inf")),
    "process_noise": ("a finite number >= 0", lambda value: 0.0 <= value < float("inf")),
    "noise_scale": ("a finite number > 0", lambda value: 0.0 < value < float("inf")),
    "surprise": ("a number > 0 (inf trusts every transition)", lambda value: value > 0.0),
}


class FilteredModel(Protocol):
    """What a model must have beside ``forward`` for a Kalman filter.

    Attributes:
        filtered_parameters: The names of the parameters that a filter may adapt, in the order of ``named_parameters``.
        residual_variance: The variance of what the model does not explain of each target, ``Float[D]``.
    """

    filtered_parameters: tuple[str, ...]
    residual_variance: Tensor

    def linearise(self, encoded: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions ``Float[B D]`` for ``Float[B ...]`` and their slopes ``Float[B D W]`` at ``Float[B W]``."""


@dataclass(frozen=True)
class KalmanState(FilterState):
    """What a filter of W weights knows in B rows.

    Attributes:
        mean: The weights, ``Float64[B W]``.
        covariance: ``Float64[B W W]``.
        innovation: How far off the last prediction was, squared, in units of what was to be expected, the mean over
            the targets, ``Float64[B]``.
        surprised: Whether it was further off than ``surprise``, and the covariance was left as it is, ``Bool[B]``.
    """

    mean: Tensor
    covariance: Tensor
    innovation: Tensor
    surprised: Tensor


class KalmanAdapter(RecursiveAdapter[KalmanState]):
    """Tracks the few parameters that a model declares, and how well it knows them, by an extended Kalman filter.

    The prior is the source with ``prior_variance`` for each parameter, the measurement noise the model's own residual
    variance. Between two transitions every parameter takes a step back to the source that keeps the prior as it is and
    adds ``process_noise`` to what is known well: what was not seen for long is forgotten, and no more (Kalman 1960, "A
    new approach to linear filtering and prediction problems"; Jazwinski 1970, "Stochastic Processes and Filtering
    Theory", chapter 8, for models that are not linear).

    **Surprises.** Let m be the squared innovation in units of what was to be expected, the mean over the targets. Where
    m > ``surprise``, the transition counts for ``surprise`` / m only, so that the further off it is, the less it moves
    (Huber 1981, "Robust Statistics", on weights that fall with the residual): once, that is an outlier. The second time
    in a row it is a change: the covariance is that of the prior again, and the weights are free to move.

    Everything else is as in :class:`Adapter`, but for :meth:`adapt`: every transition counts once.

    Example:
        >>> model = DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), adapts="action_map")
        >>> _ = model.residual_variance.fill_(0.01)  # which DynamicsModel.fit measures
        >>> adapter = KalmanAdapter(model)
        >>> adapter.variance["action_map"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]

    Args:
        model: A model with ``filtered_parameters``, which are just those that require a gradient, ``linearise`` and
            ``residual_variance``, to adapt in place: a :class:`DynamicsModel` with ``adapts="action_map"``.
        prior_variance: Of each parameter around the source, before any transition.
        process_noise: What a transition adds to the variance, at most ``prior_variance``: how fast things may change.
        noise_scale: Scales the residual variance. A larger one trusts the model less, and adapts more slowly.
        surprise: The innovation from which on a transition counts less.
        trust_region_eps: See :class:`AdaptationConfig`. Four leaves room for the other sign and three times the gain.
        ema_decay: Decay of the running loss statistics.

    Raises:
        ValueError: An option is outside its range, or the model is of another kind or was not fitted.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prior_variance: float = 1.0,
        process_noise: float = 1e-3,
        noise_scale: float = 1.0,
        surprise: float = 9.0,
        trust_region_eps: float = 4.0,
        ema_decay: float = 0.99,
    ) -> None:
        self.prior_variance = prior_variance
        self.process_noise = process_noise
        self.noise_scale = noise_scale
        self.surprise = surprise
        _check_model(model)
        check_fields(self, _RULES)
        super().__init__(model, trust_region_eps=trust_region_eps, ema_decay=ema_decay)
        if process_noise > prior_variance:
            raise ValueError(f"process_noise must be at most prior_variance ({prior_variance}); got {process_noise}.")

    @property
    def variance(self) -> dict[str, Tensor]:
        """How uncertain each weight is, by the names of the parameters."""
        rows = self._by_name(self._filter.covariance.diagonal(dim1=-2, dim2=-1))
        return {name: row[0].clone() for name, row in rows.items()}

    @property
    def covariance(self) -> Tensor:
        """How uncertain the weights are together, in the order of ``filtered_parameters``: ``Float64[W W]``."""
        return self._filter.covariance[0].clone()

    def initial_state(self, num_rows: int = 1) -> KalmanState:
        """The prior, in each of ``num_rows`` rows."""
        mean = self._region.source.double().expand(num_rows, -1)
        return KalmanState(
            counts=self._no_counts(num_rows),
            mean=mean,
            covariance=self._prior_covariance().expand(num_rows, -1, -1),
            innovation=mean.new_zeros(num_rows),
            surprised=torch.zeros(num_rows, dtype=torch.bool, device=mean.device),
        )

    def with_prior_covariance(self, state: KalmanState) -> KalmanState:
        """The same weights in every row, with the covariance of the prior."""
        return replace(
            state,
            covariance=self._prior_covariance().expand_as(state.covariance),
            surprised=torch.zeros_like(state.surprised),
        ).counted(covariance_resets=torch.ones_like(state.surprised))

    def _absorb(self, state: KalmanState, states_t: Tensor, targets_t: Tensor) -> KalmanState:
        model = cast("FilteredModel", self.model)
        noise = self.noise_scale * model.residual_variance.double()  # D
        # Predict: the parameters may have moved since the last transition.
        mean, covariance = kalman_predict(
            state.mean, state.covariance, self._region.source.double(), self.prior_variance, self.process_noise
        )
        prediction, jacobian = model.linearise(states_t, mean.to(self._region.source.dtype))
        if targets_t.shape != prediction.shape:
            raise ValueError(
                f"the targets must have the shape {tuple(prediction.shape)}; got {tuple(targets_t.shape)}."
            )
        innovation, jacobian = (targets_t - prediction).double(), jacobian.double()  # B D, B D W
        whitened = whiten(covariance, innovation, jacobian, noise)
        size = normalised_innovation(whitened)  # B
        # Tell outliers from changes: a second surprise in a row is a change.
        surprising = size > self.surprise
        changed = surprising & state.surprised
        if changed.any():
            covariance = torch.where(changed[:, None, None], self._prior_covariance(), covariance)
            whitened = whiten(covariance, innovation, jacobian, noise)
            size = normalised_innovation(whitened)
        # Update, with the less weight the greater the surprise.
        clipped = size > self.surprise
        if clipped.any():
            noise = noise * (size / self.surprise).clamp(min=1.0)[:, None]  # B D
            whitened = whiten(covariance, innovation, jacobian, noise)
        mean, covariance = kalman_update(mean, covariance, whitened)
        offset, beyond = self._project(mean - self._region.source)
        return replace(
            state,
            mean=self._region.source + offset,
            covariance=covariance,
            innovation=size,
            surprised=surprising & ~changed,
        ).counted(
            steps=torch.ones_like(beyond), clipped_steps=clipped, projected_steps=beyond, covariance_resets=changed
        )

    def flat_weights(self, state: KalmanState) -> Tensor:
        """The weights of each row as one vector, ``Float64[B W]``."""
        return state.mean

    def _prior_covariance(self) -> Tensor:
        source = self._region.source
        variances = torch.full_like(source, self.prior_variance, dtype=torch.float64)
        return torch.diag(variances)


def kalman_predict(
    mean_tm1: Tensor, covariance_tm1: Tensor, source: Tensor, prior_variance: float, process_noise: float
) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of w_t - source = a (w_tm1 - source) + noise, with a^2 = 1 - noise / prior.

    So the prior stays the prior: a^2 prior + noise = prior.

    Args:
        mean_tm1: ``Float[B W]``.
        covariance_tm1: ``Float[B W W]``.
        source: ``Float[W]``.
        prior_variance: The variance of each parameter in the long run.
        process_noise: The variance of the noise.
    """
    kept = 1.0 - process_noise / prior_variance
    identity = torch.eye(len(source), dtype=source.dtype, device=source.device)
    return source + kept**0.5 * (mean_tm1 - source), kept * covariance_tm1 + process_noise * identity


def whiten(covariance: Tensor, innovation_t: Tensor, jacobian_t: Tensor, noise: Tensor) -> Tensor:
    """L^-1 [H P, v] ``Float[B D W+1]``, with L L' = S = H P H' + R, the covariance that is expected of v.

    Args:
        covariance: P, ``Float[B W W]``.
        innovation_t: v, ``Float[B D]``.
        jacobian_t: H, ``Float[B D W]``.
        noise: The diagonal of R, ``Float[D]`` or ``Float[B D]``.

    Returns:
        NaN in a row whose S is not positive definite.
    """
    projected = jacobian_t @ covariance  # B D W
    expected = projected @ jacobian_t.mT + torch.diag_embed(noise)  # B D D
    factor, failed = torch.linalg.cholesky_ex(expected)
    both = torch.cat([projected, innovation_t[..., None]], dim=-1)
    whitened = torch.linalg.solve_triangular(factor, both, upper=False)
    return torch.where(failed[:, None, None] == 0, whitened, torch.nan)


def normalised_innovation(whitened: Tensor) -> Tensor:
    """V' S^-1 v / D ``Float[B]``, about one where all is as assumed, from what :func:`whiten` gave."""
    return whitened[..., -1].square().mean(dim=-1)


def kalman_update(mean: Tensor, covariance: Tensor, whitened: Tensor) -> tuple[Tensor, Tensor]:
    """The mean m + K v and the covariance P - K S K', with the gain K = P H' S^-1 (Kalman 1960).

    With V = L^-1 H P and e = L^-1 v they are m + V' e and P - V' V, which is symmetric as it stands.

    Args:
        mean: m, ``Float[B W]``.
        covariance: P, ``Float[B W W]``.
        whitened: V and e, side by side, as :func:`whiten` gave them.
    """
    v, e = whitened[..., :-1], whitened[..., -1:]
    return mean + (v.mT @ e)[..., 0], covariance - v.mT @ v


def _check_model(model: nn.Module) -> None:
    adapting = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    declared = getattr(model, "filtered_parameters", ())
    if not declared or adapting != declared:
        raise ValueError(
            "the parameters that require a gradient must be the filtered_parameters of the model for a Kalman filter; "
            f"got {list(adapting)} and {list(declared)}. A DynamicsModel has such with adapts='action_map'."
        )
    variance = cast("FilteredModel", model).residual_variance
    if not bool((variance > 0.0).all()):
        raise ValueError(
            f"residual_variance must be > 0 for every target; got {variance.tolist()}. Fit the model first: "
            "model.fit(env)."
        )
