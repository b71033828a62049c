"""Agents beside each other: whether they can be compared, which differ in the seed only, and the table of all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.saved_agents import SavedAgent

__all__ = ["Row", "check_comparable", "format_table", "group_seeds", "summarise"]

# Arguments of an environment that agents of one comparison may differ in: the split is that of the evaluation, and
# "context" only says whether an agent is told its task.
_NOT_OF_THE_TASKS: Final = {"split", "context"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        label: What it is called.
        agents: The indices of its agents, which differ in the seed only.
        splits: The mean return in each split.
        timesteps: Steps of the training.
        cpu_seconds: Seconds of the training, mean over seeds, None where they are not known.
    """

    label: str
    agents: tuple[int, ...]
    splits: dict[str, Estimate]
    timesteps: int
    cpu_seconds: float | None

    def to_dict(self, agents: Sequence[SavedAgent]) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "label": self.label,
            "agents": [str(agents[i].path) for i in self.agents],
            "num_seeds": len(self.agents),
            "splits": {split: cell.to_dict("mean_return") for split, cell in self.splits.items()},
            "timesteps": self.timesteps,
            "cpu_seconds": self.cpu_seconds,
        }


def check_comparable(agents: Sequence[SavedAgent], env_kwargs: Mapping[str, Any]) -> None:
    """Agents must be different ones of one environment and one distribution of tasks.

    Args:
        agents: The agents.
        env_kwargs: Arguments that replace those that each was trained with.

    Raises:
        ValueError: They are not.
    """
    env_ids = sorted({agent.config["env"] for agent in agents})
    if len(env_ids) > 1:
        raise ValueError(f"all agents must be of one environment; got {', '.join(env_ids)}. Evaluate one at a time.")
    first, *others = ({**agent.config["env_kwargs"], **env_kwargs} for agent in agents)
    for agent, other in zip(agents[1:], others, strict=True):
        for name in (first.keys() | other.keys()) - _NOT_OF_THE_TASKS:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"all agents must meet the same tasks; {name} is {json.dumps(first.get(name))} for "
                    f"{agents[0].path} and {json.dumps(other.get(name))} for {agent.path}. Give one for all in "
                    "--env-kwargs."
                )
    seen: dict[str, SavedAgent] = {}
    for agent in agents:
        twin = seen.setdefault(json.dumps([agent.config, agent.seed], sort_keys=True), agent)
        if twin is not agent:
            raise ValueError(f"every agent must be another one; {twin.path} and {agent.path} are the same run twice.")


def group_seeds(agents: Sequence[SavedAgent]) -> dict[str, list[int]]:
    """The indices of the agents that differ in the seed only, under a label that no other group has."""
    groups: dict[str, list[int]] = {}
    for i, agent in enumerate(agents):
        groups.setdefault(json.dumps(agent.config, sort_keys=True), []).append(i)
    labelled: dict[str, list[int]] = {}
    for members in groups.values():
        agent = agents[members[0]]
        namesakes = [other.config for other in agents if other.label == agent.label and other.config != agent.config]
        differing = _differing(agent.config, namesakes)
        # What the algorithm was called with follows from the other options, unless other versions trained it.
        alike = [other for other in namesakes if not _differing(agent.config, [other])]
        arguments = [other.get("algorithm_arguments") or {} for other in alike]
        differing += _differing(agent.config.get("algorithm_arguments") or {}, arguments)
        label = f"{agent.label} ({', '.join(differing)})" if differing else agent.label
        labelled.setdefault(label, []).extend(members)
    return labelled


def _differing(options: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options that one of some others has not, or has with another value; but not the algorithm's arguments."""
    absent = object()
    names = dict.fromkeys(name for each in (options, *others) for name in each if name != "algorithm_arguments")
    return [
        f"{name}={json.dumps(options.get(name))}"
        for name in names
        if any(other.get(name, absent) != options.get(name, absent) for other in others)
    ]


def summarise(
    agents: Sequence[SavedAgent],
    timesteps: Sequence[int],
    returns: Sequence[dict[str, list[float]]],
    seed: int,
) -> list[Row]:
    """The rows of the table: one for the agents that differ in the seed only.

    Args:
        agents: The agents.
        timesteps: How many each learned from.
        returns: The returns of each, ``Float[num_tasks]`` by split.
        seed: Seeds the bootstrap over tasks.
    """
    rows = []
    for label, members in group_seeds(agents).items():
        seconds = [each for i in members if (each := agents[i].cpu_seconds) is not None]
        row = Row(
            label=label,
            agents=tuple(members),
            splits={split: estimate([returns[i][split] for i in members], seed) for split in returns[0]},
            timesteps=timesteps[members[0]],
            cpu_seconds=float(np.mean(seconds)) if len(seconds) == len(members) else None,
        )
        rows.append(row)
    return rows


def format_table(rows: Sequence[Row], num_tasks: int) -> str:
    """The table in Markdown, and what its intervals are."""
    largest = max(abs(cell.mean) for row in rows for cell in row.splits.values())
    places = ".3f" if largest < 10.0 else ".1f"  # returns of so few points differ in their decimals
    lines = []
    for row in rows:
        cells = [format(cell, places) for cell in row.splits.values()]
        seconds = "?" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}"
        lines.append([row.label, *cells, str(len(row.agents)), str(row.timesteps), seconds])
    kinds = []
    if any(len(row.agents) > 1 for row in rows):
        kinds.append("over the means of the seeds (Student's t) where there are several")
    if any(len(row.agents) == 1 for row in rows):
        kinds.append("over tasks (bootstrap) where there is one seed, which says nothing of other seeds")
    caption = (
        f"Mean return over the same {num_tasks} tasks for every agent, deterministic actions, with 95 % intervals: "
        f"{'; '.join(kinds)}. CPU seconds are those of the training, mean over seeds."
    )
    return f"{format_markdown(['agent', *rows[0].splits, 'seeds', 'timesteps', 'CPU seconds'], lines)}\n\n{caption}"
