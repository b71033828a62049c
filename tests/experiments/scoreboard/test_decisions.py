from dataclasses import replace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.decisions import best_agents, cost_of, decision_tables, greatest_losses
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS
from ssm_metarl_gym.experiments.scoreboard.plan import Run, all_runs, key_of

NAME = "PointActuators-2"
ROWS = ("as_is", "corrected_filter", "corrected_gradients", "told", "one_transition", "student")
# Of each agent the return in all columns, of each of five seeds; in the nominal column all but the first lose 2.
RETURNS = {
    "as_is": (0.0, 0.0, 0.0, 0.0, 0.0),
    "corrected_filter": (7.0, 9.0, 10.0, 11.0, 13.0),  # 10 on average, with an interval of 2.776 to both sides
    "corrected_gradients": (5.0, 9.0, 10.0, 11.0, 10.0),  # -1 from that, and 2.776 * sqrt(2 / 5)
    "told": (20.0, 20.0, 20.0, 20.0, 20.0),
    "one_transition": (4.0, 6.0, 7.0, 8.0, 10.0),  # -3 in each seed, though its own interval reaches 9.8
    "student": (9.0, 9.0, 9.0, 9.0, 9.0),  # -1, and 2.776
}
# What policies and models took, (steps, CPU seconds) of two seeds.
COSTS = {
    "policy, nominal": ((PHYSICS[NAME].nominal_steps, 5.0), (PHYSICS[NAME].nominal_steps, 7.0)),
    "model of the nominal physics": ((20_000, 3.0), (20_000, 3.0)),
    "meta-learned model": ((64_000, 20.0), (64_000, 24.0)),
    "policy, told": ((100_352, 10.0), (100_352, 12.0)),
    "policy, one_transition": ((100_352, 11.0), (100_352, 11.0)),
    "policy, student": ((128_000, 30.0), (128_000, 30.0)),
    "policy, mine:make_agent": ((0, 1.0), (0, 1.0)),
}


@pytest.fixture
def scoreboard(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    for run in all_runs([NAME, "CartPole"], ROWS, (100_000,), 5):
        for column in ("interpolation", "nominal"):
            value = RETURNS[run.row][run.seed] - 2.0 * (column == "nominal" and run.row != "as_is")
            records.add(**key_of(board, run, column), returns=[value] * 20)
    for what, of_seeds in COSTS.items():
        for seed, (steps, seconds) in enumerate(of_seeds):
            line = {"study": "prepared", "physics": NAME, "row": what, "seed": seed, **board.settings_of(NAME)}
            records.add(**line, steps=steps, cpu_seconds=seconds)
            # Those of another budget, which took as many steps, and of other settings.
            records.add(**line | {"percent": 10}, steps=steps, cpu_seconds=0.1)
            records.add(**line | {"recipe": "another"}, steps=steps, cpu_seconds=0.1)
    return Scoreboard(board, records, [NAME, "CartPole"], ROWS, (100_000,), 5)


def test_the_best_is_beside_all_that_may_be_as_good_in_the_same_tasks_and_the_cheapest_comes_first(scoreboard):
    ((*cheapest, best, others),) = (
        row[2:] for row in best_agents(scoreboard).rows if row[:2] == [NAME, "interpolation"]
    )
    assert cheapest == ["corrected_filter", "10.0 [7.2, 12.8]", "0", "9.0"]
    assert (best, others) == ("corrected_filter", "corrected_gradients; student, 0.1M")


def test_the_cheapest_may_be_another_one_than_the_best(scoreboard):
    table = best_agents(replace(scoreboard, rows=("as_is", "one_transition", "student")))
    (row,) = (row for row in table.rows if row[:2] == [NAME, "nominal"])
    # One transition gets 5 on average, -2 from the student's 7, and 2.776, for fewer steps.
    assert (row[2], row[-2], row[-1]) == ("one_transition, 0.1M", "student, 0.1M", "")


def test_what_varies_is_not_the_cheapest_where_a_cheaper_agent_is_above_it(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    costs = {"policy, nominal": (PHYSICS[NAME].nominal_steps, 9.0), "policy, ssm_ppo": (100, 7.0)}
    for what, (steps, seconds) in (costs | {"policy, one_transition": (100, 5.0)}).items():
        line = {"study": "prepared", "physics": NAME, "row": what, "seed": 0} | board.settings_of(NAME)
        records.add(**line, steps=steps, cpu_seconds=seconds)
    # One transition is -20 from memory, and 2.776 * 14.1: it cannot be told from it, as the other can, -2 in each seed.
    returns = {"ssm_ppo": [100.0] * 5, "one_transition": [40.0, 60.0, 80.0, 100.0, 120.0], "as_is": [98.0] * 5}
    for name, of_seeds in returns.items():
        for seed, value in enumerate(of_seeds):
            run = Run(NAME, name, seed, 0 if name == "as_is" else 100)
            records.add(**key_of(board, run, "switch"), returns=[value] * 20)
    scoreboard = Scoreboard(board, records, [NAME], list(returns), (100,), 5)
    (row,) = best_agents(scoreboard).rows
    assert row[2:] == ["as_is", "98.0 [98.0, 98.0]", "0", "9.0", "ssm_ppo, 0.0001M", "one_transition, 0.0001M"]
    (row,) = best_agents(replace(scoreboard, rows=("ssm_ppo", "one_transition"))).rows
    assert (row[2], row[6]) == ("one_transition, 0.0001M", "ssm_ppo, 0.0001M")


def test_four_seeds_cannot_tell_which_agents_are_the_best(scoreboard):
    assert best_agents(replace(scoreboard, num_seeds=4)).rows == []


def test_agents_of_few_seeds_are_compared_in_the_tasks_of_these(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    returns = {
        "window_ssm": [100.0] * 5,
        "one_transition": [110.0] * 5 + [50.0] * 5,
        "ssm_ppo": [101.0] * 5 + [41.0] * 5,
    }
    for row, of_seeds in returns.items():
        for seed, value in enumerate(of_seeds):
            key = key_of(board, Run(NAME, row, seed, 100), "switch")
            records.add(**key, returns=list(value + np.arange(20.0) % 2))
    scoreboard = Scoreboard(board, records, [NAME], list(returns), (100,), 10)
    assert [row[6:] for row in best_agents(scoreboard).rows] == [["one_transition, 0.0001M", ""]]


def test_agents_with_too_few_seeds_in_common_are_not_told_apart(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    for row, seeds, value in (("ssm_ppo", range(5), 170.0), ("one_transition", range(4, 9), 168.0)):
        for seed in seeds:
            records.add(**key_of(board, Run(NAME, row, seed, 100), "switch"), returns=[value] * 20)
    scoreboard = Scoreboard(board, records, [NAME], ["ssm_ppo", "one_transition"], (100,), 10)
    (row,) = best_agents(scoreboard).rows
    assert {row[-2], row[-1]} == {"ssm_ppo, 0.0001M", "one_transition, 0.0001M"}


def test_what_something_costs_holds_all_that_it_stands_on(scoreboard):
    assert cost_of(scoreboard, NAME, "as_is", 0) == (0, 6.0)
    assert cost_of(scoreboard, NAME, "told", 100_000) == (100_352, 11.0)
    assert cost_of(scoreboard, NAME, "student", 100_000) == (100_352 + 128_000, 11.0 + 30.0)
    assert cost_of(scoreboard, NAME, "mine:make_agent", 100_000) == (0, 1.0)  # it does not learn
    assert cost_of(scoreboard, NAME, "one_transition", 1_000_000) is None
    assert cost_of(scoreboard, NAME, "adapted_predictions_all", 100_000) is None


def test_of_several_budgets_it_is_the_first_that_is_large_enough(scoreboard):
    for steps, seconds in ((51_200, 1.0), (200_704, 2.0)):
        line = {"study": "prepared", "physics": NAME, "row": "policy, told", "seed": 0}
        line |= scoreboard.board.settings_of(NAME)
        scoreboard.records.add(**line, steps=steps, cpu_seconds=seconds)
    assert cost_of(scoreboard, NAME, "told", 50_000) == (51_200, 1.0)
    assert cost_of(scoreboard, NAME, "told", 100_000) == (100_352, 11.0)
    assert cost_of(scoreboard, NAME, "told", 200_000) == (200_704, 2.0)


def test_seeds_may_take_different_numbers_of_steps_for_one_budget(scoreboard):
    for seed, (steps, budget) in enumerate(((120_000, 100_000), (110_000, 100_000), (101_000, 50_000))):
        line = {"study": "prepared", "physics": NAME, "row": "policy, meta_policy", "seed": seed, "budget": budget}
        line |= scoreboard.board.settings_of(NAME)
        scoreboard.records.add(**line, steps=steps, cpu_seconds=steps / 1e4)
    assert cost_of(scoreboard, NAME, "meta_policy", 100_000) == (115_000, 11.5)
    assert cost_of(scoreboard, NAME, "meta_policy", 50_000) == (101_000, 10.1)
    costs = [row[2:] for row in scoreboard.costs().rows if row[1] == "policy, meta_policy"]
    assert costs == [["115,000", "11.5"], ["101,000", "10.1"]]


def test_what_a_cost_is_not_known_of_comes_last(scoreboard):
    for what in ("policy, told", "policy, student"):
        line = {"study": "prepared", "physics": "CartPole", "row": what} | scoreboard.board.settings_of("CartPole")
        scoreboard.records.add(**line, steps=100_000, cpu_seconds=2.0)
    (row,) = (row[2:] for row in best_agents(scoreboard).rows if row[:2] == ["CartPole", "interpolation"])
    # A CartPole has no filter.
    assert row[:4] == ["student, 0.1M", "9.0 [9.0, 9.0]", "200,000", "4.0"]
    assert row[4:] == ["corrected_gradients", ""]  # one transition is -2 from it, and 2.776 * sqrt(2 / 5)


def test_the_greatest_loss_is_against_the_policy_as_it_is_in_the_same_tasks(scoreboard):
    table = greatest_losses(scoreboard)
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["corrected_filter"] == ["8.0 [5.2, 10.8] nominal", ""]
    assert cells["student, 0.1M"] == ["7.0 [7.0, 7.0] nominal"] * 2
    assert "as_is" not in cells


def test_without_lines_there_is_nothing_to_decide(tmp_path):
    board = Board(tmp_path, 20)
    assert decision_tables(Scoreboard(board, Records(board.lines), [NAME], ROWS, (100,), 2)) == []
