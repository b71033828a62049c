"""Correcting actions where a map on them is all that adapts: in closed form, and where the map is known to differ."""

import math
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from ssm_metarl_gym.agents.adaptation.adapter import Adapter
from ssm_metarl_gym.agents.adaptation.kalman import KalmanAdapter, KalmanState
from ssm_metarl_gym.agents.adaptation.recursive_rows import RecursiveRows
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.checks import Rule, check_fields
from ssm_metarl_gym.seeding import seed_sequence
from ssm_metarl_gym.wrappers.corrector import Corrector, Flags, Predict, solve_where_finite
from ssm_metarl_gym.wrappers.single_sources import expected_rows

__all__ = ["MAP_OPTIONS", "MapCorrector", "MapEstimates", "undo_maps"]

MAP_OPTIONS: Final = ("map_gate", "exploration")  # beside those of Corrector
_KNOWN_VARIANCE: Final = 0.05  # of an entry of a map, on average: below it, there is nothing to explore
_RULES: Final[dict[str, Rule]] = {
    "map_gate": ("a number >= 0 (inf corrects nothing)", lambda value: value >= 0.0),
    "exploration": ("a finite number >= 0", lambda value: 0.0 <= value < math.inf),
}


@dataclass(frozen=True)
class MapEstimates:
    """What is known of the maps on the actions of N rows, A v + c for v in half ranges around the middle.

    Attributes:
        maps: A, ``Float64[N A A]``.
        offsets: c, ``Float64[N A]``.
        variance: Of the entries of a map, the mean, ``Float64[N]``; None where an adapter knows none.
    """

    maps: Tensor
    offsets: Tensor
    variance: Tensor | None = None

    @classmethod
    def of(cls, adapter: Adapter | AdapterRows) -> "MapEstimates":
        """Those of an adapter of a model with an action map, for its one row or its many."""
        filtered = _filter_of(adapter)
        if filtered is not None:
            return cls._of_filter(filtered, _state_of(adapter))
        if isinstance(adapter, AdapterRows):
            named = adapter.weights()
        else:
            named = {name: own.detach()[None] for name, own in adapter.model.named_parameters()}
        return cls(named["action_map"].double(), named["action_offset"].double())

    @classmethod
    def _of_filter(cls, adapter: KalmanAdapter, state: KalmanState) -> "MapEstimates":
        """What a filter expects; of any mix of the actions, unless it is told of one, that motors obey one each."""
        shape = cast("DynamicsModel", adapter.model).action_map.shape
        num_entries = shape.numel()
        maps = state.means[..., :num_entries].unflatten(2, shape).clone()  # N K A A
        covariances = state.covariances[..., :num_entries, :num_entries]
        prior = adapter.prior_variances()[:, :num_entries]  # K A*A
        source = adapter.prior_mean()[:num_entries].view(shape)
        (mixes,) = (prior > 0.0).all(dim=1).nonzero(as_tuple=True)
        for k in [] if adapter.mixed else mixes.tolist():
            maps[:, k] = expected_rows(maps[:, k], covariances[:, k], prior[k].view(shape), source)
        return cls(
            (state.beliefs[..., None, None] * maps).sum(dim=1),
            state.mean[:, num_entries:],
            state.covariance.diagonal(dim1=1, dim2=2)[:, :num_entries].mean(dim=1),
        )


def _filter_of(adapter: Adapter | AdapterRows) -> KalmanAdapter | None:
    """The filter whose state an adapter of one row or of many has, if it is one."""
    filtered = adapter.adapter if isinstance(adapter, RecursiveRows) else adapter
    return filtered if isinstance(filtered, KalmanAdapter) else None


def _state_of(adapter: Adapter | AdapterRows) -> KalmanState:
    """What a filter knows of its one row or its many."""
    return cast("KalmanState", cast("Any", adapter).state)


class MapCorrector(Corrector):
    """Finds the actions whose effect through the map of now is that of the asked ones through the map of the reference.

    No model is asked for it: ``argmin_v |A v + c - w|^2 + regularisation |v|^2``, in half ranges, within the bounds,
    where w is what the reference makes of the asked ones. A filter knows how probable it is that the map is that of its
    source, and the gate is open while the odds are against it; as long as A is known badly, noise explores what the
    actions do. (To explore only what is not known: Feldbaum 1960, "Dual control theory".)

    Args:
        adapter: What adapts the maps: its only row or its many are those that are corrected.
        reference: The model with the map that the policy knows.
        action_space: A bounded one-dimensional ``Box``.
        num_rows: Number of rows N.
        map_gate: See :class:`ActionCorrection`, and so for all that follow.
        exploration: Standard deviation of the noise, in half ranges.
        **options: Those of :class:`Corrector`.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        adapter: Adapter | AdapterRows,
        reference: DynamicsModel,
        action_space: spaces.Space[Any],
        num_rows: int,
        *,
        map_gate: float,
        exploration: float,
        **options: Any,
    ) -> None:
        super().__init__(reference, action_space, num_rows, **options)
        self.map_gate = map_gate
        self.exploration = exploration
        check_fields(self, _RULES)
        self._adapter = adapter
        self._source = reference.action_map.detach().double()  # A A
        self._source_offset = reference.action_offset.detach().double()  # A
        known = torch.cat([self._source.flatten(), self._source_offset])
        self._filter = _filter_of(adapter)
        self._knows_another_map = self._filter is not None and not torch.equal(self._filter.prior_mean(), known)
        self._rngs = [np.random.default_rng() for _ in range(num_rows)]

    @property
    def compares_effects(self) -> bool:
        """Never: what actions do is what the map says."""
        return False

    def seed(self, row: int, seed: int) -> None:
        """Seed the noise of a row."""
        self._rngs[row] = np.random.default_rng(seed_sequence(seed, "exploration"))

    def is_open(self) -> Flags:
        """The rows ``[N]`` whose actions are corrected: those where another map than that of the source is believed in.

        All of them where the policy knows another map than that of the source. Without a filter, those where the
        physics differ: the model predicts better than the reference. None where either gate is inf.
        """
        if self._filter is None:
            return super().is_open()
        if math.inf in (self.gate, self.map_gate):
            return np.zeros(len(self._rngs), dtype=np.bool_)
        if self._knows_another_map:
            return np.ones(len(self._rngs), dtype=np.bool_)
        unchanged = self._filter.belief_in_source(_state_of(self._adapter))
        is_open: Flags = (1.0 - unchanged >= self.map_gate * unchanged).numpy()
        return is_open

    def correct(
        self, predict: Predict, observations: npt.NDArray[Any], asked: npt.NDArray[Any], rows: Flags
    ) -> npt.NDArray[Any]:
        """The actions that do now what the asked ones would do in the reference, ``[N A]``, whatever the gate.

        Those of other rows than ``rows`` ``[N]`` are the asked ones.
        """
        estimates = MapEstimates.of(self._adapter)
        with torch.no_grad():
            wanted = self.reference.commands(asked).double() @ self._source.mT + self._source_offset
        can_move = torch.as_tensor(self._half > 0.0)
        found = undo_maps(estimates.maps, wanted - estimates.offsets, can_move, self.regularisation).numpy()
        if estimates.variance is not None:
            # Explore while little is known, each row by a stream of its own.
            unknown = estimates.variance.numpy() > _KNOWN_VARIANCE
            for i in np.flatnonzero(rows & unknown):
                found[i] += self.exploration * self._rngs[i].standard_normal(len(self._half))
        taken = asked.copy()
        taken[rows] = np.clip(self._middle + self._half * found, self._space.low, self._space.high)[rows]
        return taken


def undo_maps(maps: Tensor, wanted: Tensor, can_move: Tensor, regularisation: float) -> Tensor:
    """``argmin_v |A v - w|^2 + regularisation |v|^2``, in half ranges around the middle, within the bounds.

    Args:
        maps: A, ``Float64[N A A]``.
        wanted: w, ``Float64[N A]``.
        can_move: The actions whose range has a length, ``Bool[A]``; the others stay where they are.
        regularisation: Against actions that grow without end where a map is nearly singular.

    Returns:
        ``Float64[N A]``; nan where maps or what is wanted are not finite.
    """
    moving = maps * can_move  # N A A
    normal = moving.mT @ moving + regularisation * torch.eye(len(can_move), dtype=maps.dtype)
    return solve_where_finite(normal, moving.mT @ wanted[..., None])[..., 0].clamp(-1.0, 1.0)
