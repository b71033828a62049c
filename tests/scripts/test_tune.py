import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[2]
COMPLETE, FAIL, PRUNED = (optuna.trial.TrialState[name] for name in ("COMPLETE", "FAIL", "PRUNED"))


@pytest.fixture(scope="module")
def tune(load_script):
    return load_script("tune")


@pytest.fixture
def run(tune, monkeypatch, tmp_path):
    """A function that tunes in no time: a learning rate of 1e-3 is best, and much entropy makes trials diverge."""

    def measure(settings, options):
        if settings["ent_coef"] > 0.015:
            raise FloatingPointError
        return [-((np.log10(settings["learning_rate"]) + 3.0) ** 2) + seed for seed in (-1.0, 1.0)]

    def run_trials(trials, *more, folder="study"):
        monkeypatch.setattr(tune, "measure", measure)
        arguments = ["--trials", str(trials), "--output", str(tmp_path / folder), *more]
        tune.main(arguments)
        options = tune.parse_options(tune.Options, arguments, description="")
        return tune.open_study(options).get_trials(), options

    return run_trials


def test_the_present_settings_are_the_first_to_be_tried(run, tune, capsys):
    trials, options = run(4)
    assert trials[0].params == tune.present_settings(PHYSICS["PointActuators-2"])
    best = max((trial for trial in trials if trial.state == COMPLETE), key=lambda trial: trial.value)
    found = json.loads((options.output / "best.json").read_text())
    assert found["value"] == best.value == pytest.approx(np.mean(found["means"]))
    assert found["settings"] == tune.to_fields(best.params, PHYSICS["PointActuators-2"])
    assert replace(PHYSICS["PointActuators-2"], **found["settings"])
    out = capsys.readouterr().out
    assert "| 0 (present settings) |" in out
    assert f"{best.value:.5g}" in out


def test_a_study_goes_on_where_it_was_and_tries_the_same(run):
    run(2)
    halves, _ = run(4)
    whole, _ = run(4, folder="at once")
    assert [trial.params for trial in halves] == [trial.params for trial in whole]
    assert len({json.dumps(trial.params) for trial in whole}) == 4
    assert len(run(4)[0]) == 4


@pytest.mark.parametrize("interrupted", [0, 11])
def test_a_study_that_was_interrupted_finds_the_same(run, tune, monkeypatch, interrupted):
    whole, options = run(12)
    best = json.loads((options.output / "best.json").read_text())
    run_trial, calls = tune.run_trial, iter(range(100))

    def run_or_interrupt(*arguments):
        if next(calls) == interrupted:
            monkeypatch.setattr(tune, "measure", interrupt)
        run_trial(*arguments)

    def interrupt(settings, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run_trial", run_or_interrupt)
    with pytest.raises(SystemExit):
        run(12, folder="interrupted")
    parts, options = run(12, folder="interrupted")
    assert [trial.state for trial in parts].count(FAIL) == 1
    assert [trial.params for trial in parts if trial.state != FAIL] == [trial.params for trial in whole]
    assert json.loads((options.output / "best.json").read_text()) == best


@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_the_present_settings_of_a_killed_process_are_tried_again(run, tune):
    options = replace(run(1)[1], seed=7)
    study = tune.open_study(options)
    with tune.working(options) as killed:
        trial = tune.begin_trial(study, options, killed)
    present = tune.present_settings(PHYSICS["PointActuators-2"])
    assert tune.suggest_settings(trial, present) == present
    trials, _ = run(2, "--seed", "7")
    assert [trial.state for trial in trials] == [FAIL, COMPLETE, COMPLETE]
    assert trials[1].params == present != trials[2].params


@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_each_process_tries_something_else_also_in_the_place_of_one_that_is_gone(run, tune):
    _, options = run(1)
    study, options = tune.open_study(options), replace(options, trials=5)
    with tune.working(options) as own:
        with tune.working(options) as other:
            places = [tune.begin_trial(study, options, name).user_attrs["place"] for name in (own, other, own)]
        assert places == [1, 2, 3]
        assert [tune.begin_trial(study, options, own).user_attrs["place"] for _ in range(2)] == [2, 4]


def test_trials_that_diverge_count_but_are_never_the_best(run):
    trials, options = run(8)
    states = [trial.state for trial in trials]
    assert set(states) == {COMPLETE, PRUNED}
    assert json.loads((options.output / "best.json").read_text())["num_trials"] == states.count(COMPLETE) < 8


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (ValueError("Expected parameter loc of distribution Normal"), FloatingPointError),
        ([[1.0], [np.nan]], FloatingPointError),
        (ValueError("something else"), ValueError),
    ],
    ids=["no numbers as parameters", "no number as return", "another error"],
)
def test_a_policy_that_cannot_be_evaluated_has_diverged(tune, monkeypatch, outcome, error):
    def evaluate(policy, env, *, seed):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    closed, physics = [], PHYSICS["PointActuators-2"]
    rows = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(tune, "learn_policy", lambda *arguments: None)
    monkeypatch.setattr(tune, "make_env", lambda *arguments, **options: rows)
    monkeypatch.setattr(tune, "load_policy", lambda *arguments: (None, rows))
    monkeypatch.setattr(tune, "evaluate", evaluate)
    families = dict(PHYSICS)
    with pytest.raises(error):
        tune.measure(tune.present_settings(physics), tune.Options(seeds=1))
    assert closed == [True]
    assert families == PHYSICS


def test_policies_are_none_of_the_scoreboards(tune, monkeypatch):
    learned = []
    monkeypatch.setattr(tune, "measure_policy", lambda name, options, seed: learned.append(seed) or 1.0)
    tune.measure(tune.present_settings(PHYSICS["PointActuators-2"]), tune.Options(seeds=3, seed=2))
    assert learned == [1002, 1003, 1004]  # those of a benchmark are below 1,000


def test_other_options_are_another_study(run):
    run(3)
    trials, _ = run(2, "--steps", "77")
    assert len(trials) == 2


@pytest.mark.parametrize("change", [{"gamma": 0.5}, {"num_envs": 128, "batch_size": 1600}, {"env_kwargs": {}}], ids=str)
def test_a_family_that_has_changed_is_another_study(tune, monkeypatch, change):
    options, physics = tune.Options(), PHYSICS["PointActuators-2"]
    before = options.study
    assert options.study == before
    changed = replace(physics, **change)
    assert tune.present_settings(changed) == tune.present_settings(physics)
    monkeypatch.setitem(PHYSICS, "PointActuators-2", changed)
    assert options.study != before


def test_a_study_is_the_same_wherever_what_its_family_holds_lies(tune, monkeypatch):
    names = set()
    kept = [object() for _ in range(2)]
    for each in kept:
        physics = replace(PHYSICS["PointActuators-2"], env_kwargs={"anything": each})
        monkeypatch.setitem(PHYSICS, "PointActuators-2", physics)
        names.add(tune.Options().study)
    assert len(names) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_trials_of_processes_that_are_gone_are_given_up_and_replaced(run, tune):
    _, options = run(1)
    study = tune.open_study(options)
    study.ask()  # and killed at once
    study.ask().set_user_attr("worker", "gone")
    trials, _ = run(3)
    assert [trial.state for trial in trials] == [COMPLETE, FAIL, FAIL, COMPLETE, COMPLETE]


@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_the_trial_of_a_process_that_is_at_work_counts(run, tune):
    _, options = run(1)
    study = tune.open_study(options)
    options = replace(options, trials=2)
    with tune.working(options) as other, tune.working(options) as own:
        assert tune.begin_trial(study, options, other) is not None
        assert tune.begin_trial(study, options, own) is None
    with tune.working(options) as own:
        assert tune.begin_trial(study, options, own) is not None


@pytest.mark.parametrize("name", ["CartPolePolarity", "HalfCheetahActuators"])
def test_settings_are_fields_of_the_physics(tune, name):
    physics = PHYSICS[name]
    same = replace(physics, **tune.to_fields(tune.present_settings(physics), physics))
    assert same.minibatch(remembers=False) == physics.minibatch(remembers=False)
    assert replace(same, batch_size=physics.batch_size) == physics


@pytest.mark.parametrize(
    ("rollout_length", "num_envs", "batch_size", "minibatches"),
    [(16, 2, 64, 1), (64, 4, 100, 2), (32, 8, None, 4)],
    ids=["more than there is", "no divisor", "a quarter"],
)
def test_the_present_settings_are_those_of_any_family(tune, rollout_length, num_envs, batch_size, minibatches):
    sizes = {"rollout_length": rollout_length, "num_envs": num_envs, "batch_size": batch_size}
    physics = replace(PHYSICS["PointActuators-2"], **sizes)
    present = tune.present_settings(physics)
    assert present["minibatches"] == minibatches
    same = replace(physics, **tune.to_fields(present, physics))
    assert replace(same, batch_size=batch_size) == physics
    assert same.batch_size == physics.minibatch(remembers=False)
    assert tune.to_fields({**present, "rollout_length": 16, "minibatches": 8}, physics)["batch_size"] == 2 * num_envs


def test_minibatches_are_of_two_steps_at_least(tune):
    physics = replace(PHYSICS["PointActuators-2"], num_envs=1)
    settings = {**tune.present_settings(physics), "rollout_length": 16, "minibatches": 32}
    assert tune.to_fields(settings, physics)["batch_size"] == 2


def test_what_is_missing_is_told_with_how_to_install_it(tune, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as exit_info:
        tune.main([])
    assert exit_info.value.code == 2
    assert 'python -m pip install -e ".[tune]"' in capsys.readouterr().err


def test_a_damaged_journal_is_named(tune, tmp_path, capsys):
    (tmp_path / "journal.log").write_text("{\n{}\n")
    with pytest.raises(SystemExit) as exit_info:
        tune.main(["--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert f"the journal {tmp_path / 'journal.log'} cannot be read" in capsys.readouterr().err
    assert (tmp_path / "journal.log").read_text() == "{\n{}\n"


def test_a_half_line_of_a_process_that_was_killed_in_it_is_cut_off(run, tune):
    _, options = run(1)
    journal, other = options.output / "journal.log", tune.open_study(options)
    for half in ("{", '{"op_code": 4, "worker'):
        with journal.open("a") as file:
            file.write(half)
        other.ask()  # by a process that reads already what is written
        with journal.open("a") as file:
            file.write(half)
        assert len(tune.open_study(options).get_trials()) == len(other.get_trials())
    for line in journal.read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize(
    ("text", "whole"), [("", ""), ("{}", ""), ("{}\n", "{}\n"), ("{}\n\n{}\n{", "{}\n\n{}\n")], ids=repr
)
def test_a_file_is_cut_to_its_whole_lines(tune, tmp_path, text, whole):
    path = tmp_path / "file"
    path.write_bytes(text.encode())
    with path.open("rb+") as file:
        tune.cut_half_line(file)
    assert path.read_bytes() == whole.encode()


@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_a_file_system_without_locks_will_do(run, tune, monkeypatch):
    def flock(file, operation):
        raise OSError("no locks available")

    monkeypatch.setattr(tune.fcntl, "flock", flock)
    trials, _ = run(3)
    assert {trial.state for trial in trials} <= {COMPLETE, PRUNED}
    assert len(trials) == 3


TINY = """
import ssm_metarl_gym
from ssm_metarl_gym.experiments.scoreboard.physics import Physics

TINY = Physics("PointActuators", 0.9, 100, 10, {"dimension": 1, "max_episode_steps": 10}, num_envs=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs locks of Unix")
def test_processes_share_a_study_and_one_that_is_killed_loses_its_own_trial_at_most(tune, tmp_path, monkeypatch):
    (tmp_path / "tiny_physics.py").write_text(TINY)
    arguments = ["--family", "tiny_physics:TINY", "--steps", "64", "--seeds", "1", "--num-tasks", "10"]
    arguments += ["--trials", "4", "--output", str(tmp_path / "study")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), *arguments]
    killed, other = (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    )
    while not killed.stdout.readline().startswith("trial "):
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    output, _ = other.communicate(timeout=600)
    assert other.returncode == 0
    assert "the best settings are in" in output
    monkeypatch.syspath_prepend(tmp_path)
    study = tune.open_study(tune.parse_options(tune.Options, arguments, description=""))
    states = [trial.state for trial in study.get_trials()]
    assert states.count(COMPLETE) == 4
    assert states.count(FAIL) == len(states) - 4 <= 1
