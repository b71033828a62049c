"""Rollouts as sequences: what a recurrent policy learns from."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

__all__ = ["DictSequenceRolloutBuffer", "SequenceRolloutBuffer", "Sequences"]


class Sequences(NamedTuple):
    """The observations of B sequences of T steps, and what is needed to compute the states along them.

    Attributes:
        observations: ``[B*T ...]``, one sequence after the other, or a dictionary of such tensors.
        state: ``Float[B L 2 P]``, the state of the SSM before the first step.
        start: ``Bool[B T]``, the first steps of episodes, before which the state is cleared.
    """

    observations: Tensor | dict[str, Tensor]
    state: Tensor
    start: Tensor


class _WholeRows:
    """Makes minibatches of whole rows of a rollout buffer: of all steps of some of the environments.

    A row is one dense sequence, episodes and all. There is nothing to pad, because the recurrence clears its state at
    the first steps of episodes by itself.

    Attributes:
        states: ``Float[n L 2 P]``, the state of each environment before the first step of the rollout.
    """

    states: Tensor
    buffer_size: int
    n_envs: int

    def get(self: Any, batch_size: int | None = None) -> Iterator[Any]:
        """Samples whose ``observations`` are :class:`Sequences`; ``batch_size`` counts steps, and rows stay whole."""
        if not self.generator_ready:
            # SB3 lays its arrays out one row after the other when it is first asked.
            next(super().get(1))  # type: ignore[misc]
        num_rows = self.n_envs if batch_size is None else max(1, batch_size // self.buffer_size)
        starts = torch.as_tensor(self.episode_starts.T > 0.5, device=self.device)  # n T
        # SB3 seeds NumPy's global generator for its own buffers.
        rows = np.random.permutation(self.n_envs)  # noqa: NPY002
        for chosen in np.split(rows, range(num_rows, self.n_envs, num_rows)):
            steps = chosen[:, None] * self.buffer_size + np.arange(self.buffer_size)  # B T
            samples = self._get_samples(steps.ravel())
            index = torch.as_tensor(chosen, device=self.device)
            sequences = Sequences(samples.observations, self.states[index], starts[index])
            yield samples._replace(observations=sequences)


class SequenceRolloutBuffer(_WholeRows, RolloutBuffer):  # type: ignore[misc]
    """SB3's rollout buffer with minibatches of whole sequences."""


class DictSequenceRolloutBuffer(_WholeRows, DictRolloutBuffer):  # type: ignore[misc]
    """SB3's rollout buffer for ``Dict`` observations with minibatches of whole sequences."""
