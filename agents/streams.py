"""Collecting streams of random actions, one task a stream."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

__all__ = ["Streams", "collect_streams"]


@dataclass(frozen=True)
class Streams:
    """Transitions of S streams of T steps.

    Attributes:
        observations: ``Float[S T D]``.
        actions: ``Int[S T]``, or ``Float[S T A]`` for a Box.
        next_observations: ``Float[S T D]``; where an episode ended, its last observation.
        restarted: ``Bool[S T]``, true where the next observation is that of a restart, which no model can predict.
    """

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[Any]
    next_observations: npt.NDArray[np.float32]
    restarted: npt.NDArray[np.bool_]


def collect_streams(
    env: gym.Env[Any, Any], num_streams: int, stream_length: int, *, seed: np.random.SeedSequence
) -> Streams:
    """Take random actions for ``stream_length`` steps in each of ``num_streams`` tasks.

    Every stream starts with a reset, which draws a task. An episode that ends within a stream goes on with the same
    task. Environments of this package start in states from far apart (their ``wide_start``).
    """
    rng = np.random.default_rng(seed)
    options = dict(getattr(env.unwrapped, "wide_start", {}))
    shape = (num_streams, stream_length)
    observations = np.empty((*shape, *_observation_shape(env.observation_space)), dtype=np.float32)
    next_observations, restarted = np.empty_like(observations), np.zeros(shape, dtype=np.bool_)
    actions = _random_actions(env.action_space, rng, shape)
    env.reset(seed=int(rng.integers(2**31)))
    for stream in range(num_streams):
        observation, _ = env.reset(options=options)
        for t in range(stream_length):
            observations[stream, t] = observation
            observation, _, terminated, truncated, info = env.step(actions[stream, t])
            next_observations[stream, t], restarted[stream, t] = observation, info.get("restarted", False)
            if terminated or truncated:
                same_task = {"task": env.unwrapped.task} if hasattr(env.unwrapped, "task") else {}
                observation, _ = env.reset(options=options | same_task)
    return Streams(observations, actions, next_observations, restarted)


def _observation_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    if space.shape is None:
        raise ValueError(f"the observation space must be a Box; got {space}.")
    return space.shape


def _random_actions(space: spaces.Space[Any], rng: np.random.Generator, size: tuple[int, ...]) -> npt.NDArray[Any]:
    """All actions at once: sampling a space thousands of times would take as long as the environment itself."""
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, size=size)
    if isinstance(space, spaces.Box) and space.is_bounded():
        return rng.uniform(space.low, space.high, (*size, *space.shape)).astype(np.float32)
    raise ValueError(f"the action space must be Discrete or a bounded Box; got {space}.")
