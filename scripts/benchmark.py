"""The scoreboard: every way of coping with hidden physics, on the same tasks.

    as_is                    PPO, trained in the nominal physics alone
    corrected_filter         the same, its actions corrected by a Kalman filter on a map of the actions (of a Box)
    corrected_gradients      the same, corrected by a meta-learned model that adapts by gradient steps
    corrected_rls            the same, corrected by recursive least squares on that model's last layer
    domain_randomisation     PPO on the training tasks, from the plain observation
    told                     PPO on the training tasks that is told what is hidden
    one_transition           PPO on the training tasks that also sees the last transition
    window_ssm               PPO that reads the last 16 of them with a state-space model
    ssm_ppo, recurrent_ppo   a recurrent state-space model, and sb3-contrib's LSTM
    ssm_ppo_switching        the former, trained where what is hidden changes now and then
    student                  a state-space model that reads the last 16 of them, and learned to act like `told`
    meta_policy              a meta-learned policy (ProMP), after a policy gradient step on ten episodes of the task
    frozen_predictions       PPO that sees what a model predicts that never adapts
    adapted_predictions      PPO that sees what the adapted model predicts; with _all, of a model that adapts all layers

Each evaluation is a line of runs.jsonl in the output folder, written when its run has ended, and the same command goes
on with what is missing: what is killed loses the runs that it was at. At the end it prints where report.html is
(report.py makes it again). --quick is for a first look. --agent my_module:make_agent adds an agent of your own:
make_agent(env, seed=...) takes the rows of the training tasks, a VecEnv, and gives what has the predict of
Stable-Baselines3 and may have its learn.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.checks import check_choice
from ssm_metarl_gym.experiments.checks import check_output_folder, explaining
from ssm_metarl_gym.experiments.command_line import option, parse_options, refuse, refusing
from ssm_metarl_gym.experiments.engines import ENGINES, make_engine
from ssm_metarl_gym.experiments.jobs import JobsFailedError
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.scoreboard.agents import AGENTS, is_own
from ssm_metarl_gym.experiments.scoreboard.board import Board, find_maker
from ssm_metarl_gym.experiments.scoreboard.figures import Scoreboard
from ssm_metarl_gym.experiments.scoreboard.physics import ROBOTS, check_physics
from ssm_metarl_gym.experiments.scoreboard.plan import all_runs, can_be, run_all
from ssm_metarl_gym.experiments.scoreboard.summary import find_scoreboard, write_report
from ssm_metarl_gym.experiments.signals import stoppable

FAMILIES = (
    *("CartPolePolarity", "PendulumPolarity", "PointActuators-2", "PointActuators-4"),
    *("DoubleIntegrator", "DoubleIntegratorFriction", "ComplexODE", "CartPole", "Pendulum"),
)
QUICK_FAMILIES, QUICK_STEPS = FAMILIES[:3], 100_000
QUICK_AGENTS = (
    *("as_is", "corrected_filter", "corrected_gradients", "domain_randomisation", "told", "one_transition", "ssm_ppo"),
)
FAMILIES_HELP = (
    f"of {', '.join(FAMILIES)} (none: these; quick: the first three), {', '.join(ROBOTS)} (which need MuJoCo), "
    "PointActuators-1 to -16, or module:physics of your own"
)
DEAR_SEEDS, DEAR_STEPS = 3, 100_000  # of a full run, the seeds and the most steps of agents that take long to learn
ATTEMPTS = 2  # of a run, before it is named as failed


def check_agent(flag: str, row: str) -> None:
    """An agent is one of the table's."""
    if is_own(row):
        raise ValueError(f"{flag} must be agents of the table; got {row!r}. Ask for one of your own by --agent.")
    check_choice(flag, row, list(AGENTS))


@dataclass(frozen=True)
class Options:
    """The command line."""

    quick: bool = option(False, "few agents, families and tasks, two seeds, and less training: some minutes")
    families: tuple[str, ...] = option((), FAMILIES_HELP, may_be_empty=True)
    agents: tuple[str, ...] = option(
        (),
        f"agents, of {', '.join(AGENTS)} (none: all, but those that take long to learn only in families of few steps; "
        "quick: seven)",
        check=lambda rows, flag: [check_agent(flag, row) for row in rows],
        may_be_empty=True,
    )
    agent: tuple[str, ...] = option((), "agents of your own, module:function each", may_be_empty=True)
    steps: tuple[int, ...] = option(
        (),
        "steps of training on the tasks (none: those of each family; quick: 100000)",
        least=1,
        below=10**9,
        may_be_empty=True,
    )
    seeds: int | None = option(
        None, f"number of seeds (default: 10, of what takes long {DEAR_SEEDS}, quick: 2)", least=1, below=1_000
    )
    num_tasks: int | None = option(None, "tasks of each evaluation (default: 300, quick: 40)", least=20, below=100_000)
    percent: int | None = option(
        None, "other steps and updates, in per cent of the full ones (default: 100, quick: 40)", least=1, below=1_000
    )
    engine: str = option("local", "where runs go", choices=ENGINES)
    engine_options: dict[str, Any] = option({}, "of slurm submitit's parameters, of ray the address, in JSON")
    processes: int = option(0, "runs side by side (0: as many as the engine has room for)", least=0, below=10_000)
    output: Path = option(
        Path("output/benchmark"), "folder", check=partial(check_output_folder, file_names=["runs.jsonl"])
    )

    def scoreboard(self) -> Scoreboard:
        """What is known so far of what is asked for; for the time when nothing runs."""
        quick = self.quick
        board = Board(
            self.output.resolve(),
            self.tasks,
            self.percent or (40 if quick else 100),
        )
        return Scoreboard(
            board,
            Records(board.lines),
            self.families or (QUICK_FAMILIES if quick else FAMILIES),
            [*(self.agents or (QUICK_AGENTS if quick else tuple(AGENTS))), *self.agent],
            self.steps or ((QUICK_STEPS,) if quick else ()),
            self.seeds or (2 if quick else 10),
        )

    @property
    def tasks(self) -> int:
        """Tasks of each evaluation."""
        return self.num_tasks or (40 if self.quick else 300)

    @property
    def dear_seeds(self) -> int | None:
        """The seeds of agents that take long to learn, if they have fewer."""
        return None if self.seeds or self.quick else DEAR_SEEDS

    @property
    def dear_steps(self) -> int | None:
        """The most steps of agents that take long to learn, unless they are asked for."""
        return None if self.agents or self.steps else DEAR_STEPS


def whole_of(scoreboard: Scoreboard) -> Scoreboard:
    """The scoreboard of all that its folder holds, of earlier commands too; itself where that cannot be read."""
    board = scoreboard.board
    try:
        return find_scoreboard(board.folder, (board.num_tasks, board.percent))
    except ValueError as error:
        print(f"the report is of this command alone: {error}", file=sys.stderr)
        return scoreboard


@stoppable(lambda: "the same command again goes on with the runs that are missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the report."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    failed: JobsFailedError | None = None
    with refusing():
        for name in options.families:
            check_physics(name, options.tasks)
        for maker in options.agent:
            find_maker(maker)
        with explaining(f"--engine {options.engine} cannot be used"):
            engine = make_engine(options.engine, options.output, options.processes or None, options.engine_options)
    with hold_output(options.output):
        with refusing():
            scoreboard = options.scoreboard()
        runs = list(
            all_runs(
                scoreboard.names,
                scoreboard.rows,
                scoreboard.steps,
                scoreboard.num_seeds,
                options.dear_seeds,
                options.dear_steps,
            )
        )
        named = [*options.agents, *options.agent]
        for name in scoreboard.names:
            if left_out := [row for row in named if not can_be(row, name)]:
                print(f"not in {name}, which they cannot be in: {', '.join(left_out)}", file=sys.stderr)
        if not runs:
            refuse("--agents and --families must leave a run to do; none of these agents can be in these families.")
        try:
            run_all(runs, scoreboard.board, scoreboard.records, engine, ATTEMPTS)
        except JobsFailedError as error:
            failed = error
        tables = [table for table in map(scoreboard.mean_returns, scoreboard.names) if table.rows]
        for table in tables:
            print(f"\n{table.title}\n\n{format_markdown(table.header, table.rows)}")
        if tables:
            command = f"python scripts/report.py {options.output}"
            print(f"\nthe report is {write_report(whole_of(scoreboard), command)[0]}")
    if failed is not None:
        sys.exit(f"{failed}\nthe same command again tries them anew")


if __name__ == "__main__":
    main()
