"""What to use when: the best agents of each family and column, what they cost, and where each of them loses."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from ssm_metarl_gym.experiments.report import Estimate, estimate
from ssm_metarl_gym.experiments.scoreboard.agents import CORRECTED, agent_of, is_own, uses_meta_model
from ssm_metarl_gym.experiments.scoreboard.board import adapting_of
from ssm_metarl_gym.experiments.scoreboard.figures import TOLD, Scoreboard, Table

__all__ = ["LEAST_SEEDS", "Cost", "best_agents", "cost_of", "decision_tables", "greatest_losses"]

_Lines = dict[int, dict[str, Any]]  # of an agent in a column, by seed
LEAST_SEEDS: Final = 5  # of an agent that is compared with others: of fewer an interval is so wide that all are alike


class Cost(NamedTuple):
    """What an agent takes, with all that it stands on: the mean over seeds.

    Attributes:
        steps: Steps on the tasks of the family, those of its model and of its teacher included.
        cpu_seconds: Seconds, those of a policy of the nominal physics included.
    """

    steps: int
    cpu_seconds: float


def decision_tables(scoreboard: Scoreboard) -> list[Table]:
    """Both tables, if they have rows."""
    return [table for table in (best_agents(scoreboard), greatest_losses(scoreboard)) if table.rows]


def best_agents(scoreboard: Scoreboard) -> Table:
    """Of each family and column the cheapest among the best agent and all that may be as good, and who these are.

    The best one is above the most others, in the tasks of the seeds that both have; as good are those whose difference
    from it has an interval that does not lie below zero. That is so of whatever varies enough: so an agent that is
    cheaper than the cheapest of these, and not below it on the mean, takes its place. Those that are told what is
    hidden are left out, as that is no way of coping, and those of fewer than five seeds.
    """
    rows = []
    agents = {label: (row, steps) for label, row, steps in scoreboard.labels() if row != TOLD}
    for name in scoreboard.names:
        costs = {label: cost_of(scoreboard, name, *agent) for label, agent in agents.items()}
        for column in scoreboard.columns(name):
            known = {label: scoreboard.lines(name, *agent, column) for label, agent in agents.items()}
            found = {label: lines for label, lines in known.items() if len(lines) >= LEAST_SEEDS}
            if good := _best_of(found):
                best, cheapest = good[0], _cheapest_of(good, found, costs)
                returns = estimate([line["returns"] for line in found[cheapest].values()], 0)
                others = "; ".join(label for label in good if label not in (best, cheapest))
                rows.append([name, column, cheapest, f"{returns:.1f}", *_cells(costs[cheapest]), best, others])
    header = ["", "column", "cheapest of the best", "mean return", "steps on the family", "CPU seconds"]
    header += ["best", "others as good, as far as is known"]
    return Table("What to use when: the cheapest of the best, and what it costs", header, rows)


def _best_of(found: Mapping[str, _Lines]) -> list[str]:
    """The label of the best of some agents, by the lines of each, and those of all that may be as good."""
    means = {label: {seed: np.mean(line["returns"]) for seed, line in lines.items()} for label, lines in found.items()}

    def num_below(label: str) -> float:
        """Those that an agent is above, by halves where they are level or have too few seeds in common."""
        own, total = means[label], 0.0
        for others in means.values():
            seeds = own.keys() & others.keys()
            above = sum(own[seed] - others[seed] for seed in seeds) if len(seeds) >= LEAST_SEEDS else 0.0
            total += 0.5 + 0.5 * float(np.sign(above))
        return total

    if not found:
        return []
    best = max(found, key=num_below)
    differences = {label: _difference(lines, found[best], LEAST_SEEDS) for label, lines in found.items()}
    return [
        best,
        *(label for label, each in differences.items() if label != best and (each is None or each.high >= 0.0)),
    ]


def _cheapest_of(good: list[str], found: Mapping[str, _Lines], costs: Mapping[str, Cost | None]) -> str:
    """The label of the cheapest of the best agents, or of a cheaper one that is not below it on the mean."""

    def cost_in_order(label: str) -> tuple[float, float]:
        return costs[label] or (math.inf, math.inf)

    cheapest = min(good, key=cost_in_order)
    differences = {label: _difference(lines, found[cheapest], LEAST_SEEDS) for label, lines in found.items()}
    level = [label for label, each in differences.items() if each is not None and each.mean >= 0.0]
    return min([cheapest, *level], key=cost_in_order)


def greatest_losses(scoreboard: Scoreboard) -> Table:
    """Of each agent and family the column in which it loses most, or gains least, against the policy as it is.

    Both met the same tasks: intervals are of the differences.
    """
    rows = []
    for label, row, steps in scoreboard.labels():
        cells = [_greatest_loss(scoreboard, name, row, steps) for name in scoreboard.names]
        if row != "as_is" and any(cells):
            rows.append([label, *cells])
    title = "What to use when: the column in which an agent loses most (or gains least) against the policy as it is"
    return Table(title, ["", *scoreboard.names], rows)


def cost_of(scoreboard: Scoreboard, name: str, row: str, steps: int) -> Cost | None:
    """What an agent takes in some physics; None where a line of it is missing.

    Args:
        scoreboard: What is known.
        name: The physics.
        row: The agent.
        steps: The steps on the training tasks that it was asked to take.
    """
    total, seconds = 0, 0.0
    for what, least, is_on_family in _parts(row, steps, scoreboard.board.nominal_steps(name)):
        lines = [line for line in scoreboard.costs_of(name) if line["row"] == what]
        # Steps are rounded up to whole rollouts: of several budgets it is the first that is large enough, where no line
        # says what was asked for. An agent of a user's that does not learn takes none.
        enough = [line["steps"] for line in lines if line["steps"] >= least or (is_own(row) and not line["steps"])]
        if not enough:
            return None
        of_budget = [line for line in lines if line.get("budget") == least]
        taken = of_budget or [line for line in lines if line["steps"] == min(enough)]
        total += round(np.mean([line["steps"] for line in taken])) * is_on_family
        seconds += float(np.mean([line["cpu_seconds"] for line in taken]))
    return Cost(total, seconds)


def _parts(row: str, steps: int, nominal_steps: int) -> Iterator[tuple[str, int, bool]]:
    """All that an agent stands on: what its lines call it, its least steps, and whether they are on the family."""
    if row in CORRECTED:
        yield "policy, nominal", nominal_steps, False
    elif teacher := agent_of(row).teacher:
        yield f"policy, {teacher}", steps, True
        yield f"policy, {row}", 0, True
    else:
        yield f"policy, {row}", steps, True
    if row == "corrected_filter":
        yield "model of the nominal physics", 0, False
    elif uses_meta_model(row):
        yield "meta-learned model" + (", all layers" if adapting_of(row) == "all" else ""), 0, True


def _cells(cost: Cost | None) -> list[str]:
    return ["", ""] if cost is None else [f"{cost.steps:,}", f"{cost.cpu_seconds:.1f}"]


def _greatest_loss(scoreboard: Scoreboard, name: str, row: str, steps: int) -> str:
    differences: dict[str, Estimate] = {}
    for column in scoreboard.columns(name):
        own, others = (scoreboard.lines(name, *agent, column) for agent in ((row, steps), ("as_is", 0)))
        difference = _difference(own, others, 1)
        if difference is not None:
            differences[column] = difference
    if not differences:
        return ""
    column = min(differences, key=lambda each: differences[each].mean)
    return f"{differences[column]:.1f} {column}"


def _difference(own: _Lines, others: _Lines, least_seeds: int) -> Estimate | None:
    """By how much an agent's returns are above another one's in the same tasks, over the seeds that both have.

    None where these are fewer than ``least_seeds``.
    """
    pairs = [(own[seed]["returns"], others[seed]["returns"]) for seed in own if seed in others]
    return estimate([np.subtract(*pair) for pair in pairs], 0) if len(pairs) >= least_seeds else None
