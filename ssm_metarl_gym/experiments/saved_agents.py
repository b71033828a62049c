"""Agents of Stable-Baselines3 that were saved: runs of train_ppo.py, and archives of any of its algorithms."""

import importlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ssm_metarl_gym.wrappers import make_sb3_env

__all__ = ["ALGORITHMS", "SavedAgent", "check_comparable", "group_seeds", "read_archive", "read_run"]

# The module that each algorithm is imported from.
ALGORITHMS: Final[dict[str, str]] = {
    **dict.fromkeys(("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"), "stable_baselines3"),
    **dict.fromkeys(("ARS", "CrossQ", "QRDQN", "RecurrentPPO", "TQC", "TRPO"), "sb3_contrib"),
    "SSMPPO": "ssm_metarl_gym.agents",
}
# What tells runs of one group apart, or is known only after training.
_NOT_OF_THE_GROUP: Final = ("seed", "versions", "finished", "wall_seconds", "cpu_seconds")
# Arguments of an environment that agents of one comparison may differ in: the split is that of the evaluation, and
# "context" only says whether an agent is told its task.
_NOT_OF_THE_TASKS: Final = {"split", "context"}


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
        name = self.config["algorithm"]
        try:
            algorithm = getattr(importlib.import_module(ALGORITHMS[name]), name)
        except ImportError as error:
            raise ValueError(
                f"{name} needs {ALGORITHMS[name]}. Install sb3-contrib: python -m pip install sb3-contrib"
            ) from error
        try:
            agent: BaseAlgorithm = algorithm.load(self.archive, device="cpu")
        except Exception as error:  # a pickle of something else may raise anything
            raise ValueError(
                f"{self.archive} cannot be loaded as a {name} of this version, maybe because another one saved it: "
                f"{error}"
            ) from error
        return agent

    def make_env(self, num_tasks: int, **env_kwargs: Any) -> VecEnv:
        """The environment as the agent sees it, a row for each task, with the rewards as they are.

        Args:
            num_tasks: Number of rows.
            **env_kwargs: Arguments of the environment that replace those of the training.

        Raises:
            ValueError: What VecNormalize saved cannot be loaded, or the agent sees other observations.
        """
        config = self.config
        env = make_sb3_env(
            config["env"],
            num_tasks,
            observation=config["observation"],
            window=config["window"],
            **{**config["env_kwargs"], **env_kwargs},
        )
        if self.vecnormalize is None:
            return env
        try:
            normalised = VecNormalize.load(str(self.vecnormalize), env)
        except Exception as error:  # as above
            raise ValueError(
                f"{self.vecnormalize} cannot be loaded as what VecNormalize.save wrote: {error}"
            ) from error
        normalised.training = normalised.norm_reward = False
        return normalised


def read_run(folder: Path) -> SavedAgent:
    """The agent of a run of train_ppo.py.

    Raises:
        ValueError: The folder is not one of a finished run, or lacks one of its files.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"a folder must be one of train_ppo.py, with its config.json; got {folder}.") from error
    if not config.get("finished"):
        raise ValueError(f"a run must be finished; {folder} is not. The same command of train_ppo.py goes on with it.")
    for name in ("model.zip", "vecnormalize.pkl"):
        if not (folder / name).is_file():
            raise ValueError(f"a run must hold model.zip and vecnormalize.pkl; {folder} lacks {name}.")
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
) -> SavedAgent:
    """The agent that an algorithm of SB3 saved.

    Args:
        path: The archive.
        algorithm: The name of the algorithm, one of ``ALGORITHMS``.
        env_id: The id of the environment.
        observation: What the agent sees, as for :func:`make_sb3_env`.
        window: Length of the window, likewise.
        vecnormalize: What ``VecNormalize.save`` wrote, None where observations are not normalised.

    Raises:
        ValueError: The file is not an archive, or there is none.
    """
    if not zipfile.is_zipfile(path):
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
    return SavedAgent(path, path.stem, config, path, vecnormalize)


def check_comparable(agents: Sequence[SavedAgent], env_kwargs: Mapping[str, Any]) -> None:
    """Agents must be different ones of one environment and one distribution of tasks.

    Args:
        agents: The agents.
        env_kwargs: Arguments that replace those that each was trained with.

    Raises:
        ValueError: They are not.
    """
    env_ids = sorted({agent.config["env"] for agent in agents})
    if len(env_ids) > 1:
        raise ValueError(f"all agents must be of one environment; got {', '.join(env_ids)}. Evaluate one at a time.")
    first, *others = ({**agent.config["env_kwargs"], **env_kwargs} for agent in agents)
    for agent, other in zip(agents[1:], others, strict=True):
        for name in (first.keys() | other.keys()) - _NOT_OF_THE_TASKS:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"all agents must meet the same tasks; {name} is {json.dumps(first.get(name))} for "
                    f"{agents[0].path} and {json.dumps(other.get(name))} for {agent.path}. Give one for all in "
                    "--env-kwargs."
                )
    seen: dict[str, SavedAgent] = {}
    for agent in agents:
        twin = seen.setdefault(json.dumps([agent.config, agent.seed], sort_keys=True), agent)
        if twin is not agent:
            raise ValueError(f"every agent must be another one; {twin.path} and {agent.path} are the same run twice.")


def group_seeds(agents: Sequence[SavedAgent]) -> dict[str, list[int]]:
    """The indices of the agents that differ in the seed only, under a label that no other group has."""
    groups: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        groups.setdefault(json.dumps(agent.config, sort_keys=True), []).append(i)
    labelled: dict[str, list[int]] = {}
    for members in groups.values():
        agent = agents[members[0]]
        namesakes = [other.config for other in agents if other.label == agent.label]
        differing = [
            f"{name}={json.dumps(value)}"
            for name, value in agent.config.items()
            # What the algorithm was called with follows from the other options.
            if name != "algorithm_arguments" and any(other.get(name) != value for other in namesakes)
        ]
        labelled[f"{agent.label} ({', '.join(differing)})" if differing else agent.label] = members
    return labelled
