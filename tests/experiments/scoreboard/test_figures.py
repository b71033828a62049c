from dataclasses import replace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard, context_means, probability_of_improvement
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS, columns_of
from ssm_metarl_gym.experiments.scoreboard.plan import Run, all_runs, key_of

NAME = "PointActuators-2"
ROWS = ("as_is", "corrected_filter", "domain_randomisation", "told")
# Of each agent the return in every task of each of two seeds.
RETURNS = {"as_is": (0.0, 0.0), "corrected_filter": (8.0, 10.0), "domain_randomisation": (2.0, 2.0), "told": (12, 12)}


def make_scoreboard(folder, name=NAME, rows=ROWS, returns=RETURNS, num_tasks=20, num_seeds=2):
    board = Board(folder, num_tasks)
    records = Records(board.lines)
    for run in all_runs([name], rows, (100,), num_seeds):
        for column in columns_of(name, num_tasks):
            around = {"around": [[5.0, 1.0 + run.seed]] * num_tasks} if column == "switch" else {}
            key = key_of(board, run, column)
            records.add(**key, returns=[float(returns[run.row][run.seed])] * num_tasks, **around)
    return Scoreboard(board, records, [name], rows, (100,), num_seeds)


def row_of(table, label):
    (found,) = (row for row in table.rows if row[0].startswith(label))
    return found


@pytest.fixture
def scoreboard(tmp_path):
    return make_scoreboard(tmp_path)


def test_means_have_intervals_over_seeds(scoreboard):
    table = scoreboard.mean_returns(NAME)
    assert table.header == ["", "interpolation", "extrapolation", "switch", "nominal", "seeds"]
    assert row_of(table, "told")[0] == "told, 0.0001M"
    assert row_of(table, "corrected_filter")[1] == "9.0 [-3.7, 21.7]"  # Student's t of two: 12.7 standard errors of 1
    assert row_of(table, "corrected_filter")[-1] == "2"


def test_at_a_glance_an_agent_stands_with_the_most_seeds_and_then_the_most_steps(tmp_path):
    scoreboard = make_scoreboard(tmp_path)
    for seed, steps in ((0, 900), (1, 900), (0, 1000)):
        key = key_of(scoreboard.board, Run(NAME, "told", seed, steps), "switch")
        scoreboard.records.add(**key, returns=[26.0 + (steps == 1000)] * 20)
    key = key_of(scoreboard.board, Run(NAME, "ssm_ppo", 0, 100), "switch")
    scoreboard.records.add(**key, returns=[1.0] * 20)
    scoreboard = replace(scoreboard, steps=(100, 900, 1000), rows=(*ROWS, "ssm_ppo"))
    table = scoreboard.overview("switch")
    assert table.header == ["", NAME]
    assert table.rows == [
        *(["as_is", "0.0"], ["corrected_filter", "9.0"], ["domain_randomisation", "2.0"], ["told", "26.0"]),
        ["ssm_ppo", "1.0*"],  # of one seed
    ]
    assert row_of(scoreboard.overview("interpolation"), "told") == ["told", "12.0"]
    assert replace(scoreboard, names=["CartPole"]).overview("switch").rows == []


def test_scores_lie_between_the_plain_agent_and_the_told_one(scoreboard):
    table = scoreboard.normalised(NAME)
    scores = {label: row_of(table, label)[1] for label in ("told", "domain", "as_is", "corrected_filter")}
    assert scores == {"told": "1.00", "domain": "0.00", "as_is": "-0.20", "corrected_filter": "0.70"}


def test_from_five_seeds_on_they_have_intervals(tmp_path):
    returns = {row: [float(values[seed % 2]) for seed in range(5)] for row, values in RETURNS.items()}
    table = make_scoreboard(tmp_path, returns=returns, num_seeds=5).normalised(NAME)
    assert row_of(table, "told")[1] == "1.00 [1.00, 1.00]"
    assert row_of(table, "corrected_filter")[1] == "0.67 [0.60, 0.80]"


def test_seeds_are_drawn_for_all_three_together(tmp_path):
    told = [12.0, 22.0, 32.0, 42.0, 52.0]
    half_way = [(2.0 + each) / 2.0 for each in told]
    returns = {"as_is": told, "corrected_filter": half_way, "domain_randomisation": [2.0] * 5, "told": told}
    table = make_scoreboard(tmp_path, returns=returns, num_seeds=5).normalised(NAME)
    assert row_of(table, "corrected_filter")[1] == "0.50 [0.50, 0.50]"


def test_draws_without_a_gap_are_left_out(tmp_path):
    name, plain, told = "CartPolePolarity", [200.0, *[40.0] * 4], [200.0] * 5
    rows = ("as_is", "domain_randomisation", "told")
    returns = {"as_is": plain, "domain_randomisation": plain, "told": told}
    table = make_scoreboard(tmp_path, name=name, rows=rows, returns=returns, num_seeds=5).normalised(name)
    assert [row[1] for row in table.rows] == ["0.00 [0.00, 0.00]", "0.00 [0.00, 0.00]", "1.00 [1.00, 1.00]"]


def test_where_the_gap_may_be_none_there_is_no_score(tmp_path):
    plain = [100.0, 100.0, 50.0, 50.0, 50.0]  # of which four or five in 9 % of draws are 100
    returns = {"as_is": plain, "corrected_filter": plain, "domain_randomisation": plain, "told": [100.0] * 5}
    table = make_scoreboard(tmp_path, returns=returns, num_seeds=5).normalised(NAME)
    assert {row[1] for row in table.rows} == {"no gap"}


def test_an_agent_is_between_those_of_as_many_steps(tmp_path):
    scoreboard = make_scoreboard(tmp_path, rows=("domain_randomisation", "told"))
    for row, value in (("domain_randomisation", 6.0), ("told", 26.0)):
        for seed in range(2):
            key = key_of(scoreboard.board, Run(NAME, row, seed, 900), "switch")
            scoreboard.records.add(**key, returns=[value] * 20)
    table = replace(scoreboard, steps=(100, 900)).normalised(NAME)
    assert [row[3] for row in table.rows] == ["0.00", "1.00", "0.00", "1.00"]


def test_an_agent_without_steps_is_between_those_with_the_most_that_its_family_has(tmp_path):
    steps = PHYSICS[NAME].steps
    scoreboard = make_scoreboard(tmp_path, rows=("as_is",))
    for row, value in (("domain_randomisation", -10.0), ("told", 10.0)):
        for seed in range(2):
            scoreboard.records.add(
                **key_of(scoreboard.board, Run(NAME, row, seed, steps), "switch"), returns=[value] * 20
            )
    rows = ("as_is", "domain_randomisation", "told")
    for asked in ((), (steps, 10 * steps)):  # of ten times as many, as of other families, nothing is known
        table = replace(scoreboard, rows=rows, steps=asked).normalised(NAME)
        assert [row[3] for row in table.rows] == ["0.50", "0.00", "1.00"]


def test_scores_are_of_the_seeds_that_all_three_have(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    told = [160.0, 150.0, 140.0, *[70.0] * 7]
    returns = {
        "told": told,
        "domain_randomisation": [each - 100.0 for each in told],
        "window_ssm": [110.0, 100.0, 90.0],
    }
    for row, of_seeds in returns.items():
        for seed, value in enumerate(of_seeds):
            records.add(**key_of(board, Run(NAME, row, seed, 100), "switch"), returns=[value] * 20)
    table = Scoreboard(board, records, [NAME], list(returns), (100,), 10).normalised(NAME)
    assert [row_of(table, label)[3].split()[0] for label in returns] == ["1.00", "0.00", "0.50"]


def test_where_being_told_gains_nothing_there_is_no_score(tmp_path):
    scoreboard = make_scoreboard(tmp_path, returns={**RETURNS, "domain_randomisation": (11.9, 11.9)})
    assert row_of(scoreboard.normalised(NAME), "as_is")[1:] == ["no gap"] * 4


def test_nor_where_it_does_so_in_the_few_seeds_of_an_agent_alone(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    returns = {"domain_randomisation": [50.0, *[99.0] * 4], "told": [100.0] * 5, "window_ssm": [75.0]}
    for row, of_seeds in returns.items():
        for seed, value in enumerate(of_seeds):
            records.add(**key_of(board, Run(NAME, row, seed, 100), "switch"), returns=[value] * 20)
    table = Scoreboard(board, records, [NAME], list(returns), (100,), 5).normalised(NAME)
    assert {row[3] for row in table.rows} == {"no gap"}


def test_the_worst_tenth_of_the_tasks(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    (run,) = all_runs([NAME], ["as_is"], (), 1)
    records.add(**key_of(board, run, "switch"), returns=list(np.arange(20.0)[::-1]))
    scoreboard = Scoreboard(board, records, [NAME], ["as_is"], (), 1)
    assert row_of(scoreboard.worst_deciles(NAME), "as_is")[3] == "0.5"


def test_the_probability_to_do_better():
    assert probability_of_improvement([[1.0, 3.0]], [[0.0, 0.0], [2.0, 2.0], [3.0, 3.0]]) == pytest.approx(0.5)
    assert probability_of_improvement([[1.0], [2.0]], [[0.0], [1.0]]) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_rewards_around_a_change(scoreboard):
    other = replace(scoreboard.board, percent=40)
    for seed in range(3):  # of another budget
        key = key_of(other, Run(NAME, "as_is", seed), "switch")
        scoreboard.records.add(**key, returns=[0.0] * 20, around=[[100.0, 100.0]] * 20)
    assert row_of(scoreboard.around_a_change(NAME), "as_is")[1:] == ["5.0 [5.0, 5.0]", "1.5 [-4.9, 7.9]"]


def test_returns_of_a_benchmark_are_scaled_and_sorted_by_distance(tmp_path):
    scoreboard = make_scoreboard(tmp_path, "ComplexODE", ("as_is",), {"as_is": (50.0, 50.0)}, 40)
    assert row_of(scoreboard.scaled("ComplexODE"), "as_is")[1] == "0.25"
    inside, *outside = row_of(scoreboard.by_distance("ComplexODE"), "as_is")[1:]
    assert {inside, *outside} - {""} == {"50.0 [50.0, 50.0]"}
    assert "" not in outside[-1:]


def test_returns_of_one_context_are_averaged():
    assert context_means([np.arange(40.0)]).tolist() == [(np.arange(20) + 10.0).tolist()]


def test_costs_are_the_means_over_seeds(scoreboard):
    for seconds in (1.0, 2.0):
        line = {"study": "prepared", "physics": NAME, "row": "policy"} | scoreboard.board.settings_of(NAME)
        scoreboard.records.add(**line, steps=5000, cpu_seconds=seconds)
    assert scoreboard.costs().rows == [[NAME, "policy", "5,000", "1.5"]]


def test_only_tables_with_a_row_are_shown(tmp_path):
    scoreboard = make_scoreboard(tmp_path, "CartPole", ("as_is",), {"as_is": (1.0, 1.0)})
    assert [table.title.partition(": ")[2] for table in scoreboard.tables()] == [
        *("mean return in 20 tasks", "mean return in the worst tenth of the tasks"),
        "probability that the mean of a seed is above that of the policy as it is",
    ]
