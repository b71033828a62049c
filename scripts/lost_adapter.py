"""What becomes of a policy that sees adapted predictions, and loses its adapter.

On CartPolePolarity, PPO is trained on the plain observation, on the predictions of a model that adapts online, and on
such predictions with some episodes left out (VectorOnlineAdaptation's leave_out). The policies that see predictions are
then evaluated twice, with predictions and with none (leave_out=1), on held-out tasks. Prints a table in Markdown.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, MetaTrainer
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.dynamics_models import make_model
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.report import estimate, print_markdown
from ssm_metarl_gym.experiments.scoreboard.board import spread_seed
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorOnlineAdaptation

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SPLITS: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": 100}},
}
# Brings positions, speeds, angles and angular speeds to a similar size, as PPO likes them; predictions have it.
OBSERVATION_SCALE = np.array([0.5, 0.5, 5.0, 0.7], dtype=np.float32)
REWARD_SCALE = 0.05
NUM_TRAINING_ENVS = 64
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The command line."""

    seed: int = option(0, "the first seed", least=0, below=1_000)
    seeds: int = option(5, "number of seeds", least=1, below=1_000)
    num_tasks: int = option(100, "tasks per split", least=2, below=100_000)
    percent_left_out: int = option(50, "share of the episodes of training that are left out", least=0, below=101)
    meta_updates: int = option(300, "updates of the model of the dynamics", least=1)
    steps: int = option(122_880, "steps of each PPO", least=1)


class Scaled(VecEnvWrapper):
    """Rows with scaled observations and rewards."""

    def __init__(self, venv: VecEnv) -> None:
        width = venv.observation_space.shape[0]
        self._scale = np.concatenate([OBSERVATION_SCALE, np.ones(width - len(OBSERVATION_SCALE), dtype=np.float32)])
        super().__init__(venv, observation_space=gym.spaces.Box(-np.inf, np.inf, (width,), np.float32))

    def reset(self) -> Any:
        """Start an episode in every row."""
        return self.venv.reset() * self._scale

    def step_wait(self) -> Any:
        """Step every row."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = infos[i]["terminal_observation"] * self._scale
        return observations * self._scale, REWARD_SCALE * rewards, dones, infos


def meta_train(seed: int, options: Options) -> MetaTrainer:
    """A model of the dynamics that was meta-trained to adapt its last layer."""
    torch.manual_seed(seed)
    return MetaTrainer(ENV_ID, make_model(ENV_ID), seed=seed, inner_steps=3).learn(options.meta_updates)


def make_env(trainer: MetaTrainer, leave_out: float | None, num_rows: int, **env_kwargs: Any) -> Scaled:
    """Rows of the environment, with predictions unless ``leave_out`` is None."""
    env = make_rows(ENV_ID, num_rows, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
    if leave_out is not None:
        adapter = Adapter(trainer.model, trainer.adaptation_config())
        env = VectorOnlineAdaptation(env, adapter, observe_predictions=True, leave_out=leave_out)
    return Scaled(SB3VecEnv(env))


def train(trainer: MetaTrainer, leave_out: float | None, seed: int, options: Options) -> PPO:
    """A policy that was trained on the training tasks."""
    model = PPO(
        "MlpPolicy",
        make_env(trainer, leave_out, NUM_TRAINING_ENVS, split="train"),
        n_steps=64,
        batch_size=1024,
        n_epochs=8,
        learning_rate=LinearSchedule(3e-3, 3e-4, 1.0),
        gamma=0.98,
        ent_coef=0.01,
        seed=spread_seed(seed),  # far from the next one, as rows take the numbers that follow it
        device="cpu",
    )
    return model.learn(options.steps)


def run_seed(seed: int, options: Options) -> dict[tuple[str, str], list[float]]:
    """The returns of each agent in each task of a split; every agent meets the same tasks."""
    trainer, share = meta_train(seed, options), options.percent_left_out / 100
    returns = {}
    for name, leave_out in (("plain", None), ("predictions", 0.0), ("predictions, some left out", share)):
        policy = train(trainer, leave_out, seed, options)
        endings = [(name, None)] if leave_out is None else [(name, 0.0), (f"{name}; adapter lost", 1.0)]
        for ending, shown in endings:
            for split, env_kwargs in SPLITS.items():
                env = make_env(trainer, shown, options.num_tasks, **env_kwargs)
                rewards = evaluate(policy, env, seed=EVALUATION_SEED + 1000 * seed)
                returns[ending, split] = [total / REWARD_SCALE for total in returns_of(rewards)]
    return returns


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate under every seed, and print the table."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    by_seed = [run_seed(seed, options) for seed in range(options.seed, options.seed + options.seeds)]
    print(f"Mean return over {options.num_tasks} held-out tasks, of 200 at most, {options.seeds} seeds:\n")
    rows = []
    for name in dict.fromkeys(agent for agent, _ in by_seed[0]):
        estimates = [estimate([returns[name, split] for returns in by_seed], options.seed) for split in SPLITS]
        rows.append([name, *(f"{one:.1f}" for one in estimates)])
    print_markdown(["PPO on", *SPLITS], rows)


if __name__ == "__main__":
    main()
