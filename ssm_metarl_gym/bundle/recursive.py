"""Adapters in closed form, which take in every transition once."""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssm_metarl_gym.bundle.adapters import AdaptingWeights
from ssm_metarl_gym.bundle.layers import Floats
from ssm_metarl_gym.bundle.losses import Loss
from ssm_metarl_gym.bundle.model import Model
from ssm_metarl_gym.checks import check_fields

__all__ = ["LeastSquares", "Recursive"]


class Recursive(AdaptingWeights):
    """Takes in the transitions of a sliding window that are new, one after the other.

    Args:
        model: The model.
        trust_region_eps: See :class:`AdaptingWeights`.
    """

    def __init__(self, model: Model, trust_region_eps: float) -> None:
        super().__init__(model, trust_region_eps)
        self._last_arrival = -1

    def reset(self) -> None:
        """Go back to the source, and know nothing."""
        super().reset()
        self._last_arrival = -1

    def adapt(self, loss: Loss, states: Floats, targets: Floats, arrivals: Sequence[int]) -> Callable[[], float]:
        """Take in what came after the batch before; the loss measures only."""
        for state, target, arrival in zip(states, targets, arrivals, strict=True):
            if arrival <= self._last_arrival:
                continue
            weights = self._absorb(state, target)
            if weights is None:
                self._num_rejected += 1
            else:
                self._num_steps += 1
                self._flat[:] = weights
        self._last_arrival = arrivals[-1]
        return functools.partial(self._measure, loss, states, targets)

    @abstractmethod
    def _absorb(self, state: Floats, target: Floats) -> Floats | None:
        """The weights ``Float64[W]`` after one more transition; None, and nothing is known of it, if not finite."""

    def _project(self, offsets: Floats) -> Floats:
        """Offsets from the source ``Float64[K W]`` within the ball."""
        distances = np.sqrt((offsets * offsets).sum(axis=1)).tolist()
        for k, distance in enumerate(distances):
            if distance > self._radius:
                offsets[k] = self._pull_back(offsets[k], distance)
        return offsets

    def _can_be_held(self, weights: Floats) -> bool:
        """Whether the parameters hold weights ``Float64[W]`` as finite numbers."""
        return bool(np.isfinite(weights.astype(self._flat.dtype)).all())


class LeastSquares(Recursive):
    """Ridge regression of the last layer, as :class:`ssm_metarl_gym.agents.RecursiveLeastSquares` does it.

    Args:
        model: A model whose last layer adapts.
        options: ``forgetting``, ``ridge`` and ``trust_region_eps``.
    """

    def __init__(self, model: Model, options: Mapping[str, Any]) -> None:
        super().__init__(model, options["trust_region_eps"])
        self.forgetting: float = options["forgetting"]
        self.ridge: float = options["ridge"]
        check_fields(
            self,
            {
                "forgetting": ("a number in (0, 1]", lambda value: 0.0 < value <= 1.0),
                "ridge": ("a finite number > 0", lambda value: 0.0 < value < math.inf),
            },
        )
        source = model.source
        # F D, the bias as the last row.
        self._centre = np.concatenate([source["head.weight"].T, source["head.bias"][None]]).astype(np.float64)
        self._forget()

    def reset(self) -> None:
        """Go back to the source without evidence."""
        super().reset()
        self._forget()

    def _forget(self) -> None:
        num_features = len(self._centre)
        self._information = np.zeros((num_features, num_features))
        self._moment = np.zeros_like(self._centre)

    def _absorb(self, state: Floats, target: Floats) -> Floats | None:
        x = np.append(state.astype(np.float64), 1.0)
        information = self.forgetting * self._information + np.outer(x, x)
        moment = self.forgetting * self._moment + np.outer(x, target - x @ self._centre)
        try:
            offset = np.linalg.solve(information + self.ridge * np.eye(len(x)), moment)  # F D
        except np.linalg.LinAlgError:
            return None
        flat = self._project(np.concatenate([offset[:-1].T.ravel(), offset[-1]])[None])[0]
        weights: Floats = self._source.astype(np.float64) + flat
        if not self._can_be_held(weights):
            return None
        self._information, self._moment = information, moment
        return weights
