"""The scoreboard in some minutes: benchmark.py with --quick, and whatever else it is given."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    benchmark = Path(__file__).with_name("benchmark.py")
    sys.argv = [str(benchmark), "--quick", *sys.argv[1:]]
    runpy.run_path(str(benchmark), run_name="__main__")
