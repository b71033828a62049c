"""How many times as fast MetaMAML is as the usual loop over tasks, on one CPU thread.

    MetaMAML           meta_update, as users call it
    MetaMAML, written  the same without the low-rank form of plain networks: each task's weights are written out
    learn2learn        the loop with learn2learn.algorithms.MAML
    higher             the loop with higher.innerloop_ctx
    torchopt           the loop with torchopt.MetaSGD

against the loop over tasks with torch.func.functional_call and torch.autograd.grad. One call is one step of Adam on the
exact (second-order) gradient through 5 inner steps on each task. Before a comparison the gradients of all sides are
compared in double precision. The sides run in turns, a short chunk of calls each; shown are the median over all pairs
of chunks, and 10 and 90 % quantiles. With --memory, what MetaMAML holds instead.

What is not installed is left out: python -m pip install learn2learn higher torchopt
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssm_metarl_gym.agents import SSM, MetaMAML
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, peak_memory, show_comparisons
from ssm_metarl_gym.experiments.report import print_markdown
from ssm_metarl_gym.experiments.signals import stoppable, worker_pool
from ssm_metarl_gym.files import write_json

INNER_STEPS, INNER_LR = 5, 0.01
MSE = nn.MSELoss()
# What we aim for, by network and number of tasks.
TARGETS = {
    ("MLP", 8): {"MetaMAML": 2.0},
    ("MLP", 32): {"MetaMAML": 2.5},
    ("MLP", 128): {"MetaMAML": 3.0},
    ("SSM, steps", 32): {"MetaMAML": 2.0},
    ("SSM, sequence", 32): {"MetaMAML": 2.0},
}
MEMORY_TARGET = 2.0
MEMORY_CHUNK = 16

Task: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
Update: TypeAlias = Callable[[], object]


class Outer(NamedTuple):
    """The step on the mean loss of all tasks: the class of its optimiser, and its size."""

    optimizer_class: type[torch.optim.Optimizer]
    lr: float


# Makes the call that updates a model on tasks.
Side: TypeAlias = Callable[[nn.Module, list[Task], Outer], Update]


@dataclass(frozen=True)
class Options:
    """The command line."""

    tasks: tuple[int, ...] = option((8, 32, 128), "numbers of tasks for the MLP", least=1, below=10**6)
    ssm_tasks: tuple[int, ...] = option((32,), "numbers of tasks for the SSM", least=1, below=10**6)
    width: int = option(128, "width of the networks, even", least=2, below=2**14)
    pairs: int = option(15, "pairs of chunks of each comparison", least=1)
    memory: bool = option(False, "measure memory instead of time")
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check that a state has a real and an imaginary half."""
        if self.width % 2:
            raise ValueError(f"--width must be even; got {self.width}.")


class Wrapped(nn.Module):
    """A network in another module, which MetaMAML does not look into: it writes each task's weights out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives."""
        y: Tensor = self.network(x)
        return y


def meta_maml(model: nn.Module, tasks: list[Task], outer: Outer) -> Update:
    """This package."""
    maml = MetaMAML(model, INNER_LR, outer.lr, inner_steps=INNER_STEPS, optimizer_class=outer.optimizer_class)
    return lambda: maml.meta_update(tasks, MSE)


def loop(model: nn.Module, tasks: list[Task], outer: Outer) -> Update:
    """PyTorch alone."""
    parameters = dict(model.named_parameters())

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        weights: dict[str, Tensor] = dict(parameters)
        for _ in range(INNER_STEPS):
            support_loss = MSE(functional_call(model, weights, support_x), support_y)
            leaves = tuple(weights.values())
            gradients = torch.autograd.grad(support_loss, leaves, create_graph=True, allow_unused=True)
            weights = {
                name: weight if gradient is None else weight - INNER_LR * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        loss: Tensor = MSE(functional_call(model, weights, query_x), query_y)
        return loss

    return over_tasks(query_loss, model, tasks, outer)


def learn2learn_loop(model: nn.Module, tasks: list[Task], outer: Outer) -> Update:
    """The package ``learn2learn``."""
    maml = importlib.import_module("learn2learn").algorithms.MAML(model, lr=INNER_LR)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        learner = maml.clone()
        for _ in range(INNER_STEPS):
            learner.adapt(MSE(learner(support_x), support_y), allow_unused=True)  # of an SSM in single steps
        loss: Tensor = MSE(learner(query_x), query_y)
        return loss

    return over_tasks(query_loss, model, tasks, outer)


def higher_loop(model: nn.Module, tasks: list[Task], outer: Outer) -> Update:
    """The package ``higher``."""
    higher = importlib.import_module("higher")
    inner_optimizer = torch.optim.SGD(model.parameters(), lr=INNER_LR)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        with higher.innerloop_ctx(model, inner_optimizer, copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(INNER_STEPS):
                optimizer.step(MSE(adapted(support_x), support_y))
            loss: Tensor = MSE(adapted(query_x), query_y)
        return loss

    return over_tasks(query_loss, model, tasks, outer)


def torchopt_loop(model: nn.Module, tasks: list[Task], outer: Outer) -> Update:
    """The package ``torchopt``, whose inner optimiser replaces the model's weights until they are recovered."""
    torchopt = importlib.import_module("torchopt")
    inner_optimizer = torchopt.MetaSGD(model, lr=INNER_LR)
    weights = torchopt.extract_state_dict(model, by="reference")
    state = torchopt.extract_state_dict(inner_optimizer, by="reference")

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        for _ in range(INNER_STEPS):
            inner_optimizer.step(MSE(model(support_x), support_y))
        loss: Tensor = MSE(model(query_x), query_y)
        torchopt.recover_state_dict(model, weights)
        torchopt.recover_state_dict(inner_optimizer, state)
        return loss

    return over_tasks(query_loss, model, tasks, outer)


def over_tasks(
    query_loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], model: nn.Module, tasks: list[Task], outer: Outer
) -> Update:
    """A step on the mean loss, the tasks one after the other, whose graphs are freed as soon as possible."""
    optimizer = outer.optimizer_class(model.parameters(), lr=outer.lr)  # type: ignore[call-arg]

    def update() -> float:
        optimizer.zero_grad()
        total = 0.0
        for task in tasks:
            loss = query_loss(*task) / len(tasks)
            loss.backward()
            total += loss.item()
        optimizer.step()
        return total

    return update


PACKAGES: dict[str, Side] = {"learn2learn": learn2learn_loop, "higher": higher_loop, "torchopt": torchopt_loop}


def find_sides() -> dict[str, Side]:
    """All sides that can run here, the loop first."""
    sides: dict[str, Side] = {"loop": loop, "MetaMAML": meta_maml}
    sides["MetaMAML, written"] = lambda model, tasks, outer: meta_maml(Wrapped(model), tasks, outer)
    return sides | {name: side for name, side in PACKAGES.items() if importlib.util.find_spec(name) is not None}


def make_mlp(width: int) -> nn.Module:
    """A plain network."""
    layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers)


def make_ssm(width: int) -> nn.Module:
    """A state-space model of two layers."""
    return SSM(4, hidden_dim=width, output_dim=1)


class Network(NamedTuple):
    """A network of some width, and the shape of its inputs in a support or query set."""

    make: Callable[[int], nn.Module]
    shape: tuple[int, ...]


NETWORKS = {
    "MLP": Network(make_mlp, (10, 4)),
    "SSM, steps": Network(make_ssm, (10, 4)),
    "SSM, sequence": Network(make_ssm, (1, 50, 4)),
}


def make_tasks(num_tasks: int, shape: tuple[int, ...]) -> list[Task]:
    """Tasks with support and query sets of ``shape`` inputs, ``(N, 4)`` or ``(N, T, 4)``."""

    def make_set() -> tuple[Tensor, Tensor]:
        x = torch.randn(shape)
        return x, torch.sin(x.sum(-1, keepdim=True))

    return [(*make_set(), *make_set()) for _ in range(num_tasks)]


def check_gradients(sides: dict[str, Side], model: nn.Module, tasks: list[Task]) -> None:
    """All sides must step alike: in double precision, by plain gradient descent with a step size of 1."""
    model = copy.deepcopy(model).double()
    tasks = [tuple(tensor.double() for tensor in task) for task in tasks]  # type: ignore[misc]
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradients = {}
    for name, side in sides.items():
        own = copy.deepcopy(model)
        side(own, tasks, Outer(torch.optim.SGD, 1.0))()
        gradients[name] = before - nn.utils.parameters_to_vector(own.parameters()).detach()
    expected = gradients["loop"]
    for name, gradient in gradients.items():
        error = float((gradient - expected).norm() / expected.norm())
        if not error < 1e-5:
            raise SystemExit(
                f"{name} and the loop must have the same gradient; they differ by {error:.2g} of its norm."
            )


def compare_times(options: Options) -> Iterator[Comparison]:
    """All networks, each with its numbers of tasks."""
    sides = find_sides()
    for name, network in NETWORKS.items():
        # An SSM has no low-rank form that could be left out.
        own = {side: make for side, make in sides.items() if name == "MLP" or side != "MetaMAML, written"}
        for num_tasks in options.tasks if name == "MLP" else options.ssm_tasks:
            model, tasks = network.make(options.width), make_tasks(num_tasks, network.shape)
            check_gradients(own, model, tasks)
            calls = {
                side: make(copy.deepcopy(model), tasks, Outer(torch.optim.Adam, 1e-4)) for side, make in own.items()
            }
            case: dict[str, str | int] = {"network": name, "tasks": num_tasks}
            yield from compare_in_turns(calls, options.pairs, case=case, targets=TARGETS.get((name, num_tasks)))


def compare_memory(options: Options) -> Iterator[dict[str, Any]]:
    """What updates hold at most, in MiB beyond what a process of their own held before, in pairs of cases."""
    for name, is_written in (("MLP", False), ("MLP", True), ("SSM, steps", False), ("SSM, sequence", False)):
        few, many = MEMORY_CHUNK, 8 * MEMORY_CHUNK
        one, chunked = (measure_memory(name, is_written, num_tasks, [1], options.width)[0] for num_tasks in (few, many))
        what = f"{name}{', written' if is_written else ''}: {few} tasks, then {many} in chunks of {few}"
        yield {"what": what, "first": one, "second": chunked, "target": MEMORY_TARGET}
    early, late = measure_memory("MLP", False, MEMORY_CHUNK, [100, 2000], options.width)
    what = f"MLP: {MEMORY_CHUNK} tasks, 100 updates, then 2000"
    yield {"what": what, "first": early, "second": late, "target": None}


def measure_memory(*arguments: Any) -> list[float]:
    """What :func:`find_peaks` finds in a process that held nothing before."""
    with worker_pool(1) as pool:
        return pool.submit(find_peaks, *arguments).result()


def find_peaks(name: str, is_written: bool, num_tasks: int, num_updates: Sequence[int], width: int) -> list[float]:
    """The most memory that this process holds up to each of so many updates in chunks, in MiB more than before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = NETWORKS[name]
    tasks, model = make_tasks(num_tasks, network.shape), network.make(width)
    model = Wrapped(model) if is_written else model
    maml = MetaMAML(model, INNER_LR, 1e-4, inner_steps=INNER_STEPS, task_chunk_size=MEMORY_CHUNK)
    maml.meta_update(tasks[:1], MSE)  # what PyTorch loads at first use is none of ours
    baseline, peaks, done = peak_memory(), [], 0
    for total in num_updates:
        while done < total:
            maml.meta_update(tasks, MSE)
            done += 1
        peaks.append(peak_memory() - baseline)
    return peaks


def show_times(options: Options) -> list[dict[str, Any]]:
    """Compare times, line by line as results come in."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out: python -m pip install {name}")
    return show_comparisons(compare_times(options), ["network", "tasks"])


def show_memory(options: Options) -> list[dict[str, Any]]:
    """Measure memory, line by line as results come in."""
    shown: list[dict[str, Any]] = []

    def rows() -> Iterator[list[str]]:
        for row in compare_memory(options):
            shown.append(row)
            first, second, target = row["first"], row["second"], f"<= {row['target']:.2g}" if row["target"] else ""
            yield [row["what"], f"{first:.1f}", f"{second:.1f}", f"{second / max(first, 1e-9):.2f}", target]

    print_markdown(["peak memory", "first, MiB", "second, MiB", "ratio", "target"], rows())
    return shown


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}; width {options.width}, {INNER_STEPS} inner steps, second order\n")
    rows = show_memory(options) if options.memory else show_times(options)
    if options.output is not None:
        write_json(options.output, rows)


if __name__ == "__main__":
    main()
