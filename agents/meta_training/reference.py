"""A model of the physics that a policy knows: a copy of a meta-trained one, fitted to a single task."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from torch import nn

from ssm_metarl_gym.agents.meta_training.streams import collect_streams, make_stream_env
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.supervision import Policy, descend
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["fit_reference"]

_NUM_STREAMS: Final = 200
_STREAM_LENGTH: Final = 200
_BATCH_SIZE: Final = 256
_LR: Final = 3e-3


def fit_reference(
    model: DynamicsModel,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    seed: int,
    num_updates: int,
    policy: Policy | None = None,
) -> DynamicsModel:
    """A copy of a model, all of it fitted by plain supervision to random actions, or around a policy, in one task.

    Its units stay those of the model, so that the predictions of both can be compared. Where the environment has a
    ``switch``, the task stays what it is all the same.

    Args:
        model: The model, which stays as it is.
        env_id: The id of the environment.
        env_kwargs: Its arguments, ``task`` among them.
        seed: Seeds the streams of transitions and the batches.
        num_updates: Number of steps of Adam.
        policy: What streams are around, see :func:`collect_streams`.

    Raises:
        ValueError: No transition leads from an observation that is finite to another.
    """
    streams_seed, batches_seed = seed_sequence(seed, "reference").spawn(2)
    env = make_stream_env(env_id, _NUM_STREAMS, **env_kwargs)
    if env.spec is not None and env.spec.kwargs.get("switch") is not None:
        # Of two tasks it would learn the mean. Never to switch, and not to have no switch, which may show other
        # parameters.
        env.close()
        env = make_stream_env(env_id, _NUM_STREAMS, **{**env_kwargs, "switch": {"probability": 0.0}})
    try:
        streams = collect_streams(env, _NUM_STREAMS, _STREAM_LENGTH, seed=streams_seed, policy=policy)
    finally:
        env.close()
    counted = ~streams.restarted
    for ends in (streams.observations, streams.next_observations):
        counted &= np.isfinite(ends).all(-1)
    if not counted.any():
        raise ValueError(
            f"the transitions that a reference is fitted to must lead from finite observations to finite ones; of "
            f"{counted.size} in {env_id} none does. Mend what the environment shows."
        )
    observations, actions, next_observations = (
        array[counted] for array in (streams.observations, streams.actions, streams.next_observations)
    )
    reference = copy_module(model)
    inputs = reference.inputs(observations, actions)
    targets = reference.targets(observations, next_observations)

    network = nn.Sequential(reference.core, reference.head).requires_grad_(True)
    descend(
        network,
        network.parameters(),
        inputs,
        targets,
        num_updates=num_updates,
        batch_size=_BATCH_SIZE,
        learning_rate=_LR,
        rng=np.random.default_rng(batches_seed),
    )
    reference.prepare_to_adapt()
    return reference
