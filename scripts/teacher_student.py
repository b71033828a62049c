"""A policy that is told the hidden task teaches one that sees a window of the past: rapid motor adaptation.

PPO is trained on the observation and the hidden parameters (the teacher), then distilled into a policy that sees the
last transitions through a state-space model (the student), by DAgger: no reward, and on the student's own episodes.
Beside them stands PPO that sees the last transition and takes as many steps as the teacher. All meet the same held-out
tasks. Prints a table in Markdown.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import SSMFeaturesExtractor, distill
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.report import estimate, print_markdown
from ssm_metarl_gym.experiments.runs import Stopwatch
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.wrappers import make_sb3_env

# Arguments of PPO that differ, as in the quickstart.
RECIPES: dict[str, dict[str, float]] = {
    "CartPolePolarity-v0": {"learning_rate": 1.5e-3, "gamma": 0.98, "ent_coef": 0.01},
    "PendulumPolarity-v0": {"learning_rate": 1e-3, "gamma": 0.95, "ent_coef": 0.0},
}
SPLITS: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": 100}},
}
# What each agent sees.
SHOWN: dict[str, dict[str, Any]] = {
    "teacher: told the parameters": {"context": "visible"},
    "student: the last 8 transitions": {"observation": "window", "window": 8},
    "PPO on the last transition": {"observation": "transition"},
}
TEACHER, STUDENT, TRANSITION = SHOWN
NUM_ENVS = 64
STEPS_PER_ROUND, UPDATES_PER_ROUND = 50, 100
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The command line."""

    env: str = option("CartPolePolarity-v0", "the environment", choices=list(RECIPES))
    seed: int = option(0, "the first seed", least=0, below=1_000)
    seeds: int = option(5, "number of seeds", least=1, below=1_000)
    num_tasks: int = option(100, "tasks per split", least=2, below=100_000)
    steps: int = option(100_000, "steps of each PPO", least=1)
    rounds: int = option(8, "rounds of distillation, of 3,200 steps and 100 updates each", least=1, below=10_000)


@dataclass(frozen=True)
class Trained:
    """An agent, its environment, and what it took.

    Attributes:
        agent: The agent.
        env: The environment, with the statistics that it is shown its observations by.
        num_steps: Steps on the family.
        cpu_seconds: CPU seconds of its training.
    """

    agent: PPO
    env: VecNormalize
    num_steps: int
    cpu_seconds: float


def make_env(agent: str, env: str, num_rows: int, **env_kwargs: Any) -> VecNormalize:
    """Rows of the environment, as an agent sees them."""
    rows = make_sb3_env(f"ssm_metarl/{env}", num_rows, **SHOWN[agent], **env_kwargs)
    return VecNormalize(rows, gamma=RECIPES[env]["gamma"])


def train(agent: str, seed: int, options: Options) -> Trained:
    """PPO with the recipe of the quickstart."""
    stopwatch, env = Stopwatch(), make_env(agent, options.env, NUM_ENVS)
    recipe = RECIPES[options.env]
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=512,
        n_epochs=8,
        learning_rate=LinearSchedule(recipe["learning_rate"], 0.1 * recipe["learning_rate"], 1.0),
        gamma=recipe["gamma"],
        ent_coef=recipe["ent_coef"],
        seed=seed,
        device="cpu",
    ).learn(options.steps)
    env.training = False
    return Trained(model, env, model.num_timesteps, stopwatch.read()["cpu_seconds"])


def teach(teacher: Trained, seed: int, options: Options) -> Trained:
    """A student of the teacher's."""
    stopwatch, env = Stopwatch(), make_env(STUDENT, options.env, NUM_ENVS)
    policy_kwargs = {
        "features_extractor_class": SSMFeaturesExtractor,
        "features_extractor_kwargs": {"features_dim": 32, "hidden_dim": 32, "num_layers": 1},
    }
    student = PPO("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu")
    distill(
        teacher.agent,
        student,
        teacher.env,
        num_rounds=options.rounds,
        steps_per_round=STEPS_PER_ROUND,
        updates_per_round=UPDATES_PER_ROUND,
        seed=seed,
    )
    env.training = False
    num_steps = options.rounds * STEPS_PER_ROUND * NUM_ENVS
    return Trained(student, env, num_steps, stopwatch.read()["cpu_seconds"])


def evaluate_agent(name: str, trained: Trained, seed: int, options: Options) -> dict[str, list[float]]:
    """The returns of an agent in each task of a split; every agent meets the same tasks."""
    returns = {}
    for split, env_kwargs in SPLITS.items():
        env = make_env(name, options.env, options.num_tasks, **env_kwargs)
        env.obs_rms, env.training, env.norm_reward = trained.env.obs_rms, False, False
        returns[split] = returns_of(evaluate(trained.agent, env, seed=EVALUATION_SEED + 1000 * seed))
    return returns


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train, teach and evaluate under every seed, and print the table."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    trained: dict[str, list[Trained]] = {name: [] for name in SHOWN}
    returns: dict[tuple[str, str], list[list[float]]] = {(name, split): [] for name in SHOWN for split in SPLITS}
    for seed in range(options.seed, options.seed + options.seeds):
        teacher = train(TEACHER, seed, options)
        agents = {
            TEACHER: teacher,
            STUDENT: teach(teacher, seed, options),
            TRANSITION: train(TRANSITION, seed, options),
        }
        for name, agent in agents.items():
            trained[name].append(agent)
            for split, of_tasks in evaluate_agent(name, agent, seed, options).items():
                returns[name, split].append(of_tasks)
    print(f"Mean return over {options.num_tasks} held-out tasks, {options.seeds} seeds:\n")
    rows = []
    for name, of_seeds in trained.items():
        estimates = [f"{estimate(returns[name, split], options.seed):.1f}" for split in SPLITS]
        seconds = float(np.mean([one.cpu_seconds for one in of_seeds]))
        rows.append([name, *estimates, f"{of_seeds[0].num_steps:,}", f"{seconds:.0f}"])
    print_markdown([options.env, *SPLITS, "steps on the family", "CPU seconds"], rows)


if __name__ == "__main__":
    main()
