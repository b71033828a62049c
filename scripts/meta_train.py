"""Meta-train a model on the training tasks of an environment, in one process or in several.

    dynamics    a model of the dynamics, which a few steps on the latest transitions adapt to the task
    policy      a policy, which a few policy gradient steps on its own trajectories adapt to the task

The run lies in one folder: config.json, progress.csv (and TensorBoard's files), checkpoints, and at the end model.pt,
which MetaTrainer.load reads, and evaluation.json. The same command again goes on from the last checkpoint. In several
processes, which share the tasks of every update:

    torchrun --nproc-per-node 2 scripts/meta_train.py --updates 1000
"""

import argparse
import datetime
import io
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.agents.meta_learning.distributed import rank, world_size
from ssm_metarl_gym.experiments.command_line import add_arguments
from ssm_metarl_gym.experiments.logs import make_logger
from ssm_metarl_gym.experiments.runs import (
    Stopwatch,
    check_output,
    find_checkpoints,
    find_versions,
    read_config,
    save_checkpoint,
    write_config,
)
from ssm_metarl_gym.experiments.statistics import bootstrap_interval
from ssm_metarl_gym.files import replacing

OBJECTIVES = {"dynamics": "loss", "policy": "return"}  # and what is evaluated
PACKAGES = ("ssm-metarl-gym", "gymnasium", "numpy", "stable-baselines3", "torch")
# What another run of the same command may change: where it runs, and how often it saves and logs.
FREE_OPTIONS = ("checkpoint_interval", "device", "eval_interval", "log_interval", "output")
# What every config.json of this script has.
CONFIG_KEY = "objective"
SPLITS = ("interpolation", "extrapolation")
WRITTEN_FILES = ("config.json", "evaluation.json", "model.pt", "progress.csv")
# The same for all runs, so that these meet the same tasks.
EVALUATION_SEED = 0


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = field(
        default="ssm_metarl/CartPolePolarity-v0",
        metadata={"help": "id of the environment; module:id imports the module that registers it"},
    )
    env_kwargs: dict[str, Any] = field(default_factory=dict, metadata={"help": "its arguments, in JSON"})
    objective: str = field(default="dynamics", metadata={"help": f"one of {', '.join(OBJECTIVES)}"})
    updates: int = field(default=1000, metadata={"help": "updates of the initial weights"})
    seed: int = field(default=0, metadata={"help": "seeds everything: one seed gives one result"})
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "fields of DynamicsOptions or PolicyOptions, in JSON"}
    )
    output: Path = field(default=Path("output/meta_train"), metadata={"help": "folder of the run"})
    checkpoint_interval: int = field(default=100, metadata={"help": "updates between checkpoints"})
    log_interval: int = field(default=10, metadata={"help": "updates of which a row of the log is the mean"})
    eval_interval: int = field(default=0, metadata={"help": "updates between evaluations for the log; 0 for none"})
    num_eval_tasks: int = field(default=100, metadata={"help": "held-out tasks of an evaluation"})
    device: str = field(default="cpu", metadata={"help": "PyTorch's name of the device; cuda is one for each process"})


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as torchrun does when another one has died."""


def make_trainer(options: Options) -> MetaTrainer:
    """The untrained trainer."""
    return MetaTrainer(
        options.env,
        objective=options.objective,
        env_kwargs=options.env_kwargs,
        seed=options.seed,
        device=options.device,
        **options.options,
    )


@contextmanager
def process_group(options: Options) -> Iterator[None]:
    """Join the processes that torchrun started, where it did."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait while process 0 evaluates, longer than the minutes that are the default.
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(hours=6))
    yield
    # Not after an error: it would wait for those that died.
    torch.distributed.destroy_process_group()


def share(value: Any) -> Any:
    """What process 0 has, in every process."""
    values = [value]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def begin(options: Options) -> bytes | None:
    """What the last checkpoint holds, nothing where there is none, None where the run is finished."""
    present = read_config(options.output, CONFIG_KEY)
    if present is not None and present.get("finished"):
        return None
    for name in map(Path, WRITTEN_FILES):
        for leftover in options.output.glob(f".{name.stem}.*{name.suffix}"):  # of a session that was killed meanwhile
            leftover.unlink()
    checkpoints = find_checkpoints(options.output / "checkpoints")
    if checkpoints:
        return (checkpoints[-1] / "trainer.pt").read_bytes()
    write_config(options.output, make_config(options))
    return b""


def load_trainer(saved: bytes, options: Options) -> MetaTrainer:
    """The trainer as a checkpoint holds it."""
    try:
        return MetaTrainer.load(io.BytesIO(saved), device=options.device)
    except ValueError as error:
        folder = options.output / "checkpoints"
        raise SystemExit(
            f"the last checkpoint in {folder} cannot be loaded: {error} If the file system damaged it, delete its "
            "folder to go on from the checkpoint before it."
        ) from error


def train(options: Options) -> None:
    """Train from the beginning or from the last checkpoint; process 0 writes what comes of it."""
    saved = share(begin(options) if rank() == 0 else None)
    if saved is None:
        if rank() == 0:
            print(f"the run in {options.output} is finished: {options.updates} updates")
        return
    try:
        trainer = load_trainer(saved, options) if saved else make_trainer(options)
    except ValueError as error:  # what the number of processes makes impossible
        raise SystemExit(str(error)) from error
    if rank() > 0:
        trainer.learn(options.updates - trainer.num_updates)
    else:
        lead(trainer, options)
    if world_size() > 1:
        torch.distributed.barrier()


def lead(trainer: MetaTrainer, options: Options) -> None:
    """What process 0 does: train, log, save and evaluate."""
    folder, stopwatch = options.output / "checkpoints", read_stopwatch(options)
    if trainer.num_updates:
        print(f"goes on from {trainer.num_updates} of {options.updates} updates", flush=True)

    def write(checkpoint: Path) -> None:
        trainer.save(checkpoint / "trainer.pt")
        (checkpoint / "seconds.json").write_text(json.dumps(stopwatch.read()))

    def keep(_: MetaTrainer, loss: float) -> None:
        if trainer.num_updates % options.checkpoint_interval == 0 or trainer.num_updates == options.updates:
            save_checkpoint(folder, trainer.num_updates, write)

    show_bar = sys.stderr.isatty()
    logger = make_logger(options.output, "time/updates", trainer.num_updates, stdout=not show_bar)
    trainer.set_logger(logger)
    try:
        trainer.learn(
            options.updates - trainer.num_updates,
            keep,
            show_bar,
            log_interval=options.log_interval,
            eval_interval=options.eval_interval or None,
            num_eval_tasks=options.num_eval_tasks,
        )
    finally:
        logger.close()
    seconds = stopwatch.read()
    trainer.save(options.output / "model.pt")
    evaluation = evaluate(trainer, options)
    with replacing(options.output / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(evaluation, indent=2) + "\n")
    # Last, because it is what says that the run is finished.
    config = read_config(options.output, CONFIG_KEY) or make_config(options)
    write_config(options.output, config | {"finished": True, **seconds})
    print(format_table(evaluation))
    print("{wall_seconds:.1f} s; MetaTrainer.load reads {path}".format(path=options.output / "model.pt", **seconds))


def read_stopwatch(options: Options) -> Stopwatch:
    """A watch that goes on from the seconds of the last checkpoint."""
    checkpoints = find_checkpoints(options.output / "checkpoints")
    return Stopwatch(**json.loads((checkpoints[-1] / "seconds.json").read_text())) if checkpoints else Stopwatch()


def evaluate(trainer: MetaTrainer, options: Options) -> dict[str, Any]:
    """The loss or the return in held-out tasks before and after so many inner steps: what evaluation.json holds."""
    rows = []
    for split in SPLITS:
        results = trainer.evaluate(split, num_tasks=options.num_eval_tasks, seed=EVALUATION_SEED)
        for num_steps, values in results.items():
            low, high = bootstrap_interval(values, seed=EVALUATION_SEED)
            numbers = {"mean": float(np.mean(values)), "ci_low": low, "ci_high": high}
            rows.append({"split": split, "num_steps": num_steps} | {k: in_json(v) for k, v in numbers.items()})
            rows[-1]["values"] = [in_json(value) for value in values.tolist()]
    measure = OBJECTIVES[options.objective]
    return {"measure": measure, "num_tasks": options.num_eval_tasks, "seed": EVALUATION_SEED, "rows": rows}


def in_json(value: float) -> float | None:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else None


def format_table(evaluation: dict[str, Any]) -> str:
    """The means and their 95 % intervals, a row for each split."""
    steps = list(dict.fromkeys(row["num_steps"] for row in evaluation["rows"]))
    cells = {}
    for row in evaluation["rows"]:
        numbers = [math.nan if row[key] is None else row[key] for key in ("mean", "ci_low", "ci_high")]
        cells[row["split"], row["num_steps"]] = "{:.4g} [{:.4g}, {:.4g}]".format(*numbers)
    lines = [[f"{evaluation['measure']} after", *(f"{n} steps" for n in steps)], ["---"] * (1 + len(steps))]
    lines += [[split, *(cells[split, n] for n in steps)] for split in SPLITS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_config(options: Options) -> dict[str, Any]:
    """All that there is to know about a run before it begins: what config.json holds."""
    return {**fixed_options(options), "versions": find_versions(PACKAGES)}


def fixed_options(options: Options) -> dict[str, Any]:
    """The options that stay the same in a run."""
    return {name: value for name, value in asdict(options).items() if name not in FREE_OPTIONS}


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, Options, {"objective": list(OBJECTIVES)})
    options = Options(**vars(parser.parse_args(arguments)))
    if not 0 <= options.seed < 2**31:
        parser.error(f"--seed must be >= 0 and less than 2^31; got {options.seed}.")
    least = {"updates": 1, "checkpoint_interval": 1, "log_interval": 1, "eval_interval": 0, "num_eval_tasks": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            parser.error(f"--{name.replace('_', '-')} must be >= {value}; got {getattr(options, name)}.")
    try:
        check_trainer(options)
        if os.environ.get("RANK", "0") == "0":  # the folder is that of process 0 alone
            check_output(options.output, fixed_options(options), CONFIG_KEY)
    except ValueError as error:
        parser.error(str(error))
    return options


def check_trainer(options: Options) -> None:
    """Make the trainer once, so that whatever is wrong with it is known before anything is written."""
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be a device that PyTorch has; got {options.device!r} ({error}).") from error
    try:
        make_trainer(options)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"--objective {options.objective} with --options {json.dumps(options.options)} cannot be made for --env "
            f"{options.env} with --env-kwargs {json.dumps(options.env_kwargs)}: {error}"
        ) from error


def terminate(*_: object) -> None:
    """What SIGTERM does."""
    raise Terminated


def explain(reason: str, options: Options) -> None:
    """Say why the run ended, and how it goes on."""
    text = f"\n{reason}"
    if rank() == 0:
        reached = [int(path.name) for path in find_checkpoints(options.output / "checkpoints")] or [0]
        text += f"; the same command again goes on from update {reached[-1]}"
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    torch.set_num_threads(1)
    options = parse_options(arguments)
    earlier = signal.signal(signal.SIGTERM, terminate)
    try:
        with process_group(options):
            train(options)
    except KeyboardInterrupt as interruption:
        terminated = isinstance(interruption, Terminated)
        explain("terminated" if terminated else "interrupted", options)
        raise SystemExit(128 + (signal.SIGTERM if terminated else signal.SIGINT)) from None
    except FloatingPointError as error:
        explain(str(error), options)
        raise SystemExit(1) from None
    except RuntimeError:
        if world_size() == 1:
            raise
        traceback.print_exc()
        explain(f"process {rank()} of {world_size()} stopped, most likely because another one died", options)
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, earlier)


if __name__ == "__main__":
    main()
