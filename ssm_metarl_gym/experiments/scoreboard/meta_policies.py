"""The row of a meta-learned policy, which takes a policy gradient step in each task before it acts there."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy.typing as npt
import torch

from ssm_metarl_gym.agents import MetaPolicy, MetaTrainer
from ssm_metarl_gym.experiments.scoreboard.board import Board, Line, note_costs, read_costs, spread_seed
from ssm_metarl_gym.experiments.scoreboard.physics import physics_of

__all__ = ["EPISODES_BEFORE", "AdaptedPolicies", "adapt_meta_policy", "learn_meta_policy"]

NUM_TASKS, EPISODES_BEFORE = 20, 10  # of an update; the episodes of a task, before the step and after it
_TASKS_AT_ONCE: Final = 100  # their trajectories lie in memory together


def learn_meta_policy(board: Board, name: str, seed: int, steps: int) -> list[Line]:
    """Meta-train a policy by ProMP on the training tasks, where it is not there yet; what that took.

    Args:
        board: The scoreboard.
        name: The physics.
        seed: That of the policy.
        steps: Steps of the environments, those of the episodes before the inner steps included, rounded up to whole
            updates.
    """
    path = _path(board, name, seed, steps)
    if path.exists():
        return read_costs(path)
    started, physics = time.process_time(), physics_of(name)
    trainer = MetaTrainer(
        physics.env_id,
        objective="policy",
        env_kwargs=physics.env_kwargs,
        seed=spread_seed(seed),
        meta_batch_size=NUM_TASKS,
        trajectories_per_task=EPISODES_BEFORE,
        gamma=physics.gamma,
    )
    while trainer.num_timesteps < steps:
        trainer.learn(1)
    # Where episodes end early seeds take different numbers of steps.
    what = (board, name, "policy, meta_policy", seed, started, trainer.num_timesteps)
    costs = note_costs(path, *what, budget=steps)
    trainer.save(path)
    return costs


def adapt_meta_policy(
    board: Board, name: str, seed: int, steps: int, tasks: Sequence[Mapping[str, float]]
) -> "AdaptedPolicies":
    """The policy after the step that each task takes on ``EPISODES_BEFORE`` episodes of it.

    Args:
        board: The scoreboard.
        name: The physics.
        seed: That of the policy.
        steps: What it was trained for.
        tasks: The task of each row.
    """
    trainer = MetaTrainer.load(_path(board, name, seed, steps))
    policies: list[MetaPolicy] = []
    for first in range(0, len(tasks), _TASKS_AT_ONCE):
        policies += trainer.adapt_each(tasks[first : first + _TASKS_AT_ONCE], 1, seed=seed)
    return AdaptedPolicies(policies)


class AdaptedPolicies:
    """Acts as SB3's algorithms do, in each row of an environment by the policy of the row's task.

    Args:
        policies: Policies without memory, one for each row.
    """

    def __init__(self, policies: Sequence[MetaPolicy]) -> None:
        self._distribution = policies[0].distribution
        weights = [dict(policy.named_parameters()) for policy in policies]
        stacked = {name: torch.stack([each[name].detach() for each in weights]) for name in weights[0]}
        self._stepper = policies[0].stepper(stacked)

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: Any = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[npt.NDArray[Any], Any]:
        """The most probable actions in ``Float[N D]``, a row for each policy; the state is returned as it is."""
        with torch.no_grad():
            parameters = self._stepper.step(torch.as_tensor(observation)[:, None])  # N 1 P
        return self._distribution.to_environment(self._distribution.mode(parameters)[:, 0]), state


def _path(board: Board, name: str, seed: int, steps: int) -> Any:
    return board.stem(name, seed, f"meta_policy {steps}").with_suffix(".pt")
