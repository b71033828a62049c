"""Train an agent that copes with a hidden task by Stable-Baselines3's PPO: without memory, or with one of several.

    mlp         PPO("MlpPolicy") on the plain observation: no memory, the baseline
    transition  PPO("MlpPolicy") that also sees the last transition: the baseline to beat
    window-ssm  PPO("MlpPolicy") whose SSMFeaturesExtractor reads the last transitions
    ssm         SSMPPO("SSMPolicy"), a recurrent state-space model
    lstm        sb3-contrib's RecurrentPPO("MlpLstmPolicy")

The run lies in one folder: config.json, progress.csv (and TensorBoard's files), checkpoints, and at the end model.zip
and vecnormalize.pkl, which evaluate.py reads. The same command again goes on from the last checkpoint.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import contextlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import SSMFeaturesExtractor
from ssm_metarl_gym.experiments import runs
from ssm_metarl_gym.experiments.checks import check_device, check_env, check_output_folder, explaining
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.logs import load_pending, make_logger
from ssm_metarl_gym.experiments.saved_agents import find_algorithm
from ssm_metarl_gym.experiments.sb3_training import (
    MODEL_FILES,
    SaveCheckpoints,
    check_hyperparameters,
    load_checkpoint,
    save_agent,
    staying_finite,
)
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.wrappers import make_sb3_env

# The algorithm, its policy and what the policy sees.
POLICIES = {
    "mlp": ("PPO", "MlpPolicy", "plain"),
    "transition": ("PPO", "MlpPolicy", "transition"),
    "window-ssm": ("PPO", "MlpPolicy", "window"),
    "ssm": ("SSMPPO", "SSMPolicy", "transition"),
    "lstm": ("RecurrentPPO", "MlpLstmPolicy", "transition"),
}
PACKAGES = ("ssm-metarl-gym", "gymnasium", "numpy", "sb3-contrib", "stable-baselines3", "torch")
ROLLOUT_LENGTH = 128
FILES = ("config.json", "progress.csv", "checksums.json", *MODEL_FILES)
# What another run of the same command may change: where it runs and how often it saves.
FREE_OPTIONS = ("checkpoint_interval", "device", "output")
# What every config.json of this script has.
CONFIG_KEY = "policy"


@dataclass(frozen=True)
class Recipe:
    """What environments need different values of."""

    learning_rate: float = 1.5e-3  # falls linearly to a tenth
    gamma: float = 0.98
    ent_coef: float = 0.01


# Environments that are not listed take the recipe of CartPole's families.
PENDULUM = Recipe(learning_rate=1e-3, gamma=0.95, ent_coef=0.0)
RECIPES = {
    "ssm_metarl/Pendulum-v0": PENDULUM,
    "ssm_metarl/PendulumPolarity-v0": PENDULUM,
    "ssm_metarl/PendulumSwitch-v0": PENDULUM,
    "Pendulum-v1": PENDULUM,
    "phys2d/Pendulum-v0": PENDULUM,
    "InvertedPendulum-v4": PENDULUM,
    "InvertedPendulum-v5": PENDULUM,
    "InvertedDoublePendulum-v4": PENDULUM,
    "InvertedDoublePendulum-v5": PENDULUM,
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = option(
        "ssm_metarl/CartPolePolarity-v0", "id of the environment; module:id imports the module that registers it"
    )
    env_kwargs: dict[str, Any] = option({}, "its arguments, in JSON")
    policy: str = option("ssm", "what learns", choices=tuple(POLICIES))
    seed: int = option(0, "seeds everything: one uninterrupted run gives one result", least=0, below=2**31)
    timesteps: int = option(400_000, "steps of the environments, rounded up to whole rollouts", least=1)
    output: Path = option(
        Path("output/train_ppo"), "folder of the run", check=partial(check_output_folder, file_names=FILES)
    )
    num_envs: int = option(64, "environments that are stepped side by side", least=1, below=100_000)
    checkpoint_interval: int = option(50_000, "timesteps between checkpoints at most", least=1)
    window: int = option(16, "steps that window-ssm reads", least=1, below=100_000)
    hyperparameters: dict[str, Any] = option({}, "arguments of the algorithm that replace those of the recipe, in JSON")
    defaults: bool = option(False, "the algorithm's own defaults instead of the recipe")
    device: str = option("cpu", "PyTorch's name of the device")

    def __post_init__(self) -> None:
        split = self.env_kwargs.get("split", "train")
        if split != "train":
            raise ValueError(
                f"--env-kwargs must leave the split to be 'train'; got {split!r}. The other splits are for evaluate.py."
            )
        find_algorithm(POLICIES[self.policy][0])  # which may not be installed


def algorithm_arguments(options: Options) -> dict[str, Any]:
    """The keyword arguments of the algorithm, as JSON can hold them; a learning rate of two numbers falls linearly."""
    arguments: dict[str, Any] = {}
    if not options.defaults:
        recipe = RECIPES.get(options.env.rpartition(":")[2], Recipe())
        num_steps = options.hyperparameters.get("n_steps", ROLLOUT_LENGTH)
        arguments = {
            "learning_rate": [recipe.learning_rate, 0.1 * recipe.learning_rate],
            "n_steps": num_steps,
            # About four minibatches of whole environments, which is what a recurrent policy learns from.
            "batch_size": num_steps * max(1, options.num_envs // 4),
            "n_epochs": 4,
            "gamma": recipe.gamma,
            "gae_lambda": 0.95,
            "clip_range": 0.2,
            "ent_coef": recipe.ent_coef,
            "vf_coef": 0.5,
            "max_grad_norm": 0.5,
        }
    arguments |= options.hyperparameters
    if options.policy == "window-ssm":
        # The state-space model ends in gated layers of its own.
        arguments["policy_kwargs"] = {"net_arch": []} | arguments.get("policy_kwargs", {})
    return arguments


def make_algorithm(options: Options, env: VecNormalize) -> OnPolicyAlgorithm:
    """The untrained agent."""
    algorithm, policy, _ = POLICIES[options.policy]
    arguments = algorithm_arguments(options)
    if isinstance(arguments.get("learning_rate"), list):
        start, end = arguments["learning_rate"]
        arguments["learning_rate"] = LinearSchedule(start, end, 1.0)
    if options.policy == "window-ssm":
        arguments["policy_kwargs"] |= {"features_extractor_class": SSMFeaturesExtractor}
    seed = stream_seed(options.seed, 0)
    return find_algorithm(algorithm)(policy, env, seed=seed, device=options.device, **arguments)


def make_env(options: Options) -> VecNormalize:
    """The environments to train on, with observations and rewards normalised."""
    env = make_sb3_env(
        options.env,
        options.num_envs,
        observation=POLICIES[options.policy][2],
        window=options.window,
        **options.env_kwargs,
    )
    # 0.99 is the default of all three algorithms. Five standard deviations, not SB3's ten, bound what physics beyond
    # training bring; five seeds of the recurrent policy showed neither gain nor loss from it.
    return VecNormalize(env, clip_obs=5.0, gamma=algorithm_arguments(options).get("gamma", 0.99))


def stream_seed(seed: int, num_timesteps: int) -> int:
    """The seed of what is random from a timestep on.

    SB3 seeds environment i with seed + i, so neighbouring seeds would share most of their tasks: these lie far apart.
    And who goes on from a checkpoint meets other tasks than those before it.
    """
    return int(np.random.SeedSequence([seed, num_timesteps]).generate_state(1)[0])


def make_config(options: Options) -> dict[str, Any]:
    """All that there is to know about a run before it begins: what config.json holds."""
    algorithm, _, observation = POLICIES[options.policy]
    return {
        "algorithm": algorithm,
        "observation": observation,
        **fixed_options(options),
        "algorithm_arguments": algorithm_arguments(options),
        "versions": runs.find_versions(PACKAGES),
    }


def fixed_options(options: Options) -> dict[str, Any]:
    """The options that stay the same in a run."""
    return {name: value for name, value in asdict(options).items() if name not in FREE_OPTIONS}


def begin_training(options: Options) -> tuple[OnPolicyAlgorithm, runs.Stopwatch]:
    """The untrained agent, and a watch."""
    runs.write_config(options.output, make_config(options))
    return make_algorithm(options, make_env(options)), runs.Stopwatch()


def resume_training(options: Options, checkpoint: Path) -> tuple[OnPolicyAlgorithm, runs.Stopwatch]:
    """The agent as a checkpoint holds it, and a watch that goes on."""
    algorithm = find_algorithm(POLICIES[options.policy][0])
    with explaining(f"{checkpoint} must be whole; to go on from the checkpoint before it, delete that folder"):
        model, stopwatch = load_checkpoint(algorithm, checkpoint, make_env(options), options.device)
    model.set_random_seed(stream_seed(options.seed, model.num_timesteps))
    print(f"goes on from {model.num_timesteps} of {options.timesteps} timesteps", flush=True)
    return model, stopwatch


def train(model: OnPolicyAlgorithm, stopwatch: runs.Stopwatch, options: Options) -> None:
    """Train to the end, with checkpoints on the way."""
    show_bar = sys.stdout.isatty() and importlib.util.find_spec("rich") is not None
    say = partial(print, flush=True) if not show_bar else lambda _: None
    callback = SaveCheckpoints(options.output / "checkpoints", options.checkpoint_interval, stopwatch, say)
    try:
        # SB3 counts on from the timesteps of the checkpoint, and so does the schedule of the learning rate.
        with staying_finite(model):
            model.learn(
                options.timesteps - model.num_timesteps,
                callback=callback,
                reset_num_timesteps=model.num_timesteps == 0,
                progress_bar=show_bar,
            )
    finally:
        model.logger.close()


def check_agent(options: Options) -> None:
    """Make the agent once, so that whatever is wrong with it is known before anything is written."""
    check_device(options.device)
    check_env(options.env, options.env_kwargs)
    hyperparameters = dict(options.hyperparameters)
    with explaining(
        f"--policy {options.policy} with --hyperparameters {json.dumps(hyperparameters)} cannot be made for "
        f"{options.env}"
    ):
        if isinstance(rates := hyperparameters.get("learning_rate"), list):
            LinearSchedule(*rates, 1.0)(0.5)
            del hyperparameters["learning_rate"]
        check_hyperparameters(find_algorithm(POLICIES[options.policy][0]), hyperparameters)
        env = make_env(options)
        make_algorithm(options, env)
        env.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__, check=check_agent)
    options.output.mkdir(parents=True, exist_ok=True)
    with stoppable(partial(runs.how_to_go_on, options.output, "timestep")), contextlib.ExitStack() as stack:
        with refusing():
            # One run at a time: what the folder holds stays as it is from here on.
            stack.enter_context(runs.lock_run(options.output))
            runs.check_output(options.output, fixed_options(options), CONFIG_KEY)
            present = runs.read_config(options.output, CONFIG_KEY)
            if present is not None and present.get("finished"):
                print(f"the run in {options.output} is finished: {options.timesteps} timesteps")
                return
            # Begin, or go on from the last checkpoint, with the log as it was there.
            checkpoint = runs.find_whole_checkpoint(options.output / "checkpoints")
            model, stopwatch = begin_training(options) if checkpoint is None else resume_training(options, checkpoint)
            model.set_logger(make_logger(options.output, "time/total_timesteps", model.num_timesteps))
            if checkpoint is not None:
                load_pending(model.logger, checkpoint)
        train(model, stopwatch, options)
        seconds = stopwatch.read()
        save_agent(model, options.output)
        # Last, because it is what says that the run is finished. The rest is what the run began with, whatever the
        # recipe and the versions of the session that ends it.
        config = runs.read_config(options.output, CONFIG_KEY) or make_config(options)
        runs.write_config(options.output, config | {"finished": True, **seconds})
    print("{wall_seconds:.1f} s ({cpu_seconds:.1f} s of the processor)".format(**seconds))
    print(f"the agent is in {options.output}; evaluate it: python scripts/evaluate.py {options.output}")


if __name__ == "__main__":
    main()
