import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsObjective
from ssm_metarl_gym.experiments.command_line import parse_options
from ssm_metarl_gym.experiments.runs import find_checkpoints, lock_run
from ssm_metarl_gym.files import write_json

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SIZES = {"window": 4, "meta_batch_size": 8, "num_streams": 20, "stream_length": 16}
TINY = ["--updates", "9", "--num-eval-tasks", "3", "--log-interval", "3", "--options", json.dumps(SIZES)]
FILES = {"checkpoints", "config.json", "evaluation.json", "model.pt", "progress.csv"}


@pytest.fixture(scope="module")
def meta_train(load_script):
    """The script as a module."""
    return load_script("meta_train")


@pytest.fixture
def run(meta_train, tmp_path):
    """A function that trains for a moment, and the folder that it trains in."""

    def start(*arguments, folder="run"):
        meta_train.main([*TINY, "--output", str(tmp_path / folder), *arguments])
        return tmp_path / folder

    return start


def read_log(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def written(folder):
    return {path.name for path in folder.iterdir() if not path.name.startswith("events.")}


def test_help_names_every_option(meta_train, capsys):
    with pytest.raises(SystemExit) as exit_info:
        meta_train.main(["--help"])
    assert exit_info.value.code == 0
    options = {f"--{name.replace('_', '-')}" for name in meta_train.Options.__dataclass_fields__}
    assert set(capsys.readouterr().out.split()) >= options


def test_every_option_arrives(meta_train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_options(meta_train.Options, [], description="") == meta_train.Options()
    expected = meta_train.Options(
        env="ssm_metarl/Pendulum-v0",
        env_kwargs={"context": "visible"},
        objective="policy",
        updates=5,
        seed=3,
        options={"inner_lr": 0.5},
        output=tmp_path / "a" / "b",
        checkpoint_interval=7,
        log_interval=2,
        eval_interval=4,
        num_eval_tasks=6,
        device="cpu",
    )
    arguments = []
    for name, value in vars(expected).items():
        arguments += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    assert parse_options(meta_train.Options, arguments, description="") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed must be >= 0 and less than 2147483648; got -1."),
        (["--updates", "0"], "--updates must be >= 1; got 0."),
        (["--eval-interval", "-1"], "--eval-interval must be >= 0; got -1."),
        (["--objective", "value"], "--objective must be one of ['dynamics', 'policy']; got 'value'."),
        (["--env-kwargs", "{"], "--env-kwargs must be an object in JSON"),
        (["--env", "ssm_metarl/CartPoleX-v0"], "--env ssm_metarl/CartPoleX-v0 with --env-kwargs {} cannot be made"),
        (["--env", "no_such_module:CartPole-v1"], "No module named 'no_such_module'"),
        (["--env", "CartPole-v1"], "unexpected keyword argument 'split'"),
        (["--env-kwargs", '{"split": "extrapolation"}'], "env_kwargs must not hold 'split'"),
        (["--options", '{"inner_rate": 1}'], "got 'inner_rate'. Did you mean 'inner_lr'?"),
        (["--options", '{"window": 0}'], "window must be an int >= 1; got 0"),
        (["--device", "abacus"], "--device must be a device that PyTorch can compute on; got 'abacus'"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(meta_train, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        meta_train.main(["--output", str(tmp_path / "output"), *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("objective", ["dynamics", pytest.param("policy", marks=pytest.mark.slow)])
def test_a_run_leaves_all_that_it_promises(run, objective, capsys):
    policy = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4, "num_epochs": 1}
    sizes = policy if objective == "policy" else SIZES
    arguments = ["--objective", objective, "--checkpoint-interval", "4", "--eval-interval", "6", "--seed", "5"]
    env = ["--env", "ssm_metarl/PendulumPolarity-v0", "--env-kwargs", '{"max_episode_steps": 5}']
    folder = run(*arguments, *env, "--options", json.dumps(sizes))
    assert written(folder) == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"]
    assert (config["objective"], config["seed"], config["options"]) == (objective, 5, sizes)
    assert config["wall_seconds"] > 0
    assert config["versions"]["torch"] == torch.__version__
    log = read_log(folder)
    assert [row["time/updates"] for row in log] == ["3", "6", "9"]
    assert [bool(row["eval/interpolation_after_3_steps"]) for row in log] == [False, True, False]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["0000000008", "0000000009"]

    trainer = MetaTrainer.load(folder / "model.pt")
    assert (trainer.num_updates, trainer.objective, trainer.seed) == (9, objective, 5)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["measure"] == {"dynamics": "loss", "policy": "return"}[objective]
    rows = {(row["split"], row["num_steps"]): row for row in evaluation["rows"]}
    for split in ("interpolation", "extrapolation"):
        for num_steps, values in trainer.evaluate(split, num_tasks=3, seed=0).items():
            row = rows.pop((split, num_steps))
            assert row["values"] == values.tolist()
            assert row["mean"] == pytest.approx(values.mean())
            assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    assert not rows
    out = capsys.readouterr().out
    assert "| extrapolation |" in out
    assert "updates_per_second" in out


def test_numbers_that_are_none_are_null_in_json(meta_train, tmp_path):
    class Diverging:
        def evaluate(self, split, **kwargs):
            return {0: np.array([1.0, 3.0]), 3: np.array([1.0, np.nan])}

    with np.errstate(invalid="ignore"):
        evaluation = meta_train.evaluate(Diverging(), meta_train.Options(num_eval_tasks=2))
    write_json(tmp_path / "evaluation.json", evaluation)
    saved = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert [row["mean"] for row in saved["rows"]] == [2.0, None, 2.0, None]
    assert saved["rows"][1]["values"] == [1.0, None]
    first, _, interpolation, _ = meta_train.format_table(evaluation).splitlines()
    assert first == "| loss after | 0 steps | 3 steps |"
    assert interpolation.startswith("| interpolation | 2 [")
    assert interpolation.endswith("| nan [nan, nan] |")


@pytest.mark.slow
def test_one_seed_gives_one_result(run):
    first, again, other = (
        weights(run("--seed", seed, "--updates", "2", folder=name))
        for seed, name in (("0", "a"), ("0", "b"), ("1", "c"))
    )
    assert same(first, again)
    assert not same(first, other)


class TestResume:
    @pytest.fixture
    def interrupted(self, run, monkeypatch, capsys):
        """The folder of a run that was interrupted in its update 6, after the checkpoint at 4."""
        with monkeypatch.context() as context:
            update = DynamicsObjective.update

            def interrupt(self, number):
                if number == 5:
                    raise KeyboardInterrupt
                return update(self, number)

            context.setattr(DynamicsObjective, "update", interrupt)
            with pytest.raises(SystemExit) as exit_info:
                run("--checkpoint-interval", "2")
        assert exit_info.value.code == 130
        assert "interrupted; the same command again goes on from update 4" in capsys.readouterr().err

    def test_the_weights_are_those_of_a_run_that_was_not_interrupted(self, interrupted, run, capsys):
        folder, control = run("--checkpoint-interval", "5"), run(folder="control")
        assert "goes on from 4 of 9 updates" in capsys.readouterr().out
        assert same(weights(folder), weights(control))
        # So is the log, also the row that is a mean over updates before and after the checkpoint.
        log, expected = (
            [{**row, "time/updates_per_second": None} for row in read_log(each)] for each in (folder, control)
        )
        assert log == expected
        assert [row["time/updates"] for row in log] == ["3", "6", "9"]
        assert (folder / "evaluation.json").read_text() == (control / "evaluation.json").read_text()

    @pytest.mark.slow
    def test_seconds_add_up(self, interrupted, run, tmp_path):
        path = tmp_path / "run" / "checkpoints" / "0000000004" / "seconds.json"
        (path.parent / "checksums.json").unlink()
        path.write_text(json.dumps({"wall_seconds": 1000.0, "cpu_seconds": 500.0}))
        config = json.loads((run() / "config.json").read_text())
        assert 1000 < config["wall_seconds"] < 1100
        assert 500 < config["cpu_seconds"] < 600

    @pytest.mark.slow
    def test_a_checkpoint_of_something_else_is_named(self, interrupted, run, tmp_path, capsys):
        checkpoint = tmp_path / "run" / "checkpoints" / "0000000004"
        (checkpoint / "checksums.json").unlink()  # as earlier versions wrote none
        torch.save({"format": 2}, checkpoint / "trainer.pt")
        with pytest.raises(SystemExit) as exit_info:
            run()
        assert exit_info.value.code == 2
        assert "cannot be loaded; to go on from the one before it, delete its folder" in capsys.readouterr().err

    def test_a_second_run_in_the_same_folder_is_refused(self, run, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        with lock_run(tmp_path / "run"), pytest.raises(SystemExit) as exit_info:
            run()
        assert exit_info.value.code == 2
        assert f"run is in use by process {os.getpid()}" in capsys.readouterr().err

    def test_other_options_are_refused(self, interrupted, run, capsys):
        with pytest.raises(SystemExit) as exit_info:
            run("--seed", "2")
        assert exit_info.value.code == 2
        assert "--seed (0 there, 2 now). Give another --output." in capsys.readouterr().err

    def test_a_finished_run_is_left_as_it_is(self, meta_train, run, tmp_path, capsys):
        options = parse_options(meta_train.Options, TINY, description="")
        (folder := tmp_path / "run").mkdir()
        (folder / "config.json").write_text(json.dumps(meta_train.make_config(options) | {"finished": True}))
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        run()
        assert f"the run in {folder} is finished: 9 updates" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    def test_a_request_to_end_says_how_to_go_on(self, run, monkeypatch, capsys):
        update, handler = DynamicsObjective.update, signal.getsignal(signal.SIGTERM)

        def terminate(self, number):
            if number == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(self, number)

        monkeypatch.setattr(DynamicsObjective, "update", terminate)
        with pytest.raises(SystemExit) as exit_info:
            run("--checkpoint-interval", "2")
        assert exit_info.value.code == 128 + signal.SIGTERM
        assert "terminated; the same command again goes on from update 6" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGTERM) is handler


# What follows starts processes of its own.

LONG = [*TINY, "--updates", "60", "--checkpoint-interval", "3"]


@pytest.fixture
def command(meta_train, checkout, tmp_path, monkeypatch):
    """A function that gives the command line of a longer run, in one process or in several."""
    monkeypatch.setenv("PYTHONPATH", str(checkout))

    def make(folder, *arguments, num_processes=None):
        # Standalone, it finds a free port, which other tests do not use at the same time.
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
        script = [meta_train.__file__, *LONG, *arguments, "--output", str(tmp_path / folder)]
        return [sys.executable, "-W", "error", *(launcher if num_processes else []), *script]

    return make


def workers(launcher):
    """The processes that a launcher has started, by their rank."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with contextlib.suppress(OSError, KeyError):
            pairs = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
            found[int({name: value for name, _, value in pairs}["RANK"])] = int(pid)
    return found


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def started(command):
    """A process that does not outlive the block, and neither do those that it started."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    started = {}
    try:
        yield process, started
    finally:
        if process.poll() is None and "torch.distributed.run" in command:
            started |= workers(process.pid)
        for pid in started.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr[-5000:]
    return done


@pytest.mark.slow
# Right after a checkpoint, and in the midst of the next updates.
@pytest.mark.parametrize(("objective", "delays"), [("dynamics", [0.0, 0.013]), ("policy", [0.013])])
def test_a_run_that_is_killed_at_any_moment_comes_to_the_same_weights(
    meta_train, command, run, objective, delays, tmp_path
):
    sizes = SIZES if objective == "dynamics" else {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4}
    arguments = ["--objective", objective, "--options", json.dumps(sizes | {"learned_rates": "tensor"})]
    arguments += ["--env-kwargs", '{"max_episode_steps": 20}']
    run(*LONG, *arguments, folder="control")
    checkpoints = tmp_path / "killed" / "checkpoints"
    for kill, delay in enumerate(delays):
        with started(command("killed", *arguments)) as (process, _):
            wait_for(lambda reached=9 * kill + 3: last_of(checkpoints) >= reached, process)
            time.sleep(delay)
            process.kill()
            process.wait()
        assert not (tmp_path / "killed" / "model.pt").exists()
    assert "goes on from" in finish(command("killed", *arguments)).stdout
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "control"))
    evaluations = [(tmp_path / folder / "evaluation.json").read_text() for folder in ("killed", "control")]
    assert evaluations[0] == evaluations[1]  # in which learned rates show
    assert written(tmp_path / "killed") == FILES


def last_of(checkpoints):
    return max([int(path.name) for path in find_checkpoints(checkpoints)], default=0)


def assert_that_two_processes_did_what_one_does(done, two, one, num_updates):
    """What a run of two processes has left and said, beside the folder of one in a single process."""
    of_two, of_one = weights(two), weights(one)
    for name in of_one:
        # They sum in another order, and what that rounds otherwise grows with the updates.
        torch.testing.assert_close(of_one[name], of_two[name], rtol=0.0, atol=1e-6 * num_updates)
    assert written(two) == FILES
    assert done.stdout.count("MetaTrainer.load reads") == 1  # process 0 alone speaks
    assert [row["time/updates"] for row in read_log(two)] == [str(n) for n in range(3, num_updates + 1, 3)]


@pytest.mark.slow
def test_two_processes_come_to_the_policy_of_one(command, run, tmp_path):
    sizes = {"meta_batch_size": 3, "trajectories_per_task": 2, "width": 8}
    arguments = ["--objective", "policy", "--options", json.dumps(sizes), "--updates", "3"]
    arguments += ["--env-kwargs", '{"max_episode_steps": 20}']
    one = run(*arguments, folder="one")
    done = finish(command("two", *arguments, num_processes=2))
    assert_that_two_processes_did_what_one_does(done, tmp_path / "two", one, 3)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_dead_worker_ends_the_run_and_the_same_command_goes_on(command, run, tmp_path):
    done = finish(command("control", num_processes=2))
    assert_that_two_processes_did_what_one_does(done, tmp_path / "control", run(*LONG, folder="one"), 60)
    line, folder = command("killed", num_processes=2), tmp_path / "killed"
    for victim, least in ((1, 6), (0, 24)):
        with started(line) as (process, pids):
            wait_for(lambda least=least: last_of(folder / "checkpoints") >= least, process)
            pids |= workers(process.pid)
            assert sorted(pids) == [0, 1]
            os.kill(pids[victim], signal.SIGKILL)
            output, _ = process.communicate(timeout=300)
            assert process.returncode != 0
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
        reached = last_of(folder / "checkpoints")
        assert "SIGKILL" in output  # from torchrun
        assert "most likely because another one died" in output or "terminated" in output
        if victim != 0:
            assert f"the same command again goes on from update {reached}" in output
        assert written(folder) - {".lock"} == FILES - {"evaluation.json", "model.pt"}  # a lock that nobody holds
    assert f"goes on from {reached} of 60 updates" in finish(line).stdout
    assert same(weights(folder), weights(tmp_path / "control"))
