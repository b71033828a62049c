"""What meta-learning gains over multi-task training with fine-tuning, on held-out tasks, over several seeds.

    meta-learned    meta-trained for a few inner steps, whose step size is used in new tasks too
    multi-task      the same model, trained for as many updates without inner steps; in new tasks it takes the same
                    steps, of the size that is best on training tasks for that number of steps

With --objective policy, meta-training collects inner_steps + 1 times as many trajectories in an update. Give multi-task
training as many tasks more: --multi-task-options '{"meta_batch_size": 40}' where the meta-learner has 20 and one step.

The trained models lie in the output folder; those that are there are not trained again. So several processes may each
train some of the seeds, and the last command prints the table of all of them.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.experiments.checks import check_env, check_output_folder, explaining
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.evaluation import held_out_splits
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json

METHODS = ("multi-task", "meta-learned")
# Step sizes for fine-tuning, as multiples of the meta-learner's.
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
NUM_STEPS = {"dynamics": (0, 1, 3, 5, 10), "policy": (0, 1, 2, 3)}
# Seeds of the held-out tasks, and of the training tasks on which step sizes are chosen.
EVALUATION_SEED, TUNING_SEED = 0, 1

Values: TypeAlias = dict[int, list[float]]  # by number of steps, one for each task


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = option("ssm_metarl/PendulumPolarity-v0", "id of the environment")
    objective: str = option("dynamics", "what is trained", choices=list(NUM_STEPS))
    updates: int = option(1000, "updates of each training", least=1)
    first_seed: int = option(0, "the first seed", least=0)
    seeds: int = option(5, "number of seeds", least=1)
    options: dict[str, Any] = option({}, "fields of DynamicsOptions or PolicyOptions")
    multi_task_options: dict[str, Any] = option({}, "those in which multi-task training differs, beside inner_steps")
    num_tasks: int = option(100, "tasks of each split", least=1, below=10**6)
    output: Path = option(
        Path("output/compare_meta"),
        "folder of models and results.json",
        check=partial(check_output_folder, file_names=["results.json"]),
    )

    def __post_init__(self) -> None:
        """Check what tells the two trainings apart."""
        if "inner_steps" in self.multi_task_options or self.options.get("inner_steps") == 0:
            raise ValueError(
                "--options must have inner steps, and --multi-task-options must leave them out: it has none."
            )


def make_trainer(options: Options, method: str, seed: int) -> MetaTrainer:
    """The untrained trainer of a method and a seed."""
    changes = options.multi_task_options | {"inner_steps": 0} if method == "multi-task" else {}
    return MetaTrainer(options.env, objective=options.objective, seed=seed, **options.options | changes)


def read_trained(options: Options, method: str, seed: int) -> tuple[MetaTrainer, float] | None:
    """The trainer of a method and a seed and the CPU seconds that it took, None where it was not trained before.

    Raises:
        ValueError: Its file is damaged, or of other options.
    """
    path = options.output / f"{method}-{seed}.pt"
    if not path.exists():
        return None
    with explaining(f"{path} cannot be read; delete it, and it is trained again"):
        found = MetaTrainer.load(path)
        seconds = float(json.loads(path.with_suffix(".json").read_text()))
    wanted = make_trainer(options, method, seed)
    if (found.env_id, found.options, found.num_updates) != (wanted.env_id, wanted.options, options.updates):
        raise ValueError(f"--output must be a new folder or one of the same options; {path} is of others.")
    return found, seconds


def trained(options: Options, method: str, seed: int) -> tuple[MetaTrainer, float]:
    """The trainer of a method and a seed, and the CPU seconds that it took; from its file if it was trained before."""
    present = read_trained(options, method, seed)
    if present is not None:
        return present
    path, trainer = options.output / f"{method}-{seed}.pt", make_trainer(options, method, seed)
    started = time.process_time()
    trainer.learn(options.updates)
    seconds = time.process_time() - started
    write_json(path.with_suffix(".json"), seconds)
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
    values: dict[str, dict[str, Values]] = {method: {} for method in METHODS}
    for split in held_out_splits(options.env, {}):
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
    for split in results[0]["values"]["meta-learned"]:
        for method in METHODS:
            by_steps = {}
            for steps in num_steps:
                values = [result["values"][method][split][steps] for result in results]
                by_steps[steps] = estimate(values, seed=0)
            seconds = float(np.mean([result["cpu_seconds"][method] for result in results]))
            rows.append({"split": split, "method": method, "after": by_steps, "cpu_seconds": seconds})
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    header = ["split", "method", *(f"{steps} steps" for steps in rows[0]["after"]), "CPU seconds"]
    lines = []
    for row in rows:
        cells = [f"{mean:.3g}" for mean in row["after"].values()]
        lines.append([row["split"], row["method"], *cells, f"{row['cpu_seconds']:.0f}"])
    return format_markdown(header, lines)


def check_trainers(options: Options) -> None:
    """Make or read all trainers, so that whatever is wrong with one is known before hours of training."""
    check_env(options.env, {})
    if not held_out_splits(options.env, {}):
        raise ValueError(
            f"--env must have a split of new tasks, interpolation or extrapolation; {options.env} has none."
        )
    for method in METHODS:
        with explaining(f"--options {json.dumps(options.options)} are not valid for {method}"):
            make_trainer(options, method, options.first_seed)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            read_trained(options, method, seed)


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not trained yet, and compare."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__, check=check_trainers)
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        results.append(compare(options, seed))
        rates = ", ".join(f"{rate:.3g} ({steps})" for steps, rate in results[-1]["rates"].items() if steps)
        print(f"seed {seed}: step sizes of fine-tuning, by number of steps: {rates}", flush=True)
    rows = summarise(results, NUM_STEPS[options.objective])
    what = "return" if options.objective == "policy" else "prediction error, in variances of the change"
    print(f"\n{what}, {options.num_tasks} tasks of each split, {options.seeds} seeds\n\n{format_table(rows)}")
    write_json(options.output / "results.json", {"rows": rows, "seeds": results})


if __name__ == "__main__":
    main()
