"""Memory on problems of others: SSMPPO beside sb3-contrib's RecurrentPPO, after equally many steps.

    CartPoleNoVel, PendulumNoVel, MountainCarContinuousNoVel    Gymnasium's problems without velocities, with the
        settings and steps of the agents whose returns SB3's zoo has published (those of their cards,
        https://huggingface.co/sb3/ppo_lstm-PendulumNoVel-v1 and so on, which are not those of its file today)
    RepeatPreviousEasy, RepeatPreviousMedium, PositionOnlyCartPoleEasy, CountRecallEasy    of POPGym (Morad et al.
        2023, https://arxiv.org/abs/2303.01859), which need `pip install popgym`; the states of SSMPPO begin with a long
        memory there, all else is equal

Both have the same settings of PPO. The zoo's networks are of an LSTM and what is behind it: SSMPPO has its own defaults
and, as SSMPPO-heads, those networks of actor and critic behind its state-space model. SSMPPO learns from whole rollouts
of an environment, so that its minibatches are the multiple of a rollout's length that is nearest to RecurrentPPO's from
above; where a rollout is long, it has more environments and shorter rollouts, of as many steps altogether, which
RecurrentPPO has as RecurrentPPO-rollouts. RecurrentPPO reads the sequences of an update in one pass, which gives what
the library's own gives in a fraction of its time. Each run is a line of runs.jsonl in the output folder, written when
it has ended, and the same command goes on with what is missing. Prints the mean returns of 100 episodes, with 95 %
intervals over seeds, and those of each seed.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.engines import LocalEngine, add_progress
from ssm_metarl_gym.experiments.jobs import Job, run_jobs
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, print_markdown
from ssm_metarl_gym.experiments.runs import Stopwatch, hold_output
from ssm_metarl_gym.experiments.saved_agents import find_algorithm
from ssm_metarl_gym.experiments.scoreboard.board import spread_seed
from ssm_metarl_gym.experiments.signals import stoppable

# By the name of a row: where its algorithm is found, and its policy.
ALGORITHMS = {
    "RecurrentPPO": ("OnePassRecurrentPPO", "MlpLstmPolicy"),
    "RecurrentPPO-rollouts": ("OnePassRecurrentPPO", "MlpLstmPolicy"),
    "SSMPPO": ("SSMPPO", "SSMPolicy"),
    "SSMPPO-heads": ("SSMPPO", "SSMPolicy"),
}
ROLLOUTS = ("num_envs", "n_steps")  # in which SSMPPO may differ
NUM_EPISODES = 100
SETTINGS = 3  # to be raised whenever a setting below changes: what has them is then run again
EVALUATION_SEED = 1_000_000
# A state-space model that is to remember exactly forgets slowly, and tells all steps of the past apart.
LONG_MEMORY = {"radius": (0.95, 0.9999), "max_angle": math.pi}


@dataclass(frozen=True)
class Problem:
    """An environment, and how both algorithms learn in it.

    Attributes:
        env_id: Its id.
        steps: Steps of the training.
        num_envs: Environments side by side.
        settings: Arguments of both algorithms.
        hidden: The components of the observation that are always zero; where there are some, it is normalised.
        heads: The networks of actor and critic behind an LSTM.
        lstm: Arguments of the LSTM itself.
        of_ssm: Other ``num_envs`` and arguments of ``SSMPPO``.
        published: What RecurrentPPO is said to get.
    """

    env_id: str
    steps: int
    num_envs: int
    settings: dict[str, Any]
    hidden: tuple[int, ...] = ()
    heads: dict[str, Any] = field(default_factory=dict)
    lstm: dict[str, Any] = field(default_factory=dict)
    of_ssm: dict[str, Any] = field(default_factory=dict)
    published: float | None = None


_POPGYM: dict[str, Any] = {
    "settings": {"n_steps": 64, "batch_size": 256, "n_epochs": 10, "learning_rate": 3e-4},
    "of_ssm": {"policy_kwargs": {"ssm_kwargs": LONG_MEMORY}},
}
_HEADS: dict[str, Any] = {"net_arch": {"pi": [64], "vf": [64]}, "activation_fn": nn.ReLU, "ortho_init": False}
ZOO = {
    "CartPoleNoVel": Problem(
        "CartPole-v1",
        100_000,
        8,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
            "clip_range": LinearSchedule(0.2, 0.0, 1.0),
        },
        hidden=(1, 3),
        heads=_HEADS,
        lstm={"lstm_hidden_size": 64},
        published=500.0,
    ),
    "PendulumNoVel": Problem(
        "Pendulum-v1",
        100_000,
        4,
        {
            "n_steps": 1024,
            "batch_size": 128,
            "gamma": 0.9,
            "n_epochs": 10,
            "learning_rate": 1e-3,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        hidden=(2,),
        heads=_HEADS,
        lstm={"lstm_hidden_size": 64},
        of_ssm={"num_envs": 32, "n_steps": 128},
        published=-217.9,
    ),
    "MountainCarContinuousNoVel": Problem(
        "MountainCarContinuous-v0",
        300_000,
        8,
        {
            "n_steps": 1024,
            "batch_size": 256,
            "gamma": 0.9999,
            "learning_rate": 7.77e-5,
            "ent_coef": 0.00429,
            "clip_range": 0.1,
            "n_epochs": 10,
            "gae_lambda": 0.9,
            "max_grad_norm": 5,
            "vf_coef": 0.19,
            "use_sde": True,
            "sde_sample_freq": 8,
        },
        hidden=(1,),
        heads=_HEADS | {"activation_fn": nn.Tanh, "log_std_init": 0.0},
        lstm={"lstm_hidden_size": 32},
        of_ssm={"num_envs": 32, "n_steps": 256},
        published=91.5,
    ),
}
POPGYM = {
    name: Problem(f"popgym:popgym-{name}-v0", 150_000, 16, **_POPGYM)
    for name in ("RepeatPreviousEasy", "RepeatPreviousMedium", "PositionOnlyCartPoleEasy", "CountRecallEasy")
}
PROBLEMS = ZOO | POPGYM


@dataclass(frozen=True)
class Options:
    """The command line."""

    problems: tuple[str, ...] = option(tuple(ZOO), "what is to be learned", choices=list(PROBLEMS))
    algorithms: tuple[str, ...] = option(("RecurrentPPO", "SSMPPO"), "who learns it", choices=list(ALGORITHMS))
    seeds: int = option(5, "number of seeds", least=1, below=1_000)
    percent: int = option(100, "steps, in per cent of the full ones", least=1, below=1_000)
    processes: int = option(0, "processes side by side (0: as many as there are cores)", least=0, below=1_000)
    output: Path = option(
        Path("output/memory"), "folder", check=partial(check_output_folder, file_names=["runs.jsonl"])
    )


@dataclass(frozen=True)
class Run:
    """One training: of an algorithm, in a problem, with a seed, for a share of its steps."""

    problem: str
    algorithm: str
    seed: int
    percent: int


def hide(observation: Any, hidden: tuple[int, ...]) -> Any:
    """An observation in which some components are zero."""
    observation = observation.copy()
    observation[list(hidden)] = 0.0
    return observation


def make_env(problem: Problem, num_envs: int, seed: int) -> VecEnv:
    """Environments of a problem, side by side."""

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = gym.make(problem.env_id)
        if not isinstance(env.observation_space, gym.spaces.Box):
            env = gym.wrappers.FlattenObservation(env)  # one-hot, which RecurrentPPO cannot make of several choices
        if not problem.hidden:
            return env
        return gym.wrappers.TransformObservation(env, partial(hide, hidden=problem.hidden), env.observation_space)

    return make_vec_env(make, num_envs, seed=seed)


def make_model(problem: Problem, algorithm: str, seed: int) -> Any:
    """An agent that has learned nothing yet."""
    settings: dict[str, Any] = {"num_envs": problem.num_envs, **problem.settings}
    policy_kwargs: dict[str, Any] = {} if algorithm == "SSMPPO" else problem.heads
    if algorithm.startswith("RecurrentPPO"):
        settings["policy_kwargs"] = policy_kwargs | problem.lstm
        if algorithm == "RecurrentPPO-rollouts":
            settings |= {name: problem.of_ssm[name] for name in ROLLOUTS}
    else:
        settings |= problem.of_ssm
        settings["policy_kwargs"] = policy_kwargs | settings.get("policy_kwargs", {})
        length = settings["n_steps"]
        settings["batch_size"] = length * math.ceil(min(settings["batch_size"], length * settings["num_envs"]) / length)
    env: VecEnv = make_env(problem, settings.pop("num_envs"), seed)
    if problem.hidden:
        env = VecNormalize(env, norm_reward=False)
    found, policy = ALGORITHMS[algorithm]
    return find_algorithm(found)(policy, env, seed=seed, device="cpu", **settings)


def train_and_evaluate(run: Run) -> dict[str, Any]:
    """What a training took, and the returns after it."""
    torch.set_num_threads(1)
    problem = PROBLEMS[run.problem]
    model = make_model(problem, run.algorithm, spread_seed(run.seed))
    stopwatch = Stopwatch()
    model.learn(max(1, problem.steps * run.percent // 100))
    cpu_seconds = stopwatch.read()["cpu_seconds"]
    env: VecEnv = make_env(problem, 10, EVALUATION_SEED + 1_000 * run.seed)
    if (normalised := model.get_vec_normalize_env()) is not None:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = normalised.obs_rms
    returns, _ = evaluate_policy(model, env, NUM_EPISODES, return_episode_rewards=True)
    add_progress(1)
    return {"returns": np.round(returns, 4).tolist(), "steps": model.num_timesteps, "cpu_seconds": cpu_seconds}


def key_of(run: Run) -> dict[str, Any]:
    """What tells a run from others in its line."""
    key = {"problem": run.problem, "algorithm": run.algorithm, "seed": run.seed, "percent": run.percent}
    return key | {"settings": SETTINGS}


def show(options: Options, records: Records) -> None:
    """Print what is known of what was asked for."""
    rows = []
    for problem in dict.fromkeys(options.problems):
        published = PROBLEMS[problem].published
        for algorithm in dict.fromkeys(options.algorithms):
            key = key_of(Run(problem, algorithm, 0, options.percent))
            del key["seed"]
            found = records.find(**key)
            lines = [line for line in found if line["seed"] < options.seeds]
            if lines:
                lines.sort(key=lambda line: int(line["seed"]))
                mean = f"{estimate([line['returns'] for line in lines], 0):.2f}"
                each = ", ".join(f"{np.mean(line['returns']):.2f}" for line in lines)
                seconds = f"{np.mean([line['cpu_seconds'] for line in lines]):.0f}"
                told = str(published) if published is not None and algorithm == "RecurrentPPO" else ""
                rows.append([problem, algorithm, mean, each, told, f"{lines[0]['steps']:,}", seconds])
    print_markdown(["problem", "algorithm", "return", "each", "published", "steps", "CPU seconds"], rows)


@stoppable(lambda: "the same command again goes on with the runs that are missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    options = parse_options(Options, arguments, description=__doc__)
    with refusing():
        if set(options.problems) & set(POPGYM) and importlib.util.find_spec("popgym") is None:
            raise ValueError("problems of POPGym need it; it is not installed. Install it: pip install popgym")
        if "SSMPPO-heads" in options.algorithms and set(options.problems) & set(POPGYM):
            raise ValueError(
                "SSMPPO-heads must be on problems of the zoo, which alone have heads chosen for an LSTM; got "
                f"{list(options.problems)}. Use SSMPPO on those of POPGym."
            )
        others = [name for name, problem in PROBLEMS.items() if set(ROLLOUTS) <= problem.of_ssm.keys()]
        if "RecurrentPPO-rollouts" in options.algorithms and not set(options.problems) <= set(others):
            raise ValueError(
                f"RecurrentPPO-rollouts must be on problems where SSMPPO has other rollouts, {', '.join(others)}; got "
                f"{list(options.problems)}. Leave out the others."
            )
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "runs.jsonl")
        runs = [
            Run(problem, algorithm, seed, options.percent)
            for seed in range(options.seeds)
            for problem in dict.fromkeys(options.problems)
            for algorithm in dict.fromkeys(options.algorithms)
        ]
        jobs = [Job(train_and_evaluate, (run,)) for run in runs if not records.find(**key_of(run))]
        run_jobs(
            jobs,
            LocalEngine(options.processes or None),
            "training",
            total_steps=len(jobs),
            on_result=lambda job, line: records.add(**key_of(job.arguments[0]), **line),
        )
    show(options, records)


if __name__ == "__main__":
    main()
