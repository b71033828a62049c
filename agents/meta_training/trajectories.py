"""Collecting trajectories of many tasks at once, each with weights of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ssm_metarl_gym.agents.meta_learning.inner_loop import Weights
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = ["TaskRows", "Trajectories", "collect_trajectories"]


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


class TaskRows:
    """The batched environments of an id, made when they are needed and kept.

    Nothing is left in them from one call to the next: every call seeds them anew.

    Args:
        env_id: An environment of this package that has a batched form.
        env_kwargs: More arguments for ``gymnasium.make_vec``.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> None:
        self.env_id, self.env_kwargs = env_id, dict(env_kwargs or {})
        self._envs: dict[tuple[int, str], gym.vector.VectorEnv[Any, Any, Any]] = {}
        try:
            env = self.rows(1)
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
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.task_type: type[Task] = env.unwrapped.tasks.task_type

    def rows(self, num_rows: int, split: str = "train") -> gym.vector.VectorEnv[Any, Any, Any]:
        """An environment of so many rows."""
        key = (num_rows, split)
        if key not in self._envs:
            self._envs[key] = gym.make_vec(self.env_id, num_envs=num_rows, split=split, **self.env_kwargs)
        return self._envs[key]

    def draw_tasks(self, split: str, num_tasks: int, seed: np.random.SeedSequence) -> TaskBatch:
        """Tasks of a split; no two splits share a stream, whatever the seed."""
        env = self.rows(num_tasks, split)
        env.reset(seed=_whole_number(seed))
        tasks: TaskBatch = env.unwrapped.tasks  # type: ignore[attr-defined]
        return tasks


@torch.no_grad()
def collect_trajectories(
    rows: TaskRows,
    policy: MetaPolicy,
    weights: Weights,
    tasks: Sequence[Task],
    num_trajectories: int,
    *,
    seed: np.random.SeedSequence,
) -> Trajectories:
    """Let K policies act, each in M rows of its task, until every episode has ended.

    The rows of a batched environment draw from common streams, and so all that happens depends on all tasks together.

    Args:
        rows: Where the environments come from.
        policy: What the weights are of.
        weights: ``[K ...]`` by name, one set for each task; parameters that are not in it are the policy's own.
        tasks: K tasks.
        num_trajectories: M.
        seed: Of the environment and of the actions.
    """
    env_seed, noise_seed = seed.spawn(2)
    num_tasks, device = len(tasks), policy.input_shift.device
    env = rows.rows(num_tasks * num_trajectories)
    rng = np.random.default_rng(noise_seed)
    controller = (_BatchedPolicy if policy.network == "mlp" else _MappedPolicy)(policy, weights)
    repeated = TaskBatch.from_tasks(tasks)[np.repeat(np.arange(num_tasks), num_trajectories)]
    observations, _ = env.reset(seed=_whole_number(env_seed), options={"tasks": repeated})
    running = np.ones(len(repeated), dtype=np.bool_)
    steps: list[tuple[Tensor, ...]] = []
    while running.any():
        observed = torch.from_numpy(observations).to(device).unflatten(0, (num_tasks, num_trajectories))
        parameters = controller.step(observed)
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


class _MappedPolicy:
    """A policy with weights per task that takes one step after the other, from the start of episodes on."""

    def __init__(self, policy: MetaPolicy, weights: Weights) -> None:
        self._policy, self._weights = policy, weights
        self._state: Tensor | None = None

    def step(self, observations: Tensor) -> Tensor:
        """``Float[K M D]`` -> parameters ``Float[K M P]``."""
        in_dims = (0, 0, None if self._state is None else 0)
        parameters, self._state = vmap(self._call, in_dims)(self._weights, observations[:, :, None], self._state)
        return parameters[:, :, 0]

    def _call(self, weights: Weights, observations: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        called: tuple[Tensor, Tensor] = functional_call(self._policy, weights, (observations, state))
        return called


class _BatchedPolicy:
    """The same for a policy without memory, as three products of matrices, which spares nine tenths of the time."""

    def __init__(self, policy: MetaPolicy, weights: Weights) -> None:
        self._policy = policy
        num_tasks = len(next(iter(weights.values())))
        own = {name: parameter.expand(num_tasks, *parameter.shape) for name, parameter in policy.named_parameters()}
        weights = own | weights
        self._layers = [
            (weights[f"{name}.weight"].mT, weights[f"{name}.bias"][:, None]) for name in ("core.0", "core.2", "head")
        ]
        self._log_std = weights["log_std"][:, None] if "log_std" in weights else None  # K 1 A

    def step(self, observations: Tensor) -> Tensor:
        """``Float[K M D]`` -> parameters ``Float[K M P]``."""
        *hidden_layers, (head, bias) = self._layers
        features = self._policy.normalise(observations)
        for weight, shift in hidden_layers:
            features = torch.baddbmm(shift, features, weight).relu_()
        return self._policy.to_parameters(torch.baddbmm(bias, features, head), self._log_std)


def _whole_number(seed: np.random.SeedSequence) -> int:
    """A seed as environments take it."""
    return int(seed.generate_state(1)[0])
