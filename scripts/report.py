"""Make the report of a benchmark out of its lines: report.md, report.html (one page, pictures inside), scores.npz.

    python scripts/report.py output/benchmark

Reads runs.jsonl of the folder, which benchmark.py and actuators.py write. Where that is of several numbers of tasks or
budgets, the report is of the one with most lines. Families of your own, module:name, are imported. scores.npz holds
mean returns by agent and column, an array of seeds by families each, as rliable takes them.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssm_metarl_gym.experiments.command_line import option, parse_options, refuse, refusing
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.scoreboard.summary import find_scoreboard, write_report
from ssm_metarl_gym.experiments.signals import stoppable


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: tuple[Path, ...] = option((Path("output/benchmark"),), "folder of a benchmark", is_positional=True)


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report and tell where it is."""
    options = parse_options(Options, arguments, description=__doc__)
    for folder in options.folder:
        if not (folder / "runs.jsonl").is_file():
            refuse(f"a folder must be one of benchmark.py, with its runs.jsonl; got {folder}.")
        with hold_output(folder), refusing():
            scoreboard = find_scoreboard(folder)
            written = write_report(scoreboard, f"python scripts/report.py {folder}")
        print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
