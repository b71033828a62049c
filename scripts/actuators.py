"""How ways to cope with hidden motors scale: with the number of dimensions in which they are hidden, and with training.

A point mass in d dimensions whose actions go through a hidden matrix (PointActuators), and the three small environments
of AIB, the Actuator Inversion Benchmark (https://arxiv.org/abs/2602.06550), on its 20 + 20 + 20 contexts.

    as_is                   a PPO policy of the nominal physics, which knows nothing of what is hidden
    corrected_filter        the same behind VectorActionCorrection, with a Kalman filter on a map of the actions
    corrected_gradients     the same with a meta-learned model that adapts by gradient steps
    corrected_rls           the same with recursive least squares on that model's last layer
    domain_randomisation    PPO on the training tasks, from the plain observation
    told                    PPO on the training tasks that is told what is hidden
    one_transition          PPO on the training tasks that also sees the last transition
    window_ssm              PPO that reads the last 16 of them with a state-space model
    ssm_ppo, recurrent_ppo  a recurrent state-space model, and sb3-contrib's LSTM
    adapted_predictions     PPO that sees what the adapted model predicts for a few actions

Policies and models lie in the output folder; runs.jsonl holds a line for each evaluation, as soon as it is known, and
the same command goes on with what is missing, the cheap rows and the first seeds first. At the end it prints the tables
and draws return_by_dimension.png (agents that take no steps on the tasks, and those that took a million) and, of three
dimensions, return_by_steps.png, both without `as_is`.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.engines import LocalEngine
from ssm_metarl_gym.experiments.pictures import draw_lines
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.scoreboard.agents import CORRECTED, TRAINED
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard, Table
from ssm_metarl_gym.experiments.scoreboard.physics import AIB
from ssm_metarl_gym.experiments.scoreboard.plan import all_runs, run_all
from ssm_metarl_gym.experiments.signals import stoppable

# The dimension whose curve over the steps of training is drawn, and the steps at which dimensions are compared.
CURVE_DIMENSION, COMPARED_STEPS = 3, 1_000_000
FILES = ("runs.jsonl", "return_by_dimension.png", "return_by_steps.png")


@dataclass(frozen=True)
class Options:
    """The command line."""

    dimensions: tuple[int, ...] = option(
        (2, 4, 6, 1, 3), "those of the point mass, or none", least=1, below=17, may_be_empty=True
    )
    aib: tuple[str, ...] = option((), "environments of AIB", choices=AIB)
    rows: tuple[str, ...] = option(tuple(CORRECTED), "what is compared", choices=[*CORRECTED, *TRAINED])
    steps: tuple[int, ...] = option((400_000, 1_000_000), "steps of training on the tasks", least=1, below=10**9)
    seeds: int = option(5, "number of seeds of policies, models and tasks", least=1, below=1_000)
    num_tasks: int = option(300, "tasks of each evaluation", least=20, below=100_000)
    report: bool = option(False, "run nothing: print and draw what is known")
    processes: int = option(0, "processes side by side (0: as many as there are cores)", least=0, below=1_000)
    output: Path = option(Path("output/actuators"), "folder", check=partial(check_output_folder, file_names=FILES))

    def scoreboard(self) -> Scoreboard:
        """What is known so far of what is asked for; for the time when nothing runs."""
        board = Board(self.output, self.num_tasks)
        names = [*(f"PointActuators-{d}" for d in self.dimensions), *self.aib]
        return Scoreboard(board, Records(board.lines), names, self.rows, self.steps, self.seeds)


def show(table: Table) -> None:
    """Print a table, if it has a row."""
    if table.rows:
        print(f"\n{table.title}\n\n{format_markdown(table.header, table.rows)}", flush=True)


def draw(options: Options, scoreboard: Scoreboard) -> None:
    """Return against the dimension, and against the steps of training at one dimension.

    Without the policy as it is, which is so far below that all others would be a line.
    """
    by_dimension: dict[str, dict[str, dict[float, Estimate]]] = {}
    by_steps: dict[str, dict[str, dict[float, Estimate]]] = {}
    for column in ("interpolation", "extrapolation", "switch"):
        for label, row, steps in scoreboard.labels():
            for d in sorted(options.dimensions):
                found = scoreboard.returns(f"PointActuators-{d}", row, steps, column)
                if not found or row == "as_is":
                    continue
                if steps in (0, COMPARED_STEPS):
                    by_dimension.setdefault(column, {}).setdefault(label, {})[d] = estimate(found, 0)
                if d == CURVE_DIMENSION:
                    by_steps.setdefault(column, {}).setdefault(row, {})[steps] = estimate(found, 0)
    for lines, file_name, of_what in (
        (by_dimension, "return_by_dimension.png", "dimensions in which actions are hidden"),
        (by_steps, "return_by_steps.png", f"steps of training on the tasks, d = {CURVE_DIMENSION}"),
    ):
        if lines:
            draw_lines(lines, of_what, options.output / file_name)
            print(f"\nthe picture is {options.output / file_name}")


@stoppable(lambda: "the same command again goes on with the runs that are missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the tables and draw the pictures."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    with hold_output(options.output):
        with refusing():
            scoreboard = options.scoreboard()
        if not options.report:
            runs = list(all_runs(scoreboard.names, options.rows, options.steps, options.seeds))
            run_all(runs, scoreboard.board, scoreboard.records, LocalEngine(options.processes or None))
        for name in scoreboard.names:
            show(scoreboard.mean_returns(name))
            if name in AIB:
                show(scoreboard.scaled(name))
                show(scoreboard.by_distance(name))
        show(scoreboard.costs())
        draw(options, scoreboard)


if __name__ == "__main__":
    main()
