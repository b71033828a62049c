"""Fit a sine wave from ten points: the first experiment of the MAML paper.

A task is a sine wave of some amplitude and phase, of which a network sees ten points (Finn et al. 2017, section 5.1,
https://arxiv.org/abs/1703.03400). Shown is the mean squared error on 600 waves that were not trained on, before and
after gradient steps on ten points of each, by how the initial weights were trained:

    maml          through one gradient step, exactly
    first-order   as if the gradient of that step did not depend on the weights
    meta-sgd      MAML with a learned step size for each weight
    maml++        MAML through five steps, each with a learned step size for each tensor, and at first a loss after each
    anil          MAML whose steps change the last layer alone
    reptile       towards the weights after five steps
    multi-task    without any step, on the same points; its step size at test time is the best of five, chosen on
                  training tasks, for each number of steps by itself

Each gets as many updates, with the same points. Intervals are 95 %: over the means of the seeds (Student's t) where
there are several, else over the waves (bootstrap).
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from ssm_metarl_gym.agents import MetaMAML
from ssm_metarl_gym.agents.meta_learning.maml import MetaTask
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.report import estimate, print_markdown
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import replacing, write_json

mpl.use("Agg")
import matplotlib.pyplot as plt

# What makes MetaMAML each of the algorithms.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "maml": {},
    "first-order": {"first_order": True},
    "meta-sgd": {"learned_rates": "element"},
    "maml++": {"learned_rates": "step", "inner_steps": 5},
    "anil": {"adapts": lambda name: name.startswith("4.")},
    "reptile": {"algorithm": "reptile", "inner_steps": 5},
    "multi-task": {"inner_steps": 0},
}
NUM_POINTS, META_BATCH_SIZE, OUTER_LR = 10, 25, 1e-3
EVALUATED_STEPS = (0, 1, 5, 10)
NUM_HELD_OUT, NUM_HELD_OUT_QUERIES, NUM_TUNING = 600, 100, 200
# Those that multi-task training is tried with at test time.
STEP_SIZES = (0.001, 0.003, 0.01, 0.03, 0.1)
MSE = nn.MSELoss()


@dataclass(frozen=True)
class Options:
    """The command line."""

    algorithm: tuple[str, ...] = option(("maml",), "what is trained", choices=list(ALGORITHMS))
    seed: int = option(0, "the first seed", least=0)
    seeds: int = option(1, "number of seeds", least=1)
    updates: int = option(5000, "updates of the initial weights", least=1)
    inner_steps: int | None = option(None, "other gradient steps in training than above", least=1, below=1000)
    inner_lr: float = option(0.01, "their size, or its first value where it is learned")
    plot: Path | None = option(None, "picture of one wave as the first seed fits it", check=check_output_file)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check the size of the steps."""
        if not 0.0 < self.inner_lr < np.inf:
            raise ValueError(f"--inner-lr must be finite and > 0; got {self.inner_lr}.")


@dataclass(frozen=True)
class Result:
    """How one seed of an algorithm did.

    Attributes:
        algorithm: Its name.
        seed: The seed.
        cpu_seconds: What training took.
        step_sizes: By the number of steps at test time, their size; where it is learned, its first value.
        errors: By the number of steps, the mean squared error on each held-out wave.
    """

    algorithm: str
    seed: int
    cpu_seconds: float
    step_sizes: dict[int, float]
    errors: dict[int, list[float]]


def make_generator(*key: int) -> torch.Generator:
    """A stream of random numbers of its own for each key."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def draw_tasks(num_tasks: int, num_queries: int, generator: torch.Generator) -> list[MetaTask]:
    """Sine waves of amplitudes in [0.1, 5] and phases in [0, pi], each as points to adapt to and points to test on."""
    uniform = torch.rand(num_tasks, 2 + NUM_POINTS + num_queries, 1, generator=generator)
    amplitude, phase = 0.1 + 4.9 * uniform[:, :1], torch.pi * uniform[:, 1:2]  # K 1 1
    x = 10.0 * uniform[:, 2:] - 5.0  # K N 1
    y = amplitude * torch.sin(x - phase)
    return [
        (x_k[:NUM_POINTS], y_k[:NUM_POINTS], x_k[NUM_POINTS:], y_k[NUM_POINTS:]) for x_k, y_k in zip(x, y, strict=True)
    ]


def make_network(seed: int) -> nn.Module:
    """The network of the paper."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def train(algorithm: str, seed: int, options: Options) -> MetaMAML:
    """Train the initial weights."""
    keywords = dict(ALGORITHMS[algorithm])
    if options.inner_steps is not None and algorithm != "multi-task":
        keywords["inner_steps"] = options.inner_steps
    if algorithm == "maml++":
        keywords["multi_step_updates"] = options.updates // 2
    maml = MetaMAML(make_network(seed), options.inner_lr, OUTER_LR, **keywords)
    generator = make_generator(0, seed)
    for _ in range(options.updates):
        tasks = draw_tasks(META_BATCH_SIZE, NUM_POINTS, generator)
        if algorithm == "multi-task":  # which learns from all points alike
            tasks = [(sx, sy, torch.cat([sx, qx]), torch.cat([sy, qy])) for sx, sy, qx, qy in tasks]  # type: ignore[list-item]
        maml.meta_update(tasks, MSE)
    return maml


def tune(model: nn.Module, seed: int) -> dict[int, float]:
    """By the number of steps, the step size that is best on training tasks."""
    tasks = draw_tasks(NUM_TUNING, NUM_POINTS, make_generator(1, seed))
    losses = [MetaMAML(model, size, OUTER_LR).query_losses(tasks, MSE, EVALUATED_STEPS) for size in STEP_SIZES]
    errors = torch.stack(losses).mean(dim=2).nan_to_num(nan=torch.inf)  # large steps diverge
    return {steps: STEP_SIZES[best] for steps, best in zip(EVALUATED_STEPS, errors.argmin(dim=0).tolist(), strict=True)}


def evaluate(adapters: Mapping[int, MetaMAML]) -> dict[int, list[float]]:
    """By the number of steps, the error on each held-out wave."""
    tasks = draw_tasks(NUM_HELD_OUT, NUM_HELD_OUT_QUERIES, make_generator(2))
    return {steps: maml.query_losses(tasks, MSE, [steps])[0].tolist() for steps, maml in adapters.items()}


def run(algorithm: str, seed: int, options: Options) -> tuple[Result, dict[int, MetaMAML]]:
    """Train and evaluate one seed; also what takes how many steps at test time."""
    started = time.process_time()
    maml = train(algorithm, seed, options)
    seconds = round(time.process_time() - started, 1)
    step_sizes, adapters = dict.fromkeys(EVALUATED_STEPS, options.inner_lr), dict.fromkeys(EVALUATED_STEPS, maml)
    if algorithm == "multi-task":
        step_sizes = tune(maml.model, seed)
        adapters = {steps: MetaMAML(maml.model, size, OUTER_LR) for steps, size in step_sizes.items()}
    return Result(algorithm, seed, seconds, step_sizes, evaluate(adapters)), adapters


def format_row(results: Sequence[Result]) -> list[str]:
    """The row of the table for all seeds of an algorithm."""
    cells = [format(estimate([result.errors[steps] for result in results], 0), ".3f") for steps in EVALUATED_STEPS]
    seconds = np.mean([result.cpu_seconds for result in results])
    return [results[0].algorithm, *cells, f"{seconds:.0f}"]


def draw(fitted: Mapping[str, Mapping[int, MetaMAML]], path: Path) -> None:
    """A picture of one held-out wave, a panel for each algorithm: before, and after 1 and 10 steps."""
    points, values, queries, answers = draw_tasks(1, 400, make_generator(3))[0]
    x, order = queries.sort(dim=0)  # type: ignore[union-attr]
    figure, panels = plt.subplots(1, len(fitted), figsize=(4.5 * len(fitted), 3.2), sharey=True, squeeze=False)
    for axes, (algorithm, adapters) in zip(panels[0], fitted.items(), strict=True):
        axes.plot(x, answers[order[:, 0]], color="0.7", linewidth=4, label="the wave")
        for steps, style, label in (
            (0, ":", "initial weights"),
            (1, "--", "after 1 step"),
            (10, "-", "after 10 steps"),
        ):
            network = adapters[steps].adapt(points, values, MSE, steps)
            with torch.no_grad():
                axes.plot(x, network(x), style, color="C0", label=label)
        axes.plot(points, values, "k^", label="the ten points")
        axes.set(title=algorithm, xlabel="x")
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    print(f"mean squared error by the number of steps on {NUM_POINTS} points; {options.updates} updates\n")
    results: list[Result] = []
    fitted: dict[str, dict[int, MetaMAML]] = {}

    def rows() -> Iterator[list[str]]:
        for algorithm in dict.fromkeys(options.algorithm):
            for seed in range(options.seed, options.seed + options.seeds):
                result, adapters = run(algorithm, seed, options)
                results.append(result)
                fitted.setdefault(algorithm, adapters)
            yield format_row(results[-options.seeds :])
            if options.output is not None:
                write_json(options.output, [asdict(result) for result in results])

    print_markdown(["algorithm", *map(str, EVALUATED_STEPS), "CPU seconds"], rows())
    if options.plot is not None:
        draw(fitted, options.plot)


if __name__ == "__main__":
    main()
