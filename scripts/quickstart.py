"""Keep your policy: an SB3 policy of one physics, put unchanged behind two wrappers, survives physics it never saw.

For CartPolePolarity and PendulumPolarity (hidden masses, lengths and forces, and a hidden sign of the action) this
trains Stable-Baselines3's own PPO("MlpPolicy") in the nominal physics alone and meta-trains a model of the dynamics on
training tasks. Then it compares, on tasks that none of them has met:

    nominal              the policy as it is
    corrected            the same policy, its actions corrected by the model, which adapts online
    adapted_predictions  another PPO, trained on the family, that sees what the adapted model predicts for its actions
    oracle               another PPO, trained on the family, that is told the hidden parameters

Writes results.json, switch.png, comparison.gif, and a folder with the model and the policies of each environment.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options
from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights
from ssm_metarl_gym.experiments.engines import LocalEngine, add_progress
from ssm_metarl_gym.experiments.evaluation import Rewards, evaluate, mean_curve, returns_of
from ssm_metarl_gym.experiments.jobs import Job, run_jobs
from ssm_metarl_gym.experiments.pictures import draw_curves, film, save_film
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import Stopwatch, hold_output
from ssm_metarl_gym.experiments.sb3_training import save_agent
from ssm_metarl_gym.experiments.scoreboard.board import rule_of
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.wrappers import (
    ActionCorrection,
    OnlineAdaptation,
    SB3VecEnv,
    VectorActionCorrection,
    VectorOnlineAdaptation,
)

# The policy that each agent acts by.
AGENTS = {
    "nominal": "nominal",
    "corrected": "nominal",
    "adapted_predictions": "adapted_predictions",
    "oracle": "oracle",
}
LABELS = {
    "nominal": "policy of the nominal physics",
    "corrected": "the same, corrected",
    "adapted_predictions": "adapted predictions",
    "oracle": "told the parameters",
}
SWITCH_STEP = 100
SPLITS: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": SWITCH_STEP}},
    "nominal": {"task": {}},
}
EPISODE_LENGTH = 200
NUM_TRAINING_ENVS = 64
ROLLOUT_LENGTH = 32
EVALUATION_SEED = 1_000_000
# An update of the meta-training takes about as long as so many steps.
STEPS_PER_UPDATE = 300
NUM_STREAMS, STREAM_LENGTH = 1000, 64
META_UPDATES = 1500
REFERENCE_UPDATES = 2000
FILES = ("results.json", "switch.png", "comparison.gif")


@dataclass(frozen=True)
class Recipe:
    """What the environments need different values of: of PPO, and how many steps each policy takes."""

    learning_rate: float
    gamma: float
    ent_coef: float
    steps: dict[str, int]


RECIPES = {
    "ssm_metarl/CartPolePolarity-v0": Recipe(
        learning_rate=1.5e-3,
        gamma=0.98,
        ent_coef=0.01,
        steps={"nominal": 150_000, "adapted_predictions": 150_000, "oracle": 200_000},
    ),
    "ssm_metarl/PendulumPolarity-v0": Recipe(
        learning_rate=1e-3,
        gamma=0.95,
        ent_coef=0.0,
        steps={"nominal": 300_000, "adapted_predictions": 300_000, "oracle": 400_000},
    ),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    quick: bool = option(False, "fewer steps and tasks, the same story")
    seed: int = option(0, "seeds everything: one seed gives one result", least=0, below=1_000_000)
    seeds: int = option(1, "number of seeds, from --seed on, each in a folder of its own", least=1, below=1_000)
    output: Path = option(
        Path("output/quickstart"), "folder for the results", check=partial(check_output_folder, file_names=FILES)
    )
    num_tasks: int | None = option(None, "tasks per split (default: 100, quick: 20)", least=2, below=100_000)
    percent: int | None = option(
        None, "steps and updates, in per cent of the full ones (default: 100, quick: 35)", least=1, below=1_000
    )


@dataclass(frozen=True)
class Budget:
    """How much is done: updates of the meta-training, steps of each policy by environment, tasks of a split."""

    meta_updates: int
    steps: dict[str, dict[str, int]]
    num_tasks: int


def choose_budget(options: Options) -> Budget:
    """What the command line asks for; PPO takes whole rollouts, so that steps are rounded up to them."""
    percent = options.percent or (35 if options.quick else 100)
    rollout = NUM_TRAINING_ENVS * ROLLOUT_LENGTH
    return Budget(
        meta_updates=math.ceil(META_UPDATES * percent / 100),
        steps={
            env_id: {
                policy: math.ceil(steps * percent / 100 / rollout) * rollout for policy, steps in recipe.steps.items()
            }
            for env_id, recipe in RECIPES.items()
        },
        num_tasks=options.num_tasks or (20 if options.quick else 100),
    )


def folder_of(env_id: str, options: Options) -> Path:
    """Where the model and the policies of an environment lie."""
    return options.output / env_id.removeprefix("ssm_metarl/").removesuffix("-v0")


def load_trainer(env_id: str, options: Options) -> MetaTrainer:
    """The meta-trained model and how it was trained."""
    return MetaTrainer.load(folder_of(env_id, options) / "dynamics.pt", make_model(env_id))


def load_reference(env_id: str, options: Options) -> DynamicsModel:
    """The model of the nominal physics, which the policy knows."""
    return load_weights(env_id, folder_of(env_id, options) / "reference.pt")


def uses_model(agent: str) -> bool:
    """Whether an agent stands on the model of the dynamics."""
    return agent in ("corrected", "adapted_predictions")


def make_env(agent: str, env_id: str, num_rows: int, options: Options, **env_kwargs: Any) -> VecEnv:
    """Rows of an environment as an agent sees them, all of them stepped, adapted and corrected together."""
    context = "visible" if agent == "oracle" else "hidden"
    env = make_rows(env_id, num_rows, autoreset_mode=AutoresetMode.SAME_STEP, context=context, **env_kwargs)
    if uses_model(agent):
        trainer = load_trainer(env_id, options)
        adapter = Adapter(trainer.model, trainer.adaptation_config())
        env = VectorOnlineAdaptation(env, adapter, observe_predictions=agent == "adapted_predictions")
        if agent == "corrected":
            env = VectorActionCorrection(env, load_reference(env_id, options))
    return SB3VecEnv(env)


def load_policy(agent: str, env_id: str, env: VecEnv, options: Options) -> tuple[PPO, VecEnv]:
    """The policy that an agent acts by, and the environment with the observations scaled as it knows them."""
    folder = folder_of(env_id, options) / AGENTS[agent]
    env = VecNormalize.load(str(folder / "vecnormalize.pkl"), env)
    env.training = env.norm_reward = False
    return PPO.load(folder / "model.zip", device="cpu"), env


class CountSteps(BaseCallback):
    """Adds the steps taken to the counter that the progress bar shows."""

    def _on_step(self) -> bool:
        add_progress(self.training_env.num_envs)
        return True


def meta_train(env_id: str, options: Options) -> float:
    """Meta-train the model of the dynamics, and fit the reference to the nominal physics; the CPU seconds they took."""
    stopwatch = Stopwatch()
    torch.manual_seed(options.seed)
    streams = {"num_streams": NUM_STREAMS, "stream_length": STREAM_LENGTH}
    trainer = MetaTrainer(env_id, make_model(env_id), seed=options.seed, inner_steps=3, **streams)
    trainer.learn(choose_budget(options).meta_updates, callback=lambda trainer, loss: add_progress(STEPS_PER_UPDATE))
    folder = folder_of(env_id, options)
    trainer.save(folder / "dynamics.pt")
    reference = trainer.reference(num_updates=REFERENCE_UPDATES, seed=options.seed)
    save_weights(reference, folder / "reference.pt")
    return stopwatch.read()["cpu_seconds"]


def train(policy: str, env_id: str, options: Options) -> float:
    """Train one policy, in the nominal physics or on the training tasks, and save it; the CPU seconds that it took."""
    stopwatch = Stopwatch()
    recipe = RECIPES[env_id]
    folder = folder_of(env_id, options) / policy
    folder.mkdir(exist_ok=True)
    env_kwargs: dict[str, Any] = {"task": {}} if policy == "nominal" else {"split": "train"}
    env = VecNormalize(make_env(policy, env_id, NUM_TRAINING_ENVS, options, **env_kwargs), gamma=recipe.gamma)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=ROLLOUT_LENGTH,
        batch_size=NUM_TRAINING_ENVS * ROLLOUT_LENGTH // 4,
        n_epochs=8,
        learning_rate=LinearSchedule(recipe.learning_rate, 0.1 * recipe.learning_rate, 1.0),
        gamma=recipe.gamma,
        ent_coef=recipe.ent_coef,
        seed=options.seed,
        device="cpu",
    )
    model.learn(choose_budget(options).steps[env_id][policy], callback=CountSteps())
    save_agent(model, folder)
    return stopwatch.read()["cpu_seconds"]


def evaluate_agent(agent: str, env_id: str, options: Options) -> dict[str, Rewards]:
    """The rewards of an agent in one episode of each task, by split; every agent meets the same tasks."""
    rewards = {}
    for split, env_kwargs in SPLITS.items():
        env = make_env(agent, env_id, choose_budget(options).num_tasks, options, **env_kwargs)
        rewards[split] = evaluate(*load_policy(agent, env_id, env, options), seed=EVALUATION_SEED + options.seed)
        add_progress(sum(map(len, rewards[split])))
    return rewards


def plan_jobs(options: Options) -> list[Job]:
    """All jobs, the most urgent ones first: those that others wait for, and of the rest the longest."""
    models = {env_id: Job(meta_train, (env_id, options)) for env_id in RECIPES}
    policies = {
        (policy, env_id): Job(train, (policy, env_id, options), (model,) if uses_model(policy) else ())
        for policy in ("adapted_predictions", "nominal", "oracle")
        for env_id, model in models.items()
    }
    evaluations = [
        Job(evaluate_agent, (agent, env_id, options), (models[env_id], policies[policy, env_id]))
        for agent, policy in AGENTS.items()
        for env_id in RECIPES
    ]
    return [*models.values(), *policies.values(), *evaluations]


def count_steps(budget: Budget) -> int:
    """All steps that the jobs tell the progress bar of."""
    evaluated = len(AGENTS) * len(RECIPES) * len(SPLITS) * budget.num_tasks * EPISODE_LENGTH
    trained = sum(sum(by_policy.values()) for by_policy in budget.steps.values())
    return evaluated + trained + len(RECIPES) * budget.meta_updates * STEPS_PER_UPDATE


def make_row(agent: str, env_id: str, split: str, rewards: Rewards, options: Options) -> dict[str, Any]:
    """What results.json holds of an agent in a split."""
    returns = returns_of(rewards)
    mean_return = estimate([returns], options.seed)
    return {
        "name": agent,
        "env": env_id,
        "split": split,
        **mean_return.to_dict("mean_return"),
        "num_tasks": len(rewards),
        "seed": options.seed,
        "returns": returns,
    }


def make_costs(results: dict[Job, Any], budget: Budget) -> list[dict[str, Any]]:
    """What each agent cost: CPU seconds of its training, and steps on tasks of the family, of the model at random."""
    seconds = {job.arguments[:-1]: spent for job, spent in results.items() if job.work is not evaluate_agent}
    return [
        {
            "name": agent,
            "env": env_id,
            "steps": budget.steps[env_id][policy],
            "steps_on_the_family": 0 if policy == "nominal" else budget.steps[env_id][policy],
            "cpu_seconds": seconds[policy, env_id],
            "steps_of_the_model_on_the_family": NUM_STREAMS * STREAM_LENGTH if uses_model(agent) else 0,
            "cpu_seconds_of_the_model": seconds[env_id,] if uses_model(agent) else 0.0,
        }
        for agent, policy in AGENTS.items()
        for env_id in RECIPES
    ]


def show_tables(rows: list[dict[str, Any]], costs: list[dict[str, Any]]) -> None:
    """Print a table for each environment, with intervals over seeds where there are several."""
    header = ["", *SPLITS, "steps of the policy on the family", "of the model"]
    seeds = sorted({row["seed"] for row in rows})
    of_what = f"{len(seeds)} seeds" if len(seeds) > 1 else "tasks"
    print(f"\nMean return over {rows[0]['num_tasks']} held-out tasks, with 95 % intervals over {of_what}:")
    for env_id in RECIPES:
        lines = []
        for agent, label in LABELS.items():
            own = [row for row in rows if (row["name"], row["env"]) == (agent, env_id)]
            returns = [[row["returns"] for row in own if row["split"] == split] for split in SPLITS]
            cost = next(cost for cost in costs if (cost["name"], cost["env"]) == (agent, env_id))
            estimates = [f"{estimate(of_split, seeds[0]):.1f}" for of_split in returns]
            steps = [f"{cost[f'steps_{whose}on_the_family']:,}" for whose in ("", "of_the_model_")]
            lines.append([f"{label} (`{agent}`)", *estimates, *steps])
        header[0] = env_id.removeprefix("ssm_metarl/")
        print(f"\n{format_markdown(header, lines)}")


def draw_switch(rewards: dict[tuple[str, str, str], Rewards], path: Path) -> None:
    """The mean reward of the last five steps, before and after the switch."""
    titles = {env_id: f"{env_id.removeprefix('ssm_metarl/')}, held-out tasks" for env_id in RECIPES}
    curves = {
        label: {titles[env_id]: mean_curve(rewards[agent, env_id, "switch"]) for env_id in RECIPES}
        for agent, label in LABELS.items()
    }
    draw_curves(curves, dict.fromkeys(titles.values(), SWITCH_STEP), path, same_scale=False)


def film_comparison(options: Options) -> None:
    """The same frozen policy as it is and corrected, on the same hidden task, whose sign flips half-way."""
    env_id = next(iter(RECIPES))
    trainer = load_trainer(env_id, options)

    def make_filmed_env(agent: str) -> gym.Env[Any, Any]:
        env = gym.make(env_id, render_mode="rgb_array", **SPLITS["switch"])
        if agent == "nominal":
            return env
        env = OnlineAdaptation(env, Adapter(trainer.model, trainer.adaptation_config()))
        return ActionCorrection(env, load_reference(env_id, options))

    films = []
    for agent in ("nominal", "corrected"):
        env: VecEnv = DummyVecEnv([partial(make_filmed_env, agent)])
        policy, env = load_policy(agent, env_id, env, options)
        films.append(film(policy, env, LABELS[agent], seed=EVALUATION_SEED))
        env.close()
    save_film(options.output / "comparison.gif", *films)


def run(options: Options) -> dict[str, Any]:
    """Train and evaluate with one seed, draw what came of it, and write and give the results."""
    started = time.perf_counter()
    # Those of an earlier run would not be of the files that this one writes.
    (options.output / "results.json").unlink(missing_ok=True)
    for env_id in RECIPES:
        folder_of(env_id, options).mkdir(parents=True, exist_ok=True)
    budget = choose_budget(options)
    outcomes = run_jobs(plan_jobs(options), LocalEngine(), "training and evaluating", total_steps=count_steps(budget))

    rewards = {
        (*job.arguments[:2], split): of_split
        for job, by_split in outcomes.items()
        if job.work is evaluate_agent
        for split, of_split in by_split.items()
    }
    draw_switch(rewards, options.output / "switch.png")
    film_comparison(options)
    results = {
        "rows": [make_row(*key, of_tasks, options) for key, of_tasks in rewards.items()],
        "costs": make_costs(outcomes, budget),
        "budget": asdict(budget),
        "settings": settings_of(options),
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(options.output / "results.json", results)
    return results


def finished_results(options: Options) -> dict[str, Any] | None:
    """The results of a run with the same budget and settings that has ended, None where there are none."""
    try:
        results = json.loads((options.output / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"budget": asdict(choose_budget(options)), "settings": settings_of(options)}
    return results if isinstance(results, dict) and {name: results.get(name) for name in wanted} == wanted else None


def settings_of(options: Options) -> dict[str, Any]:
    """What else results depend on, in numbers that JSON holds."""
    recipes = {env_id: asdict(recipe) for env_id, recipe in RECIPES.items()}
    settings = {"seed": options.seed, "recipes": recipes, "rule": rule_of("corrected_gradients")}
    return cast("dict[str, Any]", json.loads(json.dumps(settings)))


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole comparison, with one seed or several; of several, those that are finished are kept."""
    options = parse_options(Options, arguments, description=__doc__)
    torch.set_num_threads(1)
    with hold_output(options.output):
        if options.seeds == 1:
            results = [run(options)]
        else:
            seeds = range(options.seed, options.seed + options.seeds)
            runs = [replace(options, seed=seed, seeds=1, output=options.output / f"seed-{seed}") for seed in seeds]
            results = [finished_results(each) or run(each) for each in runs]
    show_tables([row for each in results for row in each["rows"]], results[0]["costs"])
    seconds = sum(each["seconds"] for each in results)
    folder = options.output / "seed-*" if options.seeds > 1 else options.output
    print(f"\n{seconds:.0f} s; results.json, switch.png and comparison.gif are in {folder}")


if __name__ == "__main__":
    main()
