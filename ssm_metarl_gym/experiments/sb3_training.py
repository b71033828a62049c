"""Training an algorithm of Stable-Baselines3 in a run folder: checkpoints, going on from one, and what goes wrong."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.experiments.logs import save_pending
from ssm_metarl_gym.experiments.runs import Stopwatch, save_checkpoint
from ssm_metarl_gym.files import replacing, write_checksums

__all__ = [
    "MODEL_FILES",
    "SaveCheckpoints",
    "check_finite",
    "check_hyperparameters",
    "load_checkpoint",
    "save_agent",
    "staying_finite",
]

MODEL_FILES: Final = ("model.zip", "vecnormalize.pkl")


class SaveCheckpoints(BaseCallback):
    """Saves a checkpoint before more timesteps than the interval, or than one rollout, could be lost.

    Args:
        folder: The folder of all checkpoints.
        interval: Timesteps between checkpoints at most.
        stopwatch: How long the run takes.
        say: Told how far the run is when a checkpoint is saved.
    """

    def __init__(self, folder: Path, interval: int, stopwatch: Stopwatch, say: Callable[[str], object]) -> None:
        super().__init__()
        self._folder = folder
        self._interval = interval
        self._stopwatch = stopwatch
        self._say = say

    def _on_training_start(self) -> None:
        self._saved = self.num_timesteps

    def _on_rollout_start(self) -> None:
        # The update by a rollout ends just before the next one starts.
        model: Any = self.model
        check_finite(model)
        steps, rollout = model.num_timesteps, model.n_steps * model.n_envs
        if steps == self._saved or steps - self._saved + rollout <= self._interval:
            return
        save_checkpoint(self._folder, steps, self._write)
        self._saved = steps
        seconds, returns = self._stopwatch.read()["wall_seconds"], [info["r"] for info in model.ep_info_buffer]
        mean = f"mean return {np.mean(returns):.1f}" if returns else "no episode ended yet"
        self._say(f"{steps:>9} timesteps, {seconds:7.1f} s, {mean}")

    def _write(self, checkpoint: Path) -> None:
        self.model.save(checkpoint / "model.zip")
        normalised_env(self.model).save(str(checkpoint / "vecnormalize.pkl"))
        (checkpoint / "seconds.json").write_text(json.dumps(self._stopwatch.read()))
        save_pending(self.logger, checkpoint)

    def _on_step(self) -> bool:
        return True


def load_checkpoint(
    algorithm: type[OnPolicyAlgorithm], checkpoint: Path, env: VecNormalize, device: str
) -> tuple[OnPolicyAlgorithm, Stopwatch]:
    """The agent as a checkpoint holds it, with its environments, and the seconds that it took.

    Args:
        algorithm: What trained it.
        checkpoint: The folder that :class:`SaveCheckpoints` wrote.
        env: Environments like those that it was trained on.
        device: PyTorch's name of the device.

    Raises:
        Exception: Anything, where it is damaged or another version saved it.
    """
    env = VecNormalize.load(str(checkpoint / "vecnormalize.pkl"), env.venv)
    model = algorithm.load(checkpoint / "model.zip", env=env, device=device)
    return model, Stopwatch(**json.loads((checkpoint / "seconds.json").read_text()))


def save_agent(model: BaseAlgorithm, folder: Path) -> None:
    """Save a trained agent, the statistics that its observations are scaled with, and the checksums of both."""
    statistics, archive = folder / "vecnormalize.pkl", folder / "model.zip"
    with replacing(statistics) as temporary:
        normalised_env(model).save(str(temporary))
    with replacing(archive) as temporary:
        model.save(temporary)
    write_checksums(folder, MODEL_FILES)


def normalised_env(model: BaseAlgorithm) -> VecNormalize:
    """The environments that an agent learns from."""
    env = model.get_vec_normalize_env()
    if env is None:
        raise ValueError("an agent must learn from environments in a VecNormalize; it does not.")
    return env


def check_finite(model: BaseAlgorithm) -> None:
    """The weights of an agent must be finite; learning goes on into the void otherwise, or ends with a riddle.

    Raises:
        FloatingPointError: They are not.
    """
    if not all(bool(torch.isfinite(weights).all()) for weights in model.policy.parameters()):
        raise FloatingPointError(
            f"the training diverged: after {model.num_timesteps} timesteps weights are not finite. Learn with a "
            "smaller learning_rate, or from smaller rewards."
        )


@contextmanager
def staying_finite(model: BaseAlgorithm) -> Iterator[None]:
    """Learning in the block must keep the weights finite, whatever it raises where they are not.

    Raises:
        FloatingPointError: It did not.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        check_finite(model)
        if "overflow" in str(error):  # of a step that no weight can take
            raise FloatingPointError(f"the training diverged: {error}. Learn with a smaller learning_rate.") from error
        if "invalid values" in str(error):  # for a distribution to draw actions from
            raise FloatingPointError(
                "the training diverged: the policy's outputs are not finite. Learn with a smaller learning_rate."
            ) from error
        raise
    check_finite(model)


def check_hyperparameters(algorithm: Callable[..., BaseAlgorithm], hyperparameters: Mapping[str, Any]) -> None:
    """Arguments of an algorithm must be of the kinds that it names, which most of them notice only when they learn.

    Names that are none of its arguments are left to the algorithm.

    Raises:
        ValueError: One is of another kind, or a number of things that is less than one.
    """
    parameters = inspect.signature(algorithm).parameters
    for name, value in hyperparameters.items():
        if name not in parameters:
            continue
        parameter = parameters[name]
        kinds = {get_origin(kind) or kind for kind in get_args(parameter.annotation) or (parameter.annotation,)}
        if float in kinds:
            kinds.add(int)
        if type(value) not in kinds:
            names = sorted(kind.__name__ for kind in kinds if kind in (bool, dict, float, int, str))
            raise ValueError(f"{name} must be of {' or '.join(names) or 'another kind than JSON has'}; got {value!r}.")
        least = parameter.default if isinstance(parameter.default, int) else 1
        if float not in kinds and int in kinds and value is not None and value < min(1, least):
            raise ValueError(f"{name} must be >= {min(1, least)}; got {value}.")
        if isinstance(value, float) and not np.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value}.")
