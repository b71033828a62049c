"""What is to be run, what of it is missing, and what is known of it."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np

from ssm_metarl_gym.envs.making import has_batched_form
from ssm_metarl_gym.experiments.engines import Engine, add_progress
from ssm_metarl_gym.experiments.evaluation import draw_tasks, evaluate, returns_of
from ssm_metarl_gym.experiments.jobs import Job, run_jobs
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.runs import find_versions
from ssm_metarl_gym.experiments.scoreboard.agents import CORRECTED, adapts, agent_of, is_own, uses_meta_model
from ssm_metarl_gym.experiments.scoreboard.board import (
    Board,
    Line,
    adapting_of,
    fit_map_model,
    learn_policy,
    load_policy,
    make_env,
    make_own_agent,
    meta_train,
    rule_of,
)
from ssm_metarl_gym.experiments.scoreboard.meta_policies import (
    EPISODES_BEFORE,
    adapt_meta_policy,
    learn_meta_policy,
)
from ssm_metarl_gym.experiments.scoreboard.physics import MOST_SINGLE, columns_of, physics_of

__all__ = [
    "Run",
    "all_runs",
    "can_be",
    "key_of",
    "lines_of",
    "num_evaluations",
    "plan_jobs",
    "run_all",
    "run_row",
    "steps_of",
]

EVALUATION_SEED: Final = 1_000_000
_PACKAGES: Final = ("ssm-metarl-gym", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class Run:
    """An agent of a seed in some physics.

    Attributes:
        physics: The name of the physics.
        row: The agent: one of ``AGENTS``, or a user's, ``"module:function"``.
        seed: Seeds its policy, its model and its tasks.
        steps: Steps on the training tasks; 0 where it has none.
    """

    physics: str
    row: str
    seed: int
    steps: int = 0


def all_runs(
    names: Sequence[str],
    rows: Sequence[str],
    steps: Sequence[int],
    num_seeds: int,
    num_dear_seeds: int | None = None,
    most_dear_steps: int | None = None,
) -> Iterator[Run]:
    """Every run: agents without a step on the tasks first, then few steps; of these the first seeds first.

    Args:
        names: The physics.
        rows: The agents.
        steps: Steps on the training tasks, of the agents that take some; none for those of each family.
        num_seeds: Number of seeds.
        num_dear_seeds: That of the agents that take long to learn; None for ``num_seeds``.
        most_dear_steps: The most steps of these agents, who are left out where there are more; None for any.
    """
    budgets = {name: steps_of(name, steps) for name in names}
    stages = [([row for row in rows if row in CORRECTED], 0)]
    stages += [([row for row in rows if row not in CORRECTED], each) for each in sorted(set().union(*budgets.values()))]
    for of_stage, each in stages:
        for seed in range(num_seeds):
            for name in names:
                for row in of_stage:
                    is_dear = agent_of(row).is_dear
                    most = num_dear_seeds if is_dear and num_dear_seeds is not None else num_seeds
                    is_too_long = is_dear and most_dear_steps is not None and each > most_dear_steps
                    has_budget = not each or each in budgets[name]
                    if seed < most and has_budget and not is_too_long and can_be(row, name):
                        yield Run(name, row, seed, each)


def steps_of(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    """The steps on the training tasks in some physics: those that are asked for, else its own; few of them first."""
    return tuple(sorted(steps)) or (physics_of(name).steps,)


def can_be(row: str, name: str) -> bool:
    """Whether an agent can be in some physics.

    No map can be fitted on a choice among a few actions, where nothing changes nobody is trained on changes, and
    episodes of many tasks take a batched environment.
    """
    if row == "corrected_filter":
        return _has_a_map(name)
    if agent_of(row).adapts_before:
        return has_batched_form(physics_of(name).env_id)
    return physics_of(name).changes or not agent_of(row).switch_probability


def key_of(board: Board, run: Run, column: str) -> dict[str, Any]:
    """What tells an evaluation from others, as its line says it."""
    key = {"study": "returns", "physics": run.physics, "row": run.row, "steps": run.steps, "seed": run.seed}
    key |= {"column": column, "num_tasks": board.num_tasks, **board.settings_of(run.physics)}
    return key | ({"rule": rule_of(run.row)} if adapts(run.row) else {})


def run_row(board: Board, run: Run, columns: Sequence[str]) -> list[Line]:
    """Train what a run needs for itself, and evaluate it in these columns; the lines of both."""
    name, seed, adapts_before = run.physics, run.seed, agent_of(run.row).adapts_before
    env_seed = EVALUATION_SEED + MOST_SINGLE * seed
    policy_row, policy_steps = ("nominal", board.nominal_steps(name)) if run.row in CORRECTED else (run.row, run.steps)
    own: Any = None
    if is_own(run.row):
        own, costs = make_own_agent(board, name, run.row, seed, run.steps)
        lines = [costs]
    elif adapts_before:
        lines = learn_meta_policy(board, name, seed, run.steps)
    else:
        lines = learn_policy(board, name, policy_row, seed, policy_steps)
    for column in columns:
        started = time.process_time()
        env_kwargs = columns_of(name, board.num_tasks)[column]
        env: Any = make_env(board, name, run.row, seed, board.num_tasks, **env_kwargs)
        policy = own
        if adapts_before:
            drawn = {**physics_of(name).env_kwargs, **env_kwargs}
            tasks = draw_tasks(physics_of(name).env_id, board.num_tasks, env_seed, **drawn)
            policy = adapt_meta_policy(board, name, seed, run.steps, tasks)
        elif own is None:
            policy, env = load_policy(board, name, policy_row, seed, policy_steps, env)
        rewards = evaluate(policy, env, seed=env_seed)
        line: Line = {"returns": np.round(returns_of(rewards), 3).tolist()}
        if column == "switch":
            line["around"] = _around_the_switch(rewards, physics_of(name).length // 2)
        if adapts_before:
            line["episodes_before"] = EPISODES_BEFORE
        line["cpu_seconds"] = round(time.process_time() - started, 1)
        lines.append({**key_of(board, run, column), **line, "versions": _versions()})
        add_progress(1)
    return lines


def run_all(runs: Sequence[Run], board: Board, records: Records, engine: Engine, attempts: int = 1) -> None:
    """Do what is missing, and write its lines as soon as each run has ended.

    Args:
        runs: What is asked for.
        board: Where it lies.
        records: What is known, to which the lines are added.
        engine: Where it runs.
        attempts: How often a run is begun before it has failed.

    Raises:
        JobsFailedError: Runs failed as often as they may; all others are done.
    """
    jobs = plan_jobs(board, runs, records)

    def add(_: Job, lines: list[Line]) -> None:
        for line in lines:
            told = ("study", "physics", "row", "seed", "steps", "column", "num_tasks", "percent", "recipe", "rule")
            if not records.find(**{name: line[name] for name in told if name in line}):
                records.add(**line)

    total = num_evaluations(jobs)
    run_jobs(jobs, engine, "evaluating", total_steps=total, attempts=attempts, on_result=add)


def plan_jobs(board: Board, runs: Sequence[Run], records: Records) -> list[Job]:
    """What is missing, and what that stands on."""
    jobs: dict[Job, None] = {}
    taught = {(agent_of(run.row).teacher, run.physics, run.seed, run.steps) for run in runs}
    for run in runs:
        columns = columns_of(run.physics, board.num_tasks)
        missing = tuple(column for column in columns if not records.find(**key_of(board, run, column)))
        if not missing:
            continue
        after: tuple[Job, ...] = ()
        if run.row in CORRECTED:
            steps = board.nominal_steps(run.physics)
            after = (Job(learn_policy, (board, run.physics, "nominal", run.seed, steps)),)
        if teacher := agent_of(run.row).teacher:
            after = (Job(learn_policy, (board, run.physics, teacher, run.seed, run.steps)),)
        elif (run.row, run.physics, run.seed, run.steps) in taught:  # it learns once, for itself and for its student
            after = (Job(learn_policy, (board, run.physics, run.row, run.seed, run.steps)),)
        if run.row == "corrected_filter":
            after = (*after, Job(fit_map_model, (board, run.physics, run.seed), after))
        elif uses_meta_model(run.row):
            after = (*after, Job(meta_train, (board, run.physics, run.seed, adapting_of(run.row))))
        jobs |= dict.fromkeys((*after, Job(run_row, (board, run, missing), after)))
    return list(jobs)


def num_evaluations(jobs: Sequence[Job]) -> int:
    """The evaluations of jobs, which is what they tell of as progress."""
    return sum(len(job.arguments[2]) for job in jobs if job.work is run_row)


def lines_of(
    board: Board, records: Records, name: str, row: str, steps: int, column: str, num_seeds: int
) -> dict[int, Line]:
    """The line of each seed that is known, by seed."""
    key = key_of(board, Run(name, row, 0, steps), column)
    del key["seed"]
    lines = {line["seed"]: line for line in records.find(**key)}
    return {seed: lines[seed] for seed in sorted(lines) if seed < num_seeds}


@cache
def _versions() -> dict[str, str]:
    """What a line was measured with: versions, and the commit where there is a checkout."""
    versions = find_versions(_PACKAGES)
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)  # noqa: S603 - a command of ours
    except (OSError, subprocess.CalledProcessError):
        return versions
    return versions | {"commit": done.stdout.strip()}


def _around_the_switch(rewards: Sequence[Sequence[float]], step: int) -> list[list[float]]:
    """The sum of the rewards of the 50 steps before a change and of those after it, ``[num_tasks 2]``."""
    return [[round(sum(row[max(0, step - 50) : step]), 3), round(sum(row[step : step + 50]), 3)] for row in rewards]


@cache
def _has_a_map(name: str) -> bool:
    env = gym.make(physics_of(name).env_id, **physics_of(name).env_kwargs)
    env.close()
    return isinstance(env.action_space, gym.spaces.Box)
