"""How ways to cope with hidden motors scale: with the number of dimensions in which they are hidden, and with training.

A point mass in d dimensions whose actions go through a hidden matrix (PointActuators), and the three small environments
of AIB, the Actuator Inversion Benchmark (https://arxiv.org/abs/2602.06550), on its 20 + 20 + 20 contexts.

    as_is                   a PPO policy of the nominal physics, which knows nothing of what is hidden
    corrected_filter        the same behind VectorActionCorrection, with a Kalman filter on a map of the actions
    corrected_gradients     the same with a meta-learned model that adapts by gradient steps
    corrected_rls           the same with recursive least squares on that model's last layer
    domain_randomisation    PPO on the training tasks, from the plain observation
    told                    PPO on the training tasks that is told what is hidden
    one_transition          PPO on the training tasks that also sees the last transition
    window_ssm              PPO that reads the last 16 of them with a state-space model
    ssm_ppo, recurrent_ppo  a recurrent state-space model, and sb3-contrib's LSTM
    adapted_predictions     PPO that sees what the adapted model predicts for a few actions

Policies and models lie in the output folder; runs.jsonl holds a line for each evaluation, as soon as it is known, and
the same command goes on with what is missing, the cheap rows and the first seeds first. At the end it prints the tables
and draws return_by_dimension.png and return_by_steps.png.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import (
    Adapter,
    DynamicsModel,
    KalmanAdapter,
    MetaTrainer,
    RecursiveLeastSquares,
    SSMFeaturesExtractor,
)
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.jobs import Job, add_progress, run_jobs
from ssm_metarl_gym.experiments.pictures import draw_lines
from ssm_metarl_gym.experiments.records import Records, append_line
from ssm_metarl_gym.experiments.report import Estimate, estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.saved_agents import find_algorithm
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.experiments.statistics import bootstrap_interval, interquartile_mean
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.tasks.aib import AIB_CONTEXTS
from ssm_metarl_gym.tasks.families import FAMILIES
from ssm_metarl_gym.tasks.task import TaskBatch
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation, make_sb3_env

NUM_TRAINING_ENVS, ROLLOUT_LENGTH, NUM_EPOCHS = 64, 32, 8
META_UPDATES, INNER_STEPS, NUM_STREAMS = 1_500, 3, 1_000
FIT_TRANSITIONS, FIT_UPDATES, FIT_LEARNING_RATE = 20_000, 3_000, 3e-3
EVALUATION_SEED = 1_000_000
# The dimension whose curve over the steps of training is drawn, and the steps at which dimensions are compared.
CURVE_DIMENSION, COMPARED_STEPS = 3, 1_000_000
# To be raised whenever a default of the filter, of the other adapters or of the correction changes: what adapts is then
# evaluated again.
RULE = 3
# AIB's unscored steps before every episode.
WARM_UP = 24
FILES = ("runs.jsonl", "return_by_dimension.png", "return_by_steps.png")


@dataclass(frozen=True)
class Physics:
    """Where agents are compared.

    Attributes:
        family: The name of the family.
        env_kwargs: Arguments of the environment.
        gamma: PPO's discount.
        nominal_steps: Steps of the policy of the nominal physics.
        best: The greatest return, by which those of AIB are scaled.
        length: Steps of an episode.
        explores_smoothly: Whether what is tried at random stays the same for some steps, as a rare reward needs.
    """

    family: str
    env_kwargs: dict[str, Any]
    gamma: float
    nominal_steps: int
    best: float
    length: int
    explores_smoothly: bool = False

    @property
    def env_id(self) -> str:
        """The id of the environment."""
        return f"ssm_metarl/{self.family}-v0"


AIB = tuple(AIB_CONTEXTS)
PHYSICS = {
    f"d = {d}": Physics("PointActuators", {"dimension": d}, 0.9, 25_000 * (d + 1), 100.0, 100) for d in range(1, 17)
}
PHYSICS |= {
    name: Physics(name, {"contexts": "aib"}, 0.99, 600_000, length, length, name != "ComplexODE")
    for name, length in zip(AIB, (100, 100, 200), strict=True)
}


@dataclass(frozen=True)
class Agent:
    """What is trained on the training tasks.

    Attributes:
        algorithm: The algorithm of Stable-Baselines3, of sb3-contrib or of this package.
        policy: Its policy.
        observation: What it sees, as for :func:`make_sb3_env`.
        context: Whether it is told what is hidden.
        sees_predictions: Whether it sees what the adapted model predicts.
    """

    algorithm: str
    policy: str
    observation: str = "plain"
    context: str = "hidden"
    sees_predictions: bool = False


NOMINAL = Agent("PPO", "MlpPolicy")
CORRECTED = ("as_is", "corrected_filter", "corrected_gradients", "corrected_rls")
TRAINED = {
    "domain_randomisation": Agent("PPO", "MlpPolicy"),
    "told": Agent("PPO", "MlpPolicy", context="visible"),
    "one_transition": Agent("PPO", "MlpPolicy", "transition"),
    "window_ssm": Agent("PPO", "MlpPolicy", "window"),
    "ssm_ppo": Agent("SSMPPO", "SSMPolicy", "transition"),
    "recurrent_ppo": Agent("RecurrentPPO", "MlpLstmPolicy", "transition"),
    "adapted_predictions": Agent("PPO", "MlpPolicy", sees_predictions=True),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    dimensions: tuple[int, ...] = option(
        (2, 4, 6, 1, 3), "those of the point mass, or none", least=1, below=17, may_be_empty=True
    )
    aib: tuple[str, ...] = option((), "environments of AIB", choices=AIB)
    rows: tuple[str, ...] = option(CORRECTED, "what is compared", choices=[*CORRECTED, *TRAINED])
    steps: tuple[int, ...] = option((400_000, 1_000_000), "steps of training on the tasks", least=1, below=10**9)
    seeds: int = option(5, "number of seeds of policies, models and tasks", least=1, below=1_000)
    num_tasks: int = option(300, "tasks of each evaluation", least=20, below=100_000)
    report: bool = option(False, "run nothing: print and draw what is known")
    processes: int = option(0, "processes side by side (0: as many as there are cores)", least=0, below=1_000)
    output: Path = option(Path("output/actuators"), "folder", check=partial(check_output_folder, file_names=FILES))

    @property
    def physics(self) -> list[str]:
        """The names of what is compared in."""
        return [*(f"d = {d}" for d in self.dimensions), *self.aib]

    @property
    def records_path(self) -> Path:
        """The file of what is known, to which processes that run side by side only append."""
        return self.output / "runs.jsonl"

    def records(self) -> Records:
        """What is known so far; for the time when nothing runs."""
        return Records(self.records_path)

    def stem(self, name: str, seed: int, what: str) -> Path:
        """The path of a policy or a model, without the ending."""
        return self.output / re.sub(r"\W+", "_", f"{name} {seed} {what}")


def columns_of(name: str, num_tasks: int) -> dict[str, dict[str, Any]]:
    """Where agents are evaluated: the arguments of the environments."""
    physics = PHYSICS[name]
    half = physics.length // 2
    if name not in AIB:
        return {
            "interpolation": {"split": "interpolation"},
            "extrapolation": {"split": "extrapolation"},
            "switch": {"split": "interpolation", "switch": {"step": half}},
            "nominal": {"task": {}},
        }
    columns: dict[str, dict[str, Any]] = {}
    for warm_up in (0, WARM_UP):
        for column, split in (("interpolation",) * 2, ("extrapolation",) * 2, ("switch", "interpolation")):
            tasks = AIB_CONTEXTS[name].distribution(split).tasks
            each = TaskBatch.from_tasks([tasks[i % len(tasks)] for i in range(num_tasks)])
            env_kwargs = {"split": split, "task": each, "warm_up_steps": warm_up}
            env_kwargs["max_episode_steps"] = physics.length + warm_up
            if column == "switch":
                env_kwargs["switch"] = {"step": half + warm_up}
            columns[column + (f", {warm_up} before" if warm_up else "")] = env_kwargs
    return columns


def make_env(name: str, row: str, seed: int, num_rows: int, options: Options, **env_kwargs: Any) -> VecEnv:
    """Rows of an environment as an agent sees them."""
    physics, agent = PHYSICS[name], TRAINED.get(row, NOMINAL)
    env_kwargs = physics.env_kwargs | env_kwargs | {"context": agent.context}
    if row not in CORRECTED[1:] and not agent.sees_predictions:
        return make_sb3_env(physics.env_id, num_rows, observation=agent.observation, **env_kwargs)
    envs: Any = make_rows(physics.env_id, num_rows, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
    if row == "corrected_filter":
        return SB3VecEnv(VectorActionCorrection(VectorOnlineAdaptation(envs, load_filter(name, seed, options))))
    stem = options.stem(name, seed, "dynamics")
    trainer = MetaTrainer.load(stem.with_suffix(".pt"), make_model(physics.env_id, **physics.env_kwargs))
    if row == "corrected_rls":
        envs = VectorOnlineAdaptation(envs, RecursiveLeastSquares(trainer.model))
    else:
        adapter = Adapter(trainer.model, trainer.adaptation_config())
        envs = VectorOnlineAdaptation(envs, adapter, observe_predictions=agent.sees_predictions)
    if agent.sees_predictions:
        return SB3VecEnv(envs)
    reference = options.stem(name, seed, "reference").with_suffix(".pt")
    return SB3VecEnv(VectorActionCorrection(envs, load_weights(physics.env_id, reference, **physics.env_kwargs)))


def make_map_model(name: str) -> DynamicsModel:
    """An untrained model of the dynamics that adapts a map of the actions, as small as such physics need."""
    envs = make_rows(PHYSICS[name].env_id, 1, **PHYSICS[name].env_kwargs)
    spaces = envs.single_observation_space, envs.single_action_space
    core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(*spaces), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    return DynamicsModel(*spaces, core, adapts="action_map")


def load_filter(name: str, seed: int, options: Options) -> KalmanAdapter:
    """The filter on the map of the actions."""
    model = make_map_model(name)
    model.load_state_dict(torch.load(options.stem(name, seed, "map").with_suffix(".pt"), weights_only=True))
    return KalmanAdapter(model, mixed=name not in AIB)


def note(options: Options, name: str, what: str, seed: int, started: float, steps: int) -> None:
    """Write what something took that others stand on."""
    seconds = round(time.process_time() - started, 1)
    line = {"study": "prepared", "physics": name, "row": what, "seed": seed, "cpu_seconds": seconds, "steps": steps}
    append_line(options.records_path, **line)


def learn_policy(name: str, row: str, seed: int, steps: int, options: Options) -> None:
    """Train a policy, in the nominal physics or on the training tasks, where it is not there yet."""
    path = options.stem(name, seed, f"{row} {steps}").with_suffix(".zip")
    if path.exists():
        return
    started, physics, agent = time.process_time(), PHYSICS[name], TRAINED.get(row, NOMINAL)
    tasks: dict[str, Any] = {"split": "train"} if row in TRAINED else {"task": {}}
    env = VecNormalize(
        make_env(name, row, seed, NUM_TRAINING_ENVS, options, **tasks), clip_obs=5.0, gamma=physics.gamma
    )
    policy_kwargs: dict[str, Any] = {"log_std_init": -0.7}  # what is tried at first would else hit the bounds
    if agent.observation == "window":  # the state-space model ends in gated layers of its own
        policy_kwargs |= {"net_arch": [], "features_extractor_class": SSMFeaturesExtractor}
    model = find_algorithm(agent.algorithm)(
        agent.policy,
        env,
        learning_rate=LinearSchedule(2e-3, 2e-4, 1.0),
        n_steps=ROLLOUT_LENGTH,
        batch_size=ROLLOUT_LENGTH * NUM_TRAINING_ENVS // 4,
        n_epochs=NUM_EPOCHS,
        gamma=physics.gamma,
        # SB3 seeds environment i with seed + i: these lie far apart.
        seed=int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]),
        device="cpu",
        policy_kwargs=policy_kwargs,
        use_sde=physics.explores_smoothly,
        sde_sample_freq=16,
    ).learn(steps)
    with replacing(path.with_suffix(".pkl")) as temporary:
        env.save(str(temporary))
    with replacing(path) as temporary:
        model.save(temporary)
    note(options, name, f"policy, {row}", seed, started, model.num_timesteps)


def load_policy(name: str, row: str, seed: int, steps: int, env: VecEnv, options: Options) -> tuple[Any, VecNormalize]:
    """A policy, and the environment with the observations scaled as it knows them."""
    path = options.stem(name, seed, f"{row} {steps}").with_suffix(".zip")
    scaled = VecNormalize.load(str(path.with_suffix(".pkl")), env)
    scaled.training = scaled.norm_reward = False
    return find_algorithm(TRAINED.get(row, NOMINAL).algorithm).load(path, device="cpu"), scaled


def fit_map_model(name: str, seed: int, options: Options) -> None:
    """Fit the model of the nominal physics around the policy's behaviour, where it is not there yet."""
    path = options.stem(name, seed, "map").with_suffix(".pt")
    if path.exists():
        return
    started = time.process_time()
    torch.manual_seed(seed)
    model = make_map_model(name)
    env = make_env(name, "nominal", seed, 8, options, task={})
    policy, scaled = load_policy(name, "nominal", seed, PHYSICS[name].nominal_steps, env, options)
    model.fit(
        scaled,
        policy,
        num_transitions=FIT_TRANSITIONS,
        num_updates=FIT_UPDATES,
        learning_rate=FIT_LEARNING_RATE,
        seed=seed,
    )
    save_weights(model, path)
    note(options, name, "model of the nominal physics", seed, started, FIT_TRANSITIONS)


def meta_train(name: str, seed: int, options: Options) -> None:
    """Meta-train the model of the dynamics and fit its reference, where they are not there yet."""
    path, reference = (options.stem(name, seed, what).with_suffix(".pt") for what in ("dynamics", "reference"))
    if path.exists():
        return
    started, physics = time.process_time(), PHYSICS[name]
    torch.manual_seed(seed)
    trainer = MetaTrainer(
        physics.env_id,
        make_model(physics.env_id, **physics.env_kwargs),
        env_kwargs=physics.env_kwargs,
        seed=seed,
        num_streams=NUM_STREAMS,
        inner_steps=INNER_STEPS,
    ).learn(META_UPDATES)
    save_weights(trainer.reference(), reference)
    trainer.save(path)
    steps = NUM_STREAMS * trainer.options.stream_length
    note(options, name, "meta-learned model", seed, started, steps)


def key_of(name: str, row: str, seed: int, steps: int, column: str, options: Options) -> dict[str, Any]:
    """What tells an evaluation from others."""
    key = {"study": "returns", "physics": name, "row": row, "steps": steps, "seed": seed, "column": column}
    return key | {"num_tasks": options.num_tasks} | rule_of(row)


def adapts(row: str) -> bool:
    """Whether a model adapts in a row."""
    return row in CORRECTED[1:] or (row in TRAINED and TRAINED[row].sees_predictions)


def rule_of(row: str) -> dict[str, int]:
    """What says by which rule a row adapts, if it does."""
    return {"rule": RULE} if adapts(row) else {}


def run_row(name: str, row: str, seed: int, steps: int, columns: Sequence[str], options: Options) -> None:
    """Train what a row needs for itself, and evaluate it in these columns."""
    policy_row, policy_steps = (row, steps) if row in TRAINED else ("nominal", PHYSICS[name].nominal_steps)
    learn_policy(name, policy_row, seed, policy_steps, options)
    for column in columns:
        started = time.process_time()
        env = make_env(name, row, seed, options.num_tasks, options, **columns_of(name, options.num_tasks)[column])
        policy, scaled = load_policy(name, policy_row, seed, policy_steps, env, options)
        returns = np.round(returns_of(evaluate(policy, scaled, seed=EVALUATION_SEED + 1_000 * seed)), 3).tolist()
        line = {"cpu_seconds": round(time.process_time() - started, 1), "returns": returns}
        append_line(options.records_path, **key_of(name, row, seed, steps, column, options), **line)
        add_progress(1)


def all_runs(options: Options) -> Iterator[tuple[str, str, int, int]]:
    """Physics, row, seed and steps of each run: cheap rows first, then few steps; of these the first seeds first."""
    stages = [([row for row in options.rows if row in CORRECTED], 0)]
    stages += [([row for row in options.rows if row in TRAINED], steps) for steps in sorted(options.steps)]
    for rows, steps in stages:
        for seed in range(options.seeds):
            for name in options.physics:
                for row in rows:
                    yield name, row, seed, steps


def plan_jobs(options: Options, records: Records) -> list[Job]:
    """What is missing, and what that stands on."""
    jobs: dict[Job, None] = {}
    for name, row, seed, steps in all_runs(options):
        columns = columns_of(name, options.num_tasks)
        missing = tuple(c for c in columns if not records.find(**key_of(name, row, seed, steps, c, options)))
        if not missing:
            continue
        after: tuple[Job, ...] = ()
        if row in CORRECTED:
            after = (Job(learn_policy, (name, "nominal", seed, PHYSICS[name].nominal_steps, options)),)
        if row == "corrected_filter":
            after = (*after, Job(fit_map_model, (name, seed, options), after))
        elif adapts(row):
            after = (*after, Job(meta_train, (name, seed, options)))
        jobs |= dict.fromkeys((*after, Job(run_row, (name, row, seed, steps, missing, options), after)))
    return list(jobs)


def returns_in(records: Records, options: Options, *, row: str, **key: Any) -> list[list[float]]:
    """The returns of each seed that is known, ``[num_seeds num_tasks]``."""
    lines = records.find(study="returns", num_tasks=options.num_tasks, row=row, **key, **rule_of(row))
    return [line["returns"] for line in lines if line["seed"] < options.seeds]


def labels_of(options: Options) -> Iterator[tuple[str, str, int]]:
    """The rows of a table: how they are called, and what they are of."""
    for row, steps in dict.fromkeys((row, steps) for _, row, _, steps in all_runs(options)):
        yield f"{row}, {steps / 1e6:g}M" if steps else row, row, steps


def show_returns(name: str, options: Options, records: Records) -> None:
    """Print the mean returns with 95 % intervals over seeds, and the CPU seconds of an evaluation of a column."""
    columns, rows = list(columns_of(name, options.num_tasks)), []
    for label, row, steps in labels_of(options):
        found = [returns_in(records, options, physics=name, row=row, steps=steps, column=c) for c in columns]
        if any(found):
            num_seeds = str(min(map(len, found)))
            rows.append([label, *(f"{estimate(each, 0):.1f}" if each else "" for each in found), num_seeds])
    if rows:
        print(f"\n{name}, {options.num_tasks} tasks\n\n{format_markdown(['', *columns, 'seeds'], rows)}", flush=True)


def show_costs(options: Options, records: Records) -> None:
    """Print what policies and models took, the mean over seeds."""
    rows = []
    for name in options.physics:
        lines = records.find(study="prepared", physics=name)
        for what, steps in dict.fromkeys((line["row"], line["steps"]) for line in lines):
            seconds = [line["cpu_seconds"] for line in lines if (line["row"], line["steps"]) == (what, steps)]
            rows.append([name, what, f"{steps:,}", f"{np.mean(seconds):.1f}"])
    if rows:
        print(f"\n{format_markdown(['', 'what', 'environment steps', 'CPU seconds'], rows)}", flush=True)


def show_scaled(name: str, options: Options, records: Records) -> None:
    """Print scaled interquartile means over contexts and seeds, and returns by the distance from the training range."""
    columns, rows = list(columns_of(name, options.num_tasks)), []
    for label, row, steps in labels_of(options):
        cells = []
        for column in columns:
            returns = returns_in(records, options, physics=name, row=row, steps=steps, column=column)
            values = context_means(returns).ravel() / PHYSICS[name].best
            interval = bootstrap_interval(values, 0, statistic=interquartile_mean) if len(values) else ()
            cells.append(f"{Estimate(float(interquartile_mean(values)), *interval):.2f}" if len(values) else "")
        if any(cells):
            rows.append([label, *cells])
    if not rows:
        return
    print(f"\n{name}, interquartile mean of returns / {PHYSICS[name].best:g} over contexts and seeds\n")
    print(format_markdown(["", *columns], rows))

    distances = context_distances(name)
    bins = [(0.0, 0.125), (0.125, 0.25), (0.25, 0.375), (0.375, 0.51)]
    rows = []
    for label, row, steps in labels_of(options):
        key: dict[str, Any] = {"physics": name, "row": row, "steps": steps}
        inside = returns_in(records, options, **key, column="interpolation")
        means = context_means(returns_in(records, options, **key, column="extrapolation"))
        if inside and len(means):
            cells = [f"{estimate(inside, 0):.1f}"]
            for low, high in bins:
                chosen = (low < distances) & (distances <= high)
                cells.append(f"{estimate(means[:, chosen], 0):.1f}" if chosen.any() else "")
            rows.append([label, *cells])
    header = ["distance from the training range, in its widths", "0", *(f"{low:g} to {high:.3g}" for low, high in bins)]
    print(f"\n{format_markdown(header, rows)}", flush=True)


def context_means(returns: Sequence[Sequence[float]]) -> Any:
    """The mean return of each of AIB's contexts, ``Float[num_seeds 20]``."""
    means = [[np.mean(each[context::20]) for context in range(20)] for each in returns]
    return np.array(means).reshape(len(means), 20)


def context_distances(name: str) -> Any:
    """How far each extrapolation context lies outside of the training range, in its widths: ``Float[20]``."""
    tasks = TaskBatch.from_tasks(AIB_CONTEXTS[name].distribution("extrapolation").tasks)
    distances = np.zeros(len(tasks))
    for parameter, marginal in FAMILIES[name].train.parameters.items():
        low, high = marginal.bounds
        column = tasks.column(parameter)
        distances = np.maximum(distances, np.maximum(low - column, column - high) / (high - low))
    return distances


def draw(options: Options, records: Records) -> None:
    """Return against the dimension, and against the steps of training at one dimension."""
    by_dimension: dict[str, dict[str, dict[float, Estimate]]] = {}
    by_steps: dict[str, dict[str, dict[float, Estimate]]] = {}
    for column in ("interpolation", "extrapolation", "switch"):
        for label, row, steps in labels_of(options):
            for d in sorted(options.dimensions):
                found = returns_in(records, options, physics=f"d = {d}", row=row, steps=steps, column=column)
                if not found:
                    continue
                if row != "as_is" and steps in (0, COMPARED_STEPS):
                    by_dimension.setdefault(column, {}).setdefault(label, {})[d] = estimate(found, 0)
                if row != "as_is" and d == CURVE_DIMENSION:
                    by_steps.setdefault(column, {}).setdefault(row, {})[steps] = estimate(found, 0)
    for lines, file_name, of_what in (
        (by_dimension, "return_by_dimension.png", "dimensions in which actions are hidden"),
        (by_steps, "return_by_steps.png", f"steps of training on the tasks, d = {CURVE_DIMENSION}"),
    ):
        if lines:
            draw_lines(lines, of_what, options.output / file_name)


@stoppable(lambda: "the same command again goes on with the runs that are missing")
def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the tables and draw the pictures."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    with hold_output(options.output):
        with refusing():
            jobs = [] if options.report else plan_jobs(options, options.records())
        total = sum(len(job.arguments[4]) for job in jobs if job.work is run_row)
        run_jobs(jobs, total, "evaluating", num_workers=options.processes or None)
        records = options.records()
        for name in options.physics:
            show_returns(name, options, records)
            if name in AIB:
                show_scaled(name, options, records)
        show_costs(options, records)
        draw(options, records)


if __name__ == "__main__":
    main()
