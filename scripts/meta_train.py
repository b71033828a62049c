"""Meta-train a model on the training tasks of an environment, in one process or in several.

    dynamics    a model of the dynamics, which a few steps on the latest transitions adapt to the task
    policy      a policy, which a few policy gradient steps on its own trajectories adapt to the task

The run lies in one folder: config.json, progress.csv (and TensorBoard's files), checkpoints, and at the end model.pt,
which MetaTrainer.load reads, and evaluation.json. The same command again goes on from the last checkpoint. In several
processes, which share the tasks of every update:

    torchrun --nproc-per-node 2 scripts/meta_train.py --updates 1000
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import contextlib
import datetime
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.agents.meta_learning.distributed import rank, world_size
from ssm_metarl_gym.experiments import runs
from ssm_metarl_gym.experiments.checks import check_device, check_env, check_output_folder, explaining
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.evaluation import held_out_splits
from ssm_metarl_gym.experiments.logs import make_logger
from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json

OBJECTIVES = {"dynamics": "loss", "policy": "return"}  # and what is evaluated
PACKAGES = ("ssm-metarl-gym", "gymnasium", "numpy", "stable-baselines3", "torch")
# What another run of the same command may change: where it runs, and how often it saves and logs.
FREE_OPTIONS = ("checkpoint_interval", "device", "eval_interval", "log_interval", "output")
# What every config.json of this script has.
CONFIG_KEY = "objective"
FILES = ("config.json", "evaluation.json", "model.pt", "progress.csv")
# The same for all runs, so that these meet the same tasks.
EVALUATION_SEED = 0


def check_first_output(folder: Path, flag: str) -> None:
    """Process 0 can write into its folder; that of the others may be on another machine."""
    if os.environ.get("RANK", "0") == "0":
        check_output_folder(folder, flag, FILES)


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = option(
        "ssm_metarl/CartPolePolarity-v0", "id of the environment; module:id imports the module that registers it"
    )
    env_kwargs: dict[str, Any] = option({}, "its arguments, in JSON")
    objective: str = option("dynamics", "what is meta-trained", choices=tuple(OBJECTIVES))
    updates: int = option(1000, "updates of the initial weights", least=1)
    seed: int = option(0, "seeds everything: one seed gives one result", least=0, below=2**31)
    options: dict[str, Any] = option({}, "fields of DynamicsOptions or PolicyOptions, in JSON")
    output: Path = option(Path("output/meta_train"), "folder of the run", check=check_first_output)
    checkpoint_interval: int = option(100, "updates between checkpoints", least=1)
    log_interval: int = option(10, "updates of which a row of the log is the mean", least=1)
    eval_interval: int = option(0, "updates between evaluations for the log; 0 for none", least=0)
    num_eval_tasks: int = option(100, "held-out tasks of an evaluation", least=1)
    device: str = option("cpu", "PyTorch's name of the device; cuda is one for each process")


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


@contextlib.contextmanager
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


def broadcast_from_first(value: Any) -> Any:
    """What process 0 has, in every process."""
    values = [value]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def read_start(options: Options) -> tuple[bytes, runs.Stopwatch] | None:
    """The last checkpoint, empty where there is none, and a watch that goes on; None where the run is finished."""
    runs.check_output(options.output, fixed_options(options), CONFIG_KEY)
    present = runs.read_config(options.output, CONFIG_KEY)
    if present is not None and present.get("finished"):
        return None
    checkpoint = runs.find_whole_checkpoint(options.output / "checkpoints")
    if checkpoint is None:
        runs.write_config(options.output, make_config(options))
        return b"", runs.Stopwatch()
    with explaining(f"{checkpoint} must be whole; to go on from the checkpoint before it, delete that folder"):
        seconds = json.loads((checkpoint / "seconds.json").read_text())
        return (checkpoint / "trainer.pt").read_bytes(), runs.Stopwatch(**seconds)


def load_trainer(saved: bytes, options: Options) -> MetaTrainer:
    """The trainer as a checkpoint holds it, or an untrained one."""
    if not saved:
        return make_trainer(options)
    with explaining(
        f"the last checkpoint in {options.output / 'checkpoints'} cannot be loaded; to go on from the one before it, "
        "delete its folder"
    ):
        return MetaTrainer.load(io.BytesIO(saved), device=options.device)


def run(options: Options) -> None:
    """Train from the beginning or from the last checkpoint; process 0 writes what comes of it."""
    with contextlib.ExitStack() as stack:
        # Process 0 alone holds the folder and reads it; all begin with the same bytes.
        start = None
        with refusing():
            if rank() == 0:
                options.output.mkdir(parents=True, exist_ok=True)
                stack.enter_context(runs.lock_run(options.output))
                start = read_start(options)
        saved = broadcast_from_first(start and start[0])
        if saved is None:
            if rank() == 0:
                print(f"the run in {options.output} is finished: {options.updates} updates")
            return
        with refusing():
            trainer = load_trainer(saved, options)
            logger = make_log(trainer, options) if rank() == 0 else None
        # Each process learns from its share of the tasks.
        if start is None or logger is None:
            trainer.learn(options.updates - trainer.num_updates)
        else:
            train_with_log(trainer, logger, start[1], options)
            write_results(trainer, start[1], options)
        if world_size() > 1:
            torch.distributed.barrier()


def make_log(trainer: MetaTrainer, options: Options) -> Logger:
    """The log, as it was when the trainer was saved."""
    return make_logger(options.output, "time/updates", trainer.num_updates, stdout=not sys.stderr.isatty())


def train_with_log(trainer: MetaTrainer, logger: Logger, stopwatch: runs.Stopwatch, options: Options) -> None:
    """Train, log and save checkpoints."""
    if trainer.num_updates:
        print(f"goes on from {trainer.num_updates} of {options.updates} updates", flush=True)

    def write_checkpoint(checkpoint: Path) -> None:
        trainer.save(checkpoint / "trainer.pt")
        (checkpoint / "seconds.json").write_text(json.dumps(stopwatch.read()))

    def save_when_due(_: MetaTrainer, loss: float) -> None:
        if trainer.num_updates % options.checkpoint_interval == 0 or trainer.num_updates == options.updates:
            runs.save_checkpoint(options.output / "checkpoints", trainer.num_updates, write_checkpoint)

    trainer.set_logger(logger)
    try:
        trainer.learn(
            options.updates - trainer.num_updates,
            save_when_due,
            progress_bar=sys.stderr.isatty(),
            log_interval=options.log_interval,
            eval_interval=options.eval_interval or None,
            num_eval_tasks=options.num_eval_tasks,
        )
    finally:
        logger.close()


def write_results(trainer: MetaTrainer, stopwatch: runs.Stopwatch, options: Options) -> None:
    """Save the trainer, and evaluate it."""
    seconds = stopwatch.read()
    trainer.save(options.output / "model.pt")
    evaluation = evaluate(trainer, options)
    write_json(options.output / "evaluation.json", evaluation)
    # Last, because it is what says that the run is finished.
    config = runs.read_config(options.output, CONFIG_KEY) or make_config(options)
    runs.write_config(options.output, config | {"finished": True, **seconds})
    print(format_table(evaluation))
    print("{wall_seconds:.1f} s; MetaTrainer.load reads {path}".format(path=options.output / "model.pt", **seconds))


def evaluate(trainer: MetaTrainer, options: Options) -> dict[str, Any]:
    """The loss or the return in held-out tasks before and after so many inner steps: what evaluation.json holds."""
    rows = []
    for split in held_out_splits(options.env, options.env_kwargs):
        results = trainer.evaluate(split, num_tasks=options.num_eval_tasks, seed=EVALUATION_SEED)
        for num_steps, values in results.items():
            mean = estimate([values], seed=EVALUATION_SEED)
            rows.append({"split": split, "num_steps": num_steps, **mean.to_dict(), "values": values.tolist()})
    measure = OBJECTIVES[options.objective]
    return {"measure": measure, "num_tasks": options.num_eval_tasks, "seed": EVALUATION_SEED, "rows": rows}


def format_table(evaluation: dict[str, Any]) -> str:
    """The means and their 95 % intervals, a row for each split."""
    cells: dict[str, list[str]] = {}
    for row in evaluation["rows"]:
        cells.setdefault(row["split"], []).append(f"{Estimate(row['mean'], row['ci_low'], row['ci_high']):.4g}")
    steps = dict.fromkeys(row["num_steps"] for row in evaluation["rows"])
    header = [f"{evaluation['measure']} after", *(f"{n} steps" for n in steps)]
    return format_markdown(header, [[split, *of_split] for split, of_split in cells.items()])


def make_config(options: Options) -> dict[str, Any]:
    """All that there is to know about a run before it begins: what config.json holds."""
    return {**fixed_options(options), "versions": runs.find_versions(PACKAGES)}


def fixed_options(options: Options) -> dict[str, Any]:
    """The options that stay the same in a run."""
    return {name: value for name, value in asdict(options).items() if name not in FREE_OPTIONS}


def check_trainer(options: Options) -> None:
    """Make the trainer once, so that whatever is wrong with it is known before anything is written."""
    check_device(options.device)
    check_env(options.env, options.env_kwargs)
    with explaining(
        f"--objective {options.objective} with --options {json.dumps(options.options)} cannot be made for --env "
        f"{options.env} with --env-kwargs {json.dumps(options.env_kwargs)}"
    ):
        make_trainer(options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__, check=check_trainer)
    is_first = os.environ.get("RANK", "0") == "0"
    hint = partial(runs.how_to_go_on, options.output, "update") if is_first else None
    with stoppable(hint), process_group(options):
        try:
            run(options)
        except RuntimeError:
            if world_size() == 1:
                raise
            traceback.print_exc()
            reason = f"process {rank()} of {world_size()} stopped, most likely because another one died"
            raise SystemExit(f"{reason}; {hint()}" if hint else reason) from None


if __name__ == "__main__":
    main()
