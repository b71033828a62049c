"""How many times as fast the batched environments step as what one would take without them. Nothing can fail here.

    float64, float32   gym.make_vec(id, num_envs=n): n tasks at once,
                       against Gymnasium's SyncVectorEnv over n single environments of the same tasks (infos included),
                       and against Gymnasium's own batched CartPole, which knows one physics only
    SB3VecEnv          the same for Stable-Baselines3, against SB3's DummyVecEnv over the single environments
    AsyncVectorEnv     MuJoCo families (--mujoco-families), which have no batched form: a process for each row, against
                       SyncVectorEnv; beside it what MuJoCo's physics alone take: `mj_step` row by row, and
                       `mujoco.rollout` in a thread for each core

Both sides of a comparison take the same random actions, begin in the same states and reset by themselves. They run in
turns, a short chunk of steps each, so that whatever else slows the machine slows both. A ratio is the CPU time (of
MuJoCo families the time on the clock) of the other side over ours in two neighbouring chunks; shown are the median over
all pairs, and 10 and 90 % quantiles.

With --memory-steps the script shows instead how much memory the process holds while a batched CartPole is stepped.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from ssm_metarl_gym.envs.making import has_batched_form
from ssm_metarl_gym.experiments.checks import check_env, check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, resident_memory, show_comparisons
from ssm_metarl_gym.experiments.runs import find_versions
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.wrappers import SB3VecEnv

# After as many steps falls are spread over time, as in a long run, instead of coming all at once.
SETTLING_STEPS = 50
# Different actions, taken again and again.
NUM_ACTIONS = 16
PACKAGES = ("gymnasium", "numpy", "stable-baselines3")
MEMORY_ROWS = 1024
MEMORY_SHARES = (0.01, 0.5, 1.0)
BATCHED_FAMILIES = [f"{family}-v0" for family in FAMILIES if has_batched_form(f"ssm_metarl/{family}-v0")]
MUJOCO_FAMILIES = [f"{family}-v0" for family in FAMILIES if f"{family}-v0" not in BATCHED_FAMILIES]

# What we aim for, by the other side, the number of tasks and ours.
TARGETS = {
    ("SyncVectorEnv", 64): {"float64": 15.0},
    ("SyncVectorEnv", 1024): {"float64": 100.0},
    ("SyncVectorEnv", 16384): {"float64": 160.0, "float32": 300.0},
    ("CartPoleVectorEnv", 64): {"float64": 1.0},
    ("CartPoleVectorEnv", 1024): {"float64": 1.0},
    ("DummyVecEnv", 8): {"SB3VecEnv": 3.0},
    ("DummyVecEnv", 64): {"SB3VecEnv": 15.0},
}

Step: TypeAlias = Callable[[Any], Any]  # takes the actions of all rows


@dataclass(frozen=True)
class Options:
    """The command line."""

    rows: tuple[int, ...] = option((64, 1024, 16384), "tasks at once", least=1, below=10**7)
    families: tuple[str, ...] = option(
        ("CartPole-v0", "Pendulum-v0"), "families, or none", choices=BATCHED_FAMILIES, may_be_empty=True
    )
    sb3_rows: tuple[int, ...] = option((8, 64), "tasks at once under Stable-Baselines3", least=1, below=10**7)
    sb3_families: tuple[str, ...] = option(
        ("CartPole-v0", "CartPolePolarity-v0"),
        "those under Stable-Baselines3, or none",
        choices=BATCHED_FAMILIES,
        may_be_empty=True,
    )
    mujoco_families: tuple[str, ...] = option((), "families of MuJoCo", choices=MUJOCO_FAMILIES, may_be_empty=True)
    mujoco_rows: tuple[int, ...] = option((8, 16, 64), "tasks of those at once", least=1, below=10**4)
    pairs: int = option(15, "pairs of chunks of each comparison", least=1)
    seed: int = option(0, "seeds tasks, states and actions", least=0)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)
    memory_steps: int = option(0, "show the memory over this many steps instead", least=0)

    def __post_init__(self) -> None:
        """Check that there are steps enough to show memory early on."""
        if 0 < self.memory_steps < 100:
            raise ValueError(f"--memory-steps must be >= 100, or 0 for none; got {self.memory_steps}.")


def check_families(options: Options) -> None:
    """Make each environment of MuJoCo once: the extra may be missing."""
    for family in options.mujoco_families:
        check_env(f"ssm_metarl/{family}", {}, "--mujoco-families")


def make_batched(family: str, num_rows: int, seed: int, **kwargs: Any) -> tuple[gym.vector.VectorEnv, list[Any]]:
    """The batched environment in the midst of its episodes, and the actions for all that it is compared with."""
    envs = gym.make_vec(f"ssm_metarl/{family}", num_envs=num_rows, **kwargs)
    envs.reset(seed=seed)
    envs.action_space.seed(seed)
    actions = [envs.action_space.sample() for _ in range(NUM_ACTIONS)]
    settle(envs.step, actions)
    return envs, actions


def settle(step: Step, actions: list[Any]) -> None:
    """The steps before the first chunk."""
    for action in itertools.islice(itertools.cycle(actions), SETTLING_STEPS):
        step(action)


def single_makers(family: str, envs: gym.vector.VectorEnv) -> list[Callable[[], gym.Env]]:
    """For each row a function that makes the single environment of its task."""
    return [
        lambda task=task: gym.make(f"ssm_metarl/{family}", task=task.to_dict(), disable_env_checker=True)
        for task in envs.unwrapped.tasks
    ]


def place(singles: Sequence[gym.Env], envs: gym.vector.VectorEnv) -> None:
    """Put single environments that were reset into the states of the rows."""
    for single, state in zip(singles, envs.unwrapped.state, strict=True):
        single.unwrapped.state = state


def compare_with_sync(family: str, num_rows: int, options: Options) -> Iterator[Comparison]:
    """Both precisions against one environment after the other."""
    exact, actions = make_batched(family, num_rows, options.seed)
    fast, _ = make_batched(family, num_rows, options.seed, dtype="float32")
    sync = gym.vector.SyncVectorEnv(single_makers(family, exact))
    sync.reset(seed=options.seed)
    place(sync.envs, exact)
    sides = {"SyncVectorEnv": sync.step, "float64": exact.step, "float32": fast.step}
    yield from compare(family, num_rows, sides, actions, options.pairs)


def compare_with_gymnasium(num_rows: int, options: Options) -> Iterator[Comparison]:
    """Many tasks against one, in the environment that Gymnasium itself batches."""
    ours, actions = make_batched("CartPole-v0", num_rows, options.seed)
    fast, _ = make_batched("CartPole-v0", num_rows, options.seed, dtype="float32")
    theirs = gym.make_vec("CartPole-v1", num_envs=num_rows, vectorization_mode="vector_entry_point")
    theirs.reset(seed=options.seed)
    settle(theirs.step, actions)
    sides = {"CartPoleVectorEnv": theirs.step, "float64": ours.step, "float32": fast.step}
    yield from compare("CartPole-v0", num_rows, sides, actions, options.pairs)


def compare_with_dummy(family: str, num_rows: int, options: Options) -> Iterator[Comparison]:
    """What Stable-Baselines3 gets of the batched environment against what it has."""
    envs, actions = make_batched(family, num_rows, options.seed, autoreset_mode="SameStep")
    dummy = DummyVecEnv(single_makers(family, envs))
    dummy.seed(options.seed)
    dummy.reset()
    place(dummy.envs, envs)
    # Without its reset, which would begin all episodes at once.
    sides = {"DummyVecEnv": dummy.step, "SB3VecEnv": SB3VecEnv(envs).step}
    yield from compare(family, num_rows, sides, actions, options.pairs)


def compare_mujoco(family: str, num_rows: int, options: Options) -> Iterator[Comparison]:
    """One environment after the other against a process for each, and against their physics alone."""
    makers = [lambda: gym.make(f"ssm_metarl/{family}", disable_env_checker=True)] * num_rows
    envs: list[gym.vector.VectorEnv] = [gym.vector.SyncVectorEnv(makers), gym.vector.AsyncVectorEnv(makers)]
    for env in envs:
        env.reset(seed=options.seed)
    envs[0].action_space.seed(options.seed)
    actions = [envs[0].action_space.sample() for _ in range(NUM_ACTIONS)]
    sides = {type(env).__name__: env.step for env in envs} | physics_alone([make() for make in makers], options.seed)
    for step in sides.values():
        settle(step, actions)
    yield from compare(family, num_rows, sides, actions, options.pairs, clock=time.perf_counter)
    for env in envs:
        env.close()


def physics_alone(singles: Sequence[gym.Env], seed: int) -> dict[str, Step]:
    """What MuJoCo itself takes for a step of all rows, without observations, rewards, infos and ends of episodes."""
    import mujoco
    from mujoco.rollout import Rollout

    rows: list[Any] = [single.unwrapped for single in singles]
    for i, row in enumerate(rows):
        row.reset(seed=seed + i)

    def step(actions: Any) -> None:
        for row, action in zip(rows, actions, strict=True):
            row.data.ctrl[:] = action
            mujoco.mj_step(row.model, row.data, nstep=row.frame_skip)

    model, frames, kind = rows[0].model, rows[0].frame_skip, mujoco.mjtState.mjSTATE_FULLPHYSICS
    states = np.empty((len(rows), mujoco.mj_stateSize(model, kind)))
    for row, state in zip(rows, states, strict=True):
        mujoco.mj_getState(model, row.data, state, kind)
    num_threads = os.cpu_count() or 1
    rollout = Rollout(nthread=num_threads)
    scratch = [mujoco.MjData(model) for _ in range(num_threads)]

    def roll(actions: Any) -> None:
        controls = np.repeat(actions[:, None].astype(np.float64), frames, axis=1)
        states[:] = rollout.rollout(model, scratch, states, controls)[0][:, -1]

    return {"mj_step": step, "mujoco.rollout": roll}


def compare(
    family: str,
    num_rows: int,
    sides: Mapping[str, Step],
    actions: list[Any],
    pairs: int,
    *,
    clock: Callable[[], float] | None = None,
) -> list[Comparison]:
    """The first side against each of the others."""

    def repeat(step: Step) -> Callable[[], Any]:  # the same actions for each side, again and again
        each = itertools.cycle(actions)
        return lambda: step(next(each))

    calls = {name: repeat(step) for name, step in sides.items()}
    targets = TARGETS.get((next(iter(sides)), num_rows))
    return compare_in_turns(calls, pairs, case={"family": family, "tasks": num_rows}, targets=targets, clock=clock)


def compare_all(options: Options) -> Iterator[Comparison]:
    """All comparisons, those of a few rows first."""
    for family, num_rows in itertools.product(options.sb3_families, options.sb3_rows):
        yield from compare_with_dummy(family, num_rows, options)
    if "CartPole-v0" in options.families:
        for num_rows in options.rows:
            yield from compare_with_gymnasium(num_rows, options)
    for num_rows, family in itertools.product(options.rows, options.families):
        yield from compare_with_sync(family, num_rows, options)
    for num_rows, family in itertools.product(options.mujoco_rows, options.mujoco_families):
        yield from compare_mujoco(family, num_rows, options)


def measure_memory(num_steps: int, seed: int) -> Iterator[dict[str, float]]:
    """The resident memory, in MiB, early on, half-way and at the end."""
    envs, actions = make_batched("CartPole-v0", MEMORY_ROWS, seed)
    shown = {round(share * num_steps) for share in MEMORY_SHARES}
    for step, action in enumerate(itertools.islice(itertools.cycle(actions), num_steps), 1):
        envs.step(action)
        if step in shown:
            yield {"steps": step, "resident_mib": resident_memory()}


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, or show the memory, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__, check=check_families)
    started = time.perf_counter()
    torch.set_num_threads(1)  # NumPy has no threads in what is measured here
    machine = {"versions": find_versions(PACKAGES), "cpus": os.cpu_count()}  # what the ratios depend on
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{versions}; {machine['cpus']} CPUs\n", flush=True)
    rows: list[dict[str, Any]] = []
    if options.memory_steps:
        for row in measure_memory(options.memory_steps, options.seed):
            rows.append(row)
            print(f"after {row['steps']} steps of {MEMORY_ROWS} tasks: {row['resident_mib']:.1f} MiB", flush=True)
    else:
        rows = show_comparisons(compare_all(options), ["family", "tasks"])
    seconds = round(time.perf_counter() - started, 1)
    print(f"\n{seconds:.0f} s")
    if options.output is not None:
        write_json(options.output, {"memory" if options.memory_steps else "rows": rows, **machine, "seconds": seconds})


if __name__ == "__main__":
    main()
