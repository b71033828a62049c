"""A page in the browser on which a motor is flipped while a policy runs, as it is and with its actions corrected.

Serves the page to this machine alone, and opens it, until Ctrl-C. Everything on it runs in the browser. With --train,
policies and models that the page shows are trained anew, in two minutes, and nothing is served.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.playground.server import SITE, make_server


@dataclass(frozen=True)
class Options:
    """The command line."""

    port: int = option(8000, "where to serve on localhost (0: any free port)", least=0, below=65536)
    no_open: bool = option(False, "open no browser")
    train: bool = option(False, "train what the page shows anew, and serve nothing")
    output: Path = option(SITE, "the folder that --train writes to")

    def __post_init__(self) -> None:
        if self.output != SITE and not self.train:
            raise ValueError(f"--output must come with --train, which alone writes; got {self.output}.")


def train(options: Options) -> None:
    """Train what the page shows."""
    # These take seconds to import, for which nobody who looks at the page should wait.
    import torch

    from ssm_metarl_gym.experiments.checks import check_output_folder
    from ssm_metarl_gym.playground.training import FILES, train_bundles

    with refusing():
        check_output_folder(options.output, file_names=FILES)
    torch.set_num_threads(1)
    train_bundles(options.output, say=partial(print, flush=True))


def serve(options: Options) -> None:
    """Serve the page until the process is stopped."""
    with refusing():
        server = make_server(options.port)
    address = f"http://localhost:{server.server_port}/"
    print(f"The playground is at {address} (Ctrl-C ends it).", flush=True)
    if not options.no_open:
        webbrowser.open(address)
    with server:
        server.serve_forever()


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page, or train what it shows."""
    options = parse_options(Options, arguments, description=__doc__)
    (train if options.train else serve)(options)


if __name__ == "__main__":
    main()
