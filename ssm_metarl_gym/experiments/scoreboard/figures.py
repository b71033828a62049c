"""The figures of a scoreboard, as tables: what Markdown and a page show alike.

Means are over tasks and seeds; intervals are 95 % ones. Interquartile means, the interval by a bootstrap over seeds and
tasks, and the probability of improvement are as in Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice", https://arxiv.org/abs/2108.13264.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import Estimate, estimate
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.physics import AIB, columns_of, context_distances, physics_of
from ssm_metarl_gym.experiments.scoreboard.plan import all_runs, lines_of, steps_of
from ssm_metarl_gym.experiments.statistics import hierarchical_interval, interquartile_mean

__all__ = ["Scoreboard", "Table", "context_means", "probability_of_improvement"]

_DISTANCES: Final = ((0.0, 0.125), (0.125, 0.25), (0.25, 0.375), (0.375, 0.51))
# A score of 1 is told what is hidden, one of 0 knows nothing of it. Where both get nearly the same, a share of the
# difference says nothing.
_LEAST_GAP: Final = 0.05
_SEEDS_OF_AN_INTERVAL: Final = 5  # fewer make a bootstrap that is far too sure
_Returns = dict[int, list[float]]  # of all tasks, by seed
PLAIN, TOLD = "domain_randomisation", "told"


class Table(NamedTuple):
    """A table.

    Attributes:
        title: What it is of.
        header: The names of its columns.
        rows: Its cells.
        is_tinted: Whether a page colours each number by its place between the least and the greatest of its column.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    is_tinted: bool = False


@dataclass(frozen=True)
class Scoreboard:
    """What is known, and which of it is asked for.

    Attributes:
        board: Where it lies.
        records: The lines of it.
        names: The physics.
        rows: The agents.
        steps: Steps on the training tasks, of the agents that take some; none for those of each family.
        num_seeds: The most seeds.
    """

    board: Board
    records: Records
    names: Sequence[str]
    rows: Sequence[str]
    steps: Sequence[int]
    num_seeds: int

    def labels(self) -> list[tuple[str, str, int]]:
        """The rows of a table: how they are called, and the agent and the steps that they are of."""
        runs = all_runs(self.names, self.rows, self.steps, 1)
        found = dict.fromkeys((run.row, run.steps) for run in runs)
        return [(f"{row}, {steps / 1e6:g}M" if steps else row, row, steps) for row, steps in found]

    def columns(self, name: str) -> list[str]:
        """The columns of some physics."""
        return list(columns_of(name, self.board.num_tasks))

    def returns(self, name: str, row: str, steps: int, column: str) -> list[list[float]]:
        """The returns that are known, ``[num_seeds num_tasks]``."""
        return [line["returns"] for line in self.lines(name, row, steps, column).values()]

    def lines(self, name: str, row: str, steps: int, column: str) -> dict[int, dict[str, Any]]:
        """The lines that are known, by seed."""
        return lines_of(self.board, self.records, name, row, steps, column, self.num_seeds)

    def overview(self, column: str) -> Table:
        """Mean returns of all agents in all physics that have a column.

        Each is over the most seeds that it has with some number of steps, and of several of these with the most; with
        fewer seeds than others of the same physics it has a star.
        """
        names = [name for name in self.names if column in self.columns(name)]
        found: dict[str, dict[str, list[list[float]]]] = {}
        for _, row, steps in self.labels():  # few steps first
            for name in names:
                returns = self.returns(name, row, steps, column)
                if returns and len(returns) >= len(found.get(row, {}).get(name, [])):
                    found.setdefault(row, {})[name] = returns
        most = {name: max((len(each.get(name, [])) for each in found.values()), default=0) for name in names}

        def cell(name: str, returns: list[list[float]] | None) -> str:
            return "" if returns is None else f"{np.mean(returns):.1f}" + "*" * (len(returns) < most[name])

        rows = [[row, *(cell(name, of_row.get(name)) for name in names)] for row, of_row in found.items()]
        return Table(f"At a glance: mean return, {column}", ["", *names], rows, is_tinted=True)

    def mean_returns(self, name: str) -> Table:
        """Mean returns with intervals over seeds."""

        def cell(returns: _Returns, _: str, __: int) -> str:
            return f"{estimate(list(returns.values()), 0):.1f}"

        return self._table(f"{name}: mean return in {self.board.num_tasks} tasks", name, cell, counts_seeds=True)

    def worst_deciles(self, name: str) -> Table:
        """The mean return in the tenth of the tasks with the least returns."""

        def cell(returns: _Returns, _: str, __: int) -> str:
            worst = [np.sort(each)[: max(1, len(each) // 10)] for each in returns.values()]
            # Of one seed there is no interval: that of chosen tasks would say nothing.
            return f"{estimate(worst, 0):.1f}" if len(worst) > 1 else f"{np.mean(worst):.1f}"

        return self._table(f"{name}: mean return in the worst tenth of the tasks", name, cell)

    def normalised(self, name: str) -> Table:
        """Scores by interquartile means over seeds, between those of the plain agent, 0, and of the told one, 1.

        All over the seeds that they have in common. Intervals, of five seeds at least, draw seeds and tasks for all
        three together. There is no score where these two are close together, in these seeds or in all that both have,
        or may be, as far as five seeds or more can tell.
        """
        gaps: dict[Any, bool] = {}  # known from the agents before

        def cell(returns: _Returns, column: str, steps: int) -> str:
            # By those with as many steps, or with the most that are known where an agent takes none.
            for anchor_steps in [steps] if steps else reversed(steps_of(name, self.steps)):
                anchors = [self.lines(name, row, anchor_steps, column) for row in (PLAIN, TOLD)]
                if seeds := sorted(returns.keys() & anchors[0].keys() & anchors[1].keys()):
                    break
            else:
                return ""
            of_both = anchors[0].keys() & anchors[1].keys()
            low_and_high = [{seed: line["returns"] for seed, line in lines.items()} for lines in anchors]
            for gap_seeds in (sorted(of_both), seeds):
                key = (column, anchor_steps, *gap_seeds)
                if key not in gaps:
                    gaps[key] = self._differ(name, _stack(low_and_high, gap_seeds))
                if not gaps[key]:
                    return "no gap"
            return self._with_interval(name, _stack([*low_and_high, returns], seeds), _score)

        title = f"{name}: score, 0 for plain PPO and 1 for the told one"
        return self._table(title, name, cell)

    def improvements(self, name: str) -> Table:
        """How probable it is that an agent of some seed gets more than the policy as it is of any seed."""

        def cell(returns: _Returns, column: str, _: int) -> str:
            own, others = list(returns.values()), self.returns(name, "as_is", 0, column)
            # Of means of seeds: of one seed it would be 0 or 1.
            return f"{probability_of_improvement(own, others):.2f}" if min(len(own), len(others)) > 1 else ""

        return self._table(
            f"{name}: probability that the mean of a seed is above that of the policy as it is", name, cell
        )

    def around_a_change(self, name: str) -> Table:
        """The rewards of the 50 steps before what is hidden changes and of those after it."""
        rows = []
        for label, row, steps in self.labels():
            lines = self.lines(name, row, steps, "switch").values()
            found = [line["around"] for line in lines if "around" in line]
            if found:
                before, after = np.moveaxis(np.asarray(found), -1, 0)
                rows.append([label, f"{estimate(list(before), 0):.1f}", f"{estimate(list(after), 0):.1f}"])
        return Table(f"{name}: rewards of 50 steps around a change", ["", "before", "after"], rows)

    def scaled(self, name: str) -> Table:
        """Of AIB's environments: interquartile means over contexts and seeds, in units of the best return."""
        best = physics_of(name).best

        def cell(returns: _Returns, _: str, __: int) -> str:
            return self._with_interval(name, np.asarray(list(returns.values())) / best, _over_all)

        title = f"{name}: interquartile mean of returns / {best:g} over contexts and seeds"
        return self._table(title, name, cell)

    def by_distance(self, name: str) -> Table:
        """Of AIB's environments: mean returns by the distance of a context from the training range."""
        distances, rows = context_distances(name), []
        for label, row, steps in self.labels():
            inside = self.returns(name, row, steps, "interpolation")
            outside = self.returns(name, row, steps, "extrapolation")
            if inside and outside:
                means = context_means(outside)
                cells = [f"{estimate(inside, 0):.1f}"]
                for low, high in _DISTANCES:
                    chosen = (low < distances) & (distances <= high)
                    cells.append(f"{estimate(list(means[:, chosen]), 0):.1f}" if chosen.any() else "")
                rows.append([label, *cells])
        header = ["distance from the training range, in its widths", "0"]
        return Table(
            f"{name}: return by distance", [*header, *(f"{low:g} to {high:.3g}" for low, high in _DISTANCES)], rows
        )

    def costs_of(self, name: str) -> list[dict[str, Any]]:
        """The lines of what policies and models of some physics took."""
        return self.records.find(study="prepared", physics=name, **self.board.settings_of(name))

    def costs(self) -> Table:
        """What policies and models took, the mean over seeds."""
        rows = []
        for name in self.names:
            of_budgets: dict[tuple[str, int], list[dict[str, Any]]] = {}
            for line in self.costs_of(name):
                of_budgets.setdefault((line["row"], line.get("budget", line["steps"])), []).append(line)
            for (what, _), lines in of_budgets.items():
                steps, seconds = (np.mean([line[of] for line in lines]) for of in ("steps", "cpu_seconds"))
                rows.append([name, what, f"{steps:,.0f}", f"{seconds:.1f}"])
        return Table("Costs", ["", "what", "environment steps", "CPU seconds"], rows)

    def tables(self) -> list[Table]:
        """All of them that have a row."""
        found = []
        for name in self.names:
            found += [self.mean_returns(name), self.normalised(name), self.worst_deciles(name)]
            found += [self.improvements(name)]
            if name in AIB:
                found += [self.scaled(name), self.by_distance(name)]
            if physics_of(name).changes:
                found.append(self.around_a_change(name))
        return [table for table in [*found, self.costs()] if table.rows]

    def _differ(self, name: str, low_and_high: Any) -> bool:
        """Whether returns of two agents, ``Float[2 num_seeds num_tasks]``, are far enough apart for a score."""
        if not _over_the_least_gap(low_and_high) > 0.0:
            return False
        interval = self._interval(name, low_and_high, _over_the_least_gap)
        return interval is None or interval[0] > 0.0

    def _with_interval(self, name: str, returns: Any, statistic: Callable[[Any], Any]) -> str:
        """A statistic of returns, ``Float[... num_seeds num_tasks]``, with its interval if there are enough seeds."""
        interval = self._interval(name, returns, statistic)
        value = float(statistic(context_means(returns) if name in AIB else returns))
        return f"{value:.2f}" if interval is None else f"{Estimate(value, *interval):.2f}"

    def _interval(self, name: str, returns: Any, statistic: Callable[[Any], Any]) -> tuple[float, float] | None:
        """The interval; None where there are too few seeds. AIB's contexts are the same for all, and are not drawn."""
        if returns.shape[-2] < _SEEDS_OF_AN_INTERVAL:
            return None
        if name in AIB:
            returns = context_means(returns)
        return hierarchical_interval(returns, 0, statistic=statistic, draws_tasks=name not in AIB)

    def _table(
        self, title: str, name: str, cell: Callable[[_Returns, str, int], str], *, counts_seeds: bool = False
    ) -> Table:
        """A table with a row for each agent of which something is known."""
        columns, rows = self.columns(name), []
        for label, row, steps in self.labels():
            lines = [self.lines(name, row, steps, column) for column in columns]
            found: list[_Returns] = [{seed: line["returns"] for seed, line in each.items()} for each in lines]
            cells = [cell(each, column, steps) if each else "" for each, column in zip(found, columns, strict=True)]
            if any(cells):
                seeds = [str(min(len(each) for each in found))] if counts_seeds else []
                rows.append([label, *cells, *seeds])
        return Table(title, ["", *columns, *(["seeds"] if counts_seeds else [])], rows)


def context_means(returns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The mean return of each of AIB's contexts, ``Float[... 20]`` of returns ``Float[... num_tasks]``."""
    values = np.asarray(returns, dtype=np.float64)
    return np.stack([values[..., context::20].mean(axis=-1) for context in range(20)], axis=-1)


def probability_of_improvement(returns: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """How probable it is that one run has a greater mean return than a run of another agent; one half if it is equal.

    Args:
        returns: ``Float[num_seeds num_tasks]``, of the agent.
        others: Those of the other one.
    """
    means, other_means = (np.mean(np.asarray(each), axis=1) for each in (returns, others))
    return float(np.mean(0.5 + 0.5 * np.sign(means[:, None] - other_means)))


def _stack(agents: Sequence[_Returns], seeds: Sequence[int]) -> Any:
    """The returns of some seeds, ``Float[num_agents num_seeds num_tasks]``."""
    return np.asarray([[returns[seed] for seed in seeds] for returns in agents], dtype=np.float64)


def _over_seeds(returns: Any) -> Any:
    """The interquartile mean over seeds of the means over tasks, ``Float[... num_seeds num_tasks]``."""
    return interquartile_mean(np.mean(returns, axis=-1), axis=-1)


def _over_all(means: Any) -> Any:
    """The interquartile mean over seeds and contexts, ``Float[... num_seeds 20]``."""
    return interquartile_mean(np.reshape(means, (*np.shape(means)[:-2], -1)), axis=-1)


def _over_the_least_gap(low_and_high: Any) -> Any:
    """By how much more than they must two agents differ, ``Float[2 ... num_seeds num_tasks]``."""
    low, high = _over_seeds(low_and_high)
    return high - low - _LEAST_GAP * np.abs(high)


def _score(low_high_and_agent: Any) -> Any:
    """Where an agent lies between two others, ``Float[3 ... num_seeds num_tasks]``; nan where these are too close."""
    low, high, agent = _over_seeds(low_high_and_agent)
    gap = np.where(_over_the_least_gap(low_high_and_agent[:2]) > 0.0, high - low, np.nan)
    return (agent - low) / gap
