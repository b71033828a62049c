"""Meta-training of a dynamics model over the tasks of an environment."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ssm_metarl_gym.agents.adaptation import AdaptationConfig
from ssm_metarl_gym.agents.dynamics import DynamicsModel
from ssm_metarl_gym.agents.meta_maml import MetaMAML, MetaTask
from ssm_metarl_gym.agents.streams import collect_streams
from ssm_metarl_gym.checks import check_integer
from ssm_metarl_gym.files import replacing

__all__ = ["MetaTrainer"]

_FORMAT: Final = 1


class MetaTrainer:
    """Meta-trains a :class:`DynamicsModel` so that a few steps on the latest transitions tell it the task.

    A task is a stream of random actions in an environment of the ``train`` split. Its support set is a window of
    transitions of which only the last few count, a random number of them, so that the model learns to adapt from the
    first transition on; its query set is the window that follows.

    Example:
        >>> trainer = MetaTrainer("ssm_metarl/CartPolePolarity-v0", seed=0).learn(800, progress_bar=True)
        >>> trainer.save("dynamics.pt")

    Args:
        env_id: An environment with a ``split`` argument, such as those of this package.
        model: The model to train, in place and with all its parameters; None for
            ``DynamicsModel(observation_space, action_space)``.
        env_kwargs: More arguments for ``gymnasium.make``.
        seed: Seeds the tasks, the actions, the batches and the weights of the default model.
        inner_lr: Step size of the inner loop, and of the adaptation at test time.
        outer_lr: Step size of Adam.
        inner_steps: Number of steps of the inner loop, and of one call of the adapter at test time.
        window: Number of transitions in a support set, and in a query set.
        meta_batch_size: Number of tasks in an update.
        num_streams: Number of streams to collect.
        stream_length: Number of transitions of a stream, at least two windows.

    Attributes:
        model: The model.
        num_updates: Number of updates so far.

    Raises:
        ValueError: A size is not positive, or a stream is shorter than two windows.
    """

    def __init__(
        self,
        env_id: str,
        model: DynamicsModel | None = None,
        *,
        env_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
        inner_lr: float = 0.3,
        outer_lr: float = 2e-3,
        inner_steps: int = 1,
        window: int = 16,
        meta_batch_size: int = 32,
        num_streams: int = 1000,
        stream_length: int = 64,
    ) -> None:
        sizes = {"window": window, "meta_batch_size": meta_batch_size, "num_streams": num_streams}
        for name, size in sizes.items():
            check_integer(name, size)
        check_integer("stream_length (at least two windows)", stream_length, least=2 * window)
        if "split" in (env_kwargs or {}):
            raise ValueError("env_kwargs must not hold 'split': training is on the train split. Use evaluate(split).")
        self.env_id = env_id
        self.options: dict[str, Any] = {
            "env_kwargs": dict(env_kwargs or {}),
            "seed": seed,
            "inner_lr": inner_lr,
            "outer_lr": outer_lr,
            "inner_steps": inner_steps,
            "stream_length": stream_length,
            **sizes,
        }
        self.model = _default_model(env_id, self.options) if model is None else model
        self.num_updates = 0
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        self._streams: tuple[Tensor, Tensor] | None = None
        self.model.requires_grad_(True)
        self._maml = MetaMAML(
            nn.Sequential(self.model.core, self.model.head),
            inner_lr,
            outer_lr,
            inner_steps=inner_steps,
            adapts=lambda name: self.model.adapts == "all" or name.startswith("1."),
        )
        self.model.prepare_to_adapt()

    def learn(
        self,
        total_updates: int,
        callback: Callable[["MetaTrainer", float], bool | None] | None = None,
        progress_bar: bool = False,
    ) -> "MetaTrainer":
        """Take ``total_updates`` more updates.

        Args:
            total_updates: Number of updates.
            callback: Called after every update with this trainer and the loss; returning False ends the training.
            progress_bar: Whether to show the progress and the loss.

        Returns:
            This trainer. What adapts at test time requires a gradient, the rest of the model does not.
        """
        check_integer("total_updates", total_updates, least=0)
        if self._streams is None:
            self._streams = self._collect("train", self.options["num_streams"], self.options["seed"], training=True)
        self.model.requires_grad_(True)
        try:
            with tqdm(total=total_updates, desc="meta-training", unit="update", disable=not progress_bar) as bar:
                for _ in range(total_updates):
                    loss = self._maml.meta_update(self._sample_tasks(*self._streams), weighted_mse)
                    self.num_updates += 1
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    bar.update()
                    if callback is not None and callback(self, loss) is False:
                        break
        finally:
            self.model.prepare_to_adapt()
        return self

    def evaluate(self, split: str = "interpolation", *, num_tasks: int = 100, seed: int = 0) -> list[float]:
        """The mean prediction error, in variances of the change, after 0, 1, ... ``inner_steps`` steps.

        The tasks are fresh ones of ``split``, and their whole support counts.
        """
        window = self.options["window"]
        tasks = [
            (x[:window], y[:window], x[window : 2 * window], y[window : 2 * window])
            for x, y in zip(*self._collect(split, num_tasks, seed), strict=True)
        ]
        self.model.requires_grad_(True)
        try:
            return [
                self._maml.query_losses(tasks, weighted_mse, steps).mean().item()
                for steps in range(self.options["inner_steps"] + 1)
            ]
        finally:
            self.model.prepare_to_adapt()

    def adaptation_config(self) -> AdaptationConfig:
        """How to adapt the model online as it was trained to: the same steps, clipped, within a wide trust region."""
        return AdaptationConfig(
            lr=self.options["inner_lr"],
            grad_clip_norm=1.0,
            trust_region_eps=1.0,
            ema_decay=0.99,
            entropy_weight=0.0,
            max_steps_per_call=self.options["inner_steps"],
        )

    def save(self, path: str | Path) -> None:
        """Write everything that :meth:`load` needs to go on exactly where this trainer is."""
        state = {
            "format": _FORMAT,
            "env_id": self.env_id,
            "options": self.options,
            "adapts": self.model.adapts,
            "num_updates": self.num_updates,
            "model": self.model.state_dict(),
            "optimizer": self._maml.optimizer.state_dict(),
            "rng": self._rng.bit_generator.state,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    @classmethod
    def load(cls, path: str | Path, model: DynamicsModel | None = None) -> "MetaTrainer":
        """The trainer that was saved; no code from the file is run.

        Args:
            path: The file.
            model: A model built like the one saved, where that had a core of its own; None for the default model.

        Raises:
            ValueError: The file is not of a trainer, or of another model.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # torch.load raises whatever a foreign file happens to trip over
            state = None
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"{path} must be a file written by MetaTrainer.save in format {_FORMAT}; it is not.")
        options = state["options"]
        if model is None:
            model = _default_model(state["env_id"], options, state["adapts"])
        if model.adapts != state["adapts"]:
            raise ValueError(
                f"the model must have adapts={state['adapts']!r} like the one in {path}; got {model.adapts!r}."
            )
        trainer = cls(state["env_id"], model, **options)
        try:
            trainer.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"the model must be built like the one in {path}: {error}") from None
        trainer._maml.optimizer.load_state_dict(state["optimizer"])
        trainer._rng.bit_generator.state = state["rng"]
        trainer.num_updates = state["num_updates"]
        return trainer

    def _collect(self, split: str, num_streams: int, seed: int, *, training: bool = False) -> tuple[Tensor, Tensor]:
        """Normalised inputs ``Float[S T in]``, and targets with a weight as last column ``Float[S T D+1]``.

        The streams of a training run also set the normalisation of the model before its first update.
        """
        env = _make_env(self.env_id, split, self.options["env_kwargs"])
        # The same seed gives other streams for another split, and for evaluation on the split of training.
        spawn_key = (1 if training else 2, zlib.crc32(split.encode()))
        streams = collect_streams(
            env, num_streams, self.options["stream_length"], seed=np.random.SeedSequence(seed, spawn_key=spawn_key)
        )
        env.close()
        flat = [
            array.reshape(-1, *array.shape[2:])
            for array in (streams.observations, streams.actions, streams.next_observations)
        ]
        weights = ~streams.restarted.reshape(-1)
        if training and self.num_updates == 0:
            self.model.set_normalisation(*(array[weights] for array in flat))
        inputs = self.model.inputs(flat[0], flat[1])
        targets = self.model.targets(flat[0], flat[2])
        targets = torch.cat([targets, torch.as_tensor(weights[:, None]).to(targets)], dim=1)
        return inputs.unflatten(0, streams.restarted.shape), targets.unflatten(0, streams.restarted.shape)

    def _sample_tasks(self, inputs: Tensor, targets: Tensor) -> list[MetaTask]:
        window, size = self.options["window"], self.options["meta_batch_size"]
        streams = self._rng.integers(len(inputs), size=size)
        offsets = self._rng.integers(inputs.shape[1] - 2 * window + 1, size=size)
        times = torch.as_tensor(offsets[:, None] + np.arange(2 * window))  # K 2W
        x = inputs[torch.as_tensor(streams)[:, None], times]  # K 2W in
        y = targets[torch.as_tensor(streams)[:, None], times]  # K 2W D+1
        num_ignored = torch.as_tensor(self._rng.integers(window + 1, size=size))
        ignored = torch.arange(2 * window) < num_ignored[:, None]  # K 2W
        y[..., -1] = torch.where(ignored.to(y.device), 0.0, y[..., -1])
        return list(zip(x[:, :window], y[:, :window], x[:, window:], y[:, window:], strict=True))


def weighted_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error over the rows of weight 1: ``Float[N D]`` against ``Float[N D+1]``, the weight last.

    Zero where no row counts.
    """
    weight = target[..., -1:]
    errors = (prediction - target[..., :-1]).square() * weight
    return errors.sum() / (weight.sum().clamp(min=1.0) * prediction.shape[-1])


def _default_model(
    env_id: str, options: Mapping[str, Any], adapts: Literal["last_layer", "all"] = "last_layer"
) -> DynamicsModel:
    env = _make_env(env_id, "train", options["env_kwargs"])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options["seed"])  # torch.manual_seed would seed other devices too
        return DynamicsModel(env.observation_space, env.action_space, adapts=adapts)


def _make_env(env_id: str, split: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    return gym.make(env_id, split=split, disable_env_checker=True, **env_kwargs)
