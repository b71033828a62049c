"""Meta-training of a model of the dynamics: what a task, a loss and an evaluation are."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents.meta_learning.distributed import copy_from_first_process, own_share
from ssm_metarl_gym.agents.meta_learning.inner_loop import LearnedRates
from ssm_metarl_gym.agents.meta_learning.maml import MetaMAML, MetaTask
from ssm_metarl_gym.agents.meta_training.streams import collect_streams, make_example_env, make_stream_env
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.supervision import Policy
from ssm_metarl_gym.checks import Rule, check_integer, check_number
from ssm_metarl_gym.seeding import seed_sequence

__all__ = ["DynamicsObjective", "DynamicsOptions", "weighted_mse"]

_OUTER_LR_RULE: Final[Rule] = ("> 0 and <= 1e30, so that Adam's step is finite", lambda value: 0.0 < value <= 1e30)

# The first part of the key of a seed: what the random numbers are for.
_UPDATES, _TRAINING_STREAMS, _EVALUATION_STREAMS = range(3)
# How the names of the head's parameters begin in the sequence of core and head.
_HEAD = "1."


@dataclass(frozen=True)
class DynamicsOptions:
    """How :class:`DynamicsObjective` trains.

    Attributes:
        inner_lr: Step size of the inner loop, and of the adaptation at test time.
        outer_lr: Step size of Adam.
        inner_steps: Number of steps of the inner loop, and of one call of the adapter at test time; 0 trains one model
            for all tasks, without an inner loop.
        window: Number of transitions in a support set, and in a query set.
        meta_batch_size: Number of tasks in an update.
        num_streams: Number of streams of transitions to collect, each of one task.
        stream_length: Number of transitions of a stream, at least two windows.
        first_order: Whether the outer gradient takes inner gradients as constants.
        learned_rates: What has a step size of its own that is learned, from ``inner_lr`` on, see :class:`InnerLoop`.
        multi_step_updates: For how many updates the losses after earlier inner steps count, too.
        inner_grad_clip_norm: Largest norm of a task's gradient.
        grad_clip_norm: Largest norm of the outer gradient.
        task_chunk_size: The most tasks whose graph is held at once; None for all.

    Raises:
        ValueError: A size is not positive, or a stream is shorter than two windows.
    """

    inner_lr: float = 0.3
    outer_lr: float = 2e-3
    inner_steps: int = 1
    window: int = 16
    meta_batch_size: int = 32
    num_streams: int = 1000
    stream_length: int = 64
    first_order: bool = False
    learned_rates: LearnedRates | None = None
    multi_step_updates: int = 0
    inner_grad_clip_norm: float = math.inf
    grad_clip_norm: float = math.inf
    task_chunk_size: int | None = None

    def __post_init__(self) -> None:
        # MetaMAML checks what else it is given.
        check_number("outer_lr", self.outer_lr, _OUTER_LR_RULE)
        for name in ("window", "meta_batch_size", "num_streams"):
            check_integer(name, getattr(self, name))
        check_integer("stream_length (at least two windows)", self.stream_length, least=2 * self.window)


class DynamicsObjective:
    """Trains a :class:`DynamicsModel` so that a few steps on the latest transitions tell it the task.

    A task is a stream of random actions, or around a policy, in an environment of the ``train`` split. Its support set
    is a window of transitions of which only the last few count, a random number of them, so that the model learns to
    adapt from the first transition on; its query set is the window that follows.

    Args:
        env_id: An environment with a ``split`` argument.
        model: The model to train, in place and with all its parameters.
        env_kwargs: More arguments of the environment.
        seed: Seeds the tasks, the actions and the batches.
        options: How to train.
        distributed: Whether all processes of the default process group train together, each on a share of the tasks.
        policy: What streams are around, see :func:`collect_streams`.

    Attributes:
        model: The model. Between updates, just what adapts at test time requires a gradient.

    Raises:
        ValueError: An option is not valid.
    """

    def __init__(
        self,
        env_id: str,
        model: DynamicsModel,
        *,
        env_kwargs: Mapping[str, Any],
        seed: int,
        options: DynamicsOptions,
        distributed: bool = False,
        policy: Policy | None = None,
    ) -> None:
        if model.adapts == "action_map":
            raise ValueError(
                "MetaTrainer trains what adapts by gradient steps, adapts='last_layer' or 'all'; got a model with "
                "adapts='action_map'. Fit it to one simulator: model.fit(env)."
            )
        model.check_spaces(make_example_env(env_id, env_kwargs))
        self.model = model
        self._env_id = env_id
        self._env_kwargs = dict(env_kwargs)
        self._seed = seed
        self._options = options
        self._distributed = distributed
        self._policy = policy
        self._streams: tuple[Tensor, Tensor] | None = None
        with self._trainable():
            self._maml = MetaMAML(
                nn.Sequential(model.core, model.head),
                options.inner_lr,
                options.outer_lr,
                options.first_order,
                inner_steps=options.inner_steps,
                adapts=None if model.adapts == "all" else lambda name: name.startswith(_HEAD),
                learned_rates=options.learned_rates,
                multi_step_updates=options.multi_step_updates,
                inner_grad_clip_norm=options.inner_grad_clip_norm,
                grad_clip_norm=options.grad_clip_norm,
                task_chunk_size=options.task_chunk_size,
                distributed=distributed,
            )

    def update(self, index: int) -> dict[str, float]:
        """The outer step of this index: the loss, and the number of tasks that were left out.

        Raises:
            FloatingPointError: No task is finite, or their gradient overflows; the model is as it was before.
        """
        if index > 0:
            return self._update(index)
        before = copy.deepcopy(self.model.state_dict())
        try:
            return self._update(index)
        except BaseException:  # with the units, which the first update sets
            self.model.load_state_dict(before)
            self._streams = None
            raise

    def _update(self, index: int) -> dict[str, float]:
        if self._streams is None:
            self._streams = self._training_streams(first=index == 0)
        rng = np.random.default_rng(seed_sequence(self._seed, _UPDATES, index))
        tasks = self._sample_tasks(*self._streams, rng)
        if self._distributed:
            tasks = [tasks[index] for index in own_share(len(tasks))]
        num_dropped = self._maml.num_dropped
        with self._trainable():
            loss = self._maml.meta_update(tasks, weighted_mse)
        return {"loss": loss, "dropped_tasks": float(self._maml.num_dropped - num_dropped)}

    def evaluate(
        self, split: str, num_steps: Sequence[int], *, num_tasks: int, seed: int
    ) -> dict[int, npt.NDArray[np.float64]]:
        """The prediction error in each of ``num_tasks`` fresh tasks after so many inner steps, ``{steps: Float[K]}``.

        It is in variances of the change. All transitions of a support set count.
        """
        window = self._options.window
        inputs, targets = self._collect(split, num_tasks, 2 * window, seed_sequence(seed, _EVALUATION_STREAMS, split))
        tasks = _split_windows(inputs, targets, window)
        with self._trainable():
            losses = self._maml.query_losses(tasks, weighted_mse, num_steps).double().cpu().numpy()
        return dict(zip(num_steps, losses, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, but for the weights of the model."""
        return {"adapts": self.model.adapts, "maml": self._maml.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: The state is of a model of which another part adapts.
        """
        if self.model.adapts != state["adapts"]:
            raise ValueError(f"it has adapts={state['adapts']!r}; got {self.model.adapts!r}.")
        self._maml.load_state_dict(state["maml"])

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """In the block every parameter requires a gradient, after it only what adapts at test time."""
        self.model.requires_grad_(True)
        try:
            yield
        finally:
            self.model.prepare_to_adapt()

    def _training_streams(self, *, first: bool) -> tuple[Tensor, Tensor]:
        """The streams to train on; before the first update they set the normalisation of the model, too."""
        seed = seed_sequence(self._seed, _TRAINING_STREAMS, "train")
        options = self._options
        return self._collect("train", options.num_streams, options.stream_length, seed, set_normalisation=first)

    def _collect(
        self,
        split: str,
        num_streams: int,
        stream_length: int,
        seed: np.random.SeedSequence,
        *,
        set_normalisation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """New streams: normalised inputs ``Float[S T in]``, and targets with a weight at the end, ``Float[S T D+1]``.

        The weight is 0 for a transition that nobody can predict, such as one to a restart, else 1.
        """
        env = make_stream_env(self._env_id, num_streams, split=split, **self._env_kwargs)
        try:
            streams = collect_streams(env, num_streams, stream_length, seed=seed, policy=self._policy)
        finally:
            env.close()
        # The model takes transitions one a row: S T ... -> ST ...
        observations, actions, next_observations = (
            array.reshape(-1, *array.shape[2:])
            for array in (streams.observations, streams.actions, streams.next_observations)
        )
        counted = ~streams.restarted.reshape(-1)
        # Where the simulation has diverged: such a task does not count, and must not spoil the units of the others.
        counted &= np.isfinite(observations).all(-1) & np.isfinite(next_observations).all(-1)
        if set_normalisation:
            self.model.set_normalisation(observations[counted], actions[counted], next_observations[counted])
            if self._distributed:
                copy_from_first_process(self.model.state_dict().values())
        inputs = self.model.inputs(observations, actions)
        with np.errstate(invalid="ignore"):  # of infinity minus infinity
            targets = self.model.targets(observations, next_observations)
        targets = torch.cat([targets, torch.as_tensor(counted[:, None]).to(targets)], dim=1)
        return inputs.unflatten(0, streams.restarted.shape), targets.unflatten(0, streams.restarted.shape)

    def _sample_tasks(self, inputs: Tensor, targets: Tensor, rng: np.random.Generator) -> list[MetaTask]:
        """The tasks of an update: pieces of streams, two windows long."""
        window, size = self._options.window, self._options.meta_batch_size
        streams = rng.integers(len(inputs), size=size)
        offsets = rng.integers(inputs.shape[1] - 2 * window + 1, size=size)
        times = torch.as_tensor(offsets[:, None] + np.arange(2 * window))  # K 2W
        x = inputs[torch.as_tensor(streams)[:, None], times]  # K 2W in
        y = targets[torch.as_tensor(streams)[:, None], times]  # K 2W D+1
        # Of each support set only the last transitions count, between none and all of them.
        num_ignored = torch.as_tensor(rng.integers(window + 1, size=size))
        ignored = torch.arange(2 * window) < num_ignored[:, None]  # K 2W
        y[..., -1] = torch.where(ignored.to(y.device), 0.0, y[..., -1])
        return _split_windows(x, y, window)


def weighted_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error over the rows of weight 1: ``Float[N D]`` against ``Float[N D+1]``, the weight last.

    Zero where no row counts.
    """
    weight = target[..., -1:]
    errors = (prediction - target[..., :-1]).square() * weight
    return errors.sum() / (weight.sum().clamp(min=1.0) * prediction.shape[-1])


def _split_windows(x: Tensor, y: Tensor, window: int) -> list[MetaTask]:
    """The tasks in ``Float[K 2W ...]``: in each the first W rows are the support, the others the query."""
    return list(zip(x[:, :window], y[:, :window], x[:, window:], y[:, window:], strict=True))
