"""How many environment steps a second SSMPPO trains with, against PPO and sb3-contrib's RecurrentPPO, on one thread.

All four learn CartPole-v1 with the same rollouts, minibatches and epochs, and networks of the same width:

    PPO                        heads alone
    SSMPPO                     a state-space model of two layers before them
    RecurrentPPO               an LSTM for the actor and one for the critic, its default
    RecurrentPPO, shared LSTM  one LSTM for both

The sides learn in turns, one rollout and its epochs each, timed in CPU seconds; shown are the median over all pairs of
neighbouring turns, and 10 and 90 % quantiles.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.experiments.measuring import compare_in_turns
from ssm_metarl_gym.files import replacing

# What we aim for: how many times as fast SSMPPO is as each of the others.
TARGETS = {"RecurrentPPO": 5.0, "RecurrentPPO, shared LSTM": 3.0, "PPO": 0.35}


@dataclass(frozen=True)
class Options:
    """The command line."""

    num_envs: int = field(default=8, metadata={"help": "environments"})
    steps: int = field(default=128, metadata={"help": "steps of a rollout in each environment"})
    minibatches: int = field(default=4, metadata={"help": "minibatches of a rollout, of whole environments each"})
    epochs: int = field(default=10, metadata={"help": "passes over each rollout"})
    width: int = field(default=64, metadata={"help": "width of all networks, even"})
    pairs: int = field(default=9, metadata={"help": "pairs of turns of each comparison"})
    output: Path | None = field(default=None, metadata={"help": "JSON file for the results"})


def make_agents(options: Options) -> dict[str, OnPolicyAlgorithm]:
    """The untrained agents by name."""
    width = options.width
    settings: dict[str, Any] = {
        "n_steps": options.steps,
        "batch_size": options.num_envs // options.minibatches * options.steps,
        "n_epochs": options.epochs,
        "seed": 0,
        "device": "cpu",
    }
    heads = {"net_arch": {"pi": [width, width], "vf": [width, width]}}
    lstm = heads | {"lstm_hidden_size": width}
    shared = lstm | {"shared_lstm": True, "enable_critic_lstm": False}
    ssm = heads | {"ssm_kwargs": {"hidden_dim": width, "output_dim": width}}

    def make(algorithm: Callable[..., OnPolicyAlgorithm], policy: str, policy_kwargs: Any) -> OnPolicyAlgorithm:
        env = make_vec_env("CartPole-v1", options.num_envs, seed=0)
        return algorithm(policy, env, policy_kwargs=policy_kwargs, **settings)

    return {
        "SSMPPO": make(SSMPPO, "SSMPolicy", ssm),
        "RecurrentPPO": make(RecurrentPPO, "MlpLstmPolicy", lstm),
        "RecurrentPPO, shared LSTM": make(RecurrentPPO, "MlpLstmPolicy", shared),
        "PPO": make(PPO, "MlpPolicy", heads),
    }


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, option in Options.__dataclass_fields__.items():
        kind: dict[str, Any] = {"type": Path, "metavar": "FILE"} if name == "output" else {"type": int, "metavar": "N"}
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=option.default, help=option.metadata["help"], **kind)
    options = Options(**vars(parser.parse_args(arguments)))
    for name, least in (("num_envs", 1), ("steps", 2), ("minibatches", 1), ("epochs", 1), ("width", 2), ("pairs", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be >= {least}; got {getattr(options, name)}.")
    if options.num_envs % options.minibatches:
        parser.error(
            f"--minibatches must divide --num-envs, {options.num_envs}, because a sequence stays whole; got "
            f"{options.minibatches}."
        )
    if options.width % 2:
        parser.error(f"--width must be even; got {options.width}.")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options = parse_options(arguments)
    torch.set_num_threads(1)
    agents = make_agents(options)

    def turn(name: str) -> Callable[[], object]:
        return lambda: agents[name].learn(options.num_envs * options.steps, reset_num_timesteps=False)

    shape = f"{options.num_envs} x {options.steps} steps in {options.minibatches} minibatches"
    print(f"torch {torch.__version__}; {shape}, {options.epochs} epochs, width {options.width}\n")
    print("| SSMPPO against | ratio | 10 to 90 % | target |\n| --- | --- | --- | --- |", flush=True)
    rows = []
    for against, target in TARGETS.items():
        ratio = compare_in_turns({against: turn(against), "SSMPPO": turn("SSMPPO")}, options.pairs)["SSMPPO"]
        rows.append({"against": against, **asdict(ratio), "target": target})
        print(f"| {against} | {ratio.median:.2f} | {ratio.low:.2f} to {ratio.high:.2f} | {target:.2g} |", flush=True)
    if options.output is not None:
        with replacing(options.output) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
