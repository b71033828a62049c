"""Meta-training over the tasks of an environment."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from tqdm.auto import tqdm

from ssm_metarl_gym.agents.adaptation.config import AdaptationConfig
from ssm_metarl_gym.agents.archive import read_archive, write_archive
from ssm_metarl_gym.agents.meta_learning.distributed import rank, world_size
from ssm_metarl_gym.agents.meta_training.archive import check_module, to_plain_values
from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsOptions
from ssm_metarl_gym.agents.meta_training.objectives import OBJECTIVES, Objective, default_model
from ssm_metarl_gym.agents.meta_training.policy_objective import PolicyObjective
from ssm_metarl_gym.agents.meta_training.reference import fit_reference
from ssm_metarl_gym.agents.models.dynamics import DynamicsModel
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy
from ssm_metarl_gym.agents.models.supervision import Policy
from ssm_metarl_gym.checks import as_number, check_choice, check_integer
from ssm_metarl_gym.tasks.task import Task

__all__ = ["MetaTrainer"]

_EVALUATED_STEPS: Final = (0, 1, 3, 5, 10)
# What every file of a trainer holds.
_FORMAT: Final = 2
_STORED: Final = ("env_id", "objective", "env_kwargs", "seed", "options", "num_updates", "model", "state")


class MetaTrainer:
    """Meta-trains a model on the tasks of the ``train`` split of an environment.

    ``objective="dynamics"`` trains a :class:`DynamicsModel` so that a few steps on the latest transitions tell it the
    task, see :class:`DynamicsObjective`; ``"policy"`` a policy so that a few steps on its own trajectories do, see
    :class:`PolicyObjective`. Within a default process group of ``torch.distributed`` the processes share the tasks of
    every update, and all of them must call :meth:`learn` alike.

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0", seed=0).learn(800, progress_bar=True)
        >>> trainer.save("dynamics.pt")

    Args:
        env_id: An environment with a ``split`` argument, such as those of this package.
        model: The model to train, in place; None for the default one of the objective.
        objective: ``"dynamics"`` or ``"policy"``.
        env_kwargs: More arguments of the environment, such as a file can hold: what JSON can, tasks and distributions.
        seed: Seeds the tasks, the actions, the batches and the weights of the default model.
        device: The device of the default model; a given one stays where it is.
        policy: Whatever has the ``predict`` of Stable-Baselines3, for ``"dynamics"``: two thirds of the streams act as
            it does, with more or less noise, so that the model knows what lies around its behaviour. None for random
            actions alone. A file does not hold it.
        **options: Fields of :class:`DynamicsOptions` or :class:`PolicyOptions`.

    Attributes:
        model: The model.
        num_updates: Number of updates so far.
        num_timesteps: Steps of the environments that a policy has learned from so far, until its episodes ended; 0 for
            ``"dynamics"``, whose streams have all been taken before the first update.
        env_id: The id of the environment.
        env_kwargs: Its arguments.
        seed: The seed.
        objective: The name of the objective.
        options: The :class:`DynamicsOptions` or :class:`PolicyOptions`.

    Raises:
        ValueError: The objective or an option is unknown or not valid, the model is of another kind, or the environment
            has no hidden tasks.
    """

    def __init__(
        self,
        env_id: str,
        model: nn.Module | None = None,
        *,
        objective: Literal["dynamics", "policy"] = "dynamics",
        env_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        policy: Policy | None = None,
        **options: Any,
    ) -> None:
        check_choice("objective", objective, list(OBJECTIVES))
        kind = OBJECTIVES[objective]
        if not isinstance(model, kind.model | None):
            raise ValueError(
                f"the model must be a {kind.model.__name__} for objective={objective!r}; got a {type(model).__name__}. "
                "Give None for the default one."
            )
        for name in options:
            valid = [field.name for field in fields(kind.options)]
            check_choice(f"an option of the objective {objective!r}", name, valid)
        check_integer("seed", seed, least=0)
        if policy is not None and objective != "dynamics":
            raise ValueError(
                f"policy must be None for objective={objective!r}, which trains one itself; got a "
                f"{type(policy).__name__}. Leave it out."
            )
        if "split" in (env_kwargs or {}):
            raise ValueError("env_kwargs must not hold 'split': training is on the train split. Use evaluate(split).")
        to_plain_values(env_kwargs or {})  # so that it is known before the training what cannot be saved after it
        self.env_id = env_id
        self.env_kwargs = dict(env_kwargs or {})
        self.seed = int(seed)
        self.objective = objective
        # Python's numbers, as a file can hold them.
        self.options = kind.options(**{name: as_number(value) for name, value in options.items()})
        self.num_updates = self.num_timesteps = 0
        if self.options.meta_batch_size < world_size():
            raise ValueError(
                f"meta_batch_size must be at least the number of processes; got {self.options.meta_batch_size} for "
                f"{world_size()}. Start fewer processes."
            )
        if model is None:
            model = default_model(objective, env_id, self.env_kwargs, self.seed, self.options).to(device)
        self._objective: Objective = kind.objective(
            env_id,
            model,
            env_kwargs=self.env_kwargs,
            seed=self.seed,
            options=self.options,
            distributed=world_size() > 1,
            **({} if policy is None else {"policy": policy}),
        )
        self._policy = policy
        self._needs_policy = policy is not None  # as its streams are around one
        self._logger = Logger(None, [])
        # What the updates since the last row of the log gave: saved, so that a run that goes on writes the same rows.
        self._unlogged: list[dict[str, float]] = []

    @property
    def model(self) -> nn.Module:
        """The model; between updates, what adapts at test time requires a gradient."""
        return self._objective.model

    def set_logger(self, logger: Logger) -> None:
        """Log :meth:`learn` with a logger that ``stable_baselines3.common.logger.configure`` made; process 0 logs."""
        self._logger = logger

    def learn(
        self,
        total_updates: int,
        callback: Callable[["MetaTrainer", float], bool | None] | None = None,
        progress_bar: bool = False,
        *,
        log_interval: int = 10,
        eval_interval: int | None = None,
        num_eval_tasks: int = 100,
    ) -> "MetaTrainer":
        """Take ``total_updates`` more updates.

        Args:
            total_updates: Number of updates.
            callback: Called after every update with this trainer and the loss; returning False ends the training.
            progress_bar: Whether to show the progress and the loss.
            log_interval: Number of updates over which a row of the log is a mean.
            eval_interval: Number of updates between evaluations on the split ``interpolation`` for the log; None for
                none. They do not change what is learned.
            num_eval_tasks: Number of tasks of such an evaluation.

        Returns:
            This trainer.

        Raises:
            ValueError: A number is negative, or zero where it must not be.
            FloatingPointError: The loss was not finite in any task, or its gradient too large: the training diverges.
                The model is as it was before that step.
        """
        check_integer("total_updates", total_updates, least=0)
        check_integer("log_interval", log_interval)
        check_integer("num_eval_tasks", num_eval_tasks)
        if eval_interval is not None:
            check_integer("eval_interval", eval_interval)
        if callback is not None and not callable(callback):
            raise ValueError(
                "callback must be a function of the trainer and the loss, or None; got a "
                f"{type(callback).__name__}. Callbacks of Stable-Baselines3 are for its algorithms."
            )
        if self._needs_policy and self._policy is None:
            raise ValueError(
                "policy must be given to go on with what was trained around one; got None. Give it to "
                "MetaTrainer.load(path, policy=...)."
            )
        speed = _Speed(self.num_updates)
        with tqdm(total=total_updates, desc="meta-training", unit="update", disable=not progress_bar) as bar:
            for _ in range(total_updates):
                metrics = self._objective.update(self.num_updates)
                self.num_updates += 1
                self.num_timesteps += int(metrics.pop("steps", 0))
                if rank() == 0:
                    evaluates = eval_interval is not None and self.num_updates % eval_interval == 0
                    self._log(metrics, speed, num_eval_tasks if evaluates else 0, log_interval)
                bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
                bar.update()
                if callback is not None:
                    goes_on = callback(self, metrics["loss"])
                    if isinstance(goes_on, bool | np.bool_) and not goes_on:
                        break
        return self

    def _log(self, metrics: dict[str, float], speed: "_Speed", num_eval_tasks: int, log_interval: int) -> None:
        """Log an update, and evaluate on so many tasks; a row is written at evaluations and at every interval."""
        self._unlogged.append(metrics)
        if not num_eval_tasks and self.num_updates % log_interval:
            return
        for update in self._unlogged:
            for name, value in update.items():
                self._logger.record_mean(f"train/{name}", value)
        self._unlogged = []
        if num_eval_tasks:
            for steps, values in self.evaluate(num_tasks=num_eval_tasks).items():
                self._logger.record(f"eval/interpolation_after_{steps}_steps", float(np.mean(values)))
        self._logger.record("time/updates", self.num_updates)
        if self.num_timesteps:
            self._logger.record("time/total_timesteps", self.num_timesteps)
        self._logger.record("time/updates_per_second", speed.read(self.num_updates))
        self._logger.dump(step=self.num_updates)

    def evaluate(
        self,
        split: str = "interpolation",
        num_steps: Sequence[int] = _EVALUATED_STEPS,
        *,
        num_tasks: int = 100,
        seed: int = 0,
    ) -> dict[int, npt.NDArray[np.float64]]:
        """How well the model does in fresh tasks of a split after so many inner steps; nothing is learned.

        Before the first update, which normalises the model, its results are in other units than afterwards.

        Args:
            split: ``"interpolation"``, ``"extrapolation"`` or ``"train"`` (tasks that were not trained on, either).
            num_steps: Numbers of inner steps.
            num_tasks: Number of tasks K.
            seed: Seeds the tasks and all else that is random.

        Returns:
            ``{steps: Float[K]}``, one value for each task: the prediction error in variances of the change
            (``"dynamics"``), or the return (``"policy"``).

        Raises:
            ValueError: A number is not valid, or there is no such split.
        """
        check_integer("num_tasks", num_tasks)
        check_integer("seed", seed, least=0)
        steps = np.asarray(num_steps)
        if steps.ndim != 1 or not len(steps):
            raise ValueError(
                f"num_steps must hold at least one number of inner steps; got {num_steps!r}. Use (0, 1, 3), say."
            )
        for number in steps.tolist():
            check_integer("each of num_steps", number, least=0)
        return self._objective.evaluate(split, steps.tolist(), num_tasks=num_tasks, seed=seed)

    def adapt(self, task: Task | Mapping[str, float], num_steps: int, *, seed: int = 0) -> MetaPolicy:
        """A copy of the policy after ``num_steps`` inner steps in one task, each on fresh trajectories.

        Args:
            task: The task, or the parameters in which it differs from the default.
            num_steps: Number of inner steps.
            seed: Seeds the trajectories.

        Raises:
            ValueError: The objective is not ``"policy"``, or an argument is not valid.
        """
        return self.adapt_each([task], num_steps, seed=seed)[0]

    def adapt_each(
        self, tasks: Sequence[Task | Mapping[str, float]], num_steps: int, *, seed: int = 0
    ) -> list[MetaPolicy]:
        """The same for many tasks, which are acted in side by side: a copy of the policy for each.

        Args:
            tasks: The tasks, at least one.
            num_steps: Number of inner steps.
            seed: Seeds the trajectories, which depend on all tasks together.

        Raises:
            ValueError: The objective is not ``"policy"``, or an argument is not valid.
        """
        if not isinstance(self._objective, PolicyObjective):
            raise ValueError(
                f"adapt needs objective='policy', whose model acts; got {self.objective!r}. Adapt a model of the "
                "dynamics with an Adapter, or online with the wrapper OnlineAdaptation."
            )
        if not len(tasks):
            raise ValueError("tasks must hold at least one task; got none.")
        check_integer("seed", seed, least=0)
        return self._objective.adapt(tasks, num_steps, seed=seed)

    def reference(
        self, task: Task | Mapping[str, float] | None = None, *, num_updates: int = 2000, seed: int = 0
    ) -> DynamicsModel:
        """A copy of the model, fitted to one task: the physics that a policy knows.

        It is fitted to streams like those that the model was trained on. :class:`ActionCorrection` compares the adapted
        model with it.

        Args:
            task: The task that the policy was trained in, or the parameters in which it differs from the default; None
                for the default.
            num_updates: Number of steps of Adam.
            seed: Seeds the transitions and the batches.

        Raises:
            ValueError: The objective is not ``"dynamics"``, or an argument is not valid.
        """
        if not isinstance(self.model, DynamicsModel):
            raise ValueError(f"reference needs objective='dynamics', whose model predicts; got {self.objective!r}.")
        check_integer("num_updates", num_updates)
        check_integer("seed", seed, least=0)
        chosen = task.to_dict() if isinstance(task, Task) else dict(task or {})
        env_kwargs = self.env_kwargs | {"task": chosen}
        return fit_reference(
            self.model, self.env_id, env_kwargs, seed=seed, num_updates=num_updates, policy=self._policy
        )

    def adaptation_config(self) -> AdaptationConfig:
        """How to adapt the model online as it was trained to: the same steps, clipped, within a wide trust region.

        Raises:
            ValueError: The objective is not ``"dynamics"``, or step sizes were learned, of which an
                :class:`AdaptationConfig` has only one.
        """
        if not isinstance(self.options, DynamicsOptions):
            raise ValueError(
                f"adaptation_config needs objective='dynamics', whose model an Adapter adapts; got {self.objective!r}."
            )
        if self.options.learned_rates is not None:
            raise ValueError(
                "adaptation_config needs one step size for the whole model, as an Adapter takes; got "
                f"learned_rates={self.options.learned_rates!r}. Train with learned_rates=None."
            )
        return AdaptationConfig(
            lr=self.options.inner_lr,
            grad_clip_norm=1.0,
            trust_region_eps=1.0,
            ema_decay=0.99,
            entropy_weight=0.0,
            max_steps_per_call=max(1, self.options.inner_steps),
        )

    def save(self, path: str | Path) -> None:
        """Write everything that :meth:`load` needs to go on exactly where this trainer is; a missing folder is made."""
        state = {
            "env_id": self.env_id,
            "objective": self.objective,
            "env_kwargs": to_plain_values(self.env_kwargs),
            "seed": self.seed,
            "options": to_plain_values(asdict(self.options)),
            "num_updates": self.num_updates,
            "model": self.model.state_dict(),
            "state": self._objective.state_dict(),
            "num_timesteps": self.num_timesteps,
            "unlogged": list(self._unlogged),
            "with_policy": self._needs_policy,
        }
        write_archive(path, state, _FORMAT)

    @classmethod
    def load(
        cls,
        path: str | Path | BinaryIO,
        model: nn.Module | None = None,
        *,
        device: str | torch.device = "cpu",
        allowed_modules: Collection[str] = (),
        policy: Policy | None = None,
    ) -> "MetaTrainer":
        """The trainer that was saved; no code from the file is run, and none that it names.

        Args:
            path: The file, or where it is or what was read from it.
            model: A model built like the one saved, where that was not the default model; None for the default one.
            device: The device of the default model.
            allowed_modules: Modules that may be imported where the environment is one of ``"module:id"``; those that
                are imported already need not be named.
            policy: The policy that it was trained around, to go on; the model alone needs none.

        Raises:
            ValueError: The file is damaged, not of a trainer, or of another model, or names a module that is not
                allowed.
            OSError: The file cannot be read.
        """
        source = path if isinstance(path, str | Path) else "what was read"
        state = read_archive(path, source, _STORED, version=_FORMAT, written_by="MetaTrainer.save")
        env_id, objective, env_kwargs, seed = (state[name] for name in _STORED[:4])
        check_choice(f"the objective of {source}", objective, list(OBJECTIVES))
        check_module(env_id, source, allowed_modules)
        if model is None:
            options = OBJECTIVES[objective].options(**state["options"])
            adapts = state["state"].get("adapts", "last_layer")
            model = default_model(objective, env_id, env_kwargs, seed, options, adapts=adapts)
            # What is loaded would be rounded to the numbers that are there.
            dtypes = {weight.dtype for weight in state["model"].values() if weight.is_floating_point()}
            model.to(device, dtypes.pop() if len(dtypes) == 1 else None)
        if policy is not None and not state.get("with_policy", True):
            raise ValueError(
                f"policy must be None, as what is in {source} was trained without one; got a {type(policy).__name__}. "
                "Leave it out."
            )
        given = {"objective": objective, "env_kwargs": env_kwargs, "seed": seed, "policy": policy}
        trainer = cls(env_id, model, **given, **state["options"])
        own = trainer.model.state_dict()
        for name, stored in state["model"].items():
            if not (isinstance(stored, Tensor) and isinstance(own.get(name), Tensor)):
                continue
            if torch.promote_types(stored.dtype, own[name].dtype) != own[name].dtype:  # it would be rounded
                raise ValueError(
                    f"the model must be built like the one in {source}, whose {name} is of {stored.dtype}; got one of "
                    f"{own[name].dtype}. Give MetaTrainer.load(path, model) a model of the same precision."
                )
        try:
            trainer.model.load_state_dict(state["model"])
            trainer._objective.load_state_dict(state["state"])
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the model must be built like the one in {source}: {error}") from None
        trainer.num_updates = state["num_updates"]
        trainer.num_timesteps = state.get("num_timesteps", 0)  # which older files do not hold
        trainer._needs_policy |= state.get("with_policy", False)  # which older files do not hold, nor the next
        trainer._unlogged = list(state.get("unlogged", []))
        return trainer


class _Speed:
    """Updates per second since this object was made."""

    def __init__(self, num_updates: int) -> None:
        self._num_updates = num_updates
        self._start = time.perf_counter()

    def read(self, num_updates: int) -> float:
        return (num_updates - self._num_updates) / (time.perf_counter() - self._start)
