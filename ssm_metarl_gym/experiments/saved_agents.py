"""Agents of Stable-Baselines3 that were saved: runs of train_ppo.py, and archives of any of its algorithms."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.experiments.checks import explaining
from ssm_metarl_gym.experiments.runs import load_config
from ssm_metarl_gym.experiments.sb3_training import MODEL_FILES
from ssm_metarl_gym.files import check_checksums, check_zip
from ssm_metarl_gym.wrappers import make_sb3_env

__all__ = ["ALGORITHMS", "SavedAgent", "find_algorithm", "read_archive", "read_run"]

# The module that each algorithm is imported from.
ALGORITHMS: Final[dict[str, str]] = {
    **dict.fromkeys(("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"), "stable_baselines3"),
    **dict.fromkeys(("ARS", "CrossQ", "QRDQN", "RecurrentPPO", "TQC", "TRPO"), "sb3_contrib"),
    "SSMPPO": "ssm_metarl_gym.agents",
    "OnePassRecurrentPPO": "ssm_metarl_gym.experiments.recurrent_ppo",
}
# What tells runs of one group apart, or is known only after training.
_NOT_OF_THE_GROUP: Final = ("seed", "versions", "finished", "wall_seconds", "cpu_seconds")
# What is read of the config.json of a run, and of what kind it is.
_CONFIG: Final[dict[str, Any]] = {
    "policy": str,
    "algorithm": str,
    "env": str,
    "env_kwargs": dict,
    "observation": str,
    "window": int,
    "seed": int,
    "cpu_seconds": (int, float),
}
_COPY_AGAIN: Final = "Copy the folder of the run again, or train anew."


def find_algorithm(name: str) -> Any:
    """The class of an algorithm; sb3-contrib is imported only where it is needed.

    Raises:
        ValueError: There is none of that name, or it is not installed.
    """
    check_choice("the algorithm", name, list(ALGORITHMS))
    try:
        return getattr(importlib.import_module(ALGORITHMS[name]), name)
    except ImportError as error:
        raise ValueError(
            f"{name} needs sb3-contrib, which cannot be imported. Install it: python -m pip install sb3-contrib"
        ) from error


@dataclass(frozen=True)
class SavedAgent:
    """What is known of an agent before it is loaded.

    Attributes:
        path: As it was given.
        label: How a table calls it.
        config: What, but for the seed, two agents of one group have in common.
        archive: What the algorithm saved.
        vecnormalize: What VecNormalize saved, None where observations are not normalised.
        seed: The seed of the training, None where it is not known.
        cpu_seconds: Seconds of the training, None where they are not known.
    """

    path: Path
    label: str
    config: dict[str, Any]
    archive: Path
    vecnormalize: Path | None
    seed: int | None = None
    cpu_seconds: float | None = None

    def load(self) -> BaseAlgorithm:
        """The agent itself. Its archive holds pickles, which run code: load only agents that you trust.

        Raises:
            ValueError: The archive is not one of this algorithm, or the algorithm is not installed.
        """
        algorithm = find_algorithm(self.config["algorithm"])
        check_zip(self.archive, self.archive)  # which SB3 and torch do not
        name = algorithm.__name__
        with explaining(f"{self.archive} cannot be loaded as a {name} of this version, maybe another one saved it"):
            agent: BaseAlgorithm = algorithm.load(self.archive, device="cpu")
        return agent

    @property
    def is_stepped_row_by_row(self) -> bool:
        """Whether its environments are not batched, so that they draw other tasks than batched ones do."""
        return "wrapper" in self.config

    def make_env(self, num_tasks: int, **env_kwargs: Any) -> VecEnv:
        """The environment as the agent sees it, a row for each task, with the rewards as they are.

        Args:
            num_tasks: Number of rows.
            **env_kwargs: Arguments of the environment that replace those of the training.

        Raises:
            ValueError: What VecNormalize saved cannot be loaded, or the agent sees other observations.
        """
        config = self.config
        env_kwargs = {**config["env_kwargs"], **env_kwargs}
        with explaining(f"{config['env']} with {json.dumps(env_kwargs)} cannot be made as {self.path} sees it"):
            if "wrapper" in config:
                module, _, name = config["wrapper"].partition(":")
                wrap = getattr(importlib.import_module(module), name)
                env: VecEnv = DummyVecEnv([lambda: wrap(gym.make(config["env"], **env_kwargs))] * num_tasks)
            else:
                env = make_sb3_env(
                    config["env"], num_tasks, observation=config["observation"], window=config["window"], **env_kwargs
                )
        if self.vecnormalize is None:
            return env
        with explaining(f"{self.vecnormalize} cannot be loaded as what VecNormalize.save wrote"):
            normalised = VecNormalize.load(str(self.vecnormalize), env)
        normalised.training = normalised.norm_reward = False
        return normalised


def read_run(folder: Path) -> SavedAgent:
    """The agent of a run of train_ppo.py.

    Raises:
        ValueError: The folder is not one of a finished run, or a file of it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        config = load_config(path)
    except OSError as error:
        raise ValueError(f"a folder must be one of train_ppo.py, with its config.json; got {folder}.") from error
    if config is None:
        raise ValueError(f"{path} is damaged: it is no object in JSON. {_COPY_AGAIN}")
    if not config.get("finished"):
        raise ValueError(f"a run must be finished; {folder} is not. The same command of train_ppo.py goes on with it.")
    for name, kind in _CONFIG.items():
        if not isinstance(config.get(name), kind) or isinstance(config[name], bool):
            raise ValueError(
                f"{path} is damaged, or not of train_ppo.py: got {name}={config.get(name)!r}. {_COPY_AGAIN}"
            )
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"a run must hold model.zip and vecnormalize.pkl; {folder} lacks {name}. {_COPY_AGAIN}")
    try:
        check_checksums(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error} {_COPY_AGAIN}") from error
    return SavedAgent(
        path=folder,
        label=config["policy"],
        config={name: value for name, value in config.items() if name not in _NOT_OF_THE_GROUP},
        archive=folder / "model.zip",
        vecnormalize=folder / "vecnormalize.pkl",
        seed=config["seed"],
        cpu_seconds=config["cpu_seconds"],
    )


def read_archive(
    path: Path,
    *,
    algorithm: str,
    env_id: str,
    observation: str = "plain",
    window: int = 16,
    vecnormalize: Path | None = None,
    wrapper: str | None = None,
) -> SavedAgent:
    """The agent that an algorithm of SB3 saved.

    Args:
        path: The archive.
        algorithm: The name of the algorithm, one of ``ALGORITHMS``.
        env_id: The id of the environment.
        observation: What the agent sees, as for :func:`make_sb3_env`.
        window: Length of the window, likewise.
        vecnormalize: What ``VecNormalize.save`` wrote, None where observations are not normalised.
        wrapper: ``"module:function"``, a function that wraps a single environment as that of the training was wrapped,
            in :class:`OnlineAdaptation` for instance; None where it was not.

    Raises:
        ValueError: There is no such file.
    """
    if not path.is_file():
        raise ValueError(f"an agent must be a folder of train_ppo.py or an archive of SB3; got {path}.")
    if vecnormalize is not None and not vecnormalize.is_file():
        raise ValueError(f"--vecnormalize must be a file that VecNormalize.save wrote; got {vecnormalize}.")
    config = {
        "file": str(path),
        "algorithm": algorithm,
        "env": env_id,
        "env_kwargs": {},
        "observation": observation,
        "window": window,
    }
    if wrapper is not None:
        config["wrapper"] = wrapper
    return SavedAgent(path, path.stem, config, path, vecnormalize)
