import json
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.experiments.runs import lock_run
from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask, PointNavigationTask
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.tasks.task import TaskBatch

BALANCING = np.array([0.2, 0.5, 1.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def headroom(load_script):
    """The script as a module."""
    return load_script("headroom")


class TestJudge:
    def test_who_is_told_the_polarity_does_as_well_under_either(self, headroom):
        judge = headroom.Judge("CartPolePolarity", "interpolation")
        rows = np.tile(BALANCING, (4, 1))
        plain, turned = (TaskBatch(CartPoleTask, {"polarity": sign}, 4) for sign in (1, -1))
        expected = judge(rows, plain, 0, told=False)
        assert expected.tolist() == [200.0] * 4
        assert judge(rows, turned, 0, told=True).tolist() == expected.tolist()
        assert judge(rows, turned, 0, told=False).max() < 100.0

    def test_a_sign_that_flips_is_told_at_every_step(self, headroom):
        judge = headroom.Judge("CartPoleSwitch", "interpolation")
        returns = judge(np.tile(BALANCING, (16, 1)), TaskBatch(CartPoleTask, {}, 16), 0, told=True)
        assert returns.tolist() == [200.0] * 16

    @pytest.mark.parametrize(
        ("family", "task"),
        [
            ("CartPole", {"length": 0.3}),
            ("Pendulum", {"m": 1.2}),
            ("PointNavigation", {"goal_y": -0.3}),
            ("PointActuators", {"map_0_1": 0.3}),
            ("DoubleIntegrator", {"mass": 0.7}),
            ("ComplexODE", {"c1": 2.0}),
        ],
    )
    def test_returns_are_those_of_the_environment(self, headroom, family, task):
        judge = headroom.Judge(family, "interpolation")
        parameters = np.random.default_rng(0).standard_normal((1, judge.controller.num_parameters))
        tasks = TaskBatch(FAMILIES[family].task_type, task, 1)
        env = gym.make(f"ssm_metarl/{family}-v0")
        observation, _ = env.reset(seed=3, options={"task": tasks[0]})
        total, ended, t = 0.0, False, 0
        while not ended:
            command = judge.controller.act(parameters, observation[None].astype(np.float64), t)[0]
            action = int(command[0] > 0) if family == "CartPole" else np.clip(command, -1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, ended, t = total + reward, terminated or truncated, t + 1
        assert judge(parameters, tasks, 3, told=False) == pytest.approx([total])

    def test_a_point_stops_where_it_was_sent(self, headroom):
        judge = headroom.Judge("PointNavigation", "interpolation")
        tasks = TaskBatch(PointNavigationTask, {"goal_x": [0.15, 0.15], "goal_y": 0.0})
        at_the_goal, beside_it = judge(np.array([[0.15, 0.0], [0.15, 0.1]]), tasks, 0, told=True)
        assert at_the_goal == pytest.approx(-(0.05**2))  # the first of two steps
        assert beside_it == pytest.approx(-(0.05**2 + 0.1**2) - 99 * 0.1**2)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_has_a_controller_of_the_right_size(self, headroom, family):
        judge = headroom.Judge(family, "train")
        env = gym.make(judge.env_id)
        observations = np.ones((2, *env.observation_space.shape))
        commands = judge.controller.act(np.ones((2, judge.controller.num_parameters)), observations, 0)
        assert commands.shape == (2, *(env.action_space.shape or (1,)))


class FakeJudge:
    """Returns fall with the distance from the length of the task, in every parameter."""

    class controller:  # noqa: N801 - stands for an attribute
        num_parameters = 2

    def __call__(self, parameters, tasks, seed, *, told):
        return -np.square(parameters - tasks.column("length")[:, None]).sum(axis=1)


class TestSearch:
    @pytest.fixture
    def budget(self, headroom):
        return headroom.Budget(num_rounds=40, num_candidates=40, num_tasks=2, num_starts=1)

    def test_finds_the_best_for_each_group_of_tasks(self, headroom, budget):
        groups = [TaskBatch(CartPoleTask, {"length": lengths}) for lengths in ([1.0, 1.0], [1.0, 2.0])]
        found = headroom.search(FakeJudge(), groups, budget, np.random.default_rng(0), told=False)
        assert np.abs(found - [[1.0, 1.0], [1.5, 1.5]]).max() < 0.1

    def test_one_seed_gives_one_result(self, headroom, budget):
        groups = [TaskBatch(CartPoleTask, {"length": [0.7, 0.8]})]
        results = [
            headroom.search(FakeJudge(), groups, budget, np.random.default_rng(seed), told=False).tolist()
            for seed in (0, 0, 1)
        ]
        assert results[0] == results[1] != results[2]


def test_the_informed_one_is_better_where_tasks_conflict_and_sees_tasks_that_the_fixed_one_has_not(headroom):
    budget = headroom.Budget(num_rounds=5, num_candidates=12, num_tasks=8, num_starts=1)
    result = headroom.compare("CartPolePolarity", "interpolation", budget, seed=0)
    fixed, informed = np.array(result["fixed"]), np.array(result["informed"])
    assert fixed.shape == informed.shape == (8,)
    assert informed.mean() > 150 > 130 > fixed.mean()
    assert fixed.max() - fixed.min() > 100  # one sign it knows, the other it does not


def test_the_table_holds_means_and_their_difference(headroom):
    rows = [{"family": "Pendulum", "split": "interpolation", "fixed": [-3.0, -3.0], "informed": [-1.0, -1.0]}]
    assert headroom.format_table(rows, 0).splitlines()[2] == (
        "| `Pendulum` | interpolation | -3.0 [-3.0, -3.0] | -1.0 [-1.0, -1.0] | 2.0 [2.0, 2.0] |"
    )


@pytest.mark.slow
def test_a_quick_run_writes_what_it_prints(headroom, tmp_path):
    arguments = ["--quick", "--families", "CartPolePolarity", "HalfCheetahDir", "--output", str(tmp_path)]
    run = subprocess.run([sys.executable, headroom.__file__, *arguments], check=True, capture_output=True, text=True)  # noqa: S603
    table = (tmp_path / "headroom.md").read_text()
    assert table in run.stdout
    results = json.loads((tmp_path / "headroom.json").read_text())
    assert [(row["family"], row["split"]) for row in results] == [
        ("CartPolePolarity", "interpolation"),
        ("CartPolePolarity", "extrapolation"),
        ("HalfCheetahDir", "interpolation"),
    ]
    assert all(np.isfinite([*row["fixed"], *row["informed"]]).all() for row in results)


def test_what_was_searched_is_kept(headroom, tmp_path, monkeypatch):
    begun = []

    def run_here(jobs, *_, on_result):
        for job in jobs:
            begun.append(job.arguments[:2])
            if len(begun) == 2:
                raise KeyboardInterrupt
            on_result(job, {"fixed": [1.0, 2.0], "informed": [2.0, 3.0]})

    monkeypatch.setattr(headroom, "run_jobs", run_here)
    command = ["--quick", "--families", "CartPole", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        headroom.main(command)
    headroom.main(command)
    assert begun == [("CartPole", split) for split in ("interpolation", "extrapolation", "extrapolation")]
    assert len(json.loads((tmp_path / "headroom.json").read_text())) == 2
    headroom.main([*command, "--seed", "1"])
    assert len(begun) == 5


def test_a_folder_that_another_run_uses_is_refused(headroom, tmp_path, capsys):
    with lock_run(tmp_path), pytest.raises(SystemExit) as exit_info:
        headroom.main(["--quick", "--families", "CartPole", "--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert f"{tmp_path} is in use by process " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed must be >= 0"),
        (["--families", "Cartpole"], "--families must be one of"),
        (
            ["--output", "README.md"],
            "--output must be a folder that can be written to; got README.md (Not a directory).",
        ),
    ],
)
def test_bad_options_are_refused(headroom, arguments, message, capsys, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    with pytest.raises(SystemExit):
        headroom.main(arguments)
    assert message in capsys.readouterr().err


def test_the_tasks_of_pendulums_are_told_apart(headroom):
    judge = headroom.Judge("PendulumPolarity", "extrapolation")
    drawn = judge.distribution.sample_batch(np.random.default_rng([0, headroom.SEARCH]), 64)
    others = judge.distribution.sample_batch(np.random.default_rng([0, headroom.EVALUATION]), 64)
    assert drawn.task_type is PendulumTask
    assert not set(drawn.task_ids) & set(others.task_ids)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_its_workers_end_with_it(headroom, tmp_path, number, status):
    command = [sys.executable, headroom.__file__, "--families", "PendulumSwitch", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)  # noqa: S603
    shown = b""
    while b"0/" not in shown:  # the bar, which appears when all work is handed out
        shown += process.stderr.read(1)
    time.sleep(3)
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, rest = process.communicate(timeout=60)  # ends when none of them holds the pipe any more
    assert time.monotonic() - started < 20  # two seconds on an idle machine
    assert process.returncode == status
    assert b"Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
