import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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


def test_trials_that_diverge_count_but_are_never_the_best(run):
    trials, options = run(8)
    states = [trial.state for trial in trials]
    assert set(states) == {COMPLETE, PRUNED}
    assert json.loads((options.output / "best.json").read_text())["num_trials"] == states.count(COMPLETE) < 8


def test_other_options_are_another_study(run):
    run(3)
    trials, _ = run(2, "--steps", "77")
    assert len(trials) == 2


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
