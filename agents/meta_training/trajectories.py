"""Collecting trajectories of many tasks at once, each with weights of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ssm_metarl_gym.agents.meta_learning.inner_loop import Weights
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = ["BatchedEnvs", "Trajectories", "collect_trajectories"]


@dataclass(frozen=True)
class Trajectories:
    """M episodes of each of K tasks, side by side for T steps; those that ended earlier are padded.

    Attributes:
        observations: ``Float[K M T D]``.
        actions: ``Int64[K M T]``, or ``Float[K M T A]`` as drawn, before they were clipped.
        parameters: ``Float[K M T P]``, of the distributions that the actions were drawn from.
        rewards: ``Float[K M T]``, zero where not valid.
        valid: ``Bool[K M T]``, true up to the last step of the episode.
    """

    observations: Tensor
    actions: Tensor
    parameters: Tensor
    rewards: Tensor
    valid: Tensor

    def returns(self) -> Tensor:
        """The undiscounted sum of the rewards of each trajectory: ``Float64[K M]``."""
        return self.rewards.double().sum(-1)


class BatchedEnvs:
    """The batched environments of an id, each number of rows made when it is needed and kept.

    Nothing is left in them from one call to the next: every call seeds them anew.

    Args:
        env_id: An environment of this package that has a batched form.
        env_kwargs: More arguments of the environment.

    Attributes:
        observation_space: The space of the observations of one row.
        action_space: The space of the actions of one row.
        task_type: The class of the tasks.

    Raises:
        ValueError: The environment has no batched form with hidden tasks, or no time limit.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self._env_id = env_id
        self._env_kwargs = dict(env_kwargs or {})
        self._envs: dict[tuple[int, str], gym.vector.VectorEnv[Any, Any, Any]] = {}
        try:
            env = self.get(1)
        except TypeError as error:  # of an argument: `split` for one is known to environments with hidden tasks alone
            raise ValueError(
                f"{env_id!r} must be an environment with hidden tasks that takes env_kwargs: {error}"
            ) from None
        if not hasattr(env.unwrapped, "tasks"):
            raise ValueError(
                f"the environment must have hidden tasks and a batched form; got {env_id!r}. Use e.g. "
                "'ssm_metarl/CartPolePolarity-v0'."
            )
        if getattr(env.unwrapped, "max_episode_steps", None) is None:
            raise ValueError(
                f"{env_id!r} must have a time limit, or an episode may never end. Leave max_episode_steps out of "
                "env_kwargs, or give it a positive number."
            )
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space
        self.task_type: type[Task] = env.unwrapped.tasks.task_type

    def get(self, num_rows: int, split: str = "train") -> gym.vector.VectorEnv[Any, Any, Any]:
        """The environment of so many rows whose tasks are of a split."""
        key = (num_rows, split)
        if key not in self._envs:
            self._envs[key] = make_rows(self._env_id, num_rows, split=split, **self._env_kwargs)
        return self._envs[key]

    def draw_tasks(self, split: str, num_tasks: int, seed: np.random.SeedSequence) -> TaskBatch:
        """Tasks of a split; with one seed those of different splits are independent."""
        env = self.get(num_tasks, split)
        env.reset(seed=_reset_seed(seed))
        tasks: TaskBatch = env.unwrapped.tasks  # type: ignore[attr-defined]
        return tasks


@torch.no_grad()
def collect_trajectories(
    envs: BatchedEnvs,
    policy: MetaPolicy,
    weights: Weights,
    tasks: Sequence[Task],
    num_trajectories: int,
    *,
    seed: np.random.SeedSequence,
    split: str = "train",
) -> Trajectories:
    """Let K policies act, each in M rows of its task, until every episode has ended.

    The rows of a batched environment draw from common random numbers, and so all that happens depends on all tasks
    together.

    Args:
        envs: Where the environments come from.
        policy: The policy that the weights are of.
        weights: ``[K ...]`` by name, one set for each task; parameters that are not in it are the policy's own.
        tasks: K tasks.
        num_trajectories: M.
        seed: Seeds the environment and the actions.
        split: What a switch draws from that gives another task in the course of an episode.
    """
    env_seed, noise_seed = seed.spawn(2)
    num_tasks = len(tasks)
    device = policy.input_shift.device
    # Every task fills M rows, side by side.
    env = envs.get(num_tasks * num_trajectories, split if envs.task_type.switch_draws else "train")
    repeated = TaskBatch.from_tasks(tasks)[np.repeat(np.arange(num_tasks), num_trajectories)]
    observations, _ = env.reset(seed=_reset_seed(env_seed), options={"tasks": repeated})
    # All rows take steps until the last episode has ended; those that ended earlier are recorded as padding.
    rng = np.random.default_rng(noise_seed)
    stepper = policy.stepper(weights)
    running = np.ones(len(repeated), dtype=np.bool_)
    steps: list[tuple[Tensor, ...]] = []
    while running.any():
        observed = torch.from_numpy(observations).to(device).unflatten(0, (num_tasks, num_trajectories))  # K M D
        parameters = stepper.step(observed)  # K M P
        noise = policy.distribution.noise(rng, num_tasks, num_trajectories).to(device)
        actions = policy.distribution.draw(parameters, noise)
        observations, rewards, terminated, truncated, _ = env.step(
            policy.distribution.to_environment(actions.flatten(0, 1))
        )
        counted = np.where(running, rewards, 0.0).astype(np.float32)
        flat = (torch.from_numpy(array).to(device).view(num_tasks, -1) for array in (counted, running.copy()))
        steps.append((observed, actions, parameters, *flat))
        running &= ~(terminated | truncated)
    return Trajectories(*(torch.stack(part, dim=2) for part in zip(*steps, strict=True)))


def _reset_seed(seed: np.random.SeedSequence) -> int:
    """A seed as the ``reset`` of an environment takes it."""
    return int(seed.generate_state(1)[0])
