"""What motors that are late cost a policy, as it is and corrected by a filter that knows of delays or does not.

A point mass whose actions come some steps late (PointActuators), with nothing else hidden, through a hidden map of the
split interpolation, or by motors that lag: what they do goes half of the way to the action in each step.

    as_is       a PPO policy of the nominal physics
    told        the same, told the map: its actions go through the inverse, and come as late
    corrected   the same behind VectorActionCorrection, with a Kalman filter on a map of the actions
    reckoning   the same with a filter that reckons with delays

Policies and models are those of actuators.py, whose output folder may be given. late.jsonl holds a line for each
evaluation, as soon as it is known; the same command again goes on, and prints the table.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import KalmanAdapter
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.scoreboard.board import (
    Board,
    correct_by_filter,
    fit_map_model,
    learn_policy,
    load_filter,
    load_policy,
    make_env,
    rule_of,
    spread_seed,
)
from ssm_metarl_gym.experiments.scoreboard.physics import physics_of, recipe_of
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.tasks import actuator_task_type

ROWS = ("as_is", "told", "corrected", "reckoning")
HIDDEN = ("nothing", "a map", "a lag")
LAG = 0.5  # the share of what a lagging motor did before in what it does
ENV_ID = "ssm_metarl/PointActuators-v0"


@dataclass(frozen=True)
class Options:
    """The command line."""

    dimension: int = option(2, "that of the point mass", least=1, below=17)
    delays: tuple[int, ...] = option((0, 1, 2), "steps that all actions come late", least=0, below=100)
    largest_delay: int = option(2, "steps that the filter reckons with at most", least=1, below=100)
    seeds: int = option(5, "number of seeds of policies, models and tasks", least=1, below=1_000)
    num_tasks: int = option(100, "tasks of each evaluation", least=2, below=100_000)
    output: Path = option(
        Path("output/actuators"), "folder", check=partial(check_output_folder, file_names=["late.jsonl"])
    )


class Nominal(NamedTuple):
    """A policy, how it sees observations, and the filter of the model of what it knows, at its source."""

    policy: Any
    scaled: VecNormalize
    filters: dict[str, KalmanAdapter]


def prepare(options: Options, seed: int) -> Nominal:
    """Load what belongs to a seed, trained where it is not in the folder yet."""
    board, name = Board(options.output, options.num_tasks), f"PointActuators-{options.dimension}"
    steps = board.nominal_steps(name)
    learn_policy(board, name, "nominal", seed, steps)
    fit_map_model(board, name, seed)
    policy, scaled = load_policy(
        board, name, "nominal", seed, steps, make_env(board, name, "nominal", seed, 8, task={})
    )
    largest = {"corrected": 0, "reckoning": options.largest_delay}
    return Nominal(
        policy, scaled, {row: load_filter(board, name, seed, largest_delay=most) for row, most in largest.items()}
    )


def draw_tasks(hidden: str, delay: int, dimension: int, num_tasks: int, seed: int) -> list[Any]:
    """Tasks with a delay, and with the maps of the split interpolation or none."""
    envs = gym.make_vec(ENV_ID, num_tasks, dimension=dimension, split="interpolation")
    envs.reset(seed=seed)
    tasks = envs.unwrapped.tasks  # type: ignore[attr-defined]
    kind = actuator_task_type(dimension)
    return [kind.from_matrix(task.matrix if hidden == "a map" else np.eye(dimension), delay=delay) for task in tasks]


class Lagging(gym.vector.VectorActionWrapper):
    """Motors that do in each step what they did before and what they are to do, in these shares."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode of all rows, in which the motors rest."""
        self._done = np.zeros(self.action_space.shape or (), dtype=np.float32)
        return super().reset(**kwargs)

    def actions(self, actions: Any) -> Any:
        """What the motors do."""
        self._done = LAG * self._done + (1.0 - LAG) * np.asarray(actions, dtype=np.float32)
        return self._done


def run(row: str, nominal: Nominal, hidden: str, tasks: Sequence[Any], seed: int) -> npt.NDArray[np.float64]:
    """The return of an agent in each task."""
    dimension = tasks[0].num_motors()
    envs: Any = gym.make_vec(ENV_ID, len(tasks), dimension=dimension)
    envs = Lagging(envs) if hidden == "a lag" else envs
    low, high = envs.single_action_space.low, envs.single_action_space.high
    if row in nominal.filters:
        envs = correct_by_filter(f"PointActuators-{dimension}", envs, nominal.filters[row])
    inverses = np.linalg.inv([task.matrix for task in tasks])
    observations, _ = envs.reset(seed=seed, options={"tasks": tasks})
    returns = np.zeros(len(tasks))
    for _ in range(physics_of(f"PointActuators-{dimension}").length):
        actions, _ = nominal.policy.predict(nominal.scaled.normalize_obs(observations), deterministic=True)
        if row == "told":
            actions = np.clip((inverses @ actions[..., None])[..., 0], low, high).astype(np.float32)
        observations, rewards, *_ = envs.step(actions)
        returns += rewards
    return returns


def key_of(options: Options, row: str, hidden: str, delay: int, seed: int) -> dict[str, Any]:
    """What tells the evaluations apart."""
    key = {"row": row, "hidden": hidden, "delay": delay, "seed": seed}
    key |= {"dimension": options.dimension, "num_tasks": options.num_tasks}
    key |= {"recipe": recipe_of(f"PointActuators-{options.dimension}")}
    rule = {"rule": rule_of("corrected_filter")} if row in ("corrected", "reckoning") else {}
    return key | rule | ({"largest_delay": options.largest_delay} if row == "reckoning" else {})


def format_table(options: Options, records: Records) -> str:
    """The table in Markdown: mean returns with 95 % intervals over seeds."""
    lines = []
    for hidden, delay in itertools.product(HIDDEN, options.delays):
        cells = []
        for row in ROWS:
            found = [records.find(**key_of(options, row, hidden, delay, seed)) for seed in range(options.seeds)]
            returns = [lines_of[0]["returns"] for lines_of in found if lines_of]
            cells.append(f"{estimate(returns, 0):.1f}" if returns else "")
        lines.append([hidden, str(delay), *cells])
    return format_markdown(["hidden", "steps late", *ROWS], lines)


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, evaluate and print."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "late.jsonl")
        for seed in range(options.seeds):
            cells = [
                (key_of(options, row, hidden, delay, seed), hidden, delay)
                for hidden, delay, row in itertools.product(HIDDEN, options.delays, ROWS)
            ]
            missing = [cell for cell in cells if not records.find(**cell[0])]
            if not missing:
                continue
            nominal = prepare(options, seed)
            for key, hidden, delay in missing:
                tasks = draw_tasks(hidden, delay, options.dimension, options.num_tasks, spread_seed(seed))
                returns = run(key["row"], nominal, hidden, tasks, spread_seed(seed) // 2)
                records.add(**key, returns=returns.round(3).tolist())
                print(*list(key.values())[:4], f"{returns.mean():.1f}", flush=True)
        print(format_table(options, records), flush=True)


if __name__ == "__main__":
    main()
