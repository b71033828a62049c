"""Evaluate agents of Stable-Baselines3 on tasks that they have never met, the same tasks for every agent.

    python scripts/evaluate.py output/ssm-0 output/ssm-1 output/mlp-0
    python scripts/evaluate.py agent.zip --algorithm PPO --env ssm_metarl/CartPolePolarity-v0

An agent is the folder of a finished run of train_ppo.py, or any archive that an algorithm of SB3 saved. Runs that
differ only in the seed make one row of the table. "switch" is interpolation with the hidden sign flipping at half time;
"default" is the environment as it is, where it has no splits.

Prints a table, and writes it with every return as results.md, results.json, returns.png and curves.png into the output
folder. SB3's archives hold pickles, which run code when they are loaded: evaluate only agents that you trust.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from tqdm import tqdm

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refuse
from ssm_metarl_gym.experiments.evaluation import Rewards, Splits, evaluate, find_splits, mean_curve, returns_of
from ssm_metarl_gym.experiments.pictures import draw_curves, draw_returns, film, save_film
from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.saved_agents import (
    ALGORITHMS,
    SavedAgent,
    check_comparable,
    group_seeds,
    read_archive,
    read_run,
)
from ssm_metarl_gym.files import replacing, write_json

SPLITS = ("train", "interpolation", "extrapolation", "switch", "default")
FILES = ("results.md", "results.json", "returns.png", "curves.png")
ONLY_FOR_ARCHIVES = ("algorithm", "env", "observation", "window", "vecnormalize")


@dataclass(frozen=True)
class Options:
    """The command line."""

    agents: tuple[Path, ...] = option((), "folders of train_ppo.py, or archives of SB3", is_positional=True)
    splits: tuple[str, ...] = option((), "default: all held-out ones of the environment", choices=SPLITS)
    num_tasks: int = option(100, "tasks of a split, one episode each", least=2)
    seed: int = option(0, "seeds the tasks", least=0, below=2000)
    output: Path = option(
        Path("output/evaluate"), "folder for the results", check=partial(check_output_folder, file_names=FILES)
    )
    video: bool = option(False, "film the first agent of each row of the table in each split")
    env_kwargs: dict[str, Any] = option({}, "arguments that replace those that agents were trained with, in JSON")
    algorithm: str | None = option(None, "for archives: what saved them", choices=sorted(ALGORITHMS))
    env: str | None = option(None, "for archives: id of the environment")
    observation: str | None = option(
        None, "for archives: what they see (default: plain)", choices=("plain", "transition", "window")
    )
    window: int | None = option(None, "for archives: length of the window (default: 16)", least=1)
    vecnormalize: Path | None = option(None, "for archives: what VecNormalize.save wrote")

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("AGENTS must be one or more folders of train_ppo.py or archives of SB3; got none.")
        if all(path.is_dir() for path in self.agents):
            for name in ONLY_FOR_ARCHIVES:
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for archives; got it with folders of runs only. Leave it out.")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: What it is called.
        agents: The indices of its agents, which differ in the seed only.
        splits: The mean return in each split.
        timesteps: Steps of the training.
        cpu_seconds: Seconds of the training, mean over seeds, None where they are not known.
    """

    label: str
    agents: tuple[int, ...]
    splits: dict[str, Estimate]
    timesteps: int
    cpu_seconds: float | None

    def to_dict(self, agents: Sequence[SavedAgent]) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "label": self.label,
            "agents": [str(agents[i].path) for i in self.agents],
            "num_seeds": len(self.agents),
            "splits": {split: cell.to_dict("mean_return") for split, cell in self.splits.items()},
            "timesteps": self.timesteps,
            "cpu_seconds": self.cpu_seconds,
        }


def read_agent(path: Path, options: Options) -> SavedAgent:
    """What is known of an agent of the command line."""
    if path.is_dir():
        return read_run(path)
    if options.algorithm is None or options.env is None:
        raise ValueError(f"an archive needs --algorithm and --env; got {path} without them.")
    return read_archive(
        path,
        algorithm=options.algorithm,
        env_id=options.env,
        observation=options.observation or "plain",
        window=options.window or 16,
        vecnormalize=options.vecnormalize,
    )


def choose_splits(options: Options, agent: SavedAgent) -> Splits:
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


def load(agent: SavedAgent, splits: Splits) -> BaseAlgorithm:
    """The agent itself, which must see in each split what it saw in training."""
    model = agent.load()
    for env_kwargs in splits.values():
        env = agent.make_env(1, **env_kwargs)
        env.close()
        if env.observation_space.shape != model.observation_space.shape:
            raise ValueError(
                f"{agent.path} sees observations of shape {model.observation_space.shape}; got "
                f"{env.observation_space.shape} from the environment. Try --observation and --window."
            )
    return model


def evaluate_on(splits: Splits, agent: SavedAgent, model: BaseAlgorithm, options: Options) -> dict[str, Rewards]:
    """The rewards of an agent in the tasks of each split."""
    rewards = {}
    for split, env_kwargs in splits.items():
        env = agent.make_env(options.num_tasks, **env_kwargs)
        rewards[split] = evaluate(model, env, seed=env_seed(options.seed))
        env.close()
    return rewards


def env_seed(seed: int) -> int:
    """The seed of the environments: far from the next one, as single environments take the numbers that follow it."""
    return 1_000_000 * (1 + seed)


def summarise(
    agents: Sequence[SavedAgent],
    timesteps: Sequence[int],
    returns: Sequence[dict[str, list[float]]],
    seed: int,
) -> list[Row]:
    """The rows of the table: one for the agents that differ in the seed only."""
    rows = []
    for label, members in group_seeds(agents).items():
        seconds = [agents[i].cpu_seconds for i in members]
        row = Row(
            label=label,
            agents=tuple(members),
            splits={split: estimate([returns[i][split] for i in members], seed) for split in returns[0]},
            timesteps=timesteps[members[0]],
            cpu_seconds=None if None in seconds else float(np.mean(seconds)),
        )
        rows.append(row)
    return rows


def format_table(rows: Sequence[Row], num_tasks: int) -> str:
    """The table in Markdown, and what its intervals are."""
    largest = max(abs(cell.mean) for row in rows for cell in row.splits.values())
    places = ".3f" if largest < 10.0 else ".1f"  # returns of so few points differ in their decimals
    lines = []
    for row in rows:
        cells = [format(cell, places) for cell in row.splits.values()]
        seconds = "?" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}"
        lines.append([row.label, *cells, str(len(row.agents)), str(row.timesteps), seconds])
    kinds = []
    if any(len(row.agents) > 1 for row in rows):
        kinds.append("over the means of the seeds (Student's t) where there are several")
    if any(len(row.agents) == 1 for row in rows):
        kinds.append("over tasks (bootstrap) where there is one seed, which says nothing of other seeds")
    caption = (
        f"Mean return over the same {num_tasks} tasks for every agent, deterministic actions, with 95 % intervals: "
        f"{'; '.join(kinds)}. CPU seconds are those of the training, mean over seeds."
    )
    return f"{format_markdown(['agent', *rows[0].splits, 'seeds', 'timesteps', 'CPU seconds'], lines)}\n\n{caption}"


def draw(rows: Sequence[Row], rewards: Sequence[dict[str, Rewards]], splits: Splits, output: Path) -> None:
    """The pictures: the mean return of each seed, and the mean reward at each step."""
    means: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, dict[str, Any]] = {}
    for row in rows:
        of_row = {split: [rewards[i][split] for i in row.agents] for split in splits}
        means[row.label] = {split: [float(np.mean(returns_of(seed))) for seed in of_row[split]] for split in splits}
        curves[row.label] = {split: mean_curve(list(itertools.chain(*of_row[split]))) for split in splits}
    draw_returns({row.label: row.splits for row in rows}, means, output / "returns.png")
    changes = {split: kwargs["switch"]["step"] for split, kwargs in splits.items() if split == "switch"}
    draw_curves(curves, changes, output / "curves.png")


def film_rows(
    rows: Sequence[Row],
    agents: Sequence[SavedAgent],
    models: Sequence[BaseAlgorithm],
    splits: Splits,
    options: Options,
) -> None:
    """An episode of the first agent of each row, in each split."""
    for row in rows:
        agent, model = agents[row.agents[0]], models[row.agents[0]]
        for split, env_kwargs in splits.items():
            env = agent.make_env(1, **env_kwargs, render_mode="rgb_array")
            name = re.sub(r"[^\w.-]+", "-", f"{row.label}-{split}").strip("-")
            save_film(options.output / f"{name}.gif", film(model, env, row.label, seed=env_seed(options.seed)))
            env.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate every agent on every split."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    # Read what is known of the agents, and refuse what cannot be compared before any of them acts.
    try:
        agents = [read_agent(path, options) for path in options.agents]
        check_comparable(agents, options.env_kwargs)
        splits = choose_splits(options, agents[0])
        models = [load(agent, splits) for agent in agents]
    except ValueError as error:
        refuse(str(error))
    options.output.mkdir(parents=True, exist_ok=True)

    # Let all of them act in the same tasks, which the seed draws.
    pairs = tqdm(list(zip(agents, models, strict=True)), desc="evaluating", unit="agent")
    rewards = [evaluate_on(splits, agent, model, options) for agent, model in pairs]

    # Sum up each episode, and the episodes of each row of the table.
    returns = [{split: returns_of(each) for split, each in by_split.items()} for by_split in rewards]
    rows = summarise(agents, [model.num_timesteps for model in models], returns, options.seed)
    table = format_table(rows, options.num_tasks)

    # Write the pictures first: results.json says that all is there.
    draw(rows, rewards, splits, options.output)
    if options.video:
        film_rows(rows, agents, models, splits, options)
    with replacing(options.output / "results.md") as temporary:
        temporary.write_text(table + "\n")
    results = {
        "env": agents[0].config["env"],
        "splits": splits,
        "num_tasks": options.num_tasks,
        "seed": options.seed,
        "groups": [row.to_dict(agents) for row in rows],
        "agents": [
            {"path": str(agent.path), "seed": agent.seed, "cpu_seconds": agent.cpu_seconds, "returns": by_split}
            for agent, by_split in zip(agents, returns, strict=True)
        ],
    }
    write_json(options.output / "results.json", results)
    print(f"\n{table}\n\nresults.md, results.json, returns.png and curves.png are in {options.output}")


if __name__ == "__main__":
    main()
