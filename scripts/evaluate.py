"""Evaluate agents of Stable-Baselines3 on tasks that they have never met, the same tasks for every agent.

    python scripts/evaluate.py output/ssm-0 output/ssm-1 output/mlp-0
    python scripts/evaluate.py agent.zip --algorithm PPO --env ssm_metarl/CartPolePolarity-v0

An agent is the folder of a finished run of train_ppo.py, or any archive that an algorithm of SB3 saved. Runs that
differ only in the seed make one row of the table. "switch" is interpolation with the hidden sign flipping at half time;
"default" is the environment as it is, where it has no splits.

Prints a table, and writes it with every return as results.md, results.json, returns.png and curves.png into the output
folder. SB3's archives hold pickles, which run code when they are loaded: evaluate only agents that you trust.
"""

import argparse
import importlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm import tqdm

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.envs import HiddenTask
from ssm_metarl_gym.experiments.command_line import json_object
from ssm_metarl_gym.experiments.statistics import interval_over_seeds
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.wrappers import make_sb3_env

mpl.use("Agg")
import matplotlib.pyplot as plt

# The module that each algorithm is imported from.
ALGORITHMS = {
    **dict.fromkeys(("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"), "stable_baselines3"),
    **dict.fromkeys(("ARS", "CrossQ", "QRDQN", "RecurrentPPO", "TQC", "TRPO"), "sb3_contrib"),
    "SSMPPO": "ssm_metarl_gym.agents",
}
SPLITS = ("train", "interpolation", "extrapolation", "switch", "default")
# What tells runs of one group apart, or is known only after training.
NOT_OF_THE_GROUP = ("seed", "versions", "finished", "wall_seconds", "cpu_seconds")
# Arguments of an environment that agents of one comparison may differ in: the split is chosen here, and "context" only
# says whether an agent is told its task.
NOT_OF_THE_TASKS = {"split", "context"}

Rewards: TypeAlias = list[list[float]]  # the reward at each step, a row for each task


@dataclass(frozen=True)
class Options:
    """The command line."""

    agents: tuple[Path, ...] = field(metadata={"help": "folders of train_ppo.py, or archives of SB3"})
    splits: tuple[str, ...] = field(default=(), metadata={"help": "default: all held-out ones of the environment"})
    num_tasks: int = field(default=100, metadata={"help": "tasks of a split, one episode each (default: 100)"})
    seed: int = field(default=0, metadata={"help": "seeds the tasks (default: 0)"})
    output: Path = field(
        default=Path("output/evaluate"), metadata={"help": "folder for the results (default: output/evaluate)"}
    )
    video: bool = field(default=False, metadata={"help": "film the first agent of each row of the table in each split"})
    env_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments that replace those that agents were trained with, in JSON"}
    )
    algorithm: str | None = field(default=None, metadata={"help": "for archives: what saved them"})
    env: str | None = field(default=None, metadata={"help": "for archives: id of the environment"})
    observation: str | None = field(default=None, metadata={"help": "for archives: what they see (default: plain)"})
    window: int | None = field(default=None, metadata={"help": "for archives: length of the window (default: 16)"})
    vecnormalize: Path | None = field(default=None, metadata={"help": "for archives: what VecNormalize.save wrote"})


@dataclass(frozen=True)
class Agent:
    """What is known of an agent.

    Attributes:
        path: As it was given.
        label: How the table calls it.
        config: What, but for the seed, two agents of one group have in common.
        archive: What the algorithm saved.
        vecnormalize: What VecNormalize saved, None where observations are not normalised.
        seed: The seed of the training, None where it is not known, and likewise the others.
        timesteps: Steps of the training, which the agent itself knows once it is loaded.
        cpu_seconds: Seconds of the training.
    """

    path: Path
    label: str
    config: dict[str, Any]
    archive: Path
    vecnormalize: Path | None
    seed: int | None = None
    timesteps: int | None = None
    cpu_seconds: float | None = None


def read_agents(options: Options) -> list[Agent]:
    """The agents of the command line."""
    agents = [read_run(path) if path.is_dir() else read_archive(path, options) for path in options.agents]
    only_archives = {name: getattr(options, name) for name in ("algorithm", "env", "observation", "window")}
    if all(path.is_dir() for path in options.agents):
        for name, value in {**only_archives, "vecnormalize": options.vecnormalize}.items():
            if value is not None:
                raise ValueError(f"--{name} is for archives; got it with folders of runs only. Leave it out.")
    env_ids = sorted({agent.config["env"] for agent in agents})
    if len(env_ids) > 1:
        raise ValueError(f"all agents must be of one environment; got {', '.join(env_ids)}. Evaluate one at a time.")
    env_kwargs = [agent.config["env_kwargs"] | options.env_kwargs for agent in agents]
    for agent, kwargs in zip(agents, env_kwargs, strict=True):
        for name in (env_kwargs[0].keys() | kwargs.keys()) - NOT_OF_THE_TASKS:
            if env_kwargs[0].get(name) != kwargs.get(name):
                raise ValueError(
                    f"all agents must meet the same tasks; {name} is {json.dumps(env_kwargs[0].get(name))} for "
                    f"{agents[0].path} and {json.dumps(kwargs.get(name))} for {agent.path}. Give one for all in "
                    "--env-kwargs."
                )
    seen: dict[str, Agent] = {}
    for agent in agents:
        other = seen.setdefault(json.dumps([agent.config, agent.seed], sort_keys=True), agent)
        if other is not agent:
            raise ValueError(f"every agent must be another one; {other.path} and {agent.path} are the same run twice.")
    return agents


def read_run(folder: Path) -> Agent:
    """The agent of a run of train_ppo.py."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"a folder must be one of train_ppo.py, with its config.json; got {folder}.") from error
    if not config.get("finished"):
        raise ValueError(f"a run must be finished; {folder} is not. The same command of train_ppo.py goes on with it.")
    for name in ("model.zip", "vecnormalize.pkl"):
        if not (folder / name).is_file():
            raise ValueError(f"a run must hold model.zip and vecnormalize.pkl; {folder} lacks {name}.")
    return Agent(
        path=folder,
        label=config["policy"],
        config={name: value for name, value in config.items() if name not in NOT_OF_THE_GROUP},
        archive=folder / "model.zip",
        vecnormalize=folder / "vecnormalize.pkl",
        seed=config["seed"],
        cpu_seconds=config["cpu_seconds"],
    )


def read_archive(path: Path, options: Options) -> Agent:
    """The agent that an algorithm of SB3 saved."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"an agent must be a folder of train_ppo.py or an archive of SB3; got {path}.")
    if options.algorithm is None or options.env is None:
        raise ValueError(f"an archive needs --algorithm and --env; got {path} without them.")
    if options.vecnormalize is not None and not options.vecnormalize.is_file():
        raise ValueError(f"--vecnormalize must be a file that VecNormalize.save wrote; got {options.vecnormalize}.")
    config = {
        "file": str(path),
        "algorithm": options.algorithm,
        "env": options.env,
        "env_kwargs": {},
        "observation": options.observation or "plain",
        "window": options.window or 16,
    }
    return Agent(path, path.stem, config, path, options.vecnormalize)


def find_splits(env_id: str, env_kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The splits that an environment has, and the arguments that choose them."""
    env = gym.make(env_id, **env_kwargs)
    env.close()
    if not isinstance(env.unwrapped, HiddenTask):
        return {"default": {}}
    splits = {split: {"split": split} for split in ("train", "interpolation", "extrapolation")}
    half_time = (env.spec.max_episode_steps or 0) // 2
    splits["switch"] = {"split": "interpolation", "switch": {"step": half_time}}
    return {split: kwargs for split, kwargs in splits.items() if can_be_made(env_id, env_kwargs | kwargs)}


def can_be_made(env_id: str, env_kwargs: dict[str, Any]) -> bool:
    """Whether an environment takes these arguments."""
    try:
        gym.make(env_id, **env_kwargs).close()
    except ValueError:
        return False
    return True


def load(agent: Agent) -> Any:
    """The agent itself."""
    name = agent.config["algorithm"]
    try:
        algorithm = getattr(importlib.import_module(ALGORITHMS[name]), name)
    except ImportError as error:
        raise SystemExit(
            f"{name} needs {ALGORITHMS[name]}. Install sb3-contrib: python -m pip install sb3-contrib"
        ) from error
    try:
        return algorithm.load(agent.archive, device="cpu")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SystemExit(
            f"{agent.archive} cannot be loaded as a {name} of this version, maybe because another one saved it: {error}"
        ) from error


def make_env(agent: Agent, num_envs: int, seed: int, env_kwargs: dict[str, Any]) -> VecEnv:
    """The environment as the agent sees it, with the rewards as they are; the seed decides on the tasks of its rows."""
    config = agent.config
    env = make_sb3_env(
        config["env"],
        num_envs,
        observation=config["observation"],
        window=config["window"],
        **(config["env_kwargs"] | env_kwargs),
    )
    if agent.vecnormalize is not None:
        try:
            env = VecNormalize.load(str(agent.vecnormalize), env)
        except Exception as error:  # a pickle of something else may raise anything
            raise SystemExit(
                f"{agent.vecnormalize} cannot be loaded as what VecNormalize.save wrote: {error}"
            ) from error
        env.training = env.norm_reward = False
    # Far from each other, because in an environment that is not batched row i has the seed plus i.
    env.seed(1_000_000 * (1 + seed))
    return env


def evaluate(model: Any, env: VecEnv) -> Rewards:
    """The rewards of one episode of each row."""
    rewards: Rewards = [[] for _ in range(env.num_envs)]

    def record(local_variables: dict[str, Any], _: dict[str, Any]) -> None:
        rewards[local_variables["i"]].append(float(local_variables["reward"]))

    evaluate_policy(model, env, n_eval_episodes=env.num_envs, callback=record)
    return rewards


def group(agents: Sequence[Agent]) -> dict[str, list[int]]:
    """The numbers of the agents that differ in the seed only, under a label that no other group has."""
    groups: dict[str, list[int]] = {}
    for number, agent in enumerate(agents):
        groups.setdefault(json.dumps(agent.config, sort_keys=True), []).append(number)
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


def summarise(
    agents: Sequence[Agent], groups: dict[str, list[int]], returns: Sequence[dict[str, list[float]]], seed: int
) -> list[dict[str, Any]]:
    """A row of the table for each group."""
    rows = []
    for label, members in groups.items():
        splits = {}
        for split in returns[members[0]]:
            values = [returns[number][split] for number in members]
            low, high = interval_over_seeds(values, seed)
            splits[split] = {"mean_return": float(np.mean(values)), "ci_low": low, "ci_high": high}
        seconds = [agents[number].cpu_seconds for number in members]
        rows.append(
            {
                "label": label,
                "agents": [str(agents[number].path) for number in members],
                "num_seeds": len(members),
                "splits": splits,
                "timesteps": agents[members[0]].timesteps,
                "cpu_seconds": None if None in seconds else float(np.mean(seconds)),
            }
        )
    return rows


def format_table(rows: Sequence[dict[str, Any]], num_tasks: int) -> str:
    """The table in Markdown, and what its intervals are."""
    splits = list(rows[0]["splits"])
    lines = [
        f"| agent | {' | '.join(splits)} | seeds | timesteps | CPU seconds |",
        "| --- |" + " --- |" * (len(splits) + 3),
    ]
    largest = max(abs(row["splits"][split]["mean_return"]) for row in rows for split in splits)
    cell = "{mean_return:.1f} [{ci_low:.1f}, {ci_high:.1f}]"
    if largest < 10.0:  # returns of so few points differ in their decimals
        cell = cell.replace(".1f", ".3f")
    for row in rows:
        cells = [cell.format(**row["splits"][split]) for split in splits]
        timesteps = "?" if row["timesteps"] is None else str(row["timesteps"])
        seconds = "?" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}"
        lines.append(f"| {row['label']} | {' | '.join(cells)} | {row['num_seeds']} | {timesteps} | {seconds} |")
    kinds = []
    if any(row["num_seeds"] > 1 for row in rows):
        kinds.append("over the means of the seeds (Student's t) where there are several")
    if any(row["num_seeds"] == 1 for row in rows):
        kinds.append("over tasks (bootstrap) where there is one seed, which says nothing of other seeds")
    caption = (
        f"Mean return over the same {num_tasks} tasks for every agent, deterministic actions, with 95 % intervals: "
        f"{'; '.join(kinds)}. CPU seconds are those of the training, mean over seeds."
    )
    return "\n".join([*lines, "", caption])


def draw_returns(rows: Sequence[dict[str, Any]], means: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A point for each seed, and beside it the mean and its interval, for each split and group."""
    splits = list(rows[0]["splits"])
    size = (1.5 + 3.0 * len(splits), 1.2 + 0.5 * len(rows))
    figure, all_axes = plt.subplots(1, len(splits), figsize=size, sharey=True, squeeze=False)
    for split, axes in zip(splits, all_axes[0], strict=True):
        for height, row in enumerate(rows):
            summary, points = row["splits"][split], means[row["label"]][split]
            mean = summary["mean_return"]
            errors = [[max(0.0, mean - summary["ci_low"])], [max(0.0, summary["ci_high"] - mean)]]
            axes.errorbar(mean, height, xerr=errors, fmt="o", capsize=3, color=f"C{height % 10}")
            axes.plot(points, [height + 0.25] * len(points), "|", color=f"C{height % 10}")
        axes.set(xlabel="return", title=split, ylim=(len(rows) - 0.4, -0.6))
    all_axes[0, 0].set_yticks(range(len(rows)), [row["label"] for row in rows])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")  # labels may be long
    plt.close(figure)


def draw_curves(curves: dict[str, dict[str, np.ndarray]], splits: dict[str, dict[str, Any]], path: Path) -> None:
    """The mean reward at each step of the episode, for each split and group: a line sums up to the mean return."""
    size = (4.5 * len(splits), 3.5)
    figure, all_axes = plt.subplots(1, len(splits), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for split, axes in zip(splits, all_axes[0], strict=True):
        for label, by_split in curves.items():
            width = min(5, len(by_split[split]))
            smooth = np.convolve(by_split[split], np.ones(width) / width, mode="valid")
            axes.plot(np.arange(width, width + len(smooth)), smooth, label=label)
        if split == "switch":
            axes.axvline(splits[split]["switch"]["step"], color="black", linestyle=":")
        axes.set(xlabel="step of the episode", title=split)
    all_axes[0, 0].set_ylabel("mean reward of the last 5 steps")
    all_axes[0, 0].legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def mean_curve(episodes: Rewards) -> np.ndarray:
    """The mean reward at each step, 0 after the end of an episode."""
    sums = np.zeros(max(map(len, episodes)))
    for rewards in episodes:
        sums[: len(rewards)] += rewards
    return sums / len(episodes)


def film(model: Any, env: VecEnv, label: str, path: Path) -> None:
    """One episode."""
    observation, state, start = env.reset(), None, np.ones(1, dtype=np.bool_)
    frames, total, num_steps = [], 0.0, 0
    while num_steps == 0 or not start[0]:
        # Every second frame is enough to see what happens.
        if num_steps % 2 == 0:
            image = Image.fromarray(env.get_images()[0])
            image = image.resize((image.width * 2 // 3, image.height * 2 // 3))
            ImageDraw.Draw(image).text((8, 24), f"{label}: return {total:.0f}", fill=(0, 0, 0))
            frames.append(image)
        action, state = model.predict(observation, state, start, deterministic=True)
        observation, reward, start, _ = env.step(action)
        total, num_steps = total + float(reward[0]), num_steps + 1
    with replacing(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=40, loop=0)


def parse_options(arguments: Sequence[str] | None) -> tuple[Options, list[Agent], dict[str, dict[str, Any]]]:
    """The options, the agents and the splits; exits with a clear message where something is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_of = {name: option.metadata["help"] for name, option in Options.__dataclass_fields__.items()}
    defaults = Options(agents=())
    parser.add_argument("agents", type=Path, nargs="+", metavar="AGENT", help=help_of["agents"])
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=(), help=help_of["splits"])
    parser.add_argument("--num-tasks", type=int, default=defaults.num_tasks, metavar="N", help=help_of["num_tasks"])
    parser.add_argument("--seed", type=int, default=defaults.seed, help=help_of["seed"])
    parser.add_argument("--output", type=Path, default=defaults.output, metavar="DIR", help=help_of["output"])
    parser.add_argument("--video", action="store_true", help=help_of["video"])
    parser.add_argument(
        "--env-kwargs", type=json_object, default=defaults.env_kwargs, metavar="JSON", help=help_of["env_kwargs"]
    )
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), help=help_of["algorithm"])
    parser.add_argument("--env", metavar="ID", help=help_of["env"])
    parser.add_argument("--observation", choices=("plain", "transition", "window"), help=help_of["observation"])
    parser.add_argument("--window", type=int, metavar="N", help=help_of["window"])
    parser.add_argument("--vecnormalize", type=Path, metavar="FILE", help=help_of["vecnormalize"])
    given = vars(parser.parse_args(arguments))
    options = Options(**given | {"agents": tuple(given["agents"]), "splits": tuple(dict.fromkeys(given["splits"]))})
    for name, value, least in (("num-tasks", options.num_tasks, 2), ("window", options.window, 1)):
        if value is not None and value < least:
            parser.error(f"--{name} must be >= {least}; got {value}.")
    if not 0 <= options.seed < 2000:
        parser.error(f"--seed must be >= 0 and less than 2000; got {options.seed}.")
    try:
        agents = read_agents(options)
        splits = choose_splits(options, agents[0])
    except ValueError as error:
        parser.error(str(error))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output).close()
    except OSError as error:
        parser.error(f"--output must be a folder that can be written to; got {options.output} ({error.strerror}).")
    return options, agents, splits


def choose_splits(options: Options, agent: Agent) -> dict[str, dict[str, Any]]:
    """The splits to evaluate on, and the arguments of the environment in each."""
    env_id = agent.config["env"]
    try:
        present = find_splits(env_id, agent.config["env_kwargs"] | options.env_kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"the environment {env_id} cannot be made: {error}") from error
    if "split" in options.env_kwargs and "default" not in present:
        raise ValueError(f"--env-kwargs must leave the split to --splits; got {options.env_kwargs['split']!r} there.")
    for split in options.splits:
        if split not in present:
            raise ValueError(f"--splits must be among {', '.join(present)} for {env_id}; got {split}.")
    wanted = options.splits or tuple(split for split in present if split != "train")
    return {split: options.env_kwargs | present[split] for split in wanted}


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate every agent on every split."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window is needed
    torch.set_num_threads(1)
    options, agents, splits = parse_options(arguments)
    groups = group(agents)

    rewards: list[dict[str, Rewards]] = [{} for _ in agents]
    with tqdm(total=len(agents) * len(splits), desc="evaluating", unit="split") as bar:
        for number, by_split in enumerate(rewards):
            model = load(agents[number])
            agents[number] = agent = replace(agents[number], timesteps=model.num_timesteps)
            for split, env_kwargs in splits.items():
                env = make_env(agent, options.num_tasks, options.seed, env_kwargs)
                if env.observation_space.shape != model.observation_space.shape:
                    raise SystemExit(
                        f"{agent.path} sees observations of shape {model.observation_space.shape}; got "
                        f"{env.observation_space.shape} from the environment. Try --observation and --window."
                    )
                by_split[split] = evaluate(model, env)
                env.close()
                bar.update()

    returns = [{split: [sum(row) for row in rows] for split, rows in by_split.items()} for by_split in rewards]
    rows = summarise(agents, groups, returns, options.seed)
    table = format_table(rows, options.num_tasks)
    means = {
        label: {split: [float(np.mean(returns[number][split])) for number in members] for split in splits}
        for label, members in groups.items()
    }
    curves = {
        label: {split: mean_curve([row for number in members for row in rewards[number][split]]) for split in splits}
        for label, members in groups.items()
    }
    draw_returns(rows, means, options.output / "returns.png")
    draw_curves(curves, splits, options.output / "curves.png")
    results = {
        "env": agents[0].config["env"],
        "splits": splits,
        "num_tasks": options.num_tasks,
        "seed": options.seed,
        "groups": rows,
        "agents": [
            {"path": str(agent.path), "seed": agent.seed, "cpu_seconds": agent.cpu_seconds, "returns": by_split}
            for agent, by_split in zip(agents, returns, strict=True)
        ],
    }
    for name, text in (("results.md", table), ("results.json", json.dumps(results, indent=2))):
        with replacing(options.output / name) as temporary:
            temporary.write_text(text + "\n")
    print(f"\n{table}\n\nresults.md, results.json, returns.png and curves.png are in {options.output}")
    if options.video:
        for label, members in groups.items():
            model = load(agents[members[0]])
            for split, env_kwargs in splits.items():
                env = make_env(agents[members[0]], 1, options.seed, env_kwargs | {"render_mode": "rgb_array"})
                name = re.sub(r"[^\w.-]+", "-", f"{label}-{split}").strip("-")
                film(model, env, label, options.output / f"{name}.gif")
                env.close()


if __name__ == "__main__":
    main()
