"""How many environment steps a second SSMPPO trains with, against PPO and sb3-contrib's RecurrentPPO, on one thread.

All of them learn CartPole-v1 with the same rollouts, minibatches and epochs, and networks of the same width:

    PPO                        heads alone
    SSMPPO                     a state-space model of two layers before them
    RecurrentPPO               an LSTM for the actor and one for the critic, its default
    RecurrentPPO, shared LSTM  one LSTM for both
    RecurrentPPO, one pass     its default, with a policy that reads a sequence at once, as scripts/memory.py does

The sides learn in turns, one rollout and its epochs each, timed in CPU seconds; shown are the median over all pairs of
neighbouring turns, and 10 and 90 % quantiles.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.experiments.checks import check_output_file
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.measuring import Comparison, compare_in_turns, show_comparisons
from ssm_metarl_gym.experiments.recurrent_ppo import OnePassRecurrentPPO
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json

# What we aim for, where we aim for something: how many times as fast SSMPPO is as each of the others.
TARGETS = {"RecurrentPPO": 5.0, "RecurrentPPO, shared LSTM": 3.0, "RecurrentPPO, one pass": None, "PPO": 0.35}


@dataclass(frozen=True)
class Options:
    """The command line."""

    num_envs: int = option(8, "environments", least=1, below=10**4)
    steps: int = option(128, "steps of a rollout in each environment", least=2, below=10**6)
    minibatches: int = option(4, "minibatches of a rollout, of whole environments each", least=1)
    epochs: int = option(10, "passes over each rollout", least=1)
    width: int = option(64, "width of all networks, even", least=2, below=2**14)
    pairs: int = option(9, "pairs of turns of each comparison", least=1)
    output: Path | None = option(None, "JSON file for the results", check=check_output_file)

    def __post_init__(self) -> None:
        """Check what options have to do with each other."""
        if self.num_envs % self.minibatches:
            raise ValueError(
                f"--minibatches must divide --num-envs, {self.num_envs}, because a sequence stays whole; got "
                f"{self.minibatches}."
            )
        if self.width % 2:
            raise ValueError(f"--width must be even; got {self.width}.")


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
        "RecurrentPPO, one pass": make(OnePassRecurrentPPO, "MlpLstmPolicy", lstm),
        "PPO": make(PPO, "MlpPolicy", heads),
    }


def compare(options: Options) -> Iterator[Comparison]:
    """SSMPPO against each of the others."""
    agents = make_agents(options)

    def turn(name: str) -> Callable[[], object]:
        return lambda: agents[name].learn(options.num_envs * options.steps, reset_num_timesteps=False)

    for against, target in TARGETS.items():
        sides = {against: turn(against), "SSMPPO": turn("SSMPPO")}
        yield from compare_in_turns(sides, options.pairs, targets={} if target is None else {"SSMPPO": target})


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, line by line as results come in."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    shape = f"{options.num_envs} x {options.steps} steps in {options.minibatches} minibatches"
    print(f"torch {torch.__version__}; {shape}, {options.epochs} epochs, width {options.width}\n")
    rows = show_comparisons(compare(options))
    if options.output is not None:
        write_json(options.output, rows)


if __name__ == "__main__":
    main()
