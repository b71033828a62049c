"""What adapters in closed form share: evidence that counts once, rows that are undone alone, and statistics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ssm_metarl_gym.agents.adaptation.batches import finite_rows, num_shared_rows, parse_batch, row_bytes
from ssm_metarl_gym.agents.adaptation.bounds import TrustRegion, track_loss
from ssm_metarl_gym.agents.adaptation.config import AdapterStats
from ssm_metarl_gym.agents.adaptation.module_state import ModuleSnapshot, ModuleState
from ssm_metarl_gym.agents.losses import checked_loss
from ssm_metarl_gym.checks import Rule, check_fields

__all__ = ["FilterState", "RecursiveAdapter"]

# What the options that all of them have must be.
_RULES: Final[dict[str, Rule]] = {
    "trust_region_eps": ("a number >= 0 (0 freezes the weights, inf is no bound)", lambda value: value >= 0.0),
    "ema_decay": ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0),
}


# What is counted, by its name in the statistics.
_COUNTS: Final = ("steps", "rejected_steps", "clipped_steps", "projected_steps", "covariance_resets")


@dataclass(frozen=True)
class FilterState:
    """What B filters know and have done, a row each; every field has the rows first.

    Attributes:
        counts: Transitions that were taken in; that were left out, because they or what came of them were not finite;
            that counted for less than one; after which the weights were on the border of the trust region; and how
            often the covariance was put back to the prior: ``Int[B 5]``.
    """

    counts: Tensor

    def where(self, rows: Tensor, other: "Self") -> "Self":
        """These rows where ``rows`` ``Bool[B]`` is true, those of ``other`` elsewhere."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        return replace(self, **{name: torch.where(_beside(rows, one), one, two) for name, (one, two) in pairs.items()})

    def counted(self, **events: Tensor) -> "Self":
        """The same with events counted, ``Bool[B]`` each, by their names in :class:`AdapterStats`."""
        happened = [events.get(name, torch.zeros_like(self.counts[:, 0])) for name in _COUNTS]
        return replace(self, counts=self.counts + torch.stack(happened, dim=1))


State = TypeVar("State", bound=FilterState)


@dataclass(frozen=True)
class _Snapshot(Generic[State]):
    """All that ``adapt`` changes.

    Attributes:
        module: The weights and the buffers of the model.
        filter: What the filter knows, one row.
        last_rows: The bits of the rows of the last batch, ``UInt8[N bytes]``.
        stats: The statistics.
    """

    module: ModuleSnapshot
    filter: State
    last_rows: Tensor
    stats: AdapterStats


class RecursiveAdapter(ABC, Generic[State]):
    """An adapter that takes in one transition after the other, each once, by a formula instead of gradient steps.

    It has the surface of :class:`Adapter`. Beside it, :meth:`initial_state` and :meth:`update` are the same arithmetic
    for many rows, each with weights of its own: they leave the model and the adapter alone.

    Args:
        model: The module to adapt, in place. Two adapters must not share it.
        rules: What the options of the subclass must be, which are its attributes by now.
        trust_region_eps: See :class:`AdaptationConfig`.
        ema_decay: Decay of the running loss statistics.
    """

    def __init__(
        self, model: nn.Module, rules: Mapping[str, Rule], *, trust_region_eps: float, ema_decay: float
    ) -> None:
        self.trust_region_eps = trust_region_eps
        self.ema_decay = ema_decay
        check_fields(self, {**rules, **_RULES})
        self.model = model
        self._state = ModuleState(model)
        self._stats = AdapterStats()
        self._last_rows = torch.empty(0, 0, dtype=torch.uint8, device=self._state.parameters[0].device)
        self._before_call: _Snapshot[State] | None = None
        self._set_source(self._state.snapshot())
        self._filter = self.initial_state()

    @property
    def stats(self) -> AdapterStats:
        """What was done since construction or the last :meth:`reset`."""
        return self._stats

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
            states_t, targets_t = (
                torch.where(_beside(finite, column), column, 0.0) for column in (states_t, targets_t)
            )
        candidate = self._absorb(state, states_t, targets_t)
        accepted = finite & finite_rows(self._flat_weights(candidate))
        if counted is not None:
            accepted = accepted & counted
        if accepted.all():
            return candidate
        rejected = ~accepted if counted is None else counted & ~accepted
        return candidate.where(accepted, state.counted(rejected_steps=rejected))

    def weights(self, state: State) -> dict[str, Tensor]:
        """The weights of each row by the names of the parameters, ``{name: Float[B ...]}``."""
        return self._state.rows_by_name(self._flat_weights(state))

    @abstractmethod
    def with_prior_covariance(self, state: State) -> State:
        """The same weights in every row, but as uncertain as before any transition (covariance resetting)."""

    def reset_covariance(self) -> None:
        """Keep the weights, and be as uncertain about them as before any transition (covariance resetting)."""
        self._filter = self.with_prior_covariance(self._filter)
        self._stats = self._with_counts(self._stats)

    def adapt(self, loss_fn: Callable[[Any, Tensor], Tensor], batch_dict: Mapping[str, Tensor]) -> float:
        """Take in the rows of a batch, oldest first.

        **A row counts once.** Rows at the start of the batch that the batch before ended with, bit for bit, were taken
        in already: a sliding window over the latest transitions may be given at every step, and so may each transition
        alone. The same batch again changes nothing.

        Args:
            loss_fn: Takes a prediction of the model and the targets, gives a scalar. It measures, and has no
                influence: what is fitted is the squared error.
            batch_dict: ``{"states": Float[N ...], "targets": Float[N D]}``, the inputs of the model and what it should
                have predicted.

        Returns:
            The loss over the rows that are finite, with the weights after the call; nan where there are none.

        Raises:
            ValueError: The batch lacks a key, holds something else than tensors, or has two lengths.
        """
        states, targets = parse_batch(batch_dict)
        before_call = self._before_call = self._snapshot()
        empty = len(states) == 0
        self._stats = replace(self._stats, calls=self._stats.calls + 1, empty_calls=self._stats.empty_calls + empty)
        if empty:
            return math.nan
        with torch.inference_mode(False), torch.no_grad(), self._state.frozen_behaviour():
            try:
                return self._take_batch(loss_fn, states.detach(), targets.detach())
            except BaseException:
                self._restore(before_call)
                raise

    def reset(self) -> None:
        """Go back to the source: weights, buffers, what is known and statistics are those of construction."""
        source, last_rows = self._source, self._last_rows[:0]
        self._restore(_Snapshot(source, self.initial_state(), last_rows, AdapterStats()))
        self._before_call = None

    def rollback(self) -> None:
        """Undo the last call of :meth:`adapt`.

        Raises:
            RuntimeError: There is no call to undo: one call can be undone once.
        """
        if self._before_call is None:
            raise RuntimeError("rollback() undoes the last call of adapt(), once; there is none to undo.")
        self._restore(self._before_call)
        self._before_call = None

    def state_dict(self) -> dict[str, Any]:
        """All that :meth:`load_state_dict` needs to go on as if nothing had happened: tensors and plain numbers."""
        current, source = self._snapshot(), self._source
        return {
            "weights": self._state.by_name(current.module.weights),
            "source_weights": self._state.by_name(source.weights),
            "buffers": current.module.buffers,
            "source_buffers": [buffer.clone() for buffer in source.buffers],
            "filter": {name: tensor.clone() for name, tensor in vars(current.filter).items()},
            "last_rows": current.last_rows.clone(),
            "stats": asdict(current.stats),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the weights, source, knowledge and statistics of another adapter of the same kind and model.

        Raises:
            ValueError: The state is of another model or another kind of adapter; this adapter is as it was.
        """
        try:
            weights, source = (self._state.parse_weights(state_dict[key]) for key in ("weights", "source_weights"))
            buffers, source_buffers = (
                self._state.parse_buffers(state_dict[key]) for key in ("buffers", "source_buffers")
            )
            known = self._parse_filter(state_dict["filter"])
            last_rows = state_dict["last_rows"].to(self._last_rows, copy=True)
            stats = AdapterStats(**state_dict["stats"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the state must be of an adapter of the same kind and model; got one that differs: {error}."
            ) from None
        self._set_source(ModuleSnapshot(source, source_buffers))
        self._restore(_Snapshot(ModuleSnapshot(weights, buffers), known, last_rows, stats))
        self._before_call = None

    @abstractmethod
    def _absorb(self, state: State, states_t: Tensor, targets_t: Tensor) -> State:
        """What is known after one more transition of each row, which is finite, and counted as a step."""

    @abstractmethod
    def _flat_weights(self, state: State) -> Tensor:
        """The weights of each row as one vector, ``Float64[B W]``."""

    def _no_counts(self, num_rows: int) -> Tensor:
        """The counts of new rows."""
        return torch.zeros(num_rows, len(_COUNTS), dtype=torch.int64, device=self._ball.source.device)

    def _take_batch(self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor) -> float:
        finite = finite_rows(states, targets)
        first_loss = self._loss(loss_fn, states[finite], targets[finite])
        rows = row_bytes(states, targets)
        num_seen = num_shared_rows(self._last_rows, rows)
        self._last_rows = rows
        for t in range(num_seen, len(states)):
            self._filter = self.update(self._filter, states[t : t + 1], targets[t : t + 1])
            # At once, because a model that is not linear is linearised at its own weights.
            self._state.set_weights(self._flat_weights(self._filter)[0])
        stats = self._with_counts(self._stats)
        self._stats = stats if math.isnan(first_loss) else track_loss(stats, first_loss, self.ema_decay)
        return self._loss(loss_fn, states[finite], targets[finite])

    def _loss(self, loss_fn: Callable[[Any, Tensor], Tensor], states: Tensor, targets: Tensor) -> float:
        if not len(states):
            return math.nan
        loss = float(checked_loss(loss_fn, self.model(states), targets))
        return loss if math.isfinite(loss) else math.nan

    def _with_counts(self, stats: AdapterStats) -> AdapterStats:
        """The statistics with the counts of the filter, and the distance from the source."""
        counts = dict(zip(_COUNTS, self._filter.counts[0].tolist(), strict=True))
        return replace(stats, **counts, distance=self._ball.relative_distance(self._state.weights()))

    def _parse_filter(self, stored: Mapping[str, Tensor]) -> State:
        own = vars(self._filter)
        if set(stored) != set(own):
            raise ValueError(f"the filter has {sorted(stored)} instead of {sorted(own)}")
        for name, tensor in own.items():
            if stored[name].shape != tensor.shape:
                raise ValueError(f"{name} has the shape {tuple(stored[name].shape)} instead of {tuple(tensor.shape)}")
        return replace(self._filter, **{name: stored[name].to(tensor, copy=True) for name, tensor in own.items()})

    def _set_source(self, source: ModuleSnapshot) -> None:
        """Make the ball around the source, and the state that :meth:`reset` goes back to."""
        self._source = source
        self._ball = TrustRegion(source.weights, self.trust_region_eps)

    def _snapshot(self) -> _Snapshot[State]:
        return _Snapshot(self._state.snapshot(), self._filter, self._last_rows, self._stats)

    def _restore(self, snapshot: _Snapshot[State]) -> None:
        self._state.restore(snapshot.module)
        self._filter = snapshot.filter
        self._last_rows = snapshot.last_rows
        self._stats = snapshot.stats


def _beside(rows: Tensor, column: Tensor) -> Tensor:
    """``Bool[B]`` in as many dimensions as ``column`` ``[B ...]`` has."""
    return rows.view(-1, *(1,) * (column.ndim - 1))
