"""How many times as fast the batched environments step as what one would take without them. Nothing can fail here.

    float64, float32   gym.make_vec(id, num_envs=n): n tasks at once,
                       against Gymnasium's SyncVectorEnv over n single environments of the same tasks (infos included),
                       and against Gymnasium's own batched CartPole, which knows one physics only
    SB3VecEnv          the same for Stable-Baselines3, against SB3's DummyVecEnv over the single environments

Both sides of a comparison take the same random actions, begin in the same states and reset by themselves. They run in
turns, a short chunk of steps each, so that whatever else slows the machine slows both. A ratio is the CPU time of the
other side over ours in two neighbouring chunks; shown are the median over all pairs, and 10 and 90 % quantiles.

With --memory-steps the script shows instead how much memory the process holds while a batched CartPole is stepped.
"""

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.experiments.measuring import compare_in_turns
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.wrappers import SB3VecEnv

# What a chunk lasts, in CPU seconds; one step where that takes longer.
CHUNK_SECONDS = 0.04
# After as many steps falls are spread over time, as in a long run, instead of coming all at once.
SETTLING_STEPS = 50
# Different actions, taken again and again.
NUM_ACTIONS = 16
MEMORY_ROWS = 1024
MEMORY_SHARES = (0.01, 0.5, 1.0)

# What we aim for, by the two sides and the number of tasks.
TARGETS = {
    ("float64", "SyncVectorEnv", 64): 15.0,
    ("float64", "SyncVectorEnv", 1024): 100.0,
    ("float64", "SyncVectorEnv", 16384): 160.0,
    ("float32", "SyncVectorEnv", 16384): 300.0,
    ("float64", "CartPoleVectorEnv", 64): 1.0,
    ("float64", "CartPoleVectorEnv", 1024): 1.0,
    ("SB3VecEnv", "DummyVecEnv", 8): 3.0,
    ("SB3VecEnv", "DummyVecEnv", 64): 15.0,
}
HEADER = ("family", "ours", "against", "tasks", "ratio", "10 to 90 %", "target")
WIDTHS = (19, 9, 17, 5, 5, 12, 6)

Step: TypeAlias = Callable[[Any], Any]  # takes the actions of all rows


@dataclass(frozen=True)
class Options:
    """The command line."""

    rows: tuple[int, ...] = field(default=(64, 1024, 16384), metadata={"help": "tasks at once"})
    families: tuple[str, ...] = field(default=("CartPole-v0", "Pendulum-v0"), metadata={"help": "or none"})
    sb3_rows: tuple[int, ...] = field(default=(8, 64), metadata={"help": "tasks at once under Stable-Baselines3"})
    sb3_families: tuple[str, ...] = field(
        default=("CartPole-v0", "CartPolePolarity-v0"), metadata={"help": "those under Stable-Baselines3, or none"}
    )
    pairs: int = field(default=15, metadata={"help": "pairs of chunks of each comparison"})
    seed: int = field(default=0, metadata={"help": "seeds tasks, states and actions"})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the results"})
    memory_steps: int = field(default=0, metadata={"help": "show the memory over this many steps instead"})


@dataclass(frozen=True)
class Row:
    """A row of the table: how many times as fast ``ours`` steps ``num_tasks`` tasks.

    Attributes:
        ratio: The median over the pairs of chunks.
        low, high: What 10 % and 90 % of the pairs do not exceed.
        target: What the median should reach, or None.
    """

    family: str
    ours: str
    against: str
    num_tasks: int
    ratio: float
    low: float
    high: float
    pairs: int
    target: float | None


def batched_families() -> list[str]:
    """The names of all families that have a batched environment."""
    specs = [
        spec
        for spec in gym.registry.values()
        if spec.namespace == "ssm_metarl" and spec.vector_entry_point and "family" in spec.kwargs
    ]
    return sorted(f"{spec.name}-v{spec.version}" for spec in specs)


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


def compare_with_sync(family: str, num_rows: int, options: Options) -> Iterator[Row]:
    """Both precisions against one environment after the other."""
    exact, actions = make_batched(family, num_rows, options.seed)
    fast, _ = make_batched(family, num_rows, options.seed, dtype="float32")
    sync = gym.vector.SyncVectorEnv(single_makers(family, exact))
    sync.reset(seed=options.seed)
    place(sync.envs, exact)
    sides = {"SyncVectorEnv": sync.step, "float64": exact.step, "float32": fast.step}
    yield from compare(family, num_rows, sides, actions, options.pairs)


def compare_with_gymnasium(num_rows: int, options: Options) -> Iterator[Row]:
    """Many tasks against one, in the environment that Gymnasium itself batches."""
    ours, actions = make_batched("CartPole-v0", num_rows, options.seed)
    fast, _ = make_batched("CartPole-v0", num_rows, options.seed, dtype="float32")
    theirs = gym.make_vec("CartPole-v1", num_envs=num_rows, vectorization_mode="vector_entry_point")
    theirs.reset(seed=options.seed)
    settle(theirs.step, actions)
    sides = {"CartPoleVectorEnv": theirs.step, "float64": ours.step, "float32": fast.step}
    yield from compare("CartPole-v0", num_rows, sides, actions, options.pairs)


def compare_with_dummy(family: str, num_rows: int, options: Options) -> Iterator[Row]:
    """What Stable-Baselines3 gets of the batched environment against what it has."""
    envs, actions = make_batched(family, num_rows, options.seed, autoreset_mode="SameStep")
    dummy = DummyVecEnv(single_makers(family, envs))
    dummy.seed(options.seed)
    dummy.reset()
    place(dummy.envs, envs)
    # Without its reset, which would begin all episodes at once.
    sides = {"DummyVecEnv": dummy.step, "SB3VecEnv": SB3VecEnv(envs).step}
    yield from compare(family, num_rows, sides, actions, options.pairs)


def compare(family: str, num_rows: int, sides: Mapping[str, Step], actions: list[Any], pairs: int) -> Iterator[Row]:
    """The rows of the table that compare the first side with each of the others."""
    # Each side takes the same actions, again and again.
    calls = {name: functools.partial(take_next, step, itertools.cycle(actions)) for name, step in sides.items()}
    against = next(iter(sides))
    for ours, ratio in compare_in_turns(calls, pairs, CHUNK_SECONDS).items():
        target = TARGETS.get((ours, against, num_rows))
        yield Row(family, ours, against, num_rows, ratio.median, ratio.low, ratio.high, pairs, target)


def take_next(step: Step, actions: Iterator[Any]) -> None:
    """Step with the next of the actions."""
    step(next(actions))


def compare_all(options: Options) -> Iterator[Row]:
    """All comparisons, those of a few rows first."""
    for family, num_rows in itertools.product(options.sb3_families, options.sb3_rows):
        yield from compare_with_dummy(family, num_rows, options)
    if "CartPole-v0" in options.families:
        for num_rows in options.rows:
            yield from compare_with_gymnasium(num_rows, options)
    for num_rows, family in itertools.product(options.rows, options.families):
        yield from compare_with_sync(family, num_rows, options)


def measure_memory(num_steps: int, seed: int) -> Iterator[dict[str, float]]:
    """The resident memory, in MiB, early on, half-way and at the end."""
    envs, actions = make_batched("CartPole-v0", MEMORY_ROWS, seed)
    shown = {round(share * num_steps) for share in MEMORY_SHARES}
    for step, action in enumerate(itertools.islice(itertools.cycle(actions), num_steps), 1):
        envs.step(action)
        if step in shown:
            yield {"steps": step, "resident_mib": resident_memory()}


def resident_memory() -> float:
    """The memory that this process holds, in MiB; the most that it ever held where the system tells no more."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def format_row(row: Row) -> str:
    """A line of the table in Markdown."""
    target = "" if row.target is None else f"{row.target:g}"
    spread = f"{format_ratio(row.low)} to {format_ratio(row.high)}"
    cells = (row.family, row.ours, row.against, str(row.num_tasks), format_ratio(row.ratio), spread, target)
    return format_cells(cells)


def format_ratio(ratio: float) -> str:
    """Three digits, or all before the point."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def format_cells(cells: Sequence[str]) -> str:
    """A line of cells, each as wide as its column."""
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))} |"


def describe_machine() -> dict[str, Any]:
    """What the ratios depend on: the versions, and how many CPUs there are."""
    packages = ("gymnasium", "numpy", "stable-baselines3")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"versions": {"python": platform.python_version(), **versions}, "cpus": os.cpu_count()}


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults, families = Options(), batched_families()
    for name, option in Options.__dataclass_fields__.items():
        kind: dict[str, Any] = {"type": Path if name == "output" else int, "metavar": "N"}
        if name == "output":
            kind["metavar"] = "FILE"
        elif name.endswith("families"):
            kind = {"nargs": "*", "metavar": "FAMILY", "choices": families}
        elif name.endswith("rows"):
            kind["nargs"] = "+"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=getattr(defaults, name), help=option.metadata["help"], **kind)
    given = vars(parser.parse_args(arguments))
    options = Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    for flag, values, least in (
        ("--rows", options.rows, 1),
        ("--sb3-rows", options.sb3_rows, 1),
        ("--pairs", (options.pairs,), 1),
        ("--seed", (options.seed,), 0),
    ):
        if min(values) < least:
            parser.error(f"{flag} must be >= {least}; got {min(values)}.")
    if options.memory_steps and options.memory_steps < 100:
        parser.error(f"--memory-steps must be >= 100, or 0 for none; got {options.memory_steps}.")
    if options.output is not None:
        try:
            if options.output.is_dir():
                raise IsADirectoryError(0, "Is a directory")
            tempfile.TemporaryFile(dir=options.output.parent).close()
        except OSError as error:
            parser.error(f"--output must be a file that can be written; got {options.output} ({error.strerror}).")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, or show the memory, line by line as results come in."""
    options = parse_options(arguments)
    started = time.perf_counter()
    torch.set_num_threads(1)  # NumPy has no threads in what is measured here
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{versions}; {machine['cpus']} CPUs\n", flush=True)
    rows: list[dict[str, Any]] = []
    if options.memory_steps:
        for row in measure_memory(options.memory_steps, options.seed):
            rows.append(row)
            print(f"after {row['steps']} steps of {MEMORY_ROWS} tasks: {row['resident_mib']:.1f} MiB", flush=True)
    else:
        print(format_cells(HEADER), format_cells(["-" * width for width in WIDTHS]), sep="\n", flush=True)
        for comparison in compare_all(options):
            rows.append(asdict(comparison))
            print(format_row(comparison), flush=True)
    seconds = round(time.perf_counter() - started, 1)
    print(f"\n{seconds:.0f} s")
    if options.output is not None:
        results = {"memory" if options.memory_steps else "rows": rows, **machine, "seconds": seconds}
        with replacing(options.output) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
