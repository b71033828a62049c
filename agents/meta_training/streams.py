"""Collecting streams of transitions by random actions or around a policy, one task a stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym.agents.models.supervision import NOISE, Policy, random_actions, with_noise, without_failures
from ssm_metarl_gym.envs.making import has_batched_form, make_rows

__all__ = ["Streams", "collect_streams", "make_example_env", "make_stream_env"]

StreamEnv: TypeAlias = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]


@dataclass(frozen=True)
class Streams:
    """Transitions of S streams of T steps.

    Attributes:
        observations: ``Float[S T D]``.
        actions: ``Int[S T]``, or ``Float[S T A]`` for a Box.
        next_observations: ``Float[S T D]``; where an episode ended, its last observation.
        restarted: ``Bool[S T]``, true where the next observation is that of a restart, which no model can predict.
    """

    observations: npt.NDArray[np.floating[Any]]
    actions: npt.NDArray[Any]
    next_observations: npt.NDArray[np.floating[Any]]
    restarted: npt.NDArray[np.bool_]


def make_stream_env(env_id: str, num_streams: int, **env_kwargs: Any) -> StreamEnv:
    """What :func:`collect_streams` takes: a batched environment with a row for each stream, or a single one.

    Only environments of this package have a batched form that lets a row go on with its task when its episode ends.
    Of any other a single one plays one stream after the other: as many side by side as there are streams would take
    their memory, and in one process they would be no faster.
    """
    if has_batched_form(env_id):
        return make_rows(env_id, num_streams, autoreset_mode=AutoresetMode.DISABLED, **env_kwargs)
    return gym.make(env_id, disable_env_checker=True, **env_kwargs)


def make_example_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """A single environment of the training tasks, whose spaces are asked for; it is closed.

    Raises:
        ValueError: The environment has no hidden tasks, or does not take the arguments.
    """
    try:
        env: gym.Env[Any, Any] = gym.make(env_id, split="train", disable_env_checker=True, **env_kwargs)
    except TypeError as error:  # of an argument: only environments with hidden tasks know a `split`
        raise ValueError(
            f"{env_id!r} must be an environment with hidden tasks that takes env_kwargs: {error}"
        ) from None
    env.close()
    return env


def collect_streams(
    env: StreamEnv, num_streams: int, stream_length: int, *, seed: np.random.SeedSequence, policy: Policy | None = None
) -> Streams:
    """Act for ``stream_length`` steps in each of ``num_streams`` tasks.

    Every stream starts with a reset, which draws a task. An episode that ends within a stream goes on with the same
    task. Environments of this package start in states from far apart (their ``wide_start``).

    Args:
        env: What :func:`make_stream_env` makes: a batched environment of ``num_streams`` rows that does not reset
            itself, or a single one.
        num_streams: S.
        stream_length: T.
        seed: Seeds the tasks, the states and the actions.
        policy: Whatever has the ``predict`` of Stable-Baselines3: of nine streams three act at random and two each as
            it does, with noise of a standard deviation of .05, .2 and .5 of half the range (of a ``Discrete`` space:
            with random actions as often). None for random actions alone.

    Raises:
        ValueError: The observation space is no Box, or the action space neither Discrete nor a bounded Box.
    """
    rng = np.random.default_rng(seed)
    if isinstance(env, gym.vector.VectorEnv):
        observation_space, action_space = env.single_observation_space, env.single_action_space
    else:
        observation_space, action_space = env.observation_space, env.action_space
    shape = (num_streams, stream_length)
    # In double precision where the environment is, whose changes may be small beside the observations.
    precision = np.result_type(observation_space.dtype, np.float32)
    observations = np.empty((*shape, *_observation_shape(observation_space)), dtype=precision)
    streams = Streams(
        observations,
        random_actions(action_space, rng, shape),
        np.empty_like(observations),
        np.zeros(shape, dtype=np.bool_),
    )
    env_seed = int(rng.integers(2**31))
    if isinstance(env, gym.vector.VectorEnv):
        behaviour = _Behaviour(policy, action_space, np.arange(num_streams), rng)
        _play_together(env, streams, env_seed, behaviour)
    else:
        behaviours = [_Behaviour(policy, action_space, np.array([i]), rng) for i in range(num_streams)]
        _play_one_by_one(env, streams, env_seed, behaviours)
    return streams


class _Behaviour:
    """How streams of the given numbers act: at random, or as a policy does with more or less noise."""

    def __init__(
        self, policy: Policy | None, space: spaces.Space[Any], numbers: npt.NDArray[Any], rng: np.random.Generator
    ) -> None:
        self._policy = policy
        self._space = space
        self._rng = rng
        self._state: Any = None
        self._starts = np.ones(len(numbers), dtype=np.bool_)
        ways = numbers % 9
        self._noisy = [(noise, np.flatnonzero((ways - 3) // 2 == i)) for i, noise in enumerate(NOISE)]

    def act(self, observations: npt.NDArray[Any], at_random: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The actions of N streams, where these are the random ones."""
        if self._policy is None:
            return at_random
        starts, self._starts = self._starts, np.zeros_like(self._starts)
        chosen, self._state = self._policy.predict(
            without_failures(observations), state=self._state, episode_start=starts, deterministic=True
        )
        taken = at_random.copy()
        for noise, rows in self._noisy:
            taken[rows] = with_noise(chosen[rows], at_random[rows], self._space, noise, self._rng)
        return taken

    def begin(self, rows: npt.NDArray[np.bool_]) -> None:
        """Begin an episode in these rows ``[N]``."""
        self._starts |= rows


def _play_together(
    env: gym.vector.VectorEnv[Any, Any, Any], streams: Streams, seed: int, behaviour: _Behaviour
) -> None:
    """Fill in what a batched environment does, a stream in each row."""
    options = _wide_start(env.unwrapped.single_env_type)  # type: ignore[attr-defined]
    observation, _ = env.reset(seed=seed, options=options)
    for t in range(streams.actions.shape[1]):
        streams.observations[:, t] = observation
        streams.actions[:, t] = behaviour.act(observation, streams.actions[:, t])
        observation, _, terminated, truncated, info = env.step(streams.actions[:, t])
        streams.next_observations[:, t] = observation
        streams.restarted[:, t] = info.get("restarted", False)
        ended = np.logical_or(terminated, truncated)
        if ended.any():
            behaviour.begin(ended)
            same_tasks = {"reset_mask": ended, "tasks": env.unwrapped.tasks}  # type: ignore[attr-defined]
            observation, _ = env.reset(options=options | same_tasks)


def _play_one_by_one(env: gym.Env[Any, Any], streams: Streams, seed: int, behaviours: Sequence[_Behaviour]) -> None:
    """Fill in what a single environment does, one stream after the other."""
    options = _wide_start(env.unwrapped)
    num_streams, stream_length = streams.restarted.shape
    env.reset(seed=seed)
    for stream, behaviour in zip(range(num_streams), behaviours, strict=True):
        observation, _ = env.reset(options=options)
        for t in range(stream_length):
            streams.observations[stream, t] = observation
            (streams.actions[stream, t],) = behaviour.act(observation[None], streams.actions[stream, t : t + 1])
            observation, _, terminated, truncated, info = env.step(streams.actions[stream, t])
            streams.next_observations[stream, t] = observation
            streams.restarted[stream, t] = info.get("restarted", False)
            if terminated or truncated:
                behaviour.begin(np.array([True]))
                # Of the outermost that has one: what a wrapper hides is not known to the environment within.
                same_task = {"task": env.get_wrapper_attr("task")} if env.has_wrapper_attr("task") else {}
                observation, _ = env.reset(options=options | same_task)


def _wide_start(env_type: Any) -> dict[str, Any]:
    """The options of a reset that starts in states from far apart, where the environment has such."""
    wide_start: Mapping[str, Any] = getattr(env_type, "wide_start", {})
    return dict(wide_start)


def _observation_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    if space.shape is None:
        raise ValueError(f"the observation space must be a Box; got {space}.")
    return space.shape
