"""An extended Kalman filter on the few parameters that a model lets it adapt."""

from dataclasses import dataclass, replace
from typing import Final, Protocol, cast

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.adaptation.kalman_steps import (
    kalman_predict,
    kalman_update,
    log_likelihood,
    normalised_innovation,
    whiten,
)
from ssm_metarl_gym.agents.adaptation.recursive import FilterState, RecursiveAdapter
from ssm_metarl_gym.checks import Rule, check_fields, check_flag, check_integer

__all__ = ["FilteredModel", "KalmanAdapter", "KalmanState"]

_UNEXPLAINED: Final = 10.0  # times the residual variance a model cannot explain where something else has changed
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
        hypotheses: What may have changed, a row each: the prior variance of every parameter in units of that of the
            adapter, ``Float[K W]``, zero for one that stays as it was. A model need not have it: then all may, alike.
        mixed_hypotheses: Those that take their place with ``mixed``. A model need not have it.
        mixed_means: What is expected under each of these before any transition, in units of the weights of the source,
            ``Float[K W]``. A model with ``mixed_hypotheses`` must have it.
    """

    filtered_parameters: tuple[str, ...]
    residual_variance: Tensor

    def linearise(self, encoded: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions ``Float[B D]`` for ``Float[B ...]`` and their slopes ``Float[B D W]`` at ``Float[B W]``."""

    def with_delays(self, encoded: Tensor, delays: Tensor) -> Tensor:
        """The same transitions if commands came ``Int64[K]`` steps late: ``Float[B ...]`` -> ``Float[B K ...]``.

        Only a model with ``largest_delay`` must have it.
        """


@dataclass(frozen=True)
class KalmanState(FilterState):
    """What filters of W weights know in B rows, one filter for each of K hypotheses.

    Attributes:
        means: The weights, ``Float64[B K W]``.
        covariances: ``Float64[B K W W]``.
        beliefs: The probabilities of the hypotheses, ``Float64[B K]``.
        innovation: How far off the last prediction was, squared, in units of what was to be expected, the mean over
            the targets, ``Float64[B K]``.
        surprised: Whether it was further off than ``surprise``, and the covariance was left as it is, ``Bool[B K]``.
    """

    means: Tensor
    covariances: Tensor
    beliefs: Tensor
    innovation: Tensor
    surprised: Tensor

    @property
    def mean(self) -> Tensor:
        """The weights that are to be expected, ``Float64[B W]``."""
        return (self.beliefs[..., None] * self.means).sum(dim=1)

    @property
    def covariance(self) -> Tensor:
        """How uncertain they are, whichever hypothesis holds, ``Float64[B W W]``."""
        offsets = self.means - self.mean[:, None]
        spread = self.covariances + offsets[..., None] * offsets[..., None, :]
        return (self.beliefs[..., None, None] * spread).sum(dim=1)


class KalmanAdapter(RecursiveAdapter[KalmanState]):
    """Tracks the few parameters that a model declares, and how well it knows them, by an extended Kalman filter.

    The prior is the source with ``prior_variance`` for each parameter, the measurement noise the model's own residual
    variance. Between two transitions every parameter takes a step back to the source that keeps the prior as it is and
    adds ``process_noise`` to what is known well: what was not seen for long is forgotten, and no more (Kalman 1960, "A
    new approach to linear filtering and prediction problems"; Jazwinski 1970, "Stochastic Processes and Filtering
    Theory", chapter 8, for models that are not linear).

    **Surprises.** Let m be the squared innovation in units of what was to be expected, the mean over the targets. Where
    m > ``surprise``, the transition counts for ``surprise`` / m only, so that the further off it is, the less it moves
    (Huber 1981, "Robust Statistics", on weights that fall with the residual): an outlier. It is a change if the
    transition would be more probable by far were the covariance that of the prior, by more than ``prior_variance`` /
    ``process_noise`` times. That it then is again: the weights are free to move. So it is the second time in a row,
    whatever it is; with ``process_noise=0`` nothing else is a change.

    **Hypotheses.** Where a model says which parameters may have changed together, each such hypothesis has a filter of
    its own, and the weights are the mean of all, by how well each has predicted: its probability is multiplied by the
    likelihood of every transition, and goes back to the prior, in proportion to 1 / (1 + the number of its
    parameters), as fast as the parameters do. The likelihood is that of Student's t, whose tails are heavy. A
    hypothesis of few parameters is sure after few transitions, and one of many takes over where that one fails. One
    more hypothesis is that something else has changed, which these parameters cannot explain: then they are those of
    the source, and the noise is ten times as large. (Magill 1965, "Optimal adaptive estimation of sampled stochastic
    processes"; for probabilities that are forgotten, Blom and Bar-Shalom 1988, "The interacting multiple model
    algorithm for systems with Markovian switching coefficients".)

    **Delays.** With ``largest_delay`` L there are all of these hypotheses once more for each delay up to L steps: that
    the command of so many steps ago is what a transition shows, and not its own. A delay counts as one parameter more.
    The commands of the L steps before stand behind what the model encodes, see :meth:`DynamicsModel.with_delays`.

    Everything else is as in :class:`Adapter`, but for :meth:`adapt`: every transition counts once.

    Example:
        >>> model = DynamicsModel(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), adapts="action_map")
        >>> _ = model.residual_variance.fill_(0.01)  # which DynamicsModel.fit measures
        >>> adapter = KalmanAdapter(model)
        >>> {name: list(variance.shape) for name, variance in adapter.variance.items()}
        {'action_map': [2, 2], 'action_offset': [2]}
        >>> [round(belief, 2) for belief in adapter.beliefs.tolist()]
        [0.55, 0.18, 0.11, 0.08, 0.08]

    Args:
        model: A model with ``filtered_parameters``, which are just those that require a gradient, ``linearise`` and
            ``residual_variance``, to adapt in place: a :class:`DynamicsModel` with ``adapts="action_map"``.
        prior_variance: Of each parameter around the source, before any transition.
        process_noise: What a transition adds to the variance, at most ``prior_variance``: how fast things may change.
        noise_scale: Scales the residual variance. A larger one trusts the model less, and adapts more slowly.
        surprise: The innovation from which on a transition counts less.
        mixed: Whether it is known that actions are mixed, as by a rotation, if anything has changed: the model's
            ``mixed_hypotheses`` take the place of its ``hypotheses``, and no motor is expected to obey one action: what
            is not known yet of a map is expected to be zero, not that of the source.
        largest_delay: How many steps late commands may come, at most; the same number for all of them.
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
        mixed: bool = False,
        largest_delay: int = 0,
        trust_region_eps: float = 4.0,
        ema_decay: float = 0.99,
    ) -> None:
        self.prior_variance = prior_variance
        self.process_noise = process_noise
        self.noise_scale = noise_scale
        self.surprise = surprise
        self.mixed = bool(mixed)
        check_integer("largest_delay", largest_delay, least=0)
        self.largest_delay = int(largest_delay)
        check_flag("mixed", mixed)
        _check_model(model)
        if mixed and not (hasattr(model, "mixed_hypotheses") and hasattr(model, "mixed_means")):
            raise ValueError(
                "mixed must be False for a model without mixed_hypotheses and mixed_means, as "
                f"{type(model).__name__} is; got True."
            )
        if largest_delay and not (hasattr(model, "hypotheses") and hasattr(model, "with_delays")):
            raise ValueError(
                "largest_delay must be 0 for a model without hypotheses and with_delays, as "
                f"{type(model).__name__} is; got {largest_delay}."
            )
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

    @property
    def beliefs(self) -> Tensor:
        """The probabilities of the hypotheses, for each delay in turn, and of something else: ``Float64[K]``."""
        return self._filter.beliefs[0].clone()

    def initial_state(self, num_rows: int = 1) -> KalmanState:
        """The prior, in each of ``num_rows`` rows."""
        variances = self.prior_variances()
        prior = torch.diag_embed(variances)
        shape = num_rows, len(prior)
        return KalmanState(
            counts=self._no_counts(num_rows),
            means=self._prior_means(len(prior)).expand(*shape, -1),
            covariances=prior.expand(*shape, -1, -1),
            beliefs=self._prior_beliefs(variances).expand(shape),
            innovation=prior.new_zeros(shape),
            surprised=torch.zeros(shape, dtype=torch.bool, device=prior.device),
        )

    def with_prior_covariance(self, state: KalmanState) -> KalmanState:
        """The same weights and beliefs in every row, with the covariances of the prior."""
        return replace(
            state,
            covariances=torch.diag_embed(self.prior_variances()).expand_as(state.covariances),
            surprised=torch.zeros_like(state.surprised),
        ).counted(covariance_resets=torch.ones_like(state.surprised[:, 0]))

    def belief_in_source(self, state: KalmanState) -> Tensor:
        """How probable it is that the weights are those of the source, in each row, ``Float64[B]``.

        Nothing has changed, commands come late and no more, or something else than the weights has changed.
        """
        unchanged = (self.prior_variances() == 0.0).all(dim=1)
        return state.beliefs[:, unchanged].sum(dim=1)

    def _absorb(self, state: KalmanState, states_t: Tensor, targets_t: Tensor) -> KalmanState:
        model = cast("FilteredModel", self.model)
        shape = state.beliefs.shape  # B K
        prior_variances = self.prior_variances()  # K W
        noise = self._noise_factors(shape[1]) * self.noise_scale * model.residual_variance.double()  # K D
        # Predict: the parameters may have moved since the last transition.
        mean, covariance = kalman_predict(
            state.means, state.covariances, self._prior_means(shape[1]), prior_variances, self.process_noise
        )
        states = states_t[:, None].expand(-1, shape[1], *states_t.shape[1:])
        if self.largest_delay:
            states = model.with_delays(states_t, self._delays(shape[1]))
        prediction, jacobian = model.linearise(states.flatten(0, 1), mean.flatten(0, 1).to(self._region.source.dtype))
        prediction, jacobian = prediction.unflatten(0, shape).double(), jacobian.unflatten(0, shape).double()
        if targets_t.shape != prediction[:, 0].shape:
            raise ValueError(
                f"the targets must have the shape {tuple(prediction[:, 0].shape)}; got {tuple(targets_t.shape)}."
            )
        innovation = targets_t[:, None] - prediction  # B K D
        whitened, log_volume = whiten(covariance, innovation, jacobian, noise)
        size = normalised_innovation(whitened)  # B K
        likelihood = log_likelihood(size, log_volume, targets_t.shape[1])
        # Tell outliers from changes: what is more probable had the parameters changed, and a second surprise in a row.
        surprising = size > self.surprise
        changed = torch.zeros_like(surprising)
        if surprising.any():
            prior_covariances = torch.diag_embed(prior_variances)  # K W W
            anew, anew_volume = whiten(prior_covariances, innovation, jacobian, noise)
            anew_size = normalised_innovation(anew)
            anew_likelihood = log_likelihood(anew_size, anew_volume, targets_t.shape[1])
            is_likelier = self._forgetting * (anew_likelihood - likelihood).exp() > 1.0
            changed = surprising & (state.surprised | is_likelier)
            covariance = torch.where(changed[..., None, None], prior_covariances, covariance)
            whitened = torch.where(changed[..., None, None], anew, whitened)
            size = torch.where(changed, anew_size, size)
            likelihood = torch.where(changed, anew_likelihood, likelihood)
        # Believe the hypotheses that predict well.
        beliefs = torch.lerp(state.beliefs, self._prior_beliefs(prior_variances).expand(shape), self._forgetting)
        beliefs = (beliefs.log() + likelihood).softmax(dim=1)
        # Update, with the less weight the greater the surprise.
        clipped = size > self.surprise
        if clipped.any():
            noise = noise * (size / self.surprise).clamp(min=1.0)[..., None]  # B K D
            whitened, _ = whiten(covariance, innovation, jacobian, noise)
        mean, covariance = kalman_update(mean, covariance, whitened)
        offset, beyond = self._project((mean - self._region.source).flatten(0, 1))
        # What is told of a row is what happened to the filter that is believed.
        believed = beliefs.argmax(dim=1, keepdim=True)
        clipped_step, beyond_step, reset = (
            one.gather(1, believed)[:, 0] for one in (clipped, beyond.unflatten(0, shape), changed)
        )
        return replace(
            state,
            means=self._region.source + offset.unflatten(0, shape),
            covariances=covariance,
            beliefs=beliefs,
            innovation=size,
            surprised=surprising & ~changed,
        ).counted(
            steps=torch.ones_like(reset),
            clipped_steps=clipped_step,
            projected_steps=beyond_step,
            covariance_resets=reset,
        )

    def flat_weights(self, state: KalmanState) -> Tensor:
        """The weights of each row as one vector, ``Float64[B W]``: of what is believed, the mean."""
        return state.mean

    def _prior_beliefs(self, prior_variances: Tensor) -> Tensor:
        """Beforehand a hypothesis is the less likely, the more parameters it lets change: ``Float64[K]``."""
        num_free = (prior_variances > 0.0).sum(dim=1)
        # Something else is as likely as the one with most of them.
        num_free = torch.where(self._noise_factors(len(num_free))[:, 0] > 1.0, num_free.max(), num_free)
        num_free = num_free + (self._delays(len(num_free)) > 0)  # a delay is one number more
        weights = 1.0 / (1.0 + num_free.double())
        return weights / weights.sum()

    def _delays(self, num_hypotheses: int) -> Tensor:
        """How many steps late commands come under each hypothesis: ``Int64[K]``, none in that of something else."""
        delays = torch.zeros(num_hypotheses, dtype=torch.int64, device=self._region.source.device)
        if self.largest_delay:
            delays[:-1] = torch.arange(self.largest_delay + 1, device=delays.device).repeat_interleave(
                (num_hypotheses - 1) // (self.largest_delay + 1)
            )
        return delays

    def _noise_factors(self, num_hypotheses: int) -> Tensor:
        """How much more noise than that of the model there is under each hypothesis: ``Float64[K 1]``."""
        factors = torch.ones(num_hypotheses, 1, dtype=torch.float64, device=self._region.source.device)
        if len(factors) > 1:
            factors[-1] = _UNEXPLAINED
        return factors

    @property
    def _forgetting(self) -> float:
        """The share of what is known that is forgotten between two transitions."""
        return self.process_noise / self.prior_variance

    def prior_mean(self) -> Tensor:
        """The weights of the source, ``Float64[W]``."""
        return self._region.source.double()

    def prior_variances(self) -> Tensor:
        """Of the weights, under each hypothesis: ``Float64[K W]``."""
        return self.prior_variance * _hypotheses(
            self.model, len(self._region.source), mixed=self.mixed, largest_delay=self.largest_delay
        )

    def _prior_means(self, num_hypotheses: int) -> Tensor:
        """Of the weights, under each hypothesis: those of the source, or what the model expects: ``Float64[K W]``."""
        means = self.prior_mean().expand(num_hypotheses, -1)
        if not self.mixed:
            return means
        expected = cast("Tensor", self.model.mixed_means).to(means).repeat(self.largest_delay + 1, 1)
        return torch.cat([expected * means[:-1], means[-1:]])


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


def _hypotheses(model: nn.Module, num_weights: int, *, mixed: bool, largest_delay: int) -> Tensor:
    """The hypotheses that a model declares, for each delay, and that it is something else, ``Float64[K W]``.

    Where it declares none: that all may change alike.
    """
    # Asked for once, as a model may compute them.
    declared: Tensor | None = getattr(model, "mixed_hypotheses" if mixed else "hypotheses", None)
    if declared is None:
        declared = torch.ones(1, num_weights)
    else:
        declared = torch.cat([declared.repeat(largest_delay + 1, 1), torch.zeros_like(declared[:1])])
    return declared.double().to(cast("FilteredModel", model).residual_variance.device)
