"""The scoreboard in some minutes: benchmark.py with --quick, and whatever else it is given."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Run benchmark.py."""
    benchmark = runpy.run_path(str(Path(__file__).with_name("benchmark.py")))
    benchmark["main"](["--quick", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
