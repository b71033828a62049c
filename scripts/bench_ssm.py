"""How many times as fast the state-space model is as PyTorch's own recurrent networks, on one CPU thread.

    scan        the recurrence of width / 2 complex states alone, as agents/scan.py computes it
    loop        the same, as autograd differentiates a Python loop over the steps
    log-depth   the same, in log2(steps) passes over the whole sequence
    block       a whole layer: normalisation, recurrence and gated output; single steps as SSM.stepper() takes them
    stepper     single steps of a whole model of two layers, by SSM.stepper()
    step        the same, by SSM.step

against torch.nn.LSTM and torch.nn.GRU of the same width, forward and backward over a sequence, and against
torch.nn.LSTMCell (the stepper also against SSM.step) for one step of one row without gradients. The sides run in
turns, a short chunk of calls each; shown are the median over all pairs of chunks, and 10 and 90 % quantiles.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents import SSM
from ssm_metarl_gym.agents.ssm.scan import by_doubling, linear_recurrence
from ssm_metarl_gym.experiments.measuring import compare_in_turns
from ssm_metarl_gym.files import replacing

# What we aim for, by the two sides and the number of steps.
TARGETS = {
    ("scan", "LSTM", 128): 2.5,
    ("scan", "LSTM", 512): 2.5,
    ("block", "LSTM", 512): 1.3,
    ("block", "LSTMCell", 1): 1 / 0.6,
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: tuple[int, ...] = field(default=(128, 512), metadata={"help": "lengths of the sequences"})
    batch: int = field(default=16, metadata={"help": "number of sequences"})
    width: int = field(default=128, metadata={"help": "width of the networks, even"})
    pairs: int = field(default=15, metadata={"help": "pairs of chunks of each comparison"})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the results"})


@dataclass(frozen=True)
class Row:
    """A row of the table: how many times as fast ``ours`` is."""

    ours: str
    against: str
    steps: int
    median: float
    low: float
    high: float
    target: float | None


def loop(decay: Tensor, inputs: Tensor, state: Tensor) -> Tensor:
    """The recurrence with a graph node for each operation of each step."""
    states = []
    for inputs_t in inputs.unbind(1):
        state = decay * state + inputs_t
        states.append(state)
    return torch.stack(states, dim=1)


def log_depth(decay: Tensor, inputs: Tensor, state: Tensor) -> Tensor:
    """The recurrence by doubling, as autograd differentiates it."""
    start = torch.zeros(inputs.shape[1], inputs.shape[0], dtype=torch.bool)
    return by_doubling(decay, inputs.transpose(0, 1), state, start).transpose(0, 1)


def make_block(width: int) -> Any:
    """One layer of the model."""
    return SSM(width, hidden_dim=width, output_dim=width, num_layers=1).layers[0]


def compare_sequences(steps: int, options: Options) -> Iterator[Row]:
    """Forward and backward over sequences."""
    width, batch = options.width, options.batch
    shapes = ((width // 2,), (batch, steps, width // 2), (batch, width // 2))  # decay, inputs, state
    recurrence = [(0.5 * torch.randn(shape, dtype=torch.complex64)).requires_grad_() for shape in shapes]
    recurrence[0].data /= recurrence[0].abs().clamp(min=1.0)  # no state grows
    x, state = torch.randn(batch, steps, width, requires_grad=True), torch.zeros(batch, width // 2, dtype=torch.cfloat)
    lstm, gru, block = (
        nn.LSTM(width, width, batch_first=True),
        nn.GRU(width, width, batch_first=True),
        make_block(width),
    )

    def trained(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: forward().sum().backward()

    ours = {
        "scan": trained(lambda: torch.view_as_real(linear_recurrence(*recurrence))),
        "loop": trained(lambda: torch.view_as_real(loop(*recurrence))),
        "log-depth": trained(lambda: torch.view_as_real(log_depth(*recurrence))),
        "block": trained(lambda: block(x, state)[0]),
    }
    theirs = {"LSTM": trained(lambda: lstm(x)[0]), "GRU": trained(lambda: gru(x)[0])}
    for against, call in theirs.items():
        yield from compare({against: call, **ours}, steps, options.pairs)


def compare_steps(options: Options) -> Iterator[Row]:
    """One step of one row, as in a rollout."""
    width = options.width
    cell, model, block = nn.LSTMCell(width, width), SSM(width, width, width), make_block(width).folded()
    stepper, state = model.stepper(), model.initial_state(1)
    x, hidden = torch.randn(1, width), torch.zeros(1, width)
    with torch.no_grad():
        cell_step, step = lambda: cell(x, (hidden, hidden)), lambda: model.step(x, state)
        layer_step, stepper_step = lambda: block.step(x, hidden), lambda: stepper.step(x, state)
        sides = {"LSTMCell": cell_step, "block": layer_step, "stepper": stepper_step, "step": step}
        yield from compare(sides, 1, options.pairs)
        yield from compare({"step": step, "stepper": stepper_step}, 1, options.pairs)


def compare(sides: dict[str, Callable[[], Any]], steps: int, pairs: int) -> Iterator[Row]:
    """The rows of the table that compare the first side with each of the others."""
    against = next(iter(sides))
    for ours, ratio in compare_in_turns(sides, pairs).items():
        yield Row(ours, against, steps, **asdict(ratio), target=TARGETS.get((ours, against, steps)))


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Options()
    help_of = {name: option.metadata["help"] for name, option in Options.__dataclass_fields__.items()}
    parser.add_argument("--steps", type=int, nargs="+", default=defaults.steps, metavar="T", help=help_of["steps"])
    for name in ("batch", "width", "pairs"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), metavar="N", help=help_of[name])
    parser.add_argument("--output", type=Path, metavar="FILE", help=help_of["output"])
    options = Options(**vars(parser.parse_args(arguments)))
    for name, values in (("steps", options.steps), *((name, [getattr(options, name)]) for name in ("batch", "pairs"))):
        if min(values) < 1:
            parser.error(f"--{name} must be >= 1; got {min(values)}.")
    if options.width < 2 or options.width % 2:
        parser.error(f"--width must be even and >= 2; got {options.width}.")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options = parse_options(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}; width {options.width}, {options.batch} sequences\n")
    print("| ours | against | steps | ratio | 10 to 90 % | target |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for steps in (*options.steps, 1):
        for row in compare_steps(options) if steps == 1 else compare_sequences(steps, options):
            rows.append(asdict(row))
            target = "" if row.target is None else f"{row.target:.2g}"
            cells = (row.ours, row.against, row.steps, f"{row.median:.2f}", f"{row.low:.2f} to {row.high:.2f}", target)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if options.output is not None:
        with replacing(options.output) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
