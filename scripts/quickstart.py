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

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from tqdm import tqdm

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.experiments.statistics import bootstrap_interval
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.wrappers import OnlineAdaptation

mpl.use("Agg")
import matplotlib.pyplot as plt

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
# The longest job first, so that the others fill the second core.
AGENTS = ("adapted_predictions", "frozen_predictions", "mlp", "oracle")
LABELS = {
    "mlp": "plain PPO",
    "frozen_predictions": "predictions, frozen",
    "adapted_predictions": "predictions, adapted online",
    "oracle": "told the parameters",
}
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


Curves: TypeAlias = list[list[float]]  # the reward at each step, a row for each trial


@dataclass(frozen=True)
class Options:
    """The command line."""

    quick: bool = field(default=False, metadata={"help": "fewer steps and tasks, the same story"})
    seed: int = field(default=0, metadata={"help": "seeds everything: one seed gives one result"})
    output: Path = field(default=Path("output/quickstart"), metadata={"help": "folder for the results"})
    num_tasks: int | None = field(default=None, metadata={"help": "tasks per split (default: 100, quick: 20)"})
    core: str = field(default="ssm", metadata={"help": "core of the dynamics model: ssm, or a two-layer tanh network"})
    ppo_steps: int | None = field(default=None, metadata={"help": "steps of each PPO (default: 40960, quick: 24576)"})


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


def evaluate(agent: str, split: str, tasks: range, options: Options) -> Curves:
    """The rewards of a saved policy in a trial of each of some numbered tasks, the same ones for every agent."""
    trainer = load_trainer(options)
    env = DummyVecEnv([lambda: make_env(agent, trainer, **SPLITS[split])] * len(tasks))
    env.seed(EVALUATION_SEED + 1000 * options.seed + tasks.start)
    rewards: Curves = [[] for _ in tasks]

    def record(local_variables: dict[str, Any], _: dict[str, Any]) -> None:
        rewards[local_variables["i"]].append(float(local_variables["reward"]))
        add_progress(1)

    model = PPO.load(options.output / f"{agent}.zip", device="cpu")
    evaluate_policy(model, env, n_eval_episodes=len(tasks), callback=record)
    return rewards


def run_jobs(options: Options, budget: Budget) -> dict[tuple[str, str], Curves]:
    """Train and evaluate all agents on all cores: the rewards of each agent on each split, a row for each task."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("Q", 0)
    num_workers = min(len(AGENTS), os.cpu_count() or 1)
    total = len(AGENTS) * (budget.ppo_steps + len(SPLITS) * budget.num_tasks * TRIAL_LENGTH)
    chunks = [range(start, min(start + CHUNK, budget.num_tasks)) for start in range(0, budget.num_tasks, CHUNK)]
    with (
        tqdm(total=total, desc="training and evaluating", unit="step", unit_scale=True, mininterval=2.0) as bar,
        ProcessPoolExecutor(num_workers, context, initializer=start_worker, initargs=(counter,)) as pool,
    ):
        trainings: dict[Future[Any], str] = {pool.submit(train, agent, budget, options): agent for agent in AGENTS}
        evaluations: dict[tuple[str, str, range], Future[Curves]] = {}
        pending: set[Future[Any]] = set(trainings)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(counter.value - bar.n)
                for job in done:
                    job.result()  # raises what the job raised
                    if job in trainings:
                        agent = trainings[job]
                        keys = [(agent, split, tasks) for split in SPLITS for tasks in chunks]
                        evaluations |= {key: pool.submit(evaluate, *key, options) for key in keys}
                        pending |= {evaluations[key] for key in keys}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
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


def summarise(agent: str, split: str, returns: np.ndarray, seed: int) -> dict[str, Any]:
    """A row of the table: the mean over tasks, and a 95 % interval by the bootstrap."""
    low, high = bootstrap_interval(returns, seed)
    return {
        "name": agent,
        "split": split,
        "mean_return": float(np.mean(returns)),
        "ci_low": low,
        "ci_high": high,
        "num_tasks": len(returns),
        "seed": seed,
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown, and how much of the gap from plain to told each observation closes."""
    by_key = {(row["name"], row["split"]): row for row in rows}
    lines = [f"| observation of PPO | {' | '.join(SPLITS)} |", "| --- |" + " --- |" * len(SPLITS)]
    for agent, label in LABELS.items():
        cells = ["{mean_return:.1f} [{ci_low:.1f}, {ci_high:.1f}]".format(**by_key[agent, split]) for split in SPLITS]
        lines.append(f"| {label} (`{agent}`) | {' | '.join(cells)} |")
    for agent in ("frozen_predictions", "adapted_predictions"):
        shares = []
        for split in SPLITS:
            plain, told = by_key["mlp", split]["mean_return"], by_key["oracle", split]["mean_return"]
            gain = by_key[agent, split]["mean_return"] - plain
            shares.append(f"{100 * gain / (told - plain):.0f} %" if told > plain else "no gap")
        lines.append(f"| gap closed by `{agent}` | {' | '.join(shares)} |")
    return "\n".join(lines)


def draw_switch(curves: dict[tuple[str, str], Curves], path: Path) -> None:
    """The mean reward of the last five steps, before and after the switch."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for agent, label in LABELS.items():
        smooth = np.convolve(np.mean(curves[agent, "switch"], axis=0), np.ones(5) / 5, mode="valid")
        axes.plot(np.arange(5, 5 + len(smooth)), smooth, label=label)
    axes.axvline(SWITCH_STEP, color="black", linestyle=":", label="the force changes its sign")
    axes.set(xlabel="step of the trial", ylabel="mean reward", title="Held-out tasks: reward around a hidden change")
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def load_trainer(options: Options) -> MetaTrainer:
    """The meta-trained model and how it was trained."""
    return MetaTrainer.load(options.output / "dynamics.pt", make_model(options.core))


def film(options: Options) -> None:
    """The plain policy beside the adapting one on the same hidden task, whose sign flips half-way."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window is needed
    trainer = load_trainer(options)
    films = []
    for agent in ("mlp", "adapted_predictions"):
        env = make_env(agent, trainer, render_mode="rgb_array", **SPLITS["switch"])
        model = PPO.load(options.output / f"{agent}.zip", device="cpu")
        observation, _ = env.reset(seed=EVALUATION_SEED)
        frames, truncated, total, falls = [], False, 0.0, 0
        while not truncated:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, _, truncated, info = env.step(action)
            total, falls = total + float(reward), falls + info["restarted"]
            frames.append(label_frame(env.render(), f"{LABELS[agent]}: return {total:.0f}, falls {falls}"))
        env.close()
        films.append(frames[::2])
    pairs = [Image.fromarray(np.concatenate(pair, axis=1)) for pair in zip(*films, strict=True)]
    with replacing(options.output / "comparison.gif") as temporary:
        pairs[0].save(temporary, save_all=True, append_images=pairs[1:], duration=40, loop=0)


def label_frame(frame: np.ndarray, text: str) -> np.ndarray:
    """A frame at two thirds of its size with a line of text below the caption."""
    image = Image.fromarray(frame)
    image = image.resize((image.width * 2 // 3, image.height * 2 // 3))
    ImageDraw.Draw(image).text((8, 24), text, fill=(0, 0, 0))
    return np.asarray(image)


def parse_options(arguments: Sequence[str] | None) -> Options:
    """The options of the command line; exits with a clear message where one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Options()
    help_of = {name: option.metadata["help"] for name, option in Options.__dataclass_fields__.items()}
    parser.add_argument("--quick", action="store_true", help=help_of["quick"])
    parser.add_argument("--seed", type=int, default=defaults.seed, help=help_of["seed"])
    parser.add_argument("--output", type=Path, default=defaults.output, metavar="DIR", help=help_of["output"])
    parser.add_argument("--num-tasks", type=int, metavar="N", help=help_of["num_tasks"])
    parser.add_argument("--core", choices=("ssm", "tanh"), default=defaults.core, help=help_of["core"])
    parser.add_argument("--ppo-steps", type=int, metavar="N", help=help_of["ppo_steps"])
    options = Options(**vars(parser.parse_args(arguments)))
    if not 0 <= options.seed < 1_000_000:
        parser.error(f"--seed must be >= 0 and less than a million; got {options.seed}.")
    for name, value, least in (("num-tasks", options.num_tasks, 2), ("ppo-steps", options.ppo_steps, 1)):
        if value is not None and value < least:
            parser.error(f"--{name} must be >= {least}; got {value}.")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output).close()
        (options.output / "results.json").unlink(missing_ok=True)  # those of an earlier run would mislead
    except OSError as error:
        parser.error(f"--output must be a folder that can be written to; got {options.output} ({error.strerror}).")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole comparison."""
    options = parse_options(arguments)
    started = time.perf_counter()
    torch.set_num_threads(1)
    budget = QUICK_BUDGET if options.quick else FULL_BUDGET
    # PPO takes whole rollouts, so what is asked for is rounded up.
    num_rollouts = math.ceil((options.ppo_steps or budget.ppo_steps) / ROLLOUT_LENGTH / NUM_TRAINING_ENVS)
    budget = replace(
        budget,
        num_tasks=options.num_tasks or budget.num_tasks,
        ppo_steps=num_rollouts * ROLLOUT_LENGTH * NUM_TRAINING_ENVS,
    )

    torch.manual_seed(options.seed)
    trainer = MetaTrainer(ENV_ID, make_model(options.core), seed=options.seed, num_streams=budget.num_streams)
    trainer.learn(budget.meta_updates, progress_bar=True)
    trainer.save(options.output / "dynamics.pt")
    before, after = (errors.mean() for errors in trainer.evaluate("interpolation", (0, 1)).values())
    print(f"prediction error on held-out tasks: {before:.3f} before adapting, {after:.3f} after", flush=True)

    curves = run_jobs(options, budget)
    rows = [summarise(*key, np.sum(rewards, axis=1), options.seed) for key, rewards in curves.items()]
    draw_switch(curves, options.output / "switch.png")
    film(options)
    results = {
        "rows": rows,
        "core": options.core,
        "budget": asdict(budget),
        "seconds": round(time.perf_counter() - started, 1),
    }
    with replacing(options.output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nMean return over {budget.num_tasks} held-out tasks, of 200 at most, with 95 % intervals over tasks:\n")
    print(format_table(rows))
    print(f"\n{results['seconds']:.0f} s; results.json, switch.png and comparison.gif are in {options.output}")


if __name__ == "__main__":
    main()
