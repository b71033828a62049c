from dataclasses import replace

import pytest

from ssm_metarl_gym.experiments.jobs import Job
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.scoreboard import board as boards
from ssm_metarl_gym.experiments.scoreboard import plan
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS, columns_of
from ssm_metarl_gym.experiments.scoreboard.plan import Run, all_runs, key_of, lines_of, plan_jobs, run_all

NAMES, ROWS, STEPS = ("PointActuators-1", "PointActuators-2"), ("as_is", "corrected_filter", "told"), (200, 100)
RUNS = list(all_runs(NAMES, ROWS, STEPS, 2))


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path, 30)


@pytest.fixture
def records(board):
    return Records(board.lines)


def write(board, records, runs=RUNS):
    for run in runs:
        for column in columns_of(run.physics, board.num_tasks):
            records.add(**key_of(board, run, column), returns=[10.0 * run.seed] * board.num_tasks)


def test_cheap_agents_come_first_and_of_each_stage_the_first_seeds():
    assert RUNS[:4] == [Run(name, row, 0) for name in NAMES for row in ("as_is", "corrected_filter")]
    assert [(run.seed, run.steps) for run in RUNS if (run.physics, run.row) == (NAMES[0], "told")] == [
        *((0, 100), (1, 100), (0, 200), (1, 200)),
    ]
    assert len(RUNS) == len(set(RUNS)) == 2 * 2 * (2 + 2)


def test_a_choice_among_a_few_actions_has_no_map():
    runs = all_runs(["CartPolePolarity", "PendulumPolarity"], ["as_is", "corrected_filter"], (), 1)
    assert [run.physics for run in runs if run.row == "corrected_filter"] == ["PendulumPolarity"]


def test_episodes_of_many_tasks_take_a_batched_environment():
    runs = all_runs(["ReacherActuators", "CartPole"], ["as_is", "meta_policy"], (100,), 1)
    assert [(run.physics, run.row) for run in runs if run.steps] == [("CartPole", "meta_policy")]


def test_what_takes_long_to_learn_has_fewer_seeds():
    rows = ("as_is", "told", "window_ssm")
    runs = list(all_runs(["CartPole"], rows, (100,), 3, 1))
    assert [sum(run.row == row for run in runs) for row in rows] == [3, 3, 1]
    assert len(list(all_runs(["CartPole"], rows, (100,), 3))) == 9


def test_what_takes_long_to_learn_is_left_out_where_there_are_too_many_steps():
    runs = all_runs(["CartPole"], ("told", "window_ssm"), (100, 101), 2, 1, 100)
    assert [(run.row, run.steps) for run in runs if run.seed == 0] == [
        *(("told", 100), ("window_ssm", 100), ("told", 101)),
    ]


def test_families_have_steps_of_their_own_and_those_with_few_come_first():
    runs = all_runs(["PointActuators-2", "CartPole", "DoubleIntegrator"], ("as_is", "told"), (), 1)
    assert [(run.physics, run.steps) for run in runs if run.row == "told"] == [
        *(("CartPole", 100_000), ("DoubleIntegrator", 600_000), ("PointActuators-2", 1_000_000)),
    ]


def test_what_a_run_stands_on_is_done_before_it(board, records):
    jobs = plan_jobs(board, RUNS, records)
    for index, job in enumerate(jobs):
        assert set(job.after) <= set(jobs[:index])
    works = [job.work.__name__ for job in jobs]
    assert [works.count(name) for name in ("learn_policy", "fit_map_model", "meta_train")] == [4, 4, 0]
    assert works.count("run_row") == len(RUNS)
    assert all(isinstance(job, Job) for job in jobs)
    assert len(set(jobs)) == len(jobs)


def test_what_adapts_stands_on_the_model_whose_layers_do(board, records):
    runs = [Run("CartPolePolarity", row, 0, 100) for row in ("adapted_predictions", "adapted_predictions_all")]
    runs += [Run("CartPolePolarity", "frozen_predictions", 0, 100), Run("CartPolePolarity", "told", 0, 100)]
    jobs = plan_jobs(board, runs, records)
    models = [job.arguments[3] for job in jobs if job.work is plan.meta_train]
    assert models == ["last_layer", "all"]
    assert jobs[-1].after == ()


def test_a_student_waits_for_its_teacher(board, records):
    teaching, run = plan_jobs(board, [Run("CartPolePolarity", "student", 1, 100)], records)
    assert (teaching.work, teaching.arguments[2:]) == (plan.learn_policy, ("told", 1, 100))
    assert run.after == (teaching,)


def test_a_teacher_learns_once_for_itself_and_for_its_student(board, records):
    runs = [Run("CartPolePolarity", row, 1, 100) for row in ("told", "student")]
    jobs = plan_jobs(board, runs, records)
    assert [job.work for job in jobs] == [plan.learn_policy, plan.run_row, plan.run_row]
    assert all(job.after == jobs[:1] or job.after == (jobs[0],) for job in jobs[1:])


def test_nobody_is_trained_on_changes_where_nothing_changes():
    runs = all_runs(["CartPole", "PendulumPolarity"], ["ssm_ppo", "ssm_ppo_switching"], (100,), 1)
    assert [(run.physics, run.row) for run in runs] == [
        *(("CartPole", "ssm_ppo"), ("PendulumPolarity", "ssm_ppo"), ("PendulumPolarity", "ssm_ppo_switching")),
    ]


def test_what_is_known_is_not_done_again(board, records):
    write(board, records)
    assert plan_jobs(board, RUNS, records) == []
    assert plan_jobs(replace(board, percent=50), RUNS, records) != []
    assert plan_jobs(replace(board, num_tasks=31), RUNS, records) != []
    more = all_runs(NAMES, (*ROWS, "corrected_rls"), STEPS, 2)
    found = {job.arguments[1].row for job in plan_jobs(board, list(more), records) if job.work is plan.run_row}
    assert found == {"corrected_rls"}


def test_only_the_columns_that_are_missing_are_evaluated(board, records):
    write(board, records)
    lines = board.lines.read_text().splitlines(keepends=True)
    board.lines.write_text("".join(lines[:-1]))
    (job,) = [job for job in plan_jobs(board, RUNS, Records(board.lines)) if job.work is plan.run_row]
    assert job.arguments[2] == ("nominal",)


def test_what_adapts_is_done_again_by_another_rule_and_not_mixed_with_it(board, records, monkeypatch):
    write(board, records)
    monkeypatch.setattr(boards, "FILTER_RULE", boards.FILTER_RULE + 1)
    found = {job.arguments[1].row for job in plan_jobs(board, RUNS, records) if job.work is plan.run_row}
    assert found == {"corrected_filter"}
    assert lines_of(board, records, NAMES[0], "corrected_filter", 0, "switch", 2) == {}
    assert len(lines_of(board, records, NAMES[0], "as_is", 0, "switch", 2)) == 2


def test_returns_are_in_the_order_of_the_seeds_and_of_one_budget(board, records):
    for seed, percent in ((1, 100), (0, 100), (2, 100), (0, 50)):
        key = key_of(replace(board, percent=percent), Run(NAMES[0], "as_is", seed), "switch")
        records.add(**key, returns=[float(seed), float(percent)])
    lines = lines_of(board, records, NAMES[0], "as_is", 0, "switch", 2)
    assert [(seed, line["returns"]) for seed, line in lines.items()] == [(0, [0.0, 100.0]), (1, [1.0, 100.0])]


class Here:
    """An engine that does everything at once, in this process."""

    num_workers = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, calls):
        return [(call.work, call.arguments) for call in calls]

    def collect(self, tickets, timeout):
        return tickets

    def result(self, ticket):
        work, arguments = ticket
        return work(*arguments)

    def steps_taken(self):
        return 0


def test_a_line_that_comes_twice_is_written_once(board, records, monkeypatch):
    costs = {"study": "prepared", "physics": NAMES[0], "row": "policy, nominal", "seed": 0, "steps": 5}
    run = Run(NAMES[0], "as_is", 0)

    def evaluate(board, run, columns):
        return [costs, *({**key_of(board, run, column), "returns": [1.0]} for column in columns)]

    monkeypatch.setattr(plan, "learn_policy", lambda *_: [costs])
    monkeypatch.setattr(plan, "run_row", evaluate)
    run_all([run], board, records, Here())
    run_all([run], board, records, Here())
    lines = Records(board.lines).find()
    assert [line["study"] for line in lines] == ["prepared", *["returns"] * 4]


def test_what_was_learned_by_other_settings_is_told_apart(tmp_path, monkeypatch):
    board, run = Board(tmp_path, 20), Run("CartPole", "told", 0, 1_000)
    before = key_of(board, run, "nominal"), board.stem("CartPole", 0, "told 1000")
    assert before == (key_of(board, run, "nominal"), board.stem("CartPole", 0, "told 1000"))
    monkeypatch.setitem(PHYSICS, "CartPole", replace(PHYSICS["CartPole"], num_epochs=9))
    after = key_of(board, run, "nominal"), board.stem("CartPole", 0, "told 1000")
    assert before[0] | {"recipe": ""} == after[0] | {"recipe": ""}
    assert before[0]["recipe"] != after[0]["recipe"]
    assert before[1] != after[1]
