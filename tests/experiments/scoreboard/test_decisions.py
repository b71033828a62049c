import pytest

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.decisions import best_agents, cost_of, decision_tables, greatest_losses
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS
from ssm_metarl_gym.experiments.scoreboard.plan import all_runs, key_of

NAME = "PointActuators-2"
ROWS = ("as_is", "corrected_filter", "corrected_gradients", "told", "one_transition", "student")
# Of each agent the return in all columns, of each of two seeds; in the nominal column all but the first lose 2.
RETURNS = {
    "as_is": (0.0, 0.0),
    "corrected_filter": (9.0, 10.0),  # 9.5, with an interval of 12.7 / 2 to both sides
    "corrected_gradients": (3.0, 4.0),  # 3.5 > 9.5 - 6.35
    "told": (20.0, 20.0),
    "one_transition": (9.0, 9.0),
    "student": (3.0, 3.0),  # < 9.5 - 6.35
}
# What policies and models took, (steps, CPU seconds) of two seeds.
COSTS = {
    "policy, nominal": ((PHYSICS[NAME].nominal_steps, 5.0), (PHYSICS[NAME].nominal_steps, 7.0)),
    "model of the nominal physics": ((20_000, 3.0), (20_000, 3.0)),
    "meta-learned model": ((64_000, 20.0), (64_000, 24.0)),
    "policy, told": ((100_352, 10.0), (100_352, 12.0)),
    "policy, one_transition": ((100_352, 11.0), (100_352, 11.0)),
    "policy, student": ((128_000, 30.0), (128_000, 30.0)),
}


@pytest.fixture
def scoreboard(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    for run in all_runs([NAME, "CartPole"], ROWS, (100_000,), 2):
        for column in ("interpolation", "nominal"):
            value = RETURNS[run.row][run.seed] - 2.0 * (column == "nominal" and run.row != "as_is")
            records.add(**key_of(board, run, column), returns=[value] * 20)
    for what, of_seeds in COSTS.items():
        for seed, (steps, seconds) in enumerate(of_seeds):
            line = {"study": "prepared", "physics": NAME, "row": what, "seed": seed}
            records.add(**line, steps=steps, cpu_seconds=seconds)
    return Scoreboard(board, records, [NAME, "CartPole"], ROWS, (100_000,), 2)


def test_the_best_are_those_within_the_interval_of_the_best_and_the_cheapest_comes_first(scoreboard):
    rows = [row[2:] for row in best_agents(scoreboard).rows if row[:2] == [NAME, "interpolation"]]
    assert rows == [
        ["corrected_filter", "9.5 [3.1, 15.9]", "0", "9.0"],
        ["corrected_gradients", "3.5 [-2.9, 9.9]", "64,000", "28.0"],
        ["one_transition, 0.1M", "9.0 [9.0, 9.0]", "100,352", "11.0"],
    ]


def test_what_something_costs_holds_all_that_it_stands_on(scoreboard):
    assert cost_of(scoreboard, NAME, "as_is", 0) == (0, 6.0)
    assert cost_of(scoreboard, NAME, "told", 100_000) == (100_352, 11.0)
    assert cost_of(scoreboard, NAME, "student", 100_000) == (100_352 + 128_000, 11.0 + 30.0)
    assert cost_of(scoreboard, NAME, "one_transition", 1_000_000) is None
    assert cost_of(scoreboard, NAME, "adapted_predictions_all", 100_000) is None


def test_of_several_budgets_it_is_the_first_that_is_large_enough(scoreboard):
    for steps, seconds in ((51_200, 1.0), (200_704, 2.0)):
        line = {"study": "prepared", "physics": NAME, "row": "policy, told", "seed": 0}
        scoreboard.records.add(**line, steps=steps, cpu_seconds=seconds)
    assert cost_of(scoreboard, NAME, "told", 50_000) == (51_200, 1.0)
    assert cost_of(scoreboard, NAME, "told", 100_000) == (100_352, 11.0)
    assert cost_of(scoreboard, NAME, "told", 200_000) == (200_704, 2.0)


def test_what_a_cost_is_not_known_of_comes_last(scoreboard):
    rows = [row[2:] for row in best_agents(scoreboard).rows if row[:2] == ["CartPole", "interpolation"]]
    assert rows[0] == ["one_transition, 0.1M", "9.0 [9.0, 9.0]", "", ""]
    assert len(rows) == 1  # a CartPole has no filter


def test_the_greatest_loss_is_against_the_policy_as_it_is_in_the_same_tasks(scoreboard):
    table = greatest_losses(scoreboard)
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["corrected_filter"] == ["7.5 [1.1, 13.9] nominal", ""]
    assert cells["student, 0.1M"] == ["1.0 [1.0, 1.0] nominal"] * 2
    assert "as_is" not in cells


def test_without_lines_there_is_nothing_to_decide(tmp_path):
    board = Board(tmp_path, 20)
    assert decision_tables(Scoreboard(board, Records(board.lines), [NAME], ROWS, (100,), 2)) == []
