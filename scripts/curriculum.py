"""Does it help to begin with easy tasks? PPO whose training tasks grow more different, or are all there at once.

On CartPolePolarity, PPO that sees the last transition is trained on tasks whose ranges widen from CartPole's own
numbers to those of the family during the first half of the steps, the hidden sign being there from the start
(`widening`); on the nominal sign alone at first and on both in the second half (`sign last`); and on the whole family
from the start (`all at once`). Prints the mean returns in held-out tasks as a table in Markdown.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym import CartPoleTask, Choice, TaskDistribution, Uniform
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.curriculum import Curriculum
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.report import estimate, print_markdown
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SPLITS: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": 100}},
}
RANGES = {"force_mag": (5.0, 15.0), "length": (0.25, 0.75), "masspole": (0.05, 0.5)}
NUM_ENVS, NUM_STAGES = 64, 10
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The command line."""

    seed: int = option(0, "the first seed", least=0, below=1_000)
    seeds: int = option(5, "number of seeds", least=1, below=1_000)
    num_tasks: int = option(100, "tasks per split", least=2, below=100_000)
    steps: int = option(60_000, "steps of each PPO", least=2)


def tasks(share: float, *signs: int) -> TaskDistribution:
    """A share of the ranges, around CartPole's own numbers."""
    default = CartPoleTask().to_dict()
    parts = {
        name: Uniform(tuple(default[name] + share * (end - default[name]) for end in ends))
        for name, ends in RANGES.items()
    }
    return TaskDistribution(CartPoleTask, parts | {"polarity": Choice(*signs)})


FAMILIES: dict[str, Callable[[float], TaskDistribution]] = {
    "all at once": lambda share: tasks(1.0, -1, 1),
    "widening": lambda share: tasks(share, -1, 1),
    "sign last": lambda share: tasks(share, 1) if share < 1.0 else tasks(1.0, -1, 1),
}


def train(name: str, seed: int, options: Options) -> tuple[PPO, VecNormalize]:
    """PPO on a curriculum, and its environment."""
    family_at = FAMILIES[name]
    rows = make_sb3_env(ENV_ID, NUM_ENVS, observation="transition", family=family_at(1.0 / NUM_STAGES))
    env = VecNormalize(rows, clip_obs=5.0, gamma=0.98)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=512,
        n_epochs=8,
        learning_rate=LinearSchedule(1.5e-3, 1.5e-4, 1.0),
        gamma=0.98,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    return model.learn(options.steps, callback=Curriculum(family_at, options.steps // 2, NUM_STAGES)), env


def evaluate_agent(name: str, seed: int, options: Options) -> dict[str, list[float]]:
    """The returns of an agent in each task of a split; every agent meets the same tasks."""
    agent, trained_on = train(name, seed, options)
    returns = {}
    for split, env_kwargs in SPLITS.items():
        env = VecNormalize(
            make_sb3_env(ENV_ID, options.num_tasks, observation="transition", **env_kwargs), clip_obs=5.0
        )
        env.obs_rms, env.training, env.norm_reward = trained_on.obs_rms, False, False
        returns[split] = returns_of(evaluate(agent, env, seed=EVALUATION_SEED + 1000 * seed))
    return returns


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate under every seed, and print the table."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    seeds = range(options.seed, options.seed + options.seeds)
    by_seed = [{name: evaluate_agent(name, seed, options) for name in FAMILIES} for seed in seeds]
    print(f"Mean return over {options.num_tasks} held-out tasks, of 200 at most, {options.seeds} seeds:\n")
    rows = []
    for name in FAMILIES:
        of_splits = [estimate([returns[name][split] for returns in by_seed], options.seed) for split in SPLITS]
        rows.append([name, *(f"{one:.1f}" for one in of_splits)])
    print_markdown([f"{options.steps:,} steps", *SPLITS], rows)


if __name__ == "__main__":
    main()
