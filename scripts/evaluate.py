"""Evaluate agents of Stable-Baselines3 on tasks that they have never met, the same tasks for every agent.

    python scripts/evaluate.py output/ssm-0 output/ssm-1 output/mlp-0
    python scripts/evaluate.py agent.zip --algorithm PPO --env ssm_metarl/CartPolePolarity-v0

An agent is the folder of a finished run of train_ppo.py, or any archive that an algorithm of SB3 saved. Runs that
differ only in the seed make one row of the table. "switch" is interpolation with the hidden sign flipping at half time
(hidden motors: with other ones from then on); "default" is the environment as it is, where it has no splits.

Prints a table, and writes it with every return as results.md, results.json, returns.png and curves.png into the output
folder. SB3's archives hold pickles, which run code when they are loaded: evaluate only agents that you trust.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

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
from ssm_metarl_gym.envs.making import has_batched_form
from ssm_metarl_gym.experiments.checks import check_env, check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.comparison import Row, check_comparable, format_table, group_seeds, summarise
from ssm_metarl_gym.experiments.evaluation import (
    Rewards,
    Splits,
    draw_tasks,
    evaluate,
    find_splits,
    mean_curve,
    returns_of,
    with_warm_up,
)
from ssm_metarl_gym.experiments.pictures import draw_curves, draw_returns, film, save_film
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.saved_agents import ALGORITHMS, SavedAgent, read_archive, read_run
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import replacing, write_json

SPLITS = ("train", "interpolation", "extrapolation", "switch", "default")
FILES = ("results.md", "results.json", "returns.png", "curves.png")
ONLY_FOR_ARCHIVES = ("algorithm", "env", "observation", "window", "vecnormalize", "wrapper")


@dataclass(frozen=True)
class Options:
    """The command line."""

    agents: tuple[Path, ...] = option((), "folders of train_ppo.py, or archives of SB3", is_positional=True)
    splits: tuple[str, ...] = option((), "default: all held-out ones of the environment", choices=SPLITS)
    num_tasks: int = option(100, "tasks of a split, one episode each", least=2, below=100_000)
    seed: int = option(0, "seeds the tasks", least=0, below=2000)
    output: Path = option(
        Path("output/evaluate"), "folder for the results", check=partial(check_output_folder, file_names=FILES)
    )
    warm_up: int = option(0, "steps before each episode that do not count, in the same task", least=0, below=100_000)
    video: bool = option(False, "film the first agent of each row of the table in each split")
    env_kwargs: dict[str, Any] = option({}, "arguments that replace those that agents were trained with, in JSON")
    algorithm: str | None = option(None, "for archives: what saved them", choices=sorted(ALGORITHMS))
    env: str | None = option(None, "for archives: id of the environment")
    observation: str | None = option(
        None, "for archives: what they see (default: plain)", choices=("plain", "transition", "window")
    )
    window: int | None = option(None, "for archives: length of the window (default: 16)", least=1)
    vecnormalize: Path | None = option(None, "for archives: what VecNormalize.save wrote")
    wrapper: str | None = option(None, "for archives: module:function that wraps an environment as in training")

    def __post_init__(self) -> None:
        if not self.agents:
            raise ValueError("AGENTS must be one or more folders of train_ppo.py or archives of SB3; got none.")
        if all(path.is_dir() for path in self.agents):
            for name in ONLY_FOR_ARCHIVES:
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name} is for archives; got it with folders of runs only. Leave it out.")


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
        wrapper=options.wrapper,
    )


def choose_splits(options: Options, agent: SavedAgent) -> Splits:
    """The splits to evaluate on, and the arguments of the environment in each."""
    env_id = agent.config["env"]
    env_kwargs = agent.config["env_kwargs"] | options.env_kwargs
    check_env(env_id, env_kwargs)
    present = find_splits(env_id, env_kwargs)
    if "split" in options.env_kwargs and "default" not in present:
        raise ValueError(f"--env-kwargs must leave the split to --splits; got {options.env_kwargs['split']!r} there.")
    for split in options.splits:
        if split not in present:
            raise ValueError(
                f"--splits must be among {', '.join(present)} for {env_id}; got {split}. (A split that would "
                "show more than the training did is not among them.)"
            )
    wanted = options.splits or tuple(split for split in present if split != "train")
    splits: Splits = {split: options.env_kwargs | present[split] for split in wanted}
    return with_warm_up(splits, env_id, env_kwargs, options.warm_up) if options.warm_up else splits


def check_switches(agents: Sequence[SavedAgent], splits: Splits) -> None:
    """Rows that are stepped one by one and those of a batch draw other tasks where a switch draws one."""
    env_id, are_single = agents[0].config["env"], {agent.is_stepped_row_by_row for agent in agents}
    for split, chosen in splits.items():
        env_kwargs = {**agents[0].config["env_kwargs"], **chosen}
        if len(are_single) > 1 and env_kwargs.get("switch") and has_batched_form(env_id):
            env = gym.make(env_id, **env_kwargs)
            env.close()
            if env.get_wrapper_attr("family").task_type.switch_draws:
                raise ValueError(
                    f"--splits must leave out {split} of {env_id} where only some agents have a --wrapper, as these "
                    "would meet other tasks after the switch; got both kinds. Evaluate them apart from each other."
                )


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
    rewards, seed = {}, env_seed(options.seed)
    for split, env_kwargs in splits.items():
        env, tasks = agent.make_env(options.num_tasks, **env_kwargs), None
        if agent.is_stepped_row_by_row and split != "default":
            tasks = draw_tasks(agent.config["env"], options.num_tasks, seed, **agent.config["env_kwargs"] | env_kwargs)
        rewards[split] = evaluate(model, env, seed=seed, tasks=tasks)
        env.close()
    return rewards


def env_seed(seed: int) -> int:
    """The seed of the environments: far from the next one, as single environments take the numbers that follow it."""
    return 1_000_000 * (1 + seed)


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


def film_name(label: str, split: str) -> str:
    """The file of a film."""
    return re.sub(r"[^\w.-]+", "-", f"{label}-{split}").strip("-") + ".gif"


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
            save_film(
                options.output / film_name(row.label, split), film(model, env, row.label, seed=env_seed(options.seed))
            )
            env.close()


def compare(agents: Sequence[SavedAgent], models: Sequence[BaseAlgorithm], splits: Splits, options: Options) -> None:
    """Evaluate all agents, and write what came of it into the output folder."""
    # Let all of them act in the same tasks, which the seed draws.
    with tqdm(list(zip(agents, models, strict=True)), desc="evaluating", unit="agent") as pairs:
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


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate every agent on every split."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    # Read what is known of the agents, and refuse what cannot be compared before any of them acts.
    with refusing():
        agents = [read_agent(path, options) for path in options.agents]
        check_comparable(agents, options.env_kwargs)
        splits = choose_splits(options, agents[0])
        check_switches(agents, splits)
        models = [load(agent, splits) for agent in agents]
        if options.video:
            names = [film_name(label, split) for label in group_seeds(agents) for split in splits]
            check_output_folder(options.output, file_names=names)
    with hold_output(options.output):
        compare(agents, models, splits, options)


if __name__ == "__main__":
    main()
