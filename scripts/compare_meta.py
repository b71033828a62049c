"""What meta-learning gains over multi-task training with fine-tuning, on held-out tasks, over several seeds.

    meta-learned    meta-trained for a few inner steps, whose step size is used in new tasks too
    multi-task      the same model, trained for as many updates without inner steps; in new tasks it takes the same
                    steps, of the size that is best on training tasks for that number of steps

With --objective policy, meta-training collects inner_steps + 1 times as many trajectories in an update. Give multi-task
training as many tasks more: --multi-task-options '{"meta_batch_size": 40}' where the meta-learner has 20 and one step.

The trained models lie in the output folder; those that are there are not trained again. So several processes may each
train some of the seeds, and the last command prints the table of all of them.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.experiments.command_line import add_arguments
from ssm_metarl_gym.experiments.statistics import interval_over_seeds
from ssm_metarl_gym.files import replacing

SPLITS = ("interpolation", "extrapolation")
# Step sizes for fine-tuning, as multiples of the meta-learner's.
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NUM_STEPS = {"dynamics": (0, 1, 3, 5, 10), "policy": (0, 1, 2, 3)}
# Seeds of the held-out tasks, and of the training tasks on which step sizes are chosen.
EVALUATION_SEED, TUNING_SEED = 0, 1

Values: TypeAlias = dict[int, list[float]]  # by number of steps, one for each task


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = field(default="ssm_metarl/PendulumPolarity-v0", metadata={"help": "id of the environment"})
    objective: str = field(default="dynamics", metadata={"help": "what is trained"})
    updates: int = field(default=1000, metadata={"help": "updates of each training"})
    first_seed: int = field(default=0, metadata={"help": "the first seed"})
    seeds: int = field(default=5, metadata={"help": "number of seeds"})
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of DynamicsOptions or PolicyOptions, in JSON"}
    )
    multi_task_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "those in which multi-task training differs, beside inner_steps"}
    )
    num_tasks: int = field(default=100, metadata={"help": "tasks of each split"})
    output: Path = field(default=Path("output/compare_meta"), metadata={"help": "folder of models and results.json"})


def trained(options: Options, method: str, seed: int) -> tuple[MetaTrainer, float]:
    """The trainer of a method and a seed, and the CPU seconds that it took; from its file if it was trained before."""
    path = options.output / f"{method}-{seed}.pt"
    changes = options.multi_task_options | {"inner_steps": 0} if method == "multi-task" else {}
    trainer = MetaTrainer(options.env, objective=options.objective, seed=seed, **options.options | changes)
    if path.exists():
        found = MetaTrainer.load(path)
        if (found.env_id, found.options, found.num_updates) != (trainer.env_id, trainer.options, options.updates):
            raise SystemExit(f"--output must be a new folder or one of the same options; {path} is of others.")
        return found, json.loads(path.with_suffix(".json").read_text())
    started = time.process_time()
    trainer.learn(options.updates)
    seconds = time.process_time() - started
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(seconds))
    trainer.save(path)
    return trainer, seconds


def fine_tuned(trainer: MetaTrainer, factor: float, split: str, num_tasks: int, seed: int) -> Values:
    """What the model of a trainer is worth after steps of another size."""
    options = replace(trainer.options, inner_lr=factor * trainer.options.inner_lr)
    tuner = MetaTrainer(
        trainer.env_id, trainer.model, objective=trainer.objective, seed=trainer.seed, **asdict(options)
    )
    return measure(tuner, split, num_tasks, seed)


def measure(trainer: MetaTrainer, split: str, num_tasks: int, seed: int) -> Values:
    """The losses or returns in tasks of a split."""
    values = trainer.evaluate(split, NUM_STEPS[trainer.objective], num_tasks=num_tasks, seed=seed)
    return {steps: value.tolist() for steps, value in values.items()}


def best_factors(trainer: MetaTrainer, num_tasks: int) -> dict[int, float]:
    """For each number of steps the factor that is best on training tasks."""
    sign = 1.0 if trainer.objective == "policy" else -1.0  # returns, or losses
    scores = {factor: fine_tuned(trainer, factor, "train", num_tasks, TUNING_SEED) for factor in FACTORS}
    means = {factor: {k: sign * np.mean(v) for k, v in values.items()} for factor, values in scores.items()}
    # A step size that explodes gives NaN or worse.
    usable = {factor: {k: v if np.isfinite(v) else -np.inf for k, v in row.items()} for factor, row in means.items()}
    return {steps: max(FACTORS, key=lambda factor: usable[factor][steps]) for steps in NUM_STEPS[trainer.objective]}


def compare(options: Options, seed: int) -> dict[str, Any]:
    """All values of one seed."""
    meta_learned, seconds = trained(options, "meta-learned", seed)
    multi_task, multi_task_seconds = trained(options, "multi-task", seed)
    factors = best_factors(multi_task, options.num_tasks)
    values: dict[str, dict[str, Values]] = {"meta-learned": {}, "multi-task": {}}
    for split in SPLITS:
        values["meta-learned"][split] = measure(meta_learned, split, options.num_tasks, EVALUATION_SEED)
        by_factor = {
            factor: fine_tuned(multi_task, factor, split, options.num_tasks, EVALUATION_SEED)
            for factor in set(factors.values())
        }
        values["multi-task"][split] = {steps: by_factor[factor][steps] for steps, factor in factors.items()}
    rates = {steps: factor * multi_task.options.inner_lr for steps, factor in factors.items()}
    return {
        "values": values,
        "rates": rates,
        "cpu_seconds": {"meta-learned": seconds, "multi-task": multi_task_seconds},
    }


def summarise(results: Sequence[Mapping[str, Any]], num_steps: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each split and method."""
    rows = []
    for split in SPLITS:
        for method in ("multi-task", "meta-learned"):
            by_steps = {}
            for steps in num_steps:
                values = [result["values"][method][split][steps] for result in results]
                by_steps[steps] = (float(np.mean(values)), *interval_over_seeds(values, seed=0))
            seconds = float(np.mean([result["cpu_seconds"][method] for result in results]))
            rows.append({"split": split, "method": method, "after": by_steps, "cpu_seconds": seconds})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    num_steps = list(rows[0]["after"])
    lines = [
        f"| split | method | {' | '.join(f'{steps} steps' for steps in num_steps)} | CPU seconds |",
        "| --- " * (len(num_steps) + 3) + "|",
    ]
    for row in rows:
        cells = [f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in row["after"].values()]
        lines.append(f"| {row['split']} | {row['method']} | {' | '.join(cells)} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines)


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, Options, {"objective": list(NUM_STEPS)})
    options = Options(**vars(parser.parse_args(arguments)))
    for name, least in {"updates": 1, "first_seed": 0, "seeds": 1, "num_tasks": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be >= {least}; got {getattr(options, name)}.")
    if "inner_steps" in options.multi_task_options or options.options.get("inner_steps") == 0:
        parser.error("--options must have inner steps, and --multi-task-options must leave them out: it has none.")
    try:
        for changes in ({}, options.multi_task_options):
            MetaTrainer(options.env, objective=options.objective, **options.options | changes)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, and compare."""
    torch.set_num_threads(1)
    options = parse_options(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        results.append(compare(options, seed))
        rates = ", ".join(f"{rate:.3g} ({steps})" for steps, rate in results[-1]["rates"].items() if steps)
        print(f"seed {seed}: step sizes of fine-tuning, by number of steps: {rates}", flush=True)
    rows = summarise(results, NUM_STEPS[options.objective])
    what = "return" if options.objective == "policy" else "prediction error, in variances of the change"
    print(f"\n{what}, {options.num_tasks} tasks of each split, {options.seeds} seeds\n\n{format_table(rows)}")
    with replacing(options.output / "results.json") as temporary:
        temporary.write_text(json.dumps({"rows": rows, "seeds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
