"""Transitions as a sensor logs them that fails now and then, for what adapts to them."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.checks import check_choice, check_number
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["CorruptedModel", "Corruption"]

Corruption = Literal["outliers", "NaN", "stuck", "late"]


class CorruptedModel(DynamicsModel):
    """A copy of a model of the dynamics that is taught wrong changes now and then, and predicts as the model does.

    What is corrupted is what an adapter learns from, and what its predictions are judged by: a share of the changes
    that :meth:`targets` gives, each row and step by itself. The policy and the environment know nothing of it.

    - ``"outliers"``: a hundred times the change.
    - ``"NaN"``: not a number.
    - ``"stuck"``: no change, as of a sensor that says what it said before.
    - ``"late"``: the change of the step before, as of a sensor that lags. Nothing tells the model where an episode
      ends: on the first step of the next one it is the last change of the one before. What comes first of all, or
      first with another number of rows, is on time.

    Every call of :meth:`targets` is taken for a step and draws anew: ask once for each, as the wrappers do.

    Example:
        >>> env = gym.make("CartPole-v1")
        >>> model = DynamicsModel(env.observation_space, env.action_space)
        >>> corrupted = CorruptedModel(model, env.observation_space, [("NaN", 1.0)], seed=0)
        >>> corrupted.targets(np.zeros((1, 4)), np.ones((1, 4)))
        tensor([[nan, nan, nan, nan]])

    Args:
        model: The model.
        observation_space: The space of the observations that it was made for.
        corruptions: How changes are corrupted, and the share of them, in [0, 1]. Of C corruptions the first one is
            that of the first C-th of the rows, and so on.
        seed: Seeds which ones.

    Raises:
        ValueError: No corruption, an unknown kind, or a share outside [0, 1].
    """

    def __init__(
        self,
        model: DynamicsModel,
        observation_space: spaces.Space[Any],
        corruptions: Sequence[tuple[Corruption, float]],
        *,
        seed: int,
    ) -> None:
        if not corruptions:
            raise ValueError(
                "corruptions must hold at least one; got none. Give one, with share 0.0 to corrupt nothing."
            )
        for kind, share in corruptions:
            check_choice("the kind of corruption", kind, get_args(Corruption))
            check_number("the share", share, ("a number in [0, 1]", lambda value: 0.0 <= value <= 1.0))
        super().__init__(observation_space, model.action_space, copy.deepcopy(model.core), adapts=model.adapts)
        self.load_state_dict(model.state_dict())
        self._corruptions = list(corruptions)
        self._rng = np.random.default_rng(seed_sequence(seed, "corruption"))
        self._previous: Tensor | None = None  # the true changes of the step before

    def targets(self, observations: npt.NDArray[Any], next_observations: npt.NDArray[Any]) -> Tensor:
        """The changes that the model should predict, some of them corrupted: ``Float[N D]`` twice -> ``Float[N D]``."""
        true = super().targets(observations, next_observations)
        before = true if self._previous is None or len(self._previous) != len(true) else self._previous
        self._previous = true
        parts = (changes.tensor_split(len(self._corruptions)) for changes in (true, before))
        return torch.cat([self._corrupt(*part) for part in zip(self._corruptions, *parts, strict=True)])

    def _corrupt(self, corruption: tuple[Corruption, float], true: Tensor, before: Tensor) -> Tensor:
        kind, share = corruption
        fails = torch.as_tensor(self._rng.random(len(true)) < share)
        wrong = before if kind == "late" else {"outliers": 100.0, "NaN": torch.nan, "stuck": 0.0}[kind] * true
        return torch.where(fails[:, None], wrong, true)
