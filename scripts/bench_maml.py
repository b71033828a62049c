"""How many times as fast MetaMAML is as the usual loop over tasks, on one CPU thread.

    MetaMAML           meta_update, as users call it
    MetaMAML, written  the same without the low-rank form of plain networks: each task's weights are written out
    higher             the loop with higher.innerloop_ctx
    torchopt           the loop with torchopt.MetaSGD

against the loop over tasks with torch.func.functional_call and torch.autograd.grad. One call is one step of Adam on the
exact (second-order) gradient through 5 inner steps on each task. Before a comparison the gradients of all sides are
compared in double precision. The sides run in turns, a short chunk of calls each; shown are the median over all pairs
of chunks, and 10 and 90 % quantiles. With --memory, what MetaMAML holds instead.

higher and torchopt are left out where they are not installed: python -m pip install higher torchopt
"""

import argparse
import copy
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ssm_metarl_gym.agents import SSM, MetaMAML
from ssm_metarl_gym.experiments.measuring import compare_in_turns
from ssm_metarl_gym.files import replacing

INNER_STEPS, INNER_LR = 5, 0.01
MSE = nn.MSELoss()
PACKAGES = ("higher", "torchopt")
# What we aim for, by network and number of tasks.
TARGETS = {("MLP", 8): 2.0, ("MLP", 32): 2.5, ("MLP", 128): 3.0, ("SSM, steps", 32): 2.0, ("SSM, sequence", 32): 2.0}
MEMORY_TARGET = 2.0
# The inputs of a support or query set: ten single steps, or one sequence of fifty.
SSM_SHAPES = {"SSM, steps": (10, 4), "SSM, sequence": (1, 50, 4)}

Task: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
Update: TypeAlias = Callable[[], object]
# Makes the call that updates a model on tasks, given the class of the outer optimiser and its step size.
Side: TypeAlias = Callable[[nn.Module, list[Task], type[torch.optim.Optimizer], float], Update]


@dataclass(frozen=True)
class Options:
    """The command line."""

    tasks: tuple[int, ...] = field(default=(8, 32, 128), metadata={"help": "numbers of tasks for the MLP"})
    ssm_tasks: tuple[int, ...] = field(default=(32,), metadata={"help": "numbers of tasks for the SSM"})
    width: int = field(default=128, metadata={"help": "width of the networks, even"})
    pairs: int = field(default=15, metadata={"help": "pairs of chunks of each comparison"})
    memory: bool = field(default=False, metadata={"help": "measure memory instead of time"})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the results"})


@dataclass(frozen=True)
class Row:
    """A row of the table: how many times as fast as the loop ``ours`` is."""

    network: str
    tasks: int
    ours: str
    median: float
    low: float
    high: float
    target: float | None


@dataclass(frozen=True)
class MemoryRow:
    """What updates hold at most, in MiB beyond what the process held before."""

    what: str
    first: float
    second: float
    target: float | None


class Wrapped(nn.Module):
    """A network in another module, which MetaMAML does not look into: it writes each task's weights out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives."""
        y: Tensor = self.network(x)
        return y


def meta_maml(
    model: nn.Module, tasks: list[Task], optimizer_class: type[torch.optim.Optimizer], outer_lr: float
) -> Update:
    """This package."""
    maml = MetaMAML(model, INNER_LR, outer_lr, inner_steps=INNER_STEPS, optimizer_class=optimizer_class)
    return lambda: maml.meta_update(tasks, MSE)


def meta_maml_written(
    model: nn.Module, tasks: list[Task], optimizer_class: type[torch.optim.Optimizer], outer_lr: float
) -> Update:
    """This package without the low-rank form."""
    return meta_maml(Wrapped(model), tasks, optimizer_class, outer_lr)


def loop(model: nn.Module, tasks: list[Task], optimizer_class: type[torch.optim.Optimizer], outer_lr: float) -> Update:
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

    return over_tasks(query_loss, model, tasks, optimizer_class, outer_lr)


def higher_loop(
    model: nn.Module, tasks: list[Task], optimizer_class: type[torch.optim.Optimizer], outer_lr: float
) -> Update:
    """The package ``higher``."""
    higher = importlib.import_module("higher")
    inner_optimizer = torch.optim.SGD(model.parameters(), lr=INNER_LR)

    def query_loss(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        with higher.innerloop_ctx(model, inner_optimizer, copy_initial_weights=False) as (adapted, optimizer):
            for _ in range(INNER_STEPS):
                optimizer.step(MSE(adapted(support_x), support_y))
            loss: Tensor = MSE(adapted(query_x), query_y)
        return loss

    return over_tasks(query_loss, model, tasks, optimizer_class, outer_lr)


def torchopt_loop(
    model: nn.Module, tasks: list[Task], optimizer_class: type[torch.optim.Optimizer], outer_lr: float
) -> Update:
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

    return over_tasks(query_loss, model, tasks, optimizer_class, outer_lr)


def over_tasks(
    query_loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    model: nn.Module,
    tasks: list[Task],
    optimizer_class: type[torch.optim.Optimizer],
    outer_lr: float,
) -> Update:
    """A step on the mean loss, the tasks one after the other, whose graphs are freed as soon as possible."""
    optimizer = optimizer_class(model.parameters(), lr=outer_lr)  # type: ignore[call-arg]

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


def find_sides() -> dict[str, Side]:
    """All sides that can run here, the loop first."""
    sides: dict[str, Side] = {"loop": loop, "MetaMAML": meta_maml, "MetaMAML, written": meta_maml_written}
    packages: dict[str, Side] = {"higher": higher_loop, "torchopt": torchopt_loop}
    return sides | {name: side for name, side in packages.items() if importlib.util.find_spec(name) is not None}


def make_mlp(width: int) -> nn.Module:
    """A plain network."""
    layers = nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers)


def make_ssm(width: int) -> nn.Module:
    """A state-space model of two layers."""
    return SSM(4, hidden_dim=width, output_dim=1)


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
        side(own, tasks, torch.optim.SGD, 1.0)()
        gradients[name] = before - nn.utils.parameters_to_vector(own.parameters()).detach()
    expected = gradients["loop"]
    for name, gradient in gradients.items():
        error = float((gradient - expected).norm() / expected.norm())
        if not error < 1e-5:
            raise SystemExit(
                f"{name} and the loop must have the same gradient; they differ by {error:.2g} of its norm."
            )


def compare_times(options: Options) -> Iterator[Row]:
    """The rows of all networks and numbers of tasks."""
    sides = find_sides()
    cases: list[tuple[str, Callable[[int], nn.Module], tuple[int, ...], int]]
    cases = [("MLP", make_mlp, (10, 4), num_tasks) for num_tasks in options.tasks]
    for name, shape in SSM_SHAPES.items():
        cases += [(name, make_ssm, shape, num_tasks) for num_tasks in options.ssm_tasks]
    for network, make, shape, num_tasks in cases:
        # An SSM has no low-rank form that could be left out.
        own = {name: side for name, side in sides.items() if network == "MLP" or name != "MetaMAML, written"}
        model, tasks = make(options.width), make_tasks(num_tasks, shape)
        check_gradients(own, model, tasks)
        calls = {name: side(copy.deepcopy(model), tasks, torch.optim.Adam, 1e-4) for name, side in own.items()}
        for name, ratio in compare_in_turns(calls, options.pairs).items():
            target = TARGETS.get((network, num_tasks)) if name == "MetaMAML" else None
            yield Row(network, num_tasks, name, **asdict(ratio), target=target)


def compare_memory(options: Options) -> Iterator[MemoryRow]:
    """The rows of both networks, each number from a process of its own."""
    for network in ("MLP", "MLP, written", "SSM, steps", "SSM, sequence"):
        one, many = (measure_memory(network, num_tasks, [1], options)[0] for num_tasks in (16, 128))
        yield MemoryRow(f"{network}: 16 tasks, then 128 in chunks of 16", one, many, MEMORY_TARGET)
    few, many = measure_memory("MLP", 16, [100, 2000], options)
    yield MemoryRow("MLP: 16 tasks, 100 updates, then 2000", few, many, None)


def measure_memory(network: str, num_tasks: int, num_updates: Sequence[int], options: Options) -> list[float]:
    """The peak after so many updates in chunks of 16 tasks each, in MiB, as another process measures it."""
    arguments = [network, str(num_tasks), *map(str, num_updates)]
    command = [sys.executable, __file__, "--width", str(options.width), "--peak", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
    peaks: list[float] = json.loads(output)
    return peaks


def find_peaks(network: str, num_tasks: int, num_updates: Sequence[int], width: int) -> list[float]:
    """The same in this process, which must not have held much before."""
    shape = SSM_SHAPES.get(network, (10, 4))
    make, wrap = (make_mlp if "MLP" in network else make_ssm), (Wrapped if "written" in network else nn.Sequential)
    tasks, model = make_tasks(num_tasks, shape), wrap(make(width))
    maml = MetaMAML(model, INNER_LR, 1e-4, inner_steps=INNER_STEPS, task_chunk_size=16)
    maml.meta_update(tasks[:1], MSE)  # what PyTorch loads at first use is none of ours
    baseline, peaks, done = peak_memory(), [], 0
    for total in num_updates:
        while done < total:
            maml.meta_update(tasks, MSE)
            done += 1
        peaks.append(peak_memory() - baseline)
    return peaks


def peak_memory() -> float:
    """The most that this process has held so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage counts what the parent process held when it started this one
        return (
            next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10
        )
    import resource  # which Windows lacks

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def parse_options(arguments: Sequence[str] | None) -> tuple[Options, list[str] | None]:
    """The options of the command line, and what a process that measures memory is to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Options()
    help_of = {name: option.metadata["help"] for name, option in Options.__dataclass_fields__.items()}
    for name in ("tasks", "ssm_tasks"):
        kind: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "K", "default": getattr(defaults, name)}
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_of[name], **kind)
    for name in ("width", "pairs"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), metavar="N", help=help_of[name])
    parser.add_argument("--memory", action="store_true", help=help_of["memory"])
    parser.add_argument("--output", type=Path, metavar="FILE", help=help_of["output"])
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    parsed = vars(parser.parse_args(arguments))
    peak = parsed.pop("peak")
    options = Options(**parsed)
    for name, values in (("tasks", options.tasks), ("ssm-tasks", options.ssm_tasks), ("pairs", [options.pairs])):
        if min(values) < 1:
            parser.error(f"--{name} must be >= 1; got {min(values)}.")
    if options.width < 2 or options.width % 2:
        parser.error(f"--width must be even and >= 2; got {options.width}.")
    return options, peak


def show_times(options: Options) -> list[Row]:
    """Compare times, line by line as results come in."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out: python -m pip install {name}")
    print("| network | tasks | side | times as fast as the loop | 10 to 90 % | target |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for row in compare_times(options):
        rows.append(row)
        target = "" if row.target is None else f"{row.target:.2g}"
        cells = (row.network, row.tasks, row.ours, f"{row.median:.2f}", f"{row.low:.2f} to {row.high:.2f}", target)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return rows


def show_memory(options: Options) -> list[MemoryRow]:
    """Measure memory, line by line as results come in."""
    print("| peak memory | first, MiB | second, MiB | ratio | target |\n| --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for row in compare_memory(options):
        rows.append(row)
        ratio, target = row.second / max(row.first, 1e-9), "" if row.target is None else f"<= {row.target:.2g}"
        print(f"| {row.what} | {row.first:.1f} | {row.second:.1f} | {ratio:.2f} | {target} |", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options, peak = parse_options(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if peak is not None:
        network, num_tasks, *num_updates = peak
        print(json.dumps(find_peaks(network, int(num_tasks), [int(number) for number in num_updates], options.width)))
        return
    print(f"torch {torch.__version__}; width {options.width}, {INNER_STEPS} inner steps, second order\n")
    rows: Sequence[Row | MemoryRow] = show_memory(options) if options.memory else show_times(options)
    if options.output is not None:
        with replacing(options.output) as temporary:
            temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
