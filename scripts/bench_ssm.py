"""How many times as fast the state-space model is as PyTorch's own recurrent networks, on one CPU thread.

    scan        the recurrence of width / 2 complex states alone, as agents/ssm/scan.py computes it
    loop        the same, as autograd differentiates a Python loop over the steps
    log-depth   the same, in log2(steps) passes over the whole sequence
    block       a whole layer: normalisation, recurrence and gated output; single steps as SSM.stepper() takes them
    stepper     single steps of a whole model of two layers, by SSM.stepper()
    step        the same, by SSM.step

against torch.nn.LSTM and torch.nn.GRU of the same width, forward and backward over a sequence, and against
torch.nn.LSTMCell (the stepper also against SSM.step) for one step of one row without gradients. The sides run in
turns, a short chunk of calls each; shown are the median over all pairs of chunks, and 10 and 90 % quantiles.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssm_metarl_gym.agents import SSM
from ssm_metarl_gym.agents.ssm.scan import by_doubling, linear_recurrence
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, show_comparisons
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json

# What we aim for, by the other side, the number of steps and ours.
TARGETS = {
    ("LSTM", 128): {"scan": 2.5},
    ("LSTM", 512): {"scan": 2.5, "block": 1.3},
    ("LSTMCell", 1): {"block": 1 / 0.6},
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    steps: tuple[int, ...] = option((128, 512), "lengths of the sequences", least=1, below=10**6)
    batch: int = option(16, "number of sequences", least=1, below=10**6)
    width: int = option(128, "width of the networks, even", least=2, below=2**14)
    pairs: int = option(15, "pairs of chunks of each comparison", least=1)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check that a state has a real and an imaginary half."""
        if self.width % 2:
            raise ValueError(f"--width must be even; got {self.width}.")


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


def compare_sequences(steps: int, options: Options) -> Iterator[Comparison]:
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


def compare_steps(options: Options) -> Iterator[Comparison]:
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


def compare(sides: dict[str, Callable[[], Any]], steps: int, pairs: int) -> list[Comparison]:
    """The first side against each of the others."""
    targets = TARGETS.get((next(iter(sides)), steps))
    return compare_in_turns(sides, pairs, case={"steps": steps}, targets=targets)


def compare_all(options: Options) -> Iterator[Comparison]:
    """All comparisons, those of single steps last."""
    for steps in options.steps:
        yield from compare_sequences(steps, options)
    yield from compare_steps(options)


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}; width {options.width}, {options.batch} sequences\n")
    rows = show_comparisons(compare_all(options), ["steps"])
    if options.output is not None:
        write_json(options.output, rows)


if __name__ == "__main__":
    main()
