"""An ordinary SB3 policy copes with physics it was never told about, because it adapts online.

Meta-trains a model of the dynamics on the training tasks of CartPolePolarity (hidden masses, lengths and forces, and a
hidden sign of the force), then trains Stable-Baselines3's own PPO("MlpPolicy") four times from the same seed, each
time on another observation, and evaluates each on tasks that it has never met:

    mlp                  the plain observation
    frozen_predictions   and what the model predicts for each action, the model standing still
    adapted_predictions  and what the model predicts, adapted online by Adapter.adapt within the episode
    oracle               and the hidden parameters themselves

Writes results.json, switch.png, comparison.gif, the model and the four policies into the output folder.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from tqdm import tqdm

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.evaluation import Rewards, evaluate, mean_curve, returns_of
from ssm_metarl_gym.experiments.pictures import draw_curves, film, save_film
from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.signals import stoppable, worker_pool
from ssm_metarl_gym.files import replacing, write_json
from ssm_metarl_gym.wrappers import OnlineAdaptation

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
# The longest job first, so that the others fill the second core.
AGENTS = ("adapted_predictions", "frozen_predictions", "mlp", "oracle")
LABELS = {
    "mlp": "plain PPO",
    "frozen_predictions": "predictions, frozen",
    "adapted_predictions": "predictions, adapted online",
    "oracle": "told the parameters",
}
FILES = ("results.json", "switch.png", "comparison.gif", "dynamics.pt", *(f"{agent}.zip" for agent in AGENTS))
CORES = ("ssm", "tanh")
SWITCH_STEP = 100
SPLITS: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": SWITCH_STEP}},
}
# Brings positions, speeds, angles and angular speeds to a similar size, as PPO likes them.
OBSERVATION_SCALE = np.array([0.5, 0.5, 5.0, 0.7], dtype=np.float32)
REWARD_SCALE = 0.05
NUM_TRAINING_ENVS = 64
ROLLOUT_LENGTH = 64
TRIAL_LENGTH = 200
# The tasks of one evaluation job: small enough that all cores finish at about the same time.
CHUNK = 10
EVALUATION_SEED = 1_000_000


@dataclass(frozen=True)
class Options:
    """The command line."""

    quick: bool = option(False, "fewer steps and tasks, the same story")
    seed: int = option(0, "seeds everything: one seed gives one result", least=0, below=1_000_000)
    output: Path = option(
        Path("output/quickstart"), "folder for the results", check=partial(check_output_folder, file_names=FILES)
    )
    num_tasks: int | None = option(None, "tasks per split (default: 100, quick: 20)", least=2, below=100_000)
    core: str = option("ssm", "core of the dynamics model, where tanh is a network of two layers", choices=CORES)
    ppo_steps: int | None = option(None, "steps of each PPO (default: 40960, quick: 24576)", least=1)


@dataclass(frozen=True)
class Budget:
    """How much is done: streams and updates of the meta-training, steps and batch of each PPO, tasks of a split."""

    num_streams: int
    meta_updates: int
    ppo_steps: int
    ppo_batch_size: int
    num_tasks: int


FULL_BUDGET = Budget(num_streams=1000, meta_updates=300, ppo_steps=40_960, ppo_batch_size=1024, num_tasks=100)
QUICK_BUDGET = Budget(num_streams=400, meta_updates=150, ppo_steps=24_576, ppo_batch_size=512, num_tasks=20)


def make_model(core: str) -> DynamicsModel:
    """The untrained model: it adapts its last layer only, so that a step of adaptation is cheap."""
    env = gym.make(ENV_ID)
    input_dim = DynamicsModel.input_dim(env.observation_space, env.action_space)
    tanh = nn.Sequential(nn.Linear(input_dim, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    return DynamicsModel(env.observation_space, env.action_space, tanh if core == "tanh" else None)


def make_env(agent: str, trainer: MetaTrainer, **env_kwargs: Any) -> gym.Env[Any, Any]:
    """The environment as an agent sees it; rewards are not scaled yet."""
    env = gym.make(ENV_ID, context="visible" if agent == "oracle" else "hidden", **env_kwargs)
    if agent.endswith("predictions"):
        config = trainer.adaptation_config()
        if agent == "frozen_predictions":
            config = replace(config, trust_region_eps=0.0)
        env = OnlineAdaptation(env, Adapter(trainer.model, config), observe_predictions=True)
    width = env.observation_space.shape[0]
    scale = np.concatenate([OBSERVATION_SCALE, np.ones(width - len(OBSERVATION_SCALE), dtype=np.float32)])
    space = gym.spaces.Box(-np.inf, np.inf, shape=(width,), dtype=np.float32)
    return Monitor(gym.wrappers.TransformObservation(env, lambda observation: observation * scale, space))


class CountSteps(BaseCallback):
    """Adds the steps taken to the counter that the progress bar shows."""

    def _on_step(self) -> bool:
        add_progress(self.training_env.num_envs)
        return True


def train(agent: str, budget: Budget, options: Options) -> None:
    """Train one policy and save it."""
    trainer = load_trainer(options)

    def make_training_env() -> gym.Env[Any, Any]:
        env = make_env(agent, trainer, split="train")
        return gym.wrappers.TransformReward(env, lambda reward: REWARD_SCALE * reward)

    model = PPO(
        "MlpPolicy",
        DummyVecEnv([make_training_env] * NUM_TRAINING_ENVS),
        n_steps=ROLLOUT_LENGTH,
        batch_size=budget.ppo_batch_size,
        n_epochs=8,
        learning_rate=lambda remaining: 3e-3 * (0.1 + 0.9 * remaining),
        gamma=0.98,
        ent_coef=0.01,
        seed=options.seed,
        device="cpu",
    )
    # SB3 seeds environment i with seed + i: without this, neighbouring seeds would share most of their tasks.
    model.get_env().seed(1000 * options.seed)
    model.learn(budget.ppo_steps, callback=CountSteps())
    with replacing(options.output / f"{agent}.zip") as temporary:
        model.save(temporary)


def evaluate_tasks(agent: str, split: str, tasks: range, options: Options) -> Rewards:
    """The rewards of a saved policy in a trial of each of some numbered tasks, the same ones for every agent."""
    trainer = load_trainer(options)
    env = DummyVecEnv([lambda: make_env(agent, trainer, **SPLITS[split])] * len(tasks))
    model = PPO.load(options.output / f"{agent}.zip", device="cpu")
    rewards = evaluate(model, env, seed=EVALUATION_SEED + 1000 * options.seed + tasks.start)
    add_progress(sum(map(len, rewards)))
    return rewards


def run_jobs(options: Options, budget: Budget) -> dict[tuple[str, str], Rewards]:
    """Train and evaluate all agents on all cores: the rewards of each agent on each split, a row for each task."""
    counter = multiprocessing.get_context("spawn").Value("Q", 0)
    num_workers = min(len(AGENTS), os.cpu_count() or 1)
    total = len(AGENTS) * (budget.ppo_steps + len(SPLITS) * budget.num_tasks * TRIAL_LENGTH)
    chunks = [range(start, min(start + CHUNK, budget.num_tasks)) for start in range(0, budget.num_tasks, CHUNK)]
    with (
        tqdm(total=total, desc="training and evaluating", unit="step", unit_scale=True, mininterval=2.0) as bar,
        worker_pool(num_workers, initializer=start_worker, initargs=(counter,)) as pool,
    ):
        trainings: dict[Future[Any], str] = {pool.submit(train, agent, budget, options): agent for agent in AGENTS}
        evaluations: dict[tuple[str, str, range], Future[Rewards]] = {}
        pending: set[Future[Any]] = set(trainings)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(counter.value - bar.n)
            for job in done:
                job.result()  # raises what the job raised
                if job in trainings:
                    agent = trainings[job]
                    keys = [(agent, split, tasks) for split in SPLITS for tasks in chunks]
                    evaluations |= {key: pool.submit(evaluate_tasks, *key, options) for key in keys}
                    pending |= {evaluations[key] for key in keys}
    # In the order of the tasks, whichever job ended first: one seed gives one result.
    return {
        (agent, split): [row for tasks in chunks for row in evaluations[agent, split, tasks].result()]
        for split in SPLITS
        for agent in LABELS
    }


def start_worker(counter: Any) -> None:
    """Prepare a worker: one thread for each process, and the counter of the progress bar."""
    global _counter
    _counter = counter
    torch.set_num_threads(1)


def add_progress(steps: int) -> None:
    """Tell the progress bar of steps taken."""
    with _counter.get_lock():
        _counter.value += steps


def make_row(agent: str, split: str, mean_return: Estimate, num_tasks: int, seed: int) -> dict[str, Any]:
    """What results.json holds of an agent in a split."""
    return {
        "name": agent,
        "split": split,
        **mean_return.to_dict("mean_return"),
        "num_tasks": num_tasks,
        "seed": seed,
    }


def format_table(returns: dict[tuple[str, str], Estimate]) -> str:
    """The table in Markdown, and how much of the gap from plain to told each observation closes."""
    rows = [
        [f"{label} (`{agent}`)", *(format(returns[agent, split], ".1f") for split in SPLITS)]
        for agent, label in LABELS.items()
    ]
    for agent in ("frozen_predictions", "adapted_predictions"):
        shares = []
        for split in SPLITS:
            plain, told, own = (returns[each, split].mean for each in ("mlp", "oracle", agent))
            shares.append(f"{100 * (own - plain) / (told - plain):.0f} %" if told > plain else "no gap")
        rows.append([f"gap closed by `{agent}`", *shares])
    return format_markdown(["observation of PPO", *SPLITS], rows)


def load_trainer(options: Options) -> MetaTrainer:
    """The meta-trained model and how it was trained."""
    return MetaTrainer.load(options.output / "dynamics.pt", make_model(options.core))


def draw_switch(rewards: dict[tuple[str, str], Rewards], path: Path) -> None:
    """The mean reward of the last five steps, before and after the switch."""
    title = f"held-out tasks; the force changes its sign after step {SWITCH_STEP}"
    curves = {label: {title: mean_curve(rewards[agent, "switch"])} for agent, label in LABELS.items()}
    draw_curves(curves, {title: SWITCH_STEP}, path)


def film_comparison(options: Options) -> None:
    """The plain policy beside the adapting one on the same hidden task, whose sign flips half-way."""
    trainer = load_trainer(options)
    films = []
    for agent in ("mlp", "adapted_predictions"):
        env = DummyVecEnv([lambda agent=agent: make_env(agent, trainer, render_mode="rgb_array", **SPLITS["switch"])])
        model = PPO.load(options.output / f"{agent}.zip", device="cpu")
        films.append(film(model, env, LABELS[agent], seed=EVALUATION_SEED))
        env.close()
    save_film(options.output / "comparison.gif", *films)


def choose_budget(options: Options) -> Budget:
    """What the command line leaves of the budget."""
    budget = QUICK_BUDGET if options.quick else FULL_BUDGET
    # PPO takes whole rollouts, so what is asked for is rounded up.
    num_rollouts = math.ceil((options.ppo_steps or budget.ppo_steps) / ROLLOUT_LENGTH / NUM_TRAINING_ENVS)
    return replace(
        budget,
        num_tasks=options.num_tasks or budget.num_tasks,
        ppo_steps=num_rollouts * ROLLOUT_LENGTH * NUM_TRAINING_ENVS,
    )


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole comparison."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    with hold_output(options.output):
        run(options)


def run(options: Options) -> None:
    """Meta-train, train and evaluate, in a folder that no other process writes to."""
    started = time.perf_counter()
    (options.output / "results.json").unlink(missing_ok=True)  # those of an earlier run would mislead
    budget = choose_budget(options)

    # Meta-train the model of the dynamics, which the agents of predictions share.
    torch.manual_seed(options.seed)
    trainer = MetaTrainer(ENV_ID, make_model(options.core), seed=options.seed, num_streams=budget.num_streams)
    trainer.learn(budget.meta_updates, progress_bar=True)
    trainer.save(options.output / "dynamics.pt")
    before, after = (errors.mean() for errors in trainer.evaluate("interpolation", (0, 1)).values())
    print(f"prediction error on held-out tasks: {before:.3f} before adapting, {after:.3f} after", flush=True)

    # Train and evaluate the four policies, on all cores.
    rewards = run_jobs(options, budget)
    returns = {key: estimate([returns_of(of_tasks)], options.seed) for key, of_tasks in rewards.items()}

    # Show what came of it.
    draw_switch(rewards, options.output / "switch.png")
    film_comparison(options)
    seconds = round(time.perf_counter() - started, 1)
    rows = [make_row(*key, mean_return, budget.num_tasks, options.seed) for key, mean_return in returns.items()]
    results = {"rows": rows, "core": options.core, "budget": asdict(budget), "seconds": seconds}
    write_json(options.output / "results.json", results)
    print(f"\nMean return over {budget.num_tasks} held-out tasks, of 200 at most, with 95 % intervals over tasks:\n")
    print(format_table(returns))
    print(f"\n{seconds:.0f} s; results.json, switch.png and comparison.gif are in {options.output}")


if __name__ == "__main__":
    main()
