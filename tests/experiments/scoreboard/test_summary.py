import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.physics import columns_of
from ssm_metarl_gym.experiments.scoreboard.plan import Run, all_runs, key_of
from ssm_metarl_gym.experiments.scoreboard.summary import find_scoreboard, report_tables, write_report, write_scores

NAMES, ROWS = ("CartPole", "PointActuators-2"), ("as_is", "corrected_gradients", "told")


def write_lines(folder, num_tasks=20, percent=100, num_seeds=2):
    board = Board(folder, num_tasks, percent)
    records = Records(board.lines)
    for run in all_runs(NAMES, ROWS, (100,), num_seeds):
        for column in columns_of(run.physics, num_tasks):
            records.add(**key_of(board, run, column), returns=[float(run.seed)] * num_tasks)


def test_a_folder_says_what_it_is_of(tmp_path):
    write_lines(tmp_path)
    write_lines(tmp_path, percent=10, num_seeds=1)
    scoreboard = find_scoreboard(tmp_path)
    assert (scoreboard.board.num_tasks, scoreboard.board.percent) == (20, 100)
    assert sorted(scoreboard.names) == sorted(NAMES)
    assert (tuple(scoreboard.rows), scoreboard.steps, scoreboard.num_seeds) == (ROWS, [100], 2)


def test_what_the_scoreboard_is_of_can_be_said(tmp_path):
    write_lines(tmp_path)
    write_lines(tmp_path, percent=10, num_seeds=1)
    assert find_scoreboard(tmp_path, (20, 10)).num_seeds == 1


def test_a_folder_without_an_evaluation_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"study": "prepared"}\n')
    with pytest.raises(ValueError, match=f"a folder must hold the runs.jsonl .*; {tmp_path} holds no evaluation"):
        find_scoreboard(tmp_path)


def test_the_page_needs_no_other_file_and_shows_every_table(tmp_path):
    write_lines(tmp_path)
    scoreboard = find_scoreboard(tmp_path)
    written = write_report(scoreboard, "python scripts/report.py <folder>")
    assert all(path.exists() for path in written)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;folder&gt;" in page
    assert (
        "Up to 2 seeds of policies, models and tasks, 20 tasks each. The best agents are told from 5 seeds on." in page
    )
    assert page.count('src="data:image/png;base64,') == 2
    for word in ("http://", "https://", 'src="/', ".png"):
        assert word not in page
    tables = report_tables(scoreboard)
    assert page.count("<table>") == len(tables) > len(scoreboard.tables())
    assert "<b>0.5</b> <small>[" in page
    assert page.count('class="tinted"') == 3 * (2 + 2 + 1 + 2)  # three agents, and nothing changes in a CartPole
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert markdown.count("\n### ") == len(tables)
    assert markdown.count("](./returns-") == 2
    assert "\n## PointActuators-2\n" in markdown


def test_a_report_says_how_much_less_was_done(tmp_path):
    write_lines(tmp_path, percent=40, num_seeds=5)
    write_report(find_scoreboard(tmp_path), "command")
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        "- Up to 5 seeds of policies, models and tasks, 20 tasks each. Policies of the nominal physics and models "
        in (markdown)
    )
    assert "learned for 40 % of the steps" in markdown
    assert "seeds on." not in markdown.splitlines()[2]


def test_scores_are_arrays_of_seeds_by_families(tmp_path):
    write_lines(tmp_path)
    write_scores(find_scoreboard(tmp_path), tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as scores:
        assert scores["as_is/interpolation"].tolist() == [[0.0, 0.0], [1.0, 1.0]]
        assert scores["told, 0.0001M/switch"].shape == (2, 1)  # nothing changes in a CartPole
        assert scores["told, 0.0001M/switch/physics"].tolist() == ["PointActuators-2"]


def test_scores_are_of_the_families_in_which_an_agent_took_so_many_steps(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    for run in all_runs(NAMES, ["told"], (), 2):
        records.add(**key_of(board, run, "extrapolation"), returns=[float(run.seed)] * 20)
    write_scores(find_scoreboard(tmp_path), tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as scores:
        assert scores["told, 0.1M/extrapolation/physics"].tolist() == ["CartPole"]
        assert scores["told, 1M/extrapolation"].tolist() == [[0.0], [1.0]]


def test_scores_are_of_the_seeds_that_all_families_have(tmp_path):
    board = Board(tmp_path, 20)
    records = Records(board.lines)
    for run in all_runs(NAMES, ["as_is"], (), 4):
        if (run.physics, run.seed) not in ((NAMES[0], 2), (NAMES[1], 3)):
            records.add(**key_of(board, run, "extrapolation"), returns=[float(run.seed)] * 20)
    write_scores(find_scoreboard(tmp_path), tmp_path / "scores.npz")
    with np.load(tmp_path / "scores.npz") as scores:
        assert scores["as_is/extrapolation"].tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_lines_of_other_settings_do_not_count(tmp_path):
    board = Board(tmp_path, 300)
    records = Records(board.lines)
    for seed in range(9):
        key = key_of(board, Run("CartPole", "corrected_gradients", seed), "nominal")
        records.add(**key | {"rule": 0}, returns=[1.0] * 300)
        records.add(**key | {"recipe": "another"}, returns=[1.0] * 300)
    with pytest.raises(ValueError, match="by the present settings"):
        find_scoreboard(tmp_path)
    present = Board(tmp_path, 40)
    records.add(**key_of(present, Run("CartPole", "corrected_gradients", 0), "nominal"), returns=[1.0] * 40)
    scoreboard = find_scoreboard(tmp_path)
    assert (scoreboard.board.num_tasks, scoreboard.num_seeds) == (40, 1)
    assert scoreboard.tables()


def test_a_line_that_lacks_something_is_told_of(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"study": "returns", "physics": "CartPole", "returns": [1.0]}\n')
    with pytest.raises(ValueError, match="one lacks row"):
        find_scoreboard(tmp_path)
