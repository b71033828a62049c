"""A model of the physics that a policy knows: a copy of a meta-trained one, fitted to a single task."""

import copy
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from ssm_metarl_gym.agents.meta_training.streams import collect_streams, make_stream_env
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["fit_reference"]

_NUM_STREAMS: Final = 200
_STREAM_LENGTH: Final = 200
_BATCH_SIZE: Final = 256
_LR: Final = 3e-3  # falls linearly, to a hundredth of it


def fit_reference(
    model: DynamicsModel, env_id: str, env_kwargs: Mapping[str, Any], *, seed: int, num_updates: int
) -> DynamicsModel:
    """A copy of a model, all of it fitted by plain supervision to random actions in one task.

    Its units stay those of the model, so that the predictions of both can be compared.

    Args:
        model: The model, which stays as it is.
        env_id: The id of the environment.
        env_kwargs: Its arguments, ``task`` among them.
        seed: Seeds the streams of transitions and the batches.
        num_updates: Number of steps of Adam.
    """
    streams_seed, batches_seed = seed_sequence(seed, "reference").spawn(2)
    env = make_stream_env(env_id, _NUM_STREAMS, **env_kwargs)
    try:
        streams = collect_streams(env, _NUM_STREAMS, _STREAM_LENGTH, seed=streams_seed)
    finally:
        env.close()
    counted = ~streams.restarted & np.isfinite(streams.next_observations).all(-1)
    observations, actions, next_observations = (
        array[counted] for array in (streams.observations, streams.actions, streams.next_observations)
    )
    reference = copy.deepcopy(model)
    inputs = reference.inputs(observations, actions)
    targets = reference.targets(observations, next_observations)

    reference.requires_grad_(True)
    optimizer = torch.optim.Adam(reference.parameters(), lr=_LR)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=num_updates)
    rng = np.random.default_rng(batches_seed)
    with torch.enable_grad():
        for _ in range(num_updates):
            batch = torch.as_tensor(rng.integers(len(inputs), size=_BATCH_SIZE))
            predictions = reference.head(reference.core(inputs[batch]))
            loss = (predictions - targets[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    reference.prepare_to_adapt()
    return reference
