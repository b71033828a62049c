"""What adapters in closed form share: evidence that counts once, and rows that are undone alone."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.adaptation.adapter import Adapter, AdapterSnapshot
from ssm_metarl_gym.agents.adaptation.batch import Batch, finite_rows, num_shared_rows, row_bytes
from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig
from ssm_metarl_gym.agents.adaptation.trust_region import pull_back
from ssm_metarl_gym.budget import StepTimer

__all__ = ["COUNTS", "FilterState", "RecursiveAdapter"]

# What is counted, by its name in the statistics.
COUNTS: Final = ("steps", "rejected_steps", "clipped_steps", "projected_steps", "covariance_resets")


@dataclass(frozen=True)
class FilterState:
    """What B filters know and have done, a row each; every field has the rows first.

    Attributes:
        counts: Transitions that were taken in; that were left out, because they or what came of them were not finite;
            that counted for less than one; after which the weights were on the border of the trust region; and how
            often the covariance was put back to the prior: ``Int[B 5]``.
    """

    counts: Tensor

    def where(self, rows: Tensor, other: Self) -> Self:
        """These rows where ``rows`` ``Bool[B]`` is true, those of ``other`` elsewhere."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return replace(self, **{name: torch.where(_beside(rows, one), one, two) for name, (one, two) in pairs.items()})

    def counted(self, **events: Tensor) -> Self:
        """The same with events counted, ``Bool[B]`` each, by their names in :class:`AdapterStats`."""
        happened = [events.get(name, torch.zeros_like(self.counts[:, 0])) for name in COUNTS]
        return replace(self, counts=self.counts + torch.stack(happened, dim=1))


State = TypeVar("State", bound=FilterState)


@dataclass(frozen=True)
class _Known(Generic[State]):
    """What an adapter knows beside the weights.

    Attributes:
        filter: One row.
        last_rows: The bits of the rows of the last batch, ``UInt8[N bytes]``.
    """

    filter: State
    last_rows: Tensor


@dataclass(frozen=True)
class _FilterSnapshot(AdapterSnapshot, Generic[State]):
    """All that ``adapt`` changes, where there is more than the prior."""

    known: _Known[State]


class RecursiveAdapter(Adapter, Generic[State]):
    """An adapter that takes in one transition after the other, each once, by a formula instead of gradient steps.

    :meth:`initial_state` and :meth:`update` are the same arithmetic for many rows, each with weights of its own: they
    leave the model and the adapter alone.

    Args:
        model: The module to adapt, in place. Two adapters must not share it.
        trust_region_eps: See :class:`AdaptationConfig`.
        ema_decay: See :class:`AdaptationConfig`.
    """

    def __init__(self, model: nn.Module, *, trust_region_eps: float, ema_decay: float) -> None:
        self._known: _Known[State] | None = None  # the prior
        super().__init__(model, AdaptationConfig(0.0, math.inf, trust_region_eps, ema_decay, 0.0, 1))
        for name, parameter in zip(self._weights.names, self._weights.parameters, strict=True):
            if parameter.is_complex():
                raise ValueError(f"the parameters must be real for {type(self).__name__}; {name} is complex.")

    @abstractmethod
    def initial_state(self, num_rows: int = 1) -> State:
        """What is known before any transition: the source and its covariance, in each of ``num_rows`` rows."""

    @torch.no_grad()
    def update(self, state: State, states_t: Tensor, targets_t: Tensor, counted: Tensor | None = None) -> State:
        """What is known after one more transition in each row.

        A row whose transition, or what would come of it, is not finite stays as it was and counts a rejected step. The
        model must be in evaluation mode.

        Args:
            state: What is known before, of B rows.
            states_t: ``Float[B ...]``, the input of the model in each row.
            targets_t: ``Float[B D]``, what it should have predicted.
            counted: ``Bool[B]``, whether there is a transition; the other rows stay as they are. None for all.
        """
        finite = finite_rows(states_t, targets_t)
        if not finite.all():
            # What is left out is computed on zeros, which are finite, and dropped.
            states_t = torch.where(_beside(finite, states_t), states_t, 0.0)
            targets_t = torch.where(_beside(finite, targets_t), targets_t, 0.0)
        candidate = self._absorb(state, states_t, targets_t)
        accepted = finite & self._can_be_held(self.flat_weights(candidate))
        if counted is not None:
            accepted = accepted & counted
        if accepted.all():
            return candidate
        rejected = ~accepted if counted is None else counted & ~accepted
        return candidate.where(accepted, state.counted(rejected_steps=rejected))

    def weights(self, state: State) -> dict[str, Tensor]:
        """The weights of each row by the names of the parameters, ``{name: Float[B ...]}``."""
        named = self._by_name(self.flat_weights(state))
        types = {name: own.dtype for name, own in zip(self._weights.names, self._weights.parameters, strict=True)}
        return {name: rows.to(types[name]) for name, rows in named.items()}

    @abstractmethod
    def with_prior_covariance(self, state: State) -> State:
        """The same weights in every row, but as uncertain as before any transition (covariance resetting)."""

    def reset_covariance(self) -> None:
        """Keep the weights, and be as uncertain about them as before any transition (covariance resetting)."""
        self._state.check()
        self._known = _Known(self.with_prior_covariance(self._filter), self._last_rows)
        self._stats = replace(self._stats, **self._counts())

    def adapt(self, loss_fn: Callable[[Any, Tensor], Tensor], batch_dict: Mapping[str, Tensor]) -> float:
        """Take in the rows of a batch, oldest first.

        **A row counts once.** Rows at the start of the batch that the batch before ended with, bit for bit, were taken
        in already: a sliding window over the latest transitions may be given at every step, and so may each transition
        alone. The same batch again changes nothing. What comes again and again, as of a robot that stands still, looks
        like the same batch: give ``arrivals``, by which rows that are alike are told apart.

        Args:
            loss_fn: Takes a prediction of the model and the targets, gives a scalar. It measures, and has no
                influence: what is fitted is the squared error.
            batch_dict: ``{"states": Float[N ...], "targets": Float[N D]}``, the inputs of the model and what it should
                have predicted; with ``"arrivals": Int[N]``, a number of each row's own that it keeps from batch to
                batch.

        Returns:
            The loss over the rows that are finite, with the weights after the call; nan where there are none.

        Raises:
            ValueError: As :meth:`Adapter.adapt`.
        """
        return super().adapt(loss_fn, batch_dict)

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain numbers."""
        known = {name: tensor.clone() for name, tensor in vars(self._filter).items()}
        return super().state_dict() | {"filter": known, "last_rows": self._last_rows.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the weights, source, knowledge and statistics of another adapter of the same kind and model.

        Raises:
            ValueError: The state is of another model or another kind of adapter, holds something that is not finite, or
                weights outside the trust region. This adapter is as it was.
        """
        try:
            last_rows = state_dict["last_rows"].to(self._last_rows, copy=True)
            known = _Known(self._parse_filter(state_dict["filter"]), last_rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of an adapter of the same kind and model; got one that differs: {error}."
            ) from None
        super().load_state_dict(state_dict)
        self._known = known

    @abstractmethod
    def _absorb(self, state: State, states_t: Tensor, targets_t: Tensor) -> State:
        """What is known after one more transition of each row, which is finite, and counted as a step."""

    @abstractmethod
    def flat_weights(self, state: State) -> Tensor:
        """The weights of each row as one vector, ``Float64[B W]``."""

    @property
    def state(self) -> State:
        """What is known, as the one row of a :class:`FilterState`."""
        return self._filter

    @property
    def _filter(self) -> State:
        return self.initial_state() if self._known is None else self._known.filter

    @property
    def _last_rows(self) -> Tensor:
        nothing = torch.empty(0, 0, dtype=torch.uint8, device=self._region.source.device)
        return nothing if self._known is None else self._known.last_rows

    def _by_name(self, rows: Tensor) -> dict[str, Tensor]:
        """Vectors of numbers, one for each weight, by the names of the parameters: ``[B W]`` -> ``{name: [B ...]}``."""
        names, parameters = self._weights.names, self._weights.parameters
        parts = zip(names, parameters, rows.split([own.numel() for own in parameters], dim=1), strict=True)
        return {name: part.unflatten(1, own.shape) for name, own, part in parts}

    def _no_counts(self, num_rows: int) -> Tensor:
        """The counts of new rows."""
        return torch.zeros(num_rows, len(COUNTS), dtype=torch.int64, device=self._region.source.device)

    def _project(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets from the source ``Float[B W]`` within the trust region, and which were outside, ``Bool[B]``."""
        distances = torch.linalg.vector_norm(offsets, dim=-1, keepdim=True)  # B 1
        outside = distances > self._region.radius
        return torch.where(outside, pull_back(offsets, distances, self._region), offsets), outside[:, 0]

    def _can_be_held(self, weights: Tensor) -> Tensor:
        """Whether the parameters could hold weights ``Float64[B W]`` as finite numbers, ``Bool[B]``."""
        narrowest = min((one.dtype for one in self._weights.parameters), key=lambda dtype: torch.finfo(dtype).max)
        return finite_rows(weights.to(narrowest))

    def _descend(
        self, loss_fn: Callable[[Any, Tensor], Tensor], batch: Batch, before_call: AdapterSnapshot, timer: StepTimer
    ) -> float:
        """Take in the rows that are new, and put what happened into the statistics."""
        states, targets, arrivals = batch
        finite = finite_rows(states, targets)
        first_loss = self._measure(loss_fn, states[finite], targets[finite])
        # Take in what was not in the last batch.
        rows = row_bytes(states, targets, *([] if arrivals is None else [arrivals.to(states.device)]))
        known = self._filter
        for t in range(num_shared_rows(self._last_rows, rows), len(states)):
            known = self.update(known, states[t : t + 1], targets[t : t + 1])
        self._known = _Known(known, rows)
        # Round the weights once, when they are written.
        with torch.no_grad():
            weights = self.flat_weights(known)[0].to(self._weights.dtype)
            held = self._held(weights)
            self._weights.write(weights, weights if held is None else held)
        self._averaged = torch.lerp(weights, self._averaged, self.cfg.ema_decay)
        # Tell what happened.
        changes: dict[str, Any] = {"calls": self._stats.calls + 1, **self._counts()}
        distance = float(torch.linalg.vector_norm(weights - self._region.source))
        # Away from a source of zeros, any distance is infinitely many times its norm.
        relative = distance / self._region.norm if self._region.norm else math.inf
        changes["distance"] = relative if distance else 0.0
        if not math.isnan(first_loss):
            changes["loss_mean"], changes["loss_variance"] = self._loss_moments(first_loss)
        self._stats = replace(self._stats, **changes)
        return self._measure(loss_fn, states[finite], targets[finite])

    def _measure(self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor) -> float:
        """The loss, nan where there are no rows or it is not finite."""
        if not len(states):
            return math.nan
        return self._evaluate(loss_fn, states, targets, with_gradient=False)[0]

    def _counts(self) -> dict[str, int]:
        return dict(zip(COUNTS, self._filter.counts[0].tolist(), strict=True))

    def _parse_filter(self, stored: Mapping[str, Tensor]) -> State:
        own = vars(self._filter)
        if set(stored) != set(own):
            raise ValueError(f"the filter has {sorted(stored)} instead of {sorted(own)}")
        for name, tensor in own.items():
            if stored[name].shape != tensor.shape:
                raise ValueError(f"{name} has the shape {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}")
            if not stored[name].isfinite().all():
                raise ValueError(f"{name} is not finite")
        return replace(self._filter, **{name: stored[name].to(tensor, copy=True) for name, tensor in own.items()})

    def _snapshot(self) -> AdapterSnapshot:
        plain = super()._snapshot()
        return plain if self._known is None else _FilterSnapshot(**vars(plain), known=self._known)

    def _restore(self, snapshot: AdapterSnapshot) -> None:
        super()._restore(snapshot)
        self._known = snapshot.known if isinstance(snapshot, _FilterSnapshot) else None


def _beside(rows: Tensor, column: Tensor) -> Tensor:
    """``Bool[B]`` in as many dimensions as ``column`` ``[B ...]`` has."""
    return rows.view(-1, *(1,) * (column.ndim - 1))
