"""How many times as fast one step of an exported policy is in onnxruntime as in PyTorch, for one row on one CPU thread.

    predict        what users call: Stable-Baselines3's predict, from and to NumPy
    torch          the policy alone, on tensors that are there already
    stepper        the same within SSMPolicy.memory_snapshot(), as rollouts take steps
    onnxruntime    the file that export_onnx wrote, from and to NumPy

The policies, of random weights, are an SSMPPO and a PPO that reads a window of 16 observations by an
SSMFeaturesExtractor. The sides run in turns, a short chunk of calls each; shown are the median over all pairs of
chunks, and 10 and 90 % quantiles. The line above the table says how large the files are.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import torch
from stable_baselines3 import PPO

from ssm_metarl_gym.agents import SSMPPO, SSMFeaturesExtractor, export_onnx
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, show_comparisons
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.wrappers import HistoryWindow

ENV_ID = "ssm_metarl/PendulumPolarity-v0"


@dataclass(frozen=True)
class Options:
    """The command line."""

    width: int = option(64, "width of the state-space models, even", least=2, below=2**12)
    window: int = option(16, "observations of a window", least=1, below=10**3)
    pairs: int = option(15, "pairs of chunks of each comparison", least=1)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check that a state has a real and an imaginary half."""
        if self.width % 2:
            raise ValueError(f"--width must be even; got {self.width}.")


def load(path: Path) -> onnxruntime.InferenceSession:
    """The exported file, on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def compare_recurrent(folder: Path, options: Options) -> list[Comparison]:
    """The policy that remembers."""
    kwargs = {"ssm_kwargs": {"hidden_dim": options.width, "output_dim": options.width}}
    model = SSMPPO("SSMPolicy", ENV_ID, seed=0, device="cpu", policy_kwargs=kwargs)
    model.export_onnx(folder / "SSMPPO.onnx")
    session, policy = load(folder / "SSMPPO.onnx"), model.policy
    observation, start = np.zeros((1, 3), dtype=np.float32), np.zeros(1, dtype=bool)
    tensors = torch.from_numpy(observation), policy.initial_state(1), torch.from_numpy(start)
    state = tensors[1].numpy()
    inputs = {"observation": observation, "state": state, "start": start}

    def torch_step() -> None:
        with torch.no_grad():
            policy.get_distribution(*tensors)[0].get_actions(deterministic=True)

    sides: dict[str, Callable[[], object]] = {
        "predict": lambda: model.predict(observation, state, start, deterministic=True),
        "torch": torch_step,
        "onnxruntime": lambda: session.run(None, inputs),
    }
    compared = compare_in_turns(sides, options.pairs, case={"policy": "SSMPPO"})
    with policy.memory_snapshot():
        stepper = {"stepper": torch_step, "onnxruntime": sides["onnxruntime"]}
        return compared + compare_in_turns(stepper, options.pairs, case={"policy": "SSMPPO"})


def compare_window(folder: Path, options: Options) -> list[Comparison]:
    """The policy that reads a window."""
    kwargs = {
        "features_extractor_class": SSMFeaturesExtractor,
        "features_extractor_kwargs": {"hidden_dim": options.width},
    }
    env = HistoryWindow(gym.make(ENV_ID), options.window)
    model = PPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=kwargs)
    export_onnx(model, folder / "window.onnx")
    session = load(folder / "window.onnx")
    window = np.zeros((1, options.window, 4), dtype=np.float32)
    sides: dict[str, Callable[[], object]] = {
        "predict": lambda: model.predict(window, deterministic=True),
        "onnxruntime": lambda: session.run(None, {"observation": window}),
    }
    return compare_in_turns(sides, options.pairs, case={"policy": "window"})


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Export, then compare."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; width {options.width}")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        comparisons = compare_recurrent(folder, options) + compare_window(folder, options)
        sizes = {path.stem: path.stat().st_size for path in sorted(folder.iterdir())}
    print("KiB:", ", ".join(f"{name} {size / 1024:.0f}" for name, size in sizes.items()), end="\n\n")
    rows = show_comparisons(comparisons, ["policy"])
    if options.output is not None:
        write_json(options.output, {"bytes": sizes, "rows": rows})


if __name__ == "__main__":
    main()
