"""How many times as fast one step of an exported policy is in onnxruntime as in PyTorch, for one row on one CPU thread.

    predict        what users call: Stable-Baselines3's predict, from and to NumPy
    torch          the policy alone, on tensors that are there already
    stepper        the same within SSMPolicy.memory_snapshot(), as rollouts take steps
    onnxruntime    the file that export_onnx wrote, from and to NumPy

The policies, of random weights, are an SSMPPO and a PPO that reads a window of 16 observations by an
SSMFeaturesExtractor. The sides run in turns, a short chunk of calls each; shown are the median over all pairs of
chunks, and 10 and 90 % quantiles. The line above the table says how large the files are.

The second table is of bundles, which numpy alone runs: the CPU milliseconds of ``act``, which learns, asks the policy
and corrects every action: the fastest step, the median and the 99 % quantile over a random stream of observations. Set
OMP_NUM_THREADS=1. What else runs on a core slows a step down through its caches: of that the fastest one shows least.

    CartPole       two layers of 64 and 32, the last one adapts by three gradient steps on 16 transitions; choices
    Pendulum       the same, and an action that least squares find; the twin of the effect gate adapts, too
    HalfCheetah    a filter on an action map of six motors, two layers of 256, 17 observations
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import nn

from ssm_metarl_gym.agents import (
    SSMPPO,
    AdaptationConfig,
    Adapter,
    DynamicsModel,
    KalmanAdapter,
    SSMFeaturesExtractor,
    export_onnx,
)
from ssm_metarl_gym.bundle import load_bundle
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, show_comparisons
from ssm_metarl_gym.experiments.report import format_markdown
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.wrappers import ActionCorrection, HistoryWindow, OnlineAdaptation

ENV_ID = "ssm_metarl/PendulumPolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.1, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.99, entropy_weight=0.0, max_steps_per_call=3
)
# The lengths of observations, and the actions.
BUNDLED: dict[str, tuple[int, spaces.Space]] = {
    "CartPole": (4, spaces.Discrete(2)),
    "Pendulum": (3, spaces.Box(-2.0, 2.0, (1,))),
    "HalfCheetah": (17, spaces.Box(-1.0, 1.0, (6,))),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    width: int = option(64, "width of the state-space models, even", least=2, below=2**12)
    window: int = option(16, "observations of a window", least=1, below=10**3)
    pairs: int = option(15, "pairs of chunks of each comparison", least=1)
    steps: int = option(2_000, "steps of each bundle", least=10, below=10**6)
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


class Spaces(gym.Env):
    """Nothing but an observation and an action space."""

    def __init__(self, observation_dim: int, action_space: spaces.Space) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_dim,))
        self.action_space = action_space


def write_bundle(path: Path, name: str) -> None:
    """A bundle of random weights, which corrects every action and leaves no transition out."""
    torch.manual_seed(0)
    env = Spaces(*BUNDLED[name])
    if name == "HalfCheetah":
        model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map")
        model.residual_variance.fill_(0.1)
        adapter, gates = KalmanAdapter(model), {"map_gate": 0.0}
    else:
        width = DynamicsModel.input_dim(env.observation_space, env.action_space)
        core = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
        model = DynamicsModel(env.observation_space, env.action_space, core)
        adapter, gates = Adapter(model, BOUNDS), {"gate": 0.0, "effect_gate": 1e6}
    online = OnlineAdaptation(env, adapter, outlier_error=math.inf, change_ratio=math.inf)
    policy = PPO("MlpPolicy", online, seed=0, device="cpu", policy_kwargs={"net_arch": [64, 64]})
    ActionCorrection(online, model, **gates).save_bundle(path, policy)


def measure_bundle(folder: Path, name: str, num_steps: int) -> dict[str, float | str]:
    """The CPU milliseconds of the steps of a bundle."""
    path = folder / f"{name}.safetensors"
    write_bundle(path, name)
    bundle = load_bundle(path)
    walk = np.random.default_rng(0).normal(scale=0.03, size=(num_steps, bundle.observation_dim)).cumsum(axis=0)
    bundle.reset(seed=0)
    taken = []
    for observation in walk.astype(np.float32):
        start = time.thread_time_ns()
        bundle.act(observation)
        taken.append((time.thread_time_ns() - start) / 1e6)
    low, median, high = np.quantile(taken[num_steps // 2 :], [0.0, 0.5, 0.99]).tolist()  # of full windows
    return {"bundle": name, "fastest": low, "median": median, "99 %": high, "KiB": path.stat().st_size / 1024}


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
        bundles = [measure_bundle(folder, name, options.steps) for name in BUNDLED]
    print("KiB:", ", ".join(f"{name} {size / 1024:.0f}" for name, size in sizes.items()), end="\n\n")
    rows = show_comparisons(comparisons, ["policy"])
    columns = {"fastest": ".2f", "median": ".2f", "99 %": ".2f", "KiB": ".0f"}
    cells = [[row["bundle"], *(format(row[name], digits) for name, digits in columns.items())] for row in bundles]
    print("\n" + format_markdown(["bundle, ms a step", *columns], cells))
    if options.output is not None:
        write_json(options.output, {"bytes": sizes, "rows": rows, "bundles": bundles})


if __name__ == "__main__":
    main()
