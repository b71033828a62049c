"""Where there is something to adapt to: the best fixed controller against an informed one, for every family and split.

Both are found by the same search (the cross-entropy method, Rubinstein 1999) over the same small class of memoryless
controllers. The *fixed* one is searched on many tasks of the split at once, so it is what an agent that never learns
anything about its task can hope for. The *informed* one is searched on the very task that it is evaluated on, and is
told the present sign of the force or torque. Both are evaluated on the same tasks, which the fixed one has never met,
from new starting states. What lies between them is the headroom: all that memory, meta-learning or adaptation can gain.

A search finds a lower bound of what its class of controllers can do, and the class is small: read a large headroom as
"there is something to gain", not as the last word on how much.

Prints a table, and writes it with every return as headroom.md and headroom.json into the output folder. Each search is
a line of headroom.jsonl there, written when it has ended, and the same command goes on with what is missing.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from ssm_metarl_gym.envs.making import has_batched_form
from ssm_metarl_gym.experiments.checks import check_env, check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.engines import LocalEngine
from ssm_metarl_gym.experiments.jobs import Job, run_jobs
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import replacing, write_json
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.tasks.task import TaskBatch

Floats = npt.NDArray[np.float64]

FILES = ("headroom.json", "headroom.md", "headroom.jsonl")
# Each round of a search keeps this share of the candidates, and never stops looking around.
KEPT, LEAST_SPREAD = 0.25, 0.05
# The streams of tasks and starts: those that are searched on and those that are evaluated on never meet.
SEARCH, EVALUATION = 0, 1


@dataclass(frozen=True)
class Options:
    """The command line."""

    families: tuple[str, ...] = option(tuple(FAMILIES), "those to search", choices=list(FAMILIES))
    quick: bool = option(False, "a search too short to be quoted, to see that it runs")
    seed: int = option(0, "seeds everything: one seed gives one result", least=0)
    output: Path = option(
        Path("output/headroom"), "folder for the results", check=partial(check_output_folder, file_names=FILES)
    )


def check_families(options: Options) -> None:
    """Make each environment once: MuJoCo, which some need, may be missing."""
    for family in options.families:
        check_env(f"ssm_metarl/{family}-v0", {}, "--families")


@dataclass(frozen=True)
class Budget:
    """How much is searched and evaluated.

    Attributes:
        num_rounds: Rounds of a search.
        num_candidates: Candidates in a round.
        num_tasks: Tasks that the fixed controller is searched on, and as many others to evaluate on.
        num_starts: Starting states in which an informed candidate is tried, and in which both are evaluated.
    """

    num_rounds: int
    num_candidates: int
    num_tasks: int
    num_starts: int


BATCHED_BUDGET = Budget(num_rounds=25, num_candidates=32, num_tasks=64, num_starts=4)
MUJOCO_BUDGET = Budget(num_rounds=20, num_candidates=16, num_tasks=8, num_starts=1)
QUICK_BUDGET = Budget(num_rounds=2, num_candidates=6, num_tasks=4, num_starts=1)


@dataclass(frozen=True)
class Controller:
    """A class of controllers, a point of which is a vector of parameters.

    Attributes:
        num_parameters: Their number Q.
        act: From parameters ``Float[R Q]``, observations ``Float[R D]`` and the step t to commands ``Float[R A]``, in
            [-1, 1] where they are torques.
    """

    num_parameters: int
    act: Callable[[Floats, Floats, int], Floats]


def push_cart(parameters: Floats, observations: Floats, t: int) -> Floats:
    """CartPole: the side on which a weighted sum of the observation lies."""
    features = np.column_stack([observations * [0.5, 0.5, 5.0, 0.7], np.full(len(observations), 0.1)])
    return np.einsum("rq,rq->r", parameters, features)[:, None]


def swing_up(parameters: Floats, observations: Floats, t: int) -> Floats:
    """Pendulum: weights for balancing near the top, others for pumping and for braking elsewhere."""
    cosine, sine, speed = observations.T
    top = 1.0 / (1.0 + np.exp(-10.0 * (cosine - 0.8)))
    elsewhere = 1.0 - top
    features = np.stack(
        [
            10 * top * sine,
            2 * top * speed,
            elsewhere * np.tanh(2 * speed),
            elsewhere * speed * cosine,
            elsewhere * sine,
        ],
        axis=1,
    )
    command: Floats = np.einsum("rq,rq->r", parameters, features)[:, None]
    return command


def walk_to(parameters: Floats, observations: Floats, t: int) -> Floats:
    """PointNavigation: straight to a point, and no further."""
    command: Floats = (parameters - observations) / 0.1
    return command


def undo_map(parameters: Floats, observations: Floats, t: int) -> Floats:
    """PointActuators: a weighted sum of positions and velocities for each motor."""
    num_rows, size = observations.shape
    weights = parameters.reshape(num_rows, size // 2, size)
    command: Floats = 2.0 * np.einsum("rad,rd->ra", weights, observations)
    return command


def brake_at_centre(parameters: Floats, observations: Floats, t: int) -> Floats:
    """DoubleIntegrator: against the position and against the velocity, alike in both directions."""
    positions, velocities = observations[:, :2], observations[:, 2:]
    command: Floats = -3.0 * (parameters[:, :1] * positions + parameters[:, 1:] * velocities)
    return command


def turn_back(parameters: Floats, observations: Floats, t: int) -> Floats:
    """ComplexODE: a weight of the number for each part of the action, another one on the other side of zero."""
    sides = np.concatenate([np.maximum(observations, 0.0), np.minimum(observations, 0.0)], axis=1)
    command: Floats = 5.0 * np.einsum("rad,rd->ra", parameters.reshape(-1, 2, 2), sides)
    return command


def gait(num_joints: int) -> Controller:
    """A rhythm: each joint swings around a middle with an amplitude and a phase of its own, all at one frequency."""

    def act(parameters: Floats, observations: Floats, t: int) -> Floats:
        middle, amplitude, phase = (parameters[:, i * num_joints : (i + 1) * num_joints] for i in range(3))
        frequency = 2.0 * np.exp(0.5 * parameters[:, -1:])  # Hz; a step takes 0.05 s
        swing: Floats = 0.5 * middle + amplitude * np.sin(2 * np.pi * frequency * 0.05 * t + np.pi * phase)
        return swing

    return Controller(3 * num_joints + 1, act)


def feedback(observation_size: int, num_joints: int) -> Controller:
    """Weighted sums of the observation (speeds scaled down) and of a constant, one for each joint."""

    def act(parameters: Floats, observations: Floats, t: int) -> Floats:
        features = np.column_stack([np.tanh(0.5 * observations), np.ones(len(observations))])
        weights = parameters.reshape(len(parameters), num_joints, observation_size + 1)
        command: Floats = np.einsum("rjd,rd->rj", weights, features)
        return command

    return Controller(num_joints * (observation_size + 1), act)


CONTROLLERS = {
    **dict.fromkeys(("CartPole", "CartPolePolarity", "CartPoleSwitch"), Controller(5, push_cart)),
    **dict.fromkeys(("Pendulum", "PendulumPolarity", "PendulumSwitch"), Controller(5, swing_up)),
    "PointNavigation": Controller(2, walk_to),
    "PointActuators": Controller(8, undo_map),
    **dict.fromkeys(("DoubleIntegrator", "DoubleIntegratorFriction"), Controller(2, brake_at_centre)),
    "ComplexODE": Controller(4, turn_back),
    **dict.fromkeys(("HalfCheetahVel", "HalfCheetahDir"), gait(6)),
    "AntDir": gait(8),
    "HopperParams": feedback(11, 3),
    "Walker2dParams": feedback(17, 6),
    "ReacherActuators": feedback(10, 2),
    "HalfCheetahActuators": gait(6),
    "AntActuators": gait(8),
    "HopperActuators": feedback(11, 3),
    "Walker2dActuators": feedback(17, 6),
}


class Judge:
    """Runs controllers in the tasks of one split of a family, in rows stepped at once where possible."""

    def __init__(self, family: str, split: str) -> None:
        self.env_id = f"ssm_metarl/{family}-v0"
        self.distribution = FAMILIES[family].distribution(split)
        self.controller = CONTROLLERS[family]
        self.is_batched = has_batched_form(self.env_id)
        # The sign of the force or torque, which is not that of a direction.
        self.sign = next((name for name in FAMILIES[family].task_type.signs if name in ("polarity", "sign")), None)
        self.horizon = gym.spec(self.env_id).max_episode_steps or 0
        self._envs: dict[int, Any] = {}

    def __call__(self, parameters: Floats, tasks: TaskBatch, seed: int, *, told: bool) -> Floats:
        """The return of each row: ``Float[R]``.

        Args:
            parameters: Those of the controller in each row, ``Float[R Q]``.
            tasks: The task of each row.
            seed: Seeds the starting states.
            told: Whether the controllers are told the present sign.
        """
        if self.is_batched:
            return self._run_batch(parameters, tasks, seed, told)
        rows = zip(parameters, tasks, strict=True)
        return np.array([self._run(row, task, seed + i) for i, (row, task) in enumerate(rows)])

    def _run_batch(self, parameters: Floats, tasks: TaskBatch, seed: int, told: bool) -> Floats:
        if len(tasks) not in self._envs:
            self._envs = {len(tasks): gym.make_vec(self.env_id, num_envs=len(tasks))}
        env = self._envs[len(tasks)]
        is_discrete = isinstance(env.single_action_space, gym.spaces.Discrete)
        observations, _ = env.reset(seed=seed, options={"tasks": tasks})
        returns, running = np.zeros(len(tasks)), np.ones(len(tasks), dtype=np.bool_)
        for t in range(self.horizon):
            command = self.controller.act(parameters, observations.astype(np.float64), t)
            if told and self.sign is not None:
                command *= env.unwrapped.tasks.column(self.sign)[:, None]
            actions = (command[:, 0] > 0).astype(np.int64) if is_discrete else np.clip(command, -1.0, 1.0)
            observations, rewards, terminated, truncated, _ = env.step(actions)
            returns += rewards * running
            running &= ~(terminated | truncated)
            if not running.any():
                break
        return returns

    def _run(self, parameters: Floats, task: Any, seed: int) -> float:
        if not self._envs:
            self._envs = {1: gym.make(self.env_id, disable_env_checker=True)}
        env, total = self._envs[1], 0.0
        observation, _ = env.reset(seed=seed, options={"task": task})
        space = env.action_space
        for t in range(self.horizon):
            command = self.controller.act(parameters[None], observation[None], t)[0]
            action = (space.high * np.clip(command, -1.0, 1.0)).astype(space.dtype)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += reward
            if terminated or truncated:
                break
        return total


def search(
    judge: Judge, groups: Sequence[TaskBatch], budget: Budget, rng: np.random.Generator, *, told: bool
) -> Floats:
    """One controller for each group of tasks, by its mean return over the group: ``Float[K Q]``.

    The searches of all groups run side by side, each with a Gaussian of its own over the parameters.
    """
    shape = (len(groups), budget.num_candidates, judge.controller.num_parameters)
    size = len(groups[0])
    mean, spread = np.zeros(shape[::2]), np.ones(shape[::2])
    # Row (k, n, m) holds candidate n of group k in task m of the group.
    values = np.concatenate([np.tile(group.values, budget.num_candidates) for group in groups], axis=1)
    tasks = TaskBatch.from_values(groups[0].task_type, values)
    for _ in range(budget.num_rounds):
        candidates = mean[:, None] + spread[:, None] * rng.standard_normal(shape)  # K N Q
        candidates[:, 0] = mean
        rows = np.repeat(candidates.reshape(-1, shape[-1]), size, axis=0)  # KNM Q
        returns = judge(rows, tasks, int(rng.integers(2**31)), told=told).reshape(*shape[:2], size).mean(axis=2)
        best = np.argsort(-returns, axis=1)[:, : int(np.ceil(KEPT * budget.num_candidates))]  # K E
        kept = np.take_along_axis(candidates, best[..., None], axis=1)  # K E Q
        mean, spread = kept.mean(axis=1), np.maximum(kept.std(axis=1), LEAST_SPREAD)
    return mean


def compare(family: str, split: str, budget: Budget, seed: int) -> dict[str, Any]:
    """The returns of the fixed and of the informed controllers on the same tasks of a split, one for each task."""
    judge = Judge(family, split)
    rng = np.random.default_rng([seed, SEARCH])
    fixed = search(judge, [judge.distribution.sample_batch(rng, budget.num_tasks)], budget, rng, told=False)

    tasks = judge.distribution.sample_batch(np.random.default_rng([seed, EVALUATION]), budget.num_tasks)
    starts = np.repeat(np.arange(budget.num_tasks), budget.num_starts)
    groups = [tasks[starts[starts == task]] for task in range(len(tasks))]
    own = search(judge, groups, budget, rng, told=True)

    def evaluate(controllers: Floats, told: bool, start: int) -> Floats:
        returns = judge(controllers[starts], tasks[starts], start, told=told)
        per_task: Floats = returns.reshape(-1, budget.num_starts).mean(axis=1)
        return per_task

    # Who is informed may also use what the others use: told the sign or not, whichever is better on this task.
    choices = [(np.repeat(fixed, len(tasks), axis=0), False), (np.repeat(fixed, len(tasks), axis=0), True), (own, True)]
    tried = np.stack([evaluate(controllers, told, 1_000 + seed) for controllers, told in choices])  # 3 K
    final = np.stack([evaluate(controllers, told, 2_000 + seed) for controllers, told in choices])
    return {
        "fixed": final[0].tolist(),
        "informed": final[tried.argmax(axis=0), np.arange(len(tasks))].tolist(),
    }


def format_table(results: Sequence[dict[str, Any]], seed: int) -> str:
    """The table in Markdown: means over tasks, with 95 % intervals by the bootstrap."""
    rows = []
    for result in results:
        fixed, informed = np.array(result["fixed"]), np.array(result["informed"])
        cells = [f"{estimate([values], seed):.1f}" for values in (fixed, informed, informed - fixed)]
        rows.append([f"`{result['family']}`", result["split"], *cells])
    return format_markdown(["family", "split", "best fixed controller", "informed", "headroom"], rows)


def budget_of(family: str, options: Options) -> Budget:
    """How much is searched and evaluated in a family."""
    if options.quick:
        return QUICK_BUDGET
    return BATCHED_BUDGET if has_batched_form(f"ssm_metarl/{family}-v0") else MUJOCO_BUDGET


def key_of(family: str, split: str, options: Options) -> dict[str, Any]:
    """What tells a search from others, as its line says it."""
    tasks = FAMILIES[family].distribution(split).to_json()
    budget = asdict(budget_of(family, options))
    return {"family": family, "split": split, "seed": options.seed, **budget, "tasks": tasks}


@stoppable(lambda: "the same command again goes on with what is missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Search and evaluate every family on each of its splits."""
    options = parse_options(Options, arguments, description=__doc__, check=check_families)
    started = time.perf_counter()
    # The training tasks are drawn from the same distribution as those of interpolation.
    splits = [(family, split) for family in options.families for split in FAMILIES[family].splits if split != "train"]
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "headroom.jsonl")
        jobs = [
            Job(compare, (family, split, budget_of(family, options), options.seed))
            for family, split in splits
            if not records.find(**key_of(family, split, options))
        ]

        def add(job: Job, result: dict[str, Any]) -> None:
            family, split, *_ = job.arguments
            records.add(**key_of(family, split, options), fixed=result["fixed"], informed=result["informed"])

        run_jobs(jobs, LocalEngine(), "searching", on_result=add)
        lines = [records.find(**key_of(family, split, options))[0] for family, split in splits]
        results = [
            {name: line[name] for name in ("family", "split", "fixed", "informed", "seed")}
            | {"budget": asdict(budget_of(line["family"], options))}
            for line in lines
        ]
        table = format_table(results, options.seed)
        write_json(options.output / "headroom.json", results)
        with replacing(options.output / "headroom.md") as temporary:
            temporary.write_text(table + "\n")
        print(table)
    print(f"\n{time.perf_counter() - started:.0f} s; headroom.md and headroom.json are in {options.output}")


if __name__ == "__main__":
    main()
