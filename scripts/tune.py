"""Tune PPO in the physics of a family of the scoreboard: hyperparameters by Optuna, on training tasks alone.

    python scripts/tune.py --family PointActuators-2 --agent told --steps 200000 --trials 40

A trial trains an agent with other settings, and its value is the mean return in training tasks of another seed, over
--seeds policies. The first trial is of the present settings. The study is a journal file in the output folder: the same
command goes on with it, and several at once, on any machines that see the folder, share it. A process that is killed
loses the trial that it was at, whose place in the study goes to the next trial.

At the end best.json holds the best settings, as fields of Physics, and a table shows the best trials.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import contextlib
import importlib
import itertools
import json
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.experiments.checks import check_output_folder, explaining
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.report import format_markdown
from ssm_metarl_gym.experiments.runs import lock_run
from ssm_metarl_gym.experiments.scoreboard.agents import TRAINED
from ssm_metarl_gym.experiments.scoreboard.board import Board, learn_policy, load_policy, make_env
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS, Physics, check_physics, physics_of, recipe_of
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.seeding import seed_sequence

if sys.platform != "win32":
    import fcntl

# Agents that learn by themselves, from what their environment shows.
AGENTS = [
    name
    for name, agent in TRAINED.items()
    if not (agent.sees_predictions or agent.teacher is not None or agent.adapts_before)
]
MINIBATCHES = (1, 2, 4, 8, 16, 32)
NUM_EPOCHS = (1, 2, 4, 8, 16)
ROLLOUT_LENGTHS = (16, 32, 64, 128, 256)
POLICY_SEED = 1_000  # of the first policy: none of the scoreboard's, which are to be new to the settings
TASK_SEED = 2_000_000  # of the tasks that trials are measured in, far from those of the scoreboard
SHOWN = 10
JOURNAL = "journal.log"


@dataclass(frozen=True)
class Options:
    """The command line."""

    family: str = option("PointActuators-2", "of the scoreboard, or module:physics of your own")
    agent: str = option("told", "what is tuned", choices=AGENTS)
    steps: int = option(200_000, "steps of training on the tasks", least=1, below=10**9)
    trials: int = option(40, "trials of the study, those of all processes", least=1, below=100_000)
    seeds: int = option(2, "policies of a trial", least=1, below=1_000)
    num_tasks: int = option(100, "training tasks that each is measured in", least=1, below=100_000)
    seed: int = option(0, "seeds what is tried, and the policies", least=0, below=1_000)
    output: Path = option(
        Path("output/tune"), "folder", check=partial(check_output_folder, file_names=[JOURNAL, "best.json"])
    )

    @property
    def study(self) -> str:
        """The name of the study: that of other options, or of a family that has changed, is another one."""
        names = ("family", "agent", "steps", "seeds", "num_tasks", "seed")
        values = {name: getattr(self, name) for name in names}
        present = present_settings(physics_of(self.family))
        return json.dumps({**values, "seed": self.policy_seed, "present": present, "recipe": recipe_of(self.family)})

    @property
    def policy_seed(self) -> int:
        """The seed of the first policy of a trial."""
        return POLICY_SEED + self.seed


def load_optuna() -> Any:
    """The package.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise ValueError(
            'tune.py needs optuna, which is not installed. Install it: python -m pip install -e ".[tune]"'
        ) from error


def check(options: Options) -> None:
    """What is asked for can be done."""
    check_physics(options.family)
    load_optuna()


class FileLock:
    """A lock that the system lets go of when its process is killed.

    (Optuna's own ones are files, for which all others would wait half a minute then.) Where the file system knows no
    locks, nothing is held.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Wait for it; whether it is held then."""
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Let go of it."""
        if self._file is not None:
            self._file.close()
            self._file = None


def make_lock(path: Path) -> Any:
    """What one process at a time holds between its ``acquire()`` and its ``release()``."""
    if sys.platform == "win32":
        return load_optuna().storages.journal.JournalFileOpenLock(str(path))
    return FileLock(f"{path}.lock")


class JournalLock:
    """The lock of a journal: whoever gets it cuts off the half line that a process left which was killed in it.

    (What is written behind one makes a journal that cannot be read.)
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, make_lock(path)

    def acquire(self) -> bool:
        """Wait for it; whether it is held then."""
        is_held = bool(self._lock.acquire())
        if is_held and self._path.exists():
            with self._path.open("rb+") as file:
                cut_half_line(file)
        return is_held

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()


def cut_half_line(file: IO[bytes]) -> None:
    """Shorten a file to its whole lines."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def open_study(options: Options) -> Any:
    """The study, made where it is not there yet.

    Raises:
        ValueError: The journal is damaged.
    """
    optuna = load_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = options.output / JOURNAL
    with explaining(f"the journal {path} cannot be read, so that it must be deleted or mended"):
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=JournalLock(path))
        storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(storage=storage, study_name=options.study, direction="maximize", load_if_exists=True)


def present_settings(physics: Physics) -> dict[str, Any]:
    """The settings of a family, by the names of what is tuned."""
    names = ("learning_rate", "num_epochs", "ent_coef", "gae_lambda", "log_std_init", "rollout_length")
    minibatches = max(1, physics.rollout_length * physics.num_envs // physics.minibatch(remembers=False))
    return {**{name: getattr(physics, name) for name in names}, "minibatches": minibatches}


def suggest_settings(trial: Any, present: dict[str, Any]) -> dict[str, Any]:
    """What a trial tries, in ranges that hold the present settings, too."""

    def suggest_float(name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(trial.suggest_float(name, min(low, present[name]), max(high, present[name]), log=log))

    def suggest_choice(name: str, choices: Sequence[int]) -> int:
        return int(trial.suggest_categorical(name, sorted({*choices, present[name]})))

    return {
        "learning_rate": suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "num_epochs": suggest_choice("num_epochs", NUM_EPOCHS),
        "ent_coef": suggest_float("ent_coef", 0.0, 0.02),
        "gae_lambda": suggest_float("gae_lambda", 0.8, 1.0),
        "log_std_init": suggest_float("log_std_init", -2.0, 0.5),
        "rollout_length": suggest_choice("rollout_length", ROLLOUT_LENGTHS),
        "minibatches": suggest_choice("minibatches", MINIBATCHES),
    }


def to_fields(settings: dict[str, Any], physics: Physics) -> dict[str, Any]:
    """Settings as fields of ``Physics``."""
    fields, present = dict(settings), present_settings(physics)
    minibatches, steps = fields.pop("minibatches"), fields["rollout_length"] * physics.num_envs
    if all(settings[name] == present[name] for name in ("rollout_length", "minibatches")):
        batch_size = physics.minibatch(remembers=False)  # which need not divide the steps, nor be fewer
    else:
        batch_size = max(2, steps // minibatches)  # as PPO scales the advantages in each
    return fields | {"batch_size": batch_size}


def measure(settings: dict[str, Any], options: Options) -> list[float]:
    """The mean return in training tasks of each of the policies that learn with some settings.

    Raises:
        FloatingPointError: The training diverged.
    """
    name, physics = "what is tuned", physics_of(options.family)
    PHYSICS[name] = replace(physics, **to_fields(settings, physics))
    try:
        means = [measure_policy(name, options, options.policy_seed + i) for i in range(options.seeds)]
    except ValueError as error:  # as PyTorch says that parameters of a distribution are no numbers
        if "Expected parameter" not in str(error):
            raise
        raise FloatingPointError("the training diverged") from error
    finally:
        del PHYSICS[name]
    if not np.isfinite(means).all():
        raise FloatingPointError("the training diverged")
    return means


def measure_policy(name: str, options: Options, seed: int) -> float:
    """The mean return in training tasks of a policy that learns in some physics."""
    with tempfile.TemporaryDirectory() as folder:
        board = Board(Path(folder), options.num_tasks)
        learn_policy(board, name, options.agent, seed, options.steps)
        rows: Any = make_env(board, name, options.agent, seed, options.num_tasks, split="train")
        with contextlib.closing(rows):
            policy, env = load_policy(board, name, options.agent, seed, options.steps, rows)
            return float(np.mean(returns_of(evaluate(policy, env, seed=TASK_SEED + 1_000 * seed))))


@contextlib.contextmanager
def working(options: Options) -> Iterator[str]:
    """The name of this process among those that share the study, which holds a lock as long as it lives."""
    folder = options.output / "workers" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        with lock_run(folder):
            yield folder.name
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def is_at_work(worker: str, options: Options) -> bool:
    """Whether a process still holds its lock."""
    folder = options.output / "workers" / worker
    if not worker or not folder.is_dir():
        return False
    try:
        with lock_run(folder):
            return False
    except ValueError:
        return True


def begin_trial(study: Any, options: Options, own: str) -> Any:
    """A new trial of this process, or None where there are as many as were asked for, done or at work.

    Those of processes that are gone are given up first, where the file system knows locks. What is tried depends on the
    place of a trial among all that are not given up: the first is of the present settings, and the place of one that is
    given up is the next one's, so that a study which was interrupted tries the same as one that was not.
    """
    state, lock = load_optuna().trial.TrialState, make_lock(options.output / "trials")
    lock.acquire()  # so that a trial which is at work and names no process is of one that is gone, too
    try:
        trials = study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == state.RUNNING]
        lost = [trial for trial in running if not is_at_work(trial.user_attrs.get("worker", ""), options)]
        if is_at_work(own, options):
            for trial in lost:
                study.tell(trial.number, state=state.FAIL)
        num_done = sum(trial.state in (state.COMPLETE, state.PRUNED) for trial in trials)
        if num_done + len(running) - len(lost) >= options.trials:
            return None
        kept = study.get_trials(deepcopy=False, states=(state.RUNNING, state.COMPLETE, state.PRUNED))
        taken = {trial.user_attrs.get("place") for trial in kept}
        place = next(place for place in itertools.count() if place not in taken)
        # What waits already is of a process that was killed here.
        if place == 0 and not study.get_trials(deepcopy=False, states=(state.WAITING,)):
            study.enqueue_trial(present_settings(physics_of(options.family)))
        trial = study.ask()
        trial.set_user_attr("place", place)
        trial.set_user_attr("worker", own)
        return trial
    finally:
        lock.release()


def run_trial(study: Any, trial: Any, options: Options) -> None:
    """Try other settings."""
    optuna = load_optuna()
    state = optuna.trial.TrialState
    seed = int(seed_sequence(options.seed, "tuning", trial.user_attrs["place"]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False)
    settings = suggest_settings(trial, present_settings(physics_of(options.family)))
    try:
        means = measure(settings, options)
    except FloatingPointError:
        study.tell(trial, state=state.PRUNED)
        print(f"trial {trial.number}: diverged", flush=True)
    except BaseException:  # an interrupt, too
        study.tell(trial, state=state.FAIL)
        raise
    else:
        trial.set_user_attr("means", means)
        study.tell(trial, float(np.mean(means)))
        print(f"trial {trial.number}: {np.mean(means):.5g}", flush=True)


def write_best(study: Any, options: Options) -> None:
    """Write best.json, and print the best trials and that of the present settings."""
    state, physics = load_optuna().trial.TrialState, physics_of(options.family)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state == state.COMPLETE]
    if not trials:
        print("no trial has ended with a return")
        return
    best = sorted(trials, key=lambda trial: (-trial.value, trial.number))
    present = [trial for trial in trials if trial.params == present_settings(physics)][:1]
    shown = [*best[:SHOWN], *(trial for trial in present if trial not in best[:SHOWN])]
    rows = []
    for trial in shown:
        label = f"{trial.number}{' (present settings)' if trial in present else ''}"
        rows.append(
            [label, f"{trial.value:.5g}", *(f"{value:.4g}" for value in to_fields(trial.params, physics).values())]
        )
    print(format_markdown(["trial", "mean return", *to_fields(best[0].params, physics)], rows))
    result = {**json.loads(options.study), "num_trials": len(trials), "value": best[0].value}
    result |= {"means": best[0].user_attrs["means"], "settings": to_fields(best[0].params, physics)}
    write_json(options.output / "best.json", result)
    print(f"\nthe best settings are in {options.output / 'best.json'}")


@stoppable(lambda: "the same command again goes on with the study")
def main(arguments: Sequence[str] | None = None) -> None:
    """Try settings until the study has as many trials as were asked for."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__, check=check)
    options.output.mkdir(parents=True, exist_ok=True)
    with refusing():
        study = open_study(options)
    with working(options) as worker:
        while (trial := begin_trial(study, options, worker)) is not None:
            run_trial(study, trial, options)
    write_best(study, options)


if __name__ == "__main__":
    main()
