"""The rewards of an agent in the tasks of a split, whoever trained it and whatever wrappers stand around it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ssm_metarl_gym.agents.models.supervision import Policy
from ssm_metarl_gym.envs.making import has_batched_form, make_rows

__all__ = [
    "Policy",
    "Rewards",
    "Splits",
    "draw_tasks",
    "evaluate",
    "find_splits",
    "held_out_splits",
    "mean_curve",
    "returns_of",
    "with_warm_up",
]

Rewards: TypeAlias = list[list[float]]  # the reward at each step, a row for each task
Splits: TypeAlias = dict[str, dict[str, Any]]  # by name, the arguments of the environment that choose a split


def evaluate(
    policy: Policy,
    env: VecEnv,
    *,
    seed: int,
    tasks: Sequence[Mapping[str, Any]] | None = None,
    before_step: Callable[[Rewards, Sequence[dict[str, Any]]], None] | None = None,
) -> Rewards:
    """The rewards of one episode of each row of an environment, under deterministic actions.

    A row is a task: the same seed lets every agent meet the same tasks, whatever it observes. Wrappers are part of the
    environment, around all rows or, in a ``DummyVecEnv``, around each of them.

    Example:
        >>> env = make_sb3_env("ssm_metarl/CartPolePolarity-v0", 100, split="extrapolation")
        >>> rewards = evaluate(PPO("MlpPolicy", env), env, seed=1_000_000)

    Args:
        policy: The agent.
        env: The environment. (It seeds row i with ``seed`` plus i where it is not batched: let seeds lie far apart.)
        seed: Seeds the tasks and all else that is random in the environment.
        tasks: The task of each row, None for those that the environment draws. A batched environment draws others than
            single ones do: agents of both kinds need :func:`draw_tasks` to meet the same ones.
        before_step: Called before each step with the rewards so far and the infos of the last step, none at first.

    Raises:
        ValueError: A ``VecNormalize`` around the environment still learns from what it sees, or normalises rewards.
    """
    normaliser = unwrap_vec_normalize(env)
    if normaliser is not None and (normaliser.training or normaliser.norm_reward):
        raise ValueError(
            "a VecNormalize must neither learn nor normalise rewards in an evaluation; got "
            f"training={normaliser.training} and norm_reward={normaliser.norm_reward}. Set env.training = "
            "env.norm_reward = False."
        )
    env.seed(seed)
    if tasks is not None:
        env.set_options([{"task": dict(task)} for task in tasks])
    observations, state = env.reset(), None
    starts = np.ones(env.num_envs, dtype=np.bool_)
    running = np.ones(env.num_envs, dtype=np.bool_)
    rewards: Rewards = [[] for _ in range(env.num_envs)]
    infos: Sequence[dict[str, Any]] = ()
    # A row whose episode has ended goes on, as rows cannot stand still, but counts no more.
    while running.any():
        if before_step is not None:
            before_step(rewards, infos)
        actions, state = policy.predict(observations, state=state, episode_start=starts, deterministic=True)
        observations, step_rewards, starts, infos = env.step(actions)
        for i in np.flatnonzero(running):
            rewards[i].append(float(step_rewards[i]))
        running &= ~starts
    return rewards


def returns_of(rewards: Rewards) -> list[float]:
    """The sum of the rewards of each episode."""
    return [sum(row) for row in rewards]


def mean_curve(rewards: Rewards) -> npt.NDArray[np.float64]:
    """The mean reward at each step, ``Float[T]``, 0 after the end of an episode: it sums up to the mean return."""
    sums = np.zeros(max(map(len, rewards)))
    for row in rewards:
        sums[: len(row)] += row
    return sums / len(rewards)


def draw_tasks(env_id: str, num_tasks: int, seed: int, **env_kwargs: Any) -> list[dict[str, Any]]:
    """The tasks that rows of an environment draw under a seed where they are stepped together, if they can be.

    Args:
        env_id: The id of an environment with hidden tasks.
        num_tasks: Number of rows.
        seed: As for :func:`evaluate`.
        **env_kwargs: Arguments of the environment.
    """
    env = make_rows(env_id, num_tasks, **env_kwargs)
    env.reset(seed=seed)
    tasks = env.unwrapped.tasks if has_batched_form(env_id) else env.get_attr("task")  # type: ignore[attr-defined]
    env.close()
    return [task.to_dict() for task in tasks]


def find_splits(env_id: str, env_kwargs: Mapping[str, Any]) -> Splits:
    """The splits that an environment has, those of its tasks first; ``"default"`` alone where it has no tasks.

    ``"switch"`` is interpolation with the hidden sign flipping, or other motors taking over, at half time. There is
    none where the parameters are visible and the sign, which else never varies, would be one number more to see.

    Args:
        env_id: The id of a registered environment.
        env_kwargs: Its other arguments.

    Raises:
        Exception: Whatever the environment raises that cannot be made with these arguments.
    """
    env = gym.make(env_id, **env_kwargs)
    env.close()
    if not env.has_wrapper_attr("set_family"):  # which environments and wrappers with hidden tasks have
        return {"default": {}}
    splits: Splits = {split: {"split": split} for split in ("train", "interpolation", "extrapolation")}
    half_time = (env.spec.max_episode_steps if env.spec else None) or 0
    splits["switch"] = {"split": "interpolation", "switch": {"step": half_time // 2}}
    made = {split: _observations(env_id, {**env_kwargs, **chosen}) for split, chosen in splits.items()}
    return {split: chosen for split, chosen in splits.items() if made[split] and made[split] == made["train"]}


def with_warm_up(splits: Splits, env_id: str, env_kwargs: Mapping[str, Any], num_steps: int) -> Splits:
    """The splits with so many steps before every episode that are not rewarded, in the same task.

    Episodes are as long as without them, and a switch comes as long after their start.

    Args:
        splits: What :func:`find_splits` gave.
        env_id: The id of the environment.
        env_kwargs: Its other arguments.
        num_steps: Number of steps.

    Raises:
        ValueError: The environment has no warm-up.
    """
    if not _takes(env_id, {**env_kwargs, "warm_up_steps": num_steps}):
        raise ValueError(f"a warm-up is for environments that take 'warm_up_steps'; {env_id} does not. Leave it out.")
    env = gym.make(env_id, **env_kwargs)
    env.close()
    limit = (env.spec.max_episode_steps if env.spec else None) or -1
    warm: Splits = {}
    for split, chosen in splits.items():
        warm[split] = {**chosen, "warm_up_steps": num_steps}
        if limit > 0:
            warm[split]["max_episode_steps"] = limit + num_steps
        switch = {**env_kwargs, **chosen}.get("switch") or {}
        if "step" in switch:
            warm[split]["switch"] = {**switch, "step": switch["step"] + num_steps}
    return warm


def held_out_splits(env_id: str, env_kwargs: Mapping[str, Any]) -> list[str]:
    """Those of interpolation and extrapolation that an environment has.

    Args:
        env_id: The id of a registered environment that takes a split.
        env_kwargs: Its other arguments.
    """
    splits = ("interpolation", "extrapolation")
    return [split for split in splits if _takes(env_id, {**env_kwargs, "split": split})]


def _takes(env_id: str, env_kwargs: Mapping[str, Any]) -> bool:
    return _observations(env_id, env_kwargs) is not None


def _observations(env_id: str, env_kwargs: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the observations of an environment; None if it cannot be made so."""
    try:
        env = gym.make(env_id, **env_kwargs)
    except (TypeError, ValueError):
        return None
    env.close()
    return env.observation_space.shape
