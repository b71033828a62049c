"""A pendulum policy of SAC meets another gravity, or a reversed motor: as it is, corrected, and trained further there.

The case of https://github.com/DLR-RM/stable-baselines3/issues/2100: a SAC policy of a gravity of 9.81 meets one of 11.
SAC is trained here with the settings of SB3's zoo, in Gymnasium's pendulum (in this library's form, which takes the
torque as a share of the greatest one). Training goes on in the other physics, from an empty buffer and with an
evaluation every 500 steps, until the policy is as good as the better one of the policy as it is and corrected, or
within 1 % of that; 5,000 steps at most. Policies and models lie in the output folder, and runs.jsonl holds a line for
each evaluation. The same command again goes on, and prints the tables.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights
from ssm_metarl_gym.experiments.evaluation import Policy, evaluate, returns_of
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.scoreboard.board import rule_of
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation

ENV_ID = "ssm_metarl/PendulumPolarity-v0"
TRAINED = {"g": 9.81}
COLUMNS: dict[str, dict[str, float]] = {
    "g = 9.81": TRAINED,
    "g = 7": {"g": 7.0},
    "g = 11": {"g": 11.0},
    "g = 13": {"g": 13.0},
    "g = 15": {"g": 15.0},
    "reversed motor": TRAINED | {"polarity": -1.0},
}
META_UPDATES, NUM_STREAMS, INNER_STEPS = 1_500, 1_000, 3
EVALUATION_SEED = 1_000_000
STOPPING_SEED = 3_000_000  # of the starts that tell when further training may end, which are not those of the rows
INTERVAL, MOST_STEPS = 500, 5_000
TRAINING_RULE = 3  # to be raised whenever the policy is trained further by another one
FIRST_STEPS = 100  # before it learns anew, as the policy is: what SB3's SAC collects before its first update
ROWS = ("as it is", "corrected", "trained further")


@dataclass(frozen=True)
class Options:
    """The command line."""

    seeds: int = option(5, "number of seeds of policies, models and starts", least=1, below=1_000)
    timesteps: int = option(20_000, "steps of SAC in the physics that it is trained in", least=200)
    num_episodes: int = option(100, "episodes of each evaluation", least=2, below=100_000)
    output: Path = option(
        Path("output/keep_sac"), "folder", check=partial(check_output_folder, file_names=["runs.jsonl"])
    )


@dataclass(frozen=True)
class Kept:
    """What one seed has to act with.

    Attributes:
        policy_path: The archive of the policy.
        trainer: The model of the dynamics, meta-trained on random actions in pendulums of other masses and lengths
            with a hidden sign of the torque; gravity is the same in all of them.
        reference: The model of the physics that the policy was trained in.
    """

    policy_path: Path
    trainer: MetaTrainer
    reference: DynamicsModel


def prepare(seed: int, options: Options, records: Records) -> Kept:
    """Train what is not in the output folder yet."""
    policy_path, model_path, reference_path = (
        options.output / f"{name}-{seed}.{suffix}"
        for name, suffix in ((f"sac-{options.timesteps}", "zip"), ("dynamics", "pt"), ("reference", "pt"))
    )
    if not policy_path.exists():
        started = time.process_time()
        model = SAC("MlpPolicy", gym.make(ENV_ID, task=TRAINED), learning_rate=1e-3, seed=seed, device="cpu")
        model.learn(options.timesteps)
        with replacing(policy_path) as temporary:
            model.save(temporary)
        key = {"timesteps": options.timesteps, "seed": seed}
        records.add(row="SAC", **key, steps=model.num_timesteps, cpu_seconds=time.process_time() - started)
    torch.manual_seed(seed)
    if not model_path.exists():
        core = make_model(ENV_ID)
        trainer = MetaTrainer(ENV_ID, core, seed=seed, num_streams=NUM_STREAMS, inner_steps=INNER_STEPS)
        trainer.learn(META_UPDATES).save(model_path)
    trainer = MetaTrainer.load(model_path, make_model(ENV_ID))
    if not reference_path.exists():
        save_weights(trainer.reference(TRAINED), reference_path)
    return Kept(policy_path, trainer, load_weights(ENV_ID, reference_path))


def measure(
    policy: Policy, task: Mapping[str, float], seed: int, options: Options, kept: Kept | None = None
) -> list[float]:
    """The return of each episode, of actions that are corrected where there is something to correct them with."""
    envs: Any = gym.make_vec(ENV_ID, num_envs=options.num_episodes, autoreset_mode="SameStep", task=task)
    if kept is not None:
        adapter = Adapter(kept.trainer.model, kept.trainer.adaptation_config())
        envs = VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), kept.reference)
    return returns_of(evaluate(policy, SB3VecEnv(envs), seed=seed))


def train_further(kept: Kept, task: Mapping[str, float], seed: int, options: Options) -> dict[str, Any]:
    """The returns of a policy that is trained in a task, and the steps that it took.

    It is trained until it is as good as it was, or as it is corrected, whichever is better, or within 1 % of that.
    """
    starts, policy = STOPPING_SEED + 1_000 * seed, SAC.load(kept.policy_path, device="cpu")
    best = max(float(np.mean(measure(policy, task, starts, options, by))) for by in (None, kept))
    target = best - 0.01 * abs(best)
    model = SAC.load(kept.policy_path, env=gym.make(ENV_ID, task=task), device="cpu")
    model.set_random_seed(seed)
    before, gradient_steps = model.num_timesteps, model.gradient_steps
    while True:
        steps = model.num_timesteps - before
        reached = bool(np.mean(measure(model, task, starts, options)) >= target)
        if reached or steps >= MOST_STEPS:
            returns = measure(model, task, EVALUATION_SEED + 1_000 * seed, options)
            return {"returns": np.round(returns, 3).tolist(), "steps": steps, "reached": reached}
        if not steps:
            # Nothing is learned from a handful of transitions, each of them many times over.
            model.gradient_steps = 0
            model.learn(FIRST_STEPS, reset_num_timesteps=False)
            model.gradient_steps = gradient_steps
        model.learn(INTERVAL - (0 if steps else FIRST_STEPS), reset_num_timesteps=False)


def key_of(row: str, options: Options) -> dict[str, Any]:
    """What lines of a row have in common. As it is, the policy depends on no rule."""
    key: dict[str, Any] = {"row": row, "timesteps": options.timesteps, "num_episodes": options.num_episodes}
    rules = {"corrected": [rule_of("corrected_gradients")]}
    rules["trained further"] = [*rules["corrected"], TRAINING_RULE]  # which stops where the corrected one is
    return key | ({"rules": str(rules[row])} if row in rules else {})


def run_row(row: str, column: str, kept: Kept, seed: int, options: Options, records: Records) -> None:
    """Measure what is not in the records yet."""
    key = key_of(row, options) | {"column": column, "seed": seed}
    if records.find(**key):
        return
    started, task = time.process_time(), COLUMNS[column]
    if row == "trained further":
        result = train_further(kept, task, seed, options)
    else:
        policy = SAC.load(kept.policy_path, device="cpu")
        starts = EVALUATION_SEED + 1_000 * seed
        returns = measure(policy, task, starts, options, kept if row == "corrected" else None)
        result = {"returns": np.round(returns, 3).tolist(), "steps": 0, "reached": True}
    records.add(**key, **result, cpu_seconds=time.process_time() - started)
    print(f"{column}, {row}, seed {seed}: {np.mean(result['returns']):.1f}", flush=True)


def show(options: Options, records: Records) -> None:
    """Print the mean returns with 95 % intervals over seeds, and the steps of each seed in the other physics."""
    rows = []
    for row in ROWS:
        cells = []
        for column in COLUMNS:
            lines = records.find(**key_of(row, options), column=column)
            returns = [line["returns"] for line in lines if line["seed"] < options.seeds]
            cells.append(f"{estimate(returns, 0):.1f}" if returns else "")
        rows.append([row, *cells])
    cells = []
    for column in COLUMNS:
        lines = records.find(**key_of("trained further", options), column=column)
        lines = sorted((line for line in lines if line["seed"] < options.seeds), key=lambda line: line["seed"])
        cells.append(", ".join(f"{'' if line['reached'] else '> '}{line['steps']:,}" for line in lines))
    rows.append(["its steps, by seed", *cells])
    print(f"\nSAC of g = 9.81, mean return of {options.num_episodes} episodes, {options.seeds} seeds\n")
    print(format_markdown(["", *COLUMNS], rows))
    print()
    trained = [
        [str(line["seed"]), f"{line['steps']:,}", f"{line['cpu_seconds']:.0f}"]
        for line in records.find(row="SAC", timesteps=options.timesteps)
    ]
    print(format_markdown(["SAC of seed", "steps", "CPU seconds"], trained))


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, evaluate and print."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "runs.jsonl")
        kept = {seed: prepare(seed, options, records) for seed in range(options.seeds)}
        # What takes no training first.
        for row, column, seed in itertools.product(ROWS, reversed(COLUMNS), kept):
            run_row(row, column, kept[seed], seed, options, records)
        show(options, records)


if __name__ == "__main__":
    main()
