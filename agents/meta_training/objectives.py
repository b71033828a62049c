"""What a trainer can train for: its objectives, and the models that they train by default."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsObjective, DynamicsOptions
from ssm_metarl_gym.agents.meta_training.policy_objective import PolicyObjective, PolicyOptions
from ssm_metarl_gym.agents.meta_training.streams import make_example_env
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

__all__ = ["OBJECTIVES", "Objective", "ObjectiveKind", "default_model"]


class Objective(Protocol):
    """What a :class:`MetaTrainer` trains for.

    All that is random in an update follows from the seed and the index of the update: no generator of random numbers
    lives on between updates, so that nothing is lost when a run is killed.
    """

    @property
    def model(self) -> nn.Module:
        """The model that is trained in place."""

    def update(self, index: int) -> dict[str, float]:
        """The outer update of this index: what to log of it, the loss first, as ``"loss"``."""

    def evaluate(
        self, split: str, num_steps: Sequence[int], *, num_tasks: int, seed: int
    ) -> dict[int, npt.NDArray[np.float64]]:
        """The loss or the return of each of ``num_tasks`` tasks after so many inner steps: ``{steps: Float[K]}``."""

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, but for the weights of the model: tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class ObjectiveKind(NamedTuple):
    """The classes that belong to an objective."""

    objective: type[Any]
    options: type[Any]
    model: type[nn.Module]


OBJECTIVES: Final = {
    "dynamics": ObjectiveKind(DynamicsObjective, DynamicsOptions, DynamicsModel),
    "policy": ObjectiveKind(PolicyObjective, PolicyOptions, MetaPolicy),
}


def default_model(
    objective: str,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    seed: int,
    options: Any,
    *,
    adapts: Literal["last_layer", "all"] = "last_layer",
) -> nn.Module:
    """The model for an environment that the options describe, with weights from ``seed``.

    ``adapts`` is of a model of the dynamics.
    """
    env = make_example_env(env_id, env_kwargs)
    spaces = env.observation_space, env.action_space
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed other devices too
        if objective == "policy":
            return MetaPolicy(*spaces, network=options.network, width=options.width)
        return DynamicsModel(*spaces, adapts=adapts)
