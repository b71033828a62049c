"""The report of a scoreboard, made of its lines alone: tables, pictures and one page."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ssm_metarl_gym.experiments.pictures import draw_returns
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate
from ssm_metarl_gym.experiments.scoreboard.agents import AGENTS, adapts
from ssm_metarl_gym.experiments.scoreboard.board import Board, rule_of
from ssm_metarl_gym.experiments.scoreboard.decisions import LEAST_SEEDS, decision_tables
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard, Table
from ssm_metarl_gym.experiments.scoreboard.page import Page, write_markdown, write_page
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS, recipe_of
from ssm_metarl_gym.files import replacing

__all__ = ["REPORT_FILES", "find_scoreboard", "report_tables", "write_report", "write_scores"]

REPORT_FILES: Final = ("report.md", "report.html", "scores.npz")
_NEEDED: Final = ("physics", "row", "steps", "seed", "column", "num_tasks", "percent", "returns")
_INTRODUCTION: Final = (
    "Every agent meets the same tasks of each seed. Means are over tasks and seeds, with 95 % intervals over seeds "
    "(Student's t); of one seed, over tasks (bootstrap).",
    "Agents with steps in their name were trained on tasks of the family for so many, rounded up to whole updates. "
    "What corrects by gradients or by least squares was not, but its model has seen 64,000 random steps of them, and "
    "meta_policy plays ten episodes of each task before the one that counts.",
    "At a glance, an agent that was trained for several numbers of steps stands with the one of most seeds, and of "
    "several of these with the greatest. It has a star where it has fewer seeds than others.",
    "What to use when: the best agent is above the most others in the tasks of the seeds that both have. As good, as "
    f"far as is known, is each whose difference from it has a 95 % interval that reaches zero or lies above. The "
    "cheapest of all these takes the fewest steps on the family, and then the least time; what varies much is not told "
    "from anything, so one that is cheaper still, and not below that one on the mean, takes its place. All this over "
    f"{LEAST_SEEDS} seeds or more. PPO that is told the hidden physics is no choice.",
    "Scores and scaled returns are of interquartile means, with a bootstrap over seeds and tasks (of AIB's over seeds) "
    "from five seeds on, which of so few is too sure. Scores are over the seeds that an agent has in common with those "
    "that are 0 and 1, which take as many steps as it does, or the most that are known; 1 is PPO that is told what is "
    "hidden after so many steps, which may be beaten.",
)
_AT_A_GLANCE: Final = ("interpolation", "extrapolation", "switch", "nominal")


def find_scoreboard(folder: Path, kind: tuple[int, int] | None = None) -> Scoreboard:
    """The scoreboard that the lines of a folder are of: of all physics, agents and seeds that they name.

    Lines of other settings than the present ones do not count: they are measured anew by the command that wrote them.

    Args:
        folder: The folder.
        kind: The number of tasks and the per cent of the budget that the lines are of; None for that of most lines.

    Raises:
        ValueError: There is no evaluation by the present settings, or a line is damaged.
        OSError: The file cannot be read.
    """
    records = Records(folder / "runs.jsonl", is_read_only=True)
    lines = records.find(study="returns")
    if not lines:
        raise ValueError(f"a folder must hold the runs.jsonl of a benchmark; {folder} holds no evaluation.")
    for line in lines:
        if missing := [name for name in _NEEDED if name not in line]:
            raise ValueError(f"each evaluation in {folder} must have {', '.join(_NEEDED)}; one lacks {missing[0]}.")
    lines = [line for line in lines if _is_present(line)]
    if not lines:
        raise ValueError(
            f"the evaluations in {folder} must be by the present settings of the families and rules of adaptation; all "
            "got there by other ones. Run the benchmark again."
        )
    num_tasks, percent = kind or Counter((line["num_tasks"], line["percent"]) for line in lines).most_common(1)[0][0]
    lines = [line for line in lines if (line["num_tasks"], line["percent"]) == (num_tasks, percent)]
    # In the order of what is known here, what is a user's behind it.
    names, agents = (
        [name for name in dict.fromkeys([*ordered, *found]) if name in found]
        for ordered, found in (
            (PHYSICS, dict.fromkeys(line["physics"] for line in lines)),
            (AGENTS, dict.fromkeys(line["row"] for line in lines)),
        )
    )
    return Scoreboard(
        Board(folder, num_tasks, percent),
        records,
        names,
        agents,
        sorted({line["steps"] for line in lines if line["steps"]}),
        1 + max(line["seed"] for line in lines),
    )


def _is_present(line: Mapping[str, Any]) -> bool:
    """Whether a line was measured by the present settings of its physics and the present rule of what adapts."""
    rule_is_present = not adapts(line["row"]) or line.get("rule") == rule_of(line["row"])
    return rule_is_present and line.get("recipe") == recipe_of(line["physics"])


def write_report(scoreboard: Scoreboard, command: str) -> list[Path]:
    """Write report.md, report.html, scores.npz and the pictures into the folder of a scoreboard; what was written.

    Args:
        scoreboard: What is known.
        command: The command that makes the report again, as the page tells it.
    """
    folder, tables = scoreboard.board.folder, report_tables(scoreboard)
    pictures = {}
    for name in scoreboard.names:
        path = folder / f"returns-{name}.png"
        if _draw(scoreboard, name, path):
            pictures[name] = path
    title = "Ways of coping with physics that one is not told about"
    page = Page(title, [_budget_of(scoreboard), *_INTRODUCTION], tables, pictures, command)
    write_markdown(page, folder / "report.md")
    write_page(page, folder / "report.html")
    write_scores(scoreboard, folder / "scores.npz")
    return [folder / "report.html", folder / "report.md", *pictures.values(), folder / "scores.npz"]


def report_tables(scoreboard: Scoreboard) -> list[Table]:
    """All tables of a report that have a row: at a glance, what to use when, and each family."""
    overviews = [table for table in map(scoreboard.overview, _AT_A_GLANCE) if table.rows]
    return [*overviews, *decision_tables(scoreboard), *scoreboard.tables()]


def _budget_of(scoreboard: Scoreboard) -> str:
    """How much was done for what a report shows."""
    board = scoreboard.board
    budget = f"Up to {scoreboard.num_seeds} seeds of policies, models and tasks, {board.num_tasks} tasks each."
    if board.percent != 100:
        budget += (
            f" Policies of the nominal physics and models learned for {board.percent} % of the steps and updates that "
            "are meant for them: another budget gives other figures."
        )
    if scoreboard.num_seeds < LEAST_SEEDS:
        budget += f" The best agents are told from {LEAST_SEEDS} seeds on."
    return budget


def write_scores(scoreboard: Scoreboard, path: Path) -> None:
    """Write mean returns as rliable takes them: an array ``Float[num_seeds num_physics]`` for each agent and column.

    The names are ``"agent/column"``, and ``"agent/column/physics"`` names the physics of its columns: all of which a
    seed is known. The seeds are those that all of these have.
    """
    scores = {}
    for label, row, steps in scoreboard.labels():
        for column in ("interpolation", "extrapolation", "switch"):
            known = {name: scoreboard.lines(name, row, steps, column) for name in scoreboard.names}
            found = {name: lines for name, lines in known.items() if lines}
            if seeds := sorted(set.intersection(*map(set, found.values())) if found else ()):
                means = [[np.mean(lines[seed]["returns"]) for lines in found.values()] for seed in seeds]
                scores[f"{label}/{column}"] = np.array(means)
                scores[f"{label}/{column}/physics"] = np.array(list(found))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **scores)  # type: ignore[arg-type]


def _draw(scoreboard: Scoreboard, name: str, path: Path) -> bool:
    columns = scoreboard.columns(name)
    estimates, means = {}, {}
    for label, row, steps in scoreboard.labels():
        by_column = {column: scoreboard.returns(name, row, steps, column) for column in columns}
        if all(by_column.values()):
            estimates[label] = {column: estimate(found, 0) for column, found in by_column.items()}
            means[label] = {column: [float(np.mean(each)) for each in found] for column, found in by_column.items()}
    if estimates:
        draw_returns(estimates, means, path)
    return bool(estimates)
