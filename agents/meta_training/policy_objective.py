"""Meta-training of a policy: policy gradients in both loops, on trajectories that the policies of that moment took."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssm_metarl_gym.agents.meta_learning.distributed import copy_from_first_process, own_share
from ssm_metarl_gym.agents.meta_learning.inner_loop import InnerLoop, LearnedRates, Weights
from ssm_metarl_gym.agents.meta_learning.outer_loop import OuterLoop
from ssm_metarl_gym.agents.meta_training.promp import ProMP
from ssm_metarl_gym.agents.meta_training.surrogates import Sample, Surrogate, make_sample
from ssm_metarl_gym.agents.meta_training.trajectories import BatchedEnvs, Trajectories, collect_trajectories
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy, Network
from ssm_metarl_gym.agents.stateless import copy_module
from ssm_metarl_gym.checks import Rule, check_choice, check_fields, check_integer
from ssm_metarl_gym.seeding import seed_sequence
from ssm_metarl_gym.tasks.task import Task

__all__ = ["PolicyObjective", "PolicyOptions"]

# The first part of the key of a seed: what the random numbers are for.
_TASKS, _TRAJECTORIES, _NORMALISATION, _EVALUATION, _ADAPTATION = range(5)


@dataclass(frozen=True)
class PolicyOptions:
    """How :class:`PolicyObjective` trains.

    Attributes:
        inner_lr: Step size of the inner loop.
        outer_lr: Step size of Adam.
        inner_steps: Number of steps of the inner loop, each on fresh trajectories; 0 trains one policy for all tasks.
        meta_batch_size: Number of tasks in an update.
        trajectories_per_task: Number of trajectories for each step, the outer one included.
        gamma: Discount factor.
        gae_lambda: Weight of longer against shorter estimates of advantages.
        clip_range: How far a ratio of probabilities may profitably leave 1 in the outer loop.
        num_epochs: Number of steps of Adam on the trajectories of one update.
        kl_penalty: Weight of the mean divergence of all policies of an update from those that took the trajectories.
        surrogate: How the inner gradient depends on the weights: ``"lvc"`` or ``"dice"``, see :func:`adaptation_loss`.
        first_order: Whether the outer gradient takes inner gradients as constants.
        learned_rates: What has a step size of its own that is learned, from ``inner_lr`` on, see :class:`InnerLoop`.
        network: ``"mlp"`` or ``"ssm"``, of the default policy.
        width: Width of its layers.
        grad_clip_norm: Largest norm of the outer gradient.
        task_chunk_size: The most tasks whose graph is held at once, few enough for the processor's cache; None for all.

    Raises:
        ValueError: An option is not valid.
    """

    inner_lr: float = 0.3
    outer_lr: float = 3e-3
    inner_steps: int = 1
    meta_batch_size: int = 20
    trajectories_per_task: int = 10
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    num_epochs: int = 4
    kl_penalty: float = 0.0
    surrogate: Surrogate = "lvc"
    first_order: bool = False
    learned_rates: LearnedRates | None = None
    network: Network = "mlp"
    width: int = 32
    grad_clip_norm: float = math.inf
    task_chunk_size: int | None = 5

    def __post_init__(self) -> None:
        for name in ("meta_batch_size", "trajectories_per_task", "num_epochs", "width"):
            check_integer(name, getattr(self, name))
        check_integer("inner_steps", self.inner_steps, least=0)
        if self.task_chunk_size is not None:
            check_integer("task_chunk_size", self.task_chunk_size)
        check_fields(self, _RULES)
        check_choice("surrogate", self.surrogate, get_args(Surrogate))
        check_choice("network", self.network, get_args(Network))
        if self.learned_rates is not None:
            check_choice("learned_rates", self.learned_rates, get_args(LearnedRates))


_TINY, _HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max
_IN_UNIT_INTERVAL: Final[Rule] = ("in [0, 1]", lambda value: 0.0 <= value <= 1.0)
_RULES: Final[dict[str, Rule]] = {
    "inner_lr": ("finite and > 0; for no inner loop use inner_steps=0", lambda value: _TINY <= value <= _HUGE),
    "outer_lr": ("> 0 and <= 1e30, so that Adam's step is finite", lambda value: _TINY <= value <= 1e30),
    "gamma": _IN_UNIT_INTERVAL,
    "gae_lambda": _IN_UNIT_INTERVAL,
    "clip_range": ("finite and > 0", lambda value: _TINY <= value <= _HUGE),
    "kl_penalty": ("finite and >= 0", lambda value: 0.0 <= value <= _HUGE),
    "grad_clip_norm": ("> 0; inf is no bound", lambda value: value >= _TINY),
}


class PolicyObjective:
    """Trains a :class:`MetaPolicy` so that few policy gradient steps on a task's own trajectories suffice.

    It is proximal meta-policy search (ProMP, Rothfuss et al. 2018, https://arxiv.org/abs/1810.06784, algorithm 1). An
    update draws tasks, lets the present policy act in each, takes one step of the inner loop for each task, lets the
    adapted policies act, and so on. Then a few steps of Adam improve the weights that all tasks start from: the
    adaptation is computed again from the stored trajectories, as a differentiable function of these weights, and the
    clipped surrogate of PPO is measured on the last trajectories, those of the adapted policies.

    Each process of a distributed run simulates all tasks, whose rows share their random numbers, and differentiates its
    share of them, which takes most of the time.

    Args:
        env_id: An environment of this package that has a batched form.
        model: The policy to train, in place.
        env_kwargs: More arguments of the environment.
        seed: Seeds the tasks and the trajectories.
        options: How to train.
        distributed: Whether all processes of the default process group train together.

    Attributes:
        model: The policy.

    Raises:
        ValueError: The environment has no batched form with hidden tasks, or the policy is for other spaces.
    """

    def __init__(
        self,
        env_id: str,
        model: MetaPolicy,
        *,
        env_kwargs: Mapping[str, Any],
        seed: int,
        options: PolicyOptions,
        distributed: bool = False,
    ) -> None:
        self.model = model
        self._seed = seed
        self._options = options
        self._distributed = distributed
        self._envs = BatchedEnvs(env_id, env_kwargs)
        own, theirs = ((x.observation_space, x.action_space) for x in (model, self._envs))
        if own != theirs:
            raise ValueError(f"the policy must be for the spaces {theirs} of {env_id}; got one for {own}.")
        self._inner = InnerLoop(
            model,
            options.inner_lr,
            first_order=options.first_order,
            learned_rates=options.learned_rates,
            num_steps=options.inner_steps,
        )
        self._promp = ProMP(
            model,
            self._inner,
            clip_range=options.clip_range,
            kl_penalty=options.kl_penalty,
            surrogate=options.surrogate,
        )
        parameters = [*self._inner.weights().values(), *self._inner.rates.values()]
        self._outer = OuterLoop(
            parameters,
            torch.optim.Adam(parameters, lr=options.outer_lr),
            rates=self._inner.rates,
            task_chunk_size=options.task_chunk_size,
            grad_clip_norm=options.grad_clip_norm,
            distributed=distributed,
        )

    def update(self, index: int) -> dict[str, float]:
        """The outer update of this index.

        Returns:
            The loss in its first epoch, the mean return after each inner step, the number of tasks that were left out
            because they were not finite, on the mean over the epochs, and the steps of the environments.

        Raises:
            FloatingPointError: No task of an epoch is finite; the model is as it was before the update.
            ValueError: Parameters of the policy were replaced or frozen since this object was made.
        """
        self._inner.check_parameters()
        before = copy.deepcopy((self.model.state_dict(), self.state_dict()))
        try:
            return self._update(index)
        except BaseException:  # an interrupt, too: the same update follows where training goes on
            self.model.load_state_dict(before[0])
            self.load_state_dict(before[1])
            raise

    def _update(self, index: int) -> dict[str, float]:
        num_dropped = self._outer.num_dropped
        num_epochs = self._options.num_epochs
        # The policies act and adapt, in all tasks.
        samples, returns, num_steps = self._sample(index)
        # Each process differentiates its share of the tasks.
        num_tasks = self._options.meta_batch_size
        share = own_share(num_tasks) if self._distributed else range(num_tasks)
        own = [sample.select(slice(share.start, share.stop)) for sample in samples]

        def losses_of(tasks: Sequence[int]) -> Tensor:
            chunk = [sample.select(slice(tasks[0], tasks[-1] + 1)) for sample in own]
            return self._promp.losses(self._inner.weights(), chunk)

        # The weights that all tasks start from are improved by several steps on the same trajectories.
        losses = [self._outer.step(losses_of, len(share)) for _ in range(num_epochs)]
        return {
            "loss": losses[0],
            **{f"return_after_{steps}_steps": mean for steps, mean in enumerate(returns)},
            "dropped_tasks": (self._outer.num_dropped - num_dropped) / num_epochs,
            "steps": num_steps,
        }

    def _sample(self, index: int) -> tuple[list[Sample], list[float], int]:
        """A sample before each inner step and one after the last, the mean return in each, and the steps of all."""
        options = self._options
        tasks = self._envs.draw_tasks("train", options.meta_batch_size, seed_sequence(self._seed, _TASKS, index))
        if not self.model.is_normalised:
            self._set_normalisation(tasks)
        weights = self._promp.initial_weights(len(tasks))
        samples: list[Sample] = []
        returns: list[float] = []
        num_steps = 0
        for step in range(options.inner_steps + 1):
            if step:
                weights = self._promp.adapt(weights, samples[-1], step - 1)
            trajectories = self._collect(weights, tasks, seed_sequence(self._seed, _TRAJECTORIES, index, step))
            samples.append(self._to_sample(trajectories))
            returns.append(trajectories.returns().mean().item())
            num_steps += int(trajectories.valid.sum())
        return samples, returns, num_steps

    def evaluate(
        self, split: str, num_steps: Sequence[int], *, num_tasks: int, seed: int
    ) -> dict[int, npt.NDArray[np.float64]]:
        """The mean undiscounted return in each of ``num_tasks`` tasks after so many inner steps, ``{steps: Float[K]}``.

        Every step is taken on fresh trajectories, ``trajectories_per_task`` of them, and every return is that of fresh
        ones. There may be more steps than in training.
        """
        for steps in num_steps:
            check_integer("num_steps", steps, least=0)
        tasks_seed, *seeds = seed_sequence(seed, _EVALUATION, split).spawn(2 + max(num_steps))
        tasks = self._envs.draw_tasks(split, num_tasks, tasks_seed)
        weights = self._promp.initial_weights(num_tasks)
        returns = {}
        for index, trajectories_seed in enumerate(seeds):
            trajectories = self._collect(weights, tasks, trajectories_seed, split)
            returns[index] = trajectories.returns().mean(1).cpu().numpy()
            if index < max(num_steps):
                weights = self._promp.adapt(weights, self._to_sample(trajectories), index)
        return {steps: returns[steps] for steps in num_steps}

    def adapt(self, tasks: Sequence[Task | Mapping[str, float]], num_steps: int, *, seed: int) -> list[MetaPolicy]:
        """A copy of the policy for each task after ``num_steps`` inner steps in it, each on fresh trajectories."""
        check_integer("num_steps", num_steps, least=0)
        present = [task if isinstance(task, Task) else self._envs.task_type.from_dict(task) for task in tasks]
        weights = self._promp.initial_weights(len(present))
        for index, trajectories_seed in enumerate(seed_sequence(seed, _ADAPTATION).spawn(num_steps)):
            sample = self._to_sample(self._collect(weights, present, trajectories_seed))
            weights = self._promp.adapt(weights, sample, index)
        adapted = [copy_module(self.model) for _ in present]
        for i, policy in enumerate(adapted):
            policy.load_state_dict({name: weight[i] for name, weight in weights.items()}, strict=False)
        return adapted

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, but for the weights of the model."""
        return self._outer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: The state has other learned step sizes.
        """
        self._outer.load_state_dict(state)

    def _collect(
        self, weights: Weights, tasks: Sequence[Task], seed: np.random.SeedSequence, split: str = "train"
    ) -> Trajectories:
        num_trajectories = self._options.trajectories_per_task
        return collect_trajectories(self._envs, self.model, weights, tasks, num_trajectories, seed=seed, split=split)

    def _to_sample(self, trajectories: Trajectories) -> Sample:
        inputs = self.model.normalise(trajectories.observations)
        scale, options = self.model.advantage_scale, self._options
        return make_sample(trajectories, inputs, scale, gamma=options.gamma, gae_lambda=options.gae_lambda)

    def _set_normalisation(self, tasks: Sequence[Task]) -> None:
        """Before the first update: by what the untrained policy sees."""
        weights = self._promp.initial_weights(len(tasks))
        trajectories = self._collect(weights, tasks, seed_sequence(self._seed, _NORMALISATION))
        self.model.set_normalisation(trajectories.observations[trajectories.valid])
        self.model.set_advantage_scale(self._to_sample(trajectories).advantages[trajectories.valid])
        if self._distributed:
            copy_from_first_process(self.model.buffers())
