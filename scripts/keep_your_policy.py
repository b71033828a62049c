"""How well a policy of one physics copes with others, as it is and with its actions corrected by the adapted model.

    main        held-out tasks and the nominal physics: the policy as it is, corrected, corrected by recursive least
                squares in place of gradient steps, and the same for a policy trained over masses and lengths
    gravity     pendulums of other gravities, with which the policy mostly copes by itself: correction must not harm
    constants   what half and twice each constant of the correction does, on training tasks
    rule        who should correct a pendulum whose motor, mass or both are others: a meta-learned model, the filter of
                an action map, or both, one around the other; on training tasks
    noise       noise on what all see that the simulator lacks, in the nominal physics and where a motor is reversed:
                corrected by a meta-learned model, by one that was meta-trained with that noise, by a filter, and by a
                filter whose model was told of that noise, or of three times as much
    corruption  what is left of the gain where a share of the transitions that the model adapts to is corrupted: of the
                corrected policy, and of one that was trained on the family to see adapted predictions

Policies and models are trained once for each seed and lie in the output folder; runs.jsonl holds a line for each
evaluation, as soon as it is known. The same command again goes on, and prints the tables.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
    from ssm_metarl_gym.experiments.signals import end_on_signals

    end_on_signals()

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import Adapter, DynamicsModel, KalmanAdapter, MetaTrainer, RecursiveLeastSquares
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.checks import check_output_folder
from ssm_metarl_gym.experiments.command_line import option, parse_options, refusing
from ssm_metarl_gym.experiments.corruption import CorruptedModel, Corruption
from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.report import estimate, format_markdown
from ssm_metarl_gym.experiments.runs import hold_output
from ssm_metarl_gym.experiments.signals import stoppable
from ssm_metarl_gym.files import replacing
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation, make_sb3_env

FAMILIES = ("CartPolePolarity", "PendulumPolarity")
STUDIES = ("main", "gravity", "constants", "rule", "noise", "corruption")
NUM_TRAINING_ENVS, ROLLOUT_LENGTH = 64, 128
META_UPDATES, INNER_STEPS, NUM_STREAMS = 1_500, 3, 1_000
# To be raised whenever a default of an adapter or of the correction changes: what adapts is then evaluated again.
RULE = 2
# Seeds of held-out tasks, and of the training tasks on which constants are chosen. (Columns of another gravity have the
# former: no gravity was trained on, and none of those of ``constants`` is one of ``gravity``.)
EVALUATION_SEED, TUNING_SEED = 1_000_000, 5_000_000
HELD_OUT: dict[str, dict[str, Any]] = {
    "interpolation": {"split": "interpolation"},
    "extrapolation": {"split": "extrapolation"},
    "switch": {"split": "interpolation", "switch": {"step": 100}},
    "nominal": {"task": {}},
}
# What adapts to corrupted transitions, and the row of this study that it must not fall below.
CORRUPTED: dict[str, dict[str, Any]] = {
    "corrected": {"correction": {}},
    "adapted predictions": {"policy": "predictions"},
}
FROZEN = {"corrected": "as it is", "adapted predictions": "frozen predictions"}
SHARES = (0.1, 0.05, 0.02)
TRAINING: dict[str, dict[str, Any]] = {
    "train": {"split": "train"},
    "train, switch": {"split": "train", "switch": {"step": 100}},
}
# Where no map explains what has changed, where one does, and where both have changed.
EXPLAINED: dict[str, dict[str, Any]] = {
    "train, nominal": {"task": {}},
    "train, masses": {"split": "train", "family": "Pendulum"},
    **TRAINING,
}
NOISES = (0.0, 0.01, 0.03, 0.1)
# Which corrections stand around the environment, the innermost first.
CORRECTIONS: dict[str, tuple[str, ...]] = {
    "corrected": ("model",),
    "corrected by a filter": ("filter",),
    "filter within": ("filter", "model"),
    "filter around": ("model", "filter"),
}


def gravity_columns(*gravities: float) -> dict[str, dict[str, Any]]:
    """The columns of pendulums under other gravities."""
    return {f"g = {g:g}": {"task": {"g": g}} for g in gravities}


@dataclass(frozen=True)
class Recipe:
    """How PPO trains in a family; what is not here is as in train_ppo.py."""

    timesteps: int
    learning_rate: float
    gamma: float
    ent_coef: float
    rollout_length: int = ROLLOUT_LENGTH
    num_epochs: int = 4


RECIPES = {
    "CartPolePolarity": Recipe(300_000, 1.5e-3, 0.98, 0.01),
    "PendulumPolarity": Recipe(600_000, 1e-3, 0.95, 0.0),
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    studies: tuple[str, ...] = option(("main",), "what is measured", choices=STUDIES)
    seeds: int = option(5, "number of seeds of policies, models and tasks", least=1, below=1_000)
    num_tasks: int = option(300, "tasks of each evaluation", least=2, below=100_000)
    output: Path = option(
        Path("output/keep_your_policy"), "folder", check=partial(check_output_folder, file_names=["runs.jsonl"])
    )


@dataclass(frozen=True)
class Case:
    """One evaluation of each seed.

    Attributes:
        study: Its study.
        family: The family of environments.
        row: What acts.
        column: Where it acts.
        env_kwargs: The arguments of the environments that the column stands for.
        policy: ``"nominal"``, ``"masses"`` or ``"predictions"``, as what the policy was trained on.
        correction: The options of the correction; None for the policy as it is.
        adaptation: The options of the adaptation.
        recursive: Whether recursive least squares take the place of gradient steps.
        corrections: What corrects, the innermost first: ``"model"`` or the ``"filter"`` of an action map.
        told_noise: The noise that the filter's model was told of, or that the meta-learned one was trained with.
        corruption: How the transitions are corrupted that the model adapts to, and which share of them.
    """

    study: str
    family: str
    row: str
    column: str
    env_kwargs: Mapping[str, Any]
    policy: str = "nominal"
    correction: Mapping[str, Any] | None = None
    adaptation: Mapping[str, Any] | None = None
    recursive: bool = False
    corrections: tuple[str, ...] = ("model",)
    told_noise: float = 0.0
    corruption: tuple[Corruption, float] = ("outliers", 0.0)

    @property
    def adapts(self) -> bool:
        """Whether anything adapts."""
        return self.correction is not None or self.policy == "predictions"


class Prepared:
    """The policies and models of one family and seed, trained where they are not in the folder yet.

    Args:
        folder: The output folder.
        family: The family of environments.
        seed: Seeds all that is random.
        records: Told of the CPU seconds of each training.
    """

    def __init__(self, folder: Path, family: str, seed: int, records: Records) -> None:
        self.env_id = f"ssm_metarl/{family}-v0"
        self._family, self._seed, self._records = family, seed, records
        self._stem = folder / f"{family}-{seed}"

    def prepare(self, case: Case) -> None:
        """Train what is missing of what a case needs, so that it is not in the seconds of its evaluation."""
        self.policy(case.policy)
        for what in case.corrections if case.adapts else ():
            self.map_model(case.told_noise) if what == "filter" else self.dynamics(case.told_noise)

    def policy(self, name: str) -> tuple[PPO, Path]:
        """The policy, and the file of the statistics that its observations are normalised with."""
        # What was trained on predictions is of the rule by which these adapted.
        rule = f"-rule-{RULE}" if name == "predictions" else ""
        path = self._stem.with_name(f"{self._stem.name}-{name}{rule}.zip")
        if not path.exists():
            self._learn_policy(path, name)
        return PPO.load(path, device="cpu"), path.with_suffix(".pkl")

    def dynamics(self, noise: float = 0.0) -> tuple[MetaTrainer, DynamicsModel]:
        """The meta-learned model, of environments with so much noise, and its reference."""
        path, reference = self._model_path("dynamics", noise), self._model_path("reference", noise)
        if not (path.exists() and reference.exists()):
            self._learn_dynamics(path, reference, noise)
        torch.manual_seed(self._seed)
        return MetaTrainer.load(path, make_model(self.env_id)), load_weights(self.env_id, reference)

    def map_model(self, noise: float = 0.0) -> DynamicsModel:
        """A model of the nominal physics, around the policy, that adapts an action map, told of so much noise."""
        path = self._model_path("map", noise)
        policy, statistics = self.policy("nominal")
        env = VecNormalize.load(str(statistics), make_sb3_env(self.env_id, 8, task={}))
        env.training = env.norm_reward = False
        torch.manual_seed(self._seed)
        model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map")
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model
        started = time.process_time()
        model.fit(env, policy, observation_noise=noise, seed=self._seed)
        self._note("model of an action map", time.process_time() - started, 60_000)
        save_weights(model, path)
        return model

    def _model_path(self, name: str, noise: float) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{name}{f'-noise-{noise:g}' if noise else ''}.pt")

    def _learn_dynamics(self, path: Path, reference_path: Path, noise: float) -> None:
        started = time.process_time()
        torch.manual_seed(self._seed)
        trainer = MetaTrainer(
            self.env_id,
            make_model(self.env_id),
            env_kwargs={"observation_noise": noise} if noise else None,
            seed=self._seed,
            num_streams=NUM_STREAMS,
            inner_steps=INNER_STEPS,
        ).learn(META_UPDATES)
        save_weights(trainer.reference(), reference_path)
        trainer.save(path)
        self._note("model and reference", time.process_time() - started, NUM_STREAMS * trainer.options.stream_length)

    def _learn_policy(self, path: Path, name: str) -> None:
        recipe, started = RECIPES[self._family], time.process_time()
        if name == "predictions":
            # As in quickstart.py, half as many steps.
            recipe = replace(recipe, timesteps=recipe.timesteps // 2, rollout_length=32, num_epochs=8)
            envs = make_rows(self.env_id, NUM_TRAINING_ENVS, autoreset_mode=AutoresetMode.SAME_STEP, split="train")
            trainer, _ = self.dynamics()
            adapter = Adapter(trainer.model, trainer.adaptation_config())
            rows = SB3VecEnv(VectorOnlineAdaptation(envs, adapter, observe_predictions=True))
        else:
            # The family without the hidden sign: masses and lengths alone.
            tasks = {"task": {}} if name == "nominal" else {"family": self._family.removesuffix("Polarity")}
            rows = make_sb3_env(self.env_id, NUM_TRAINING_ENVS, **tasks)
        env = VecNormalize(rows, clip_obs=5.0, gamma=recipe.gamma)
        model = PPO(
            "MlpPolicy",
            env,
            learning_rate=LinearSchedule(recipe.learning_rate, 0.1 * recipe.learning_rate, 1.0),
            n_steps=recipe.rollout_length,
            batch_size=recipe.rollout_length * NUM_TRAINING_ENVS // 4,
            n_epochs=recipe.num_epochs,
            gamma=recipe.gamma,
            ent_coef=recipe.ent_coef,
            # SB3 seeds environment i with seed + i: these lie far apart.
            seed=int(np.random.SeedSequence([self._seed, 0]).generate_state(1)[0]),
            device="cpu",
        ).learn(recipe.timesteps)
        with replacing(path.with_suffix(".pkl")) as temporary:
            env.save(str(temporary))
        with replacing(path) as temporary:
            model.save(temporary)
        self._note(f"policy, {name}", time.process_time() - started, model.num_timesteps)

    def _note(self, what: str, seconds: float, steps: int) -> None:
        self._records.add(
            study="prepared", family=self._family, row=what, seed=self._seed, cpu_seconds=seconds, steps=steps
        )


def adapt_model(envs: Any, cases: Sequence[Case], prepared: Prepared, seed: int) -> Any:
    """Let the meta-learned model adapt to what environments do, and correct actions or show what it predicts."""
    case = cases[0]
    trainer, reference = prepared.dynamics(case.told_noise)
    model = trainer.model
    if len(cases) > 1:
        model = CorruptedModel(model, envs.single_observation_space, [one.corruption for one in cases], seed=seed)
    adapter = RecursiveLeastSquares(model) if case.recursive else Adapter(model, trainer.adaptation_config())
    shows = {"observe_predictions": case.policy == "predictions"}
    envs = VectorOnlineAdaptation(envs, adapter, **shows, **case.adaptation or {})
    return envs if case.correction is None else VectorActionCorrection(envs, reference, **case.correction)


def run_cases(cases: Sequence[Case], prepared: Prepared, num_tasks: int, seed: int) -> list[list[float]]:
    """The return in each task, of cases that differ in the corruption alone and are stepped together."""
    case, num_rows = cases[0], len(cases) * num_tasks
    make = partial(gym.make_vec, prepared.env_id, autoreset_mode="SameStep", **case.env_kwargs)
    envs, start = make(num_envs=num_rows), make(num_envs=num_tasks)
    if case.adapts:
        for what in case.corrections:
            if what == "filter":
                filtered = VectorOnlineAdaptation(envs, KalmanAdapter(prepared.map_model(case.told_noise)))
                envs = VectorActionCorrection(filtered, **case.correction or {})
            else:
                envs = adapt_model(envs, cases, prepared, seed)
    policy, statistics = prepared.policy(case.policy)
    env = VecNormalize.load(str(statistics), SB3VecEnv(envs))
    env.training = env.norm_reward = False
    first = (TUNING_SEED if case.column.startswith("train") else EVALUATION_SEED) + 1_000 * seed
    if len(cases) > 1:
        # Each case has the tasks and the starts that a case alone draws.
        start.reset(seed=first)
        tasks, states = [task.to_dict() for task in start.unwrapped.tasks], start.unwrapped.state
        starts = [{"task": task, "state": state} for task, state in zip(tasks, states, strict=True)]
        env.set_options(starts * len(cases))
    returns = returns_of(evaluate(policy, env, seed=first))
    return [returns[i : i + num_tasks] for i in range(0, num_rows, num_tasks)]


def main_cases() -> Iterator[Case]:
    """The rows of the study ``main``."""
    for family in FAMILIES:
        for column, env_kwargs in HELD_OUT.items():
            case = partial(Case, "main", family, column=column, env_kwargs=env_kwargs)
            yield case("as it is")
            yield case("corrected", correction={})
            yield case("masses and lengths, as it is", policy="masses")
            yield case("masses and lengths, corrected", policy="masses", correction={})
            yield case("corrected, least squares", correction={}, recursive=True)


def gravity_cases() -> Iterator[Case]:
    """The rows of the study ``gravity``."""
    for column, env_kwargs in gravity_columns(7.0, 11.0, 13.0, 15.0).items():
        yield Case("gravity", "PendulumPolarity", "as it is", column, env_kwargs)
        yield Case("gravity", "PendulumPolarity", "corrected", column, env_kwargs, correction={})


def constant_cases() -> Iterator[Case]:
    """The rows of the study ``constants``: half and twice each of them."""
    constants = {
        "correction": {"gate": 1.5, "effect_gate": 0.9, "prior_steps": 16.0, "decay": 0.9, "regularisation": 0.005},
        "adaptation": {"change_ratio": 5.0, "error_floor": 0.001},
    }
    gravities = gravity_columns(8.0, 9.0, 12.0, 14.0)
    for family in FAMILIES:
        for column, env_kwargs in (TRAINING | (gravities if family == "PendulumPolarity" else {})).items():
            case = partial(Case, "constants", family, column=column, env_kwargs=env_kwargs)
            yield case("as it is")
            yield case("as chosen", correction={})
            for kind, chosen in constants.items():
                for name, value in chosen.items():
                    for word, factor in (("half", 0.5), ("twice", 2.0)):
                        # Of a decay it is the distance from 1, the reciprocal of how long it remembers.
                        changed = 1.0 - (1.0 - value) / factor if name == "decay" else value * factor
                        yield case(f"{word} {name}", **{"correction": {}, kind: {name: changed}})


def rule_cases() -> Iterator[Case]:
    """The rows of the study ``rule``."""
    for column, env_kwargs in EXPLAINED.items():
        case = partial(Case, "rule", "PendulumPolarity", column=column, env_kwargs=env_kwargs)
        yield case("as it is")
        for row, corrections in CORRECTIONS.items():
            yield case(row, correction={}, corrections=corrections)


def noise_cases() -> Iterator[Case]:
    """The rows of the study ``noise``."""
    for what, task in (("nominal", {}), ("reversed", {"polarity": -1})):
        for noise in NOISES:
            env_kwargs = {"task": task, "observation_noise": noise}
            case = partial(Case, "noise", "PendulumPolarity", column=f"{what}, {noise:g}", env_kwargs=env_kwargs)
            yield case("as it is")
            yield case("corrected", correction={})
            yield case("corrected by a filter", correction={}, corrections=("filter",))
            if noise:
                yield case("by a model that was trained with it", correction={}, told_noise=noise)
                yield case("by a filter that was told", correction={}, corrections=("filter",), told_noise=noise)
                yield case("told of thrice as much", correction={}, corrections=("filter",), told_noise=3.0 * noise)


def corruption_cases() -> Iterator[Case]:
    """The rows of the study ``corruption``: each kind and share, beside the policies that know of no transitions."""
    for family in FAMILIES:
        for column in ("interpolation", "extrapolation", "switch"):
            case = partial(Case, "corruption", family, column=column, env_kwargs=HELD_OUT[column])
            yield case("as it is")
            for name, acting in CORRUPTED.items():
                yield case(name, **acting)
                for share, kind in itertools.product(SHARES, get_args(Corruption)):
                    yield case(f"{name}, {share:.0%} {kind}", corruption=(kind, share), **acting)
            # A model that waits for more transitions than an episode has is never adapted.
            yield case("frozen predictions", policy="predictions", adaptation={"window": 201, "warmup": 201})


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "main": main_cases,
    "gravity": gravity_cases,
    "constants": constant_cases,
    "rule": rule_cases,
    "noise": noise_cases,
    "corruption": corruption_cases,
}


def rule_of(row: str) -> dict[str, int]:
    """What says by which rule a row adapts, if it does."""
    return {} if row.endswith("as it is") else {"rule": RULE}


def run_study(study: str, options: Options, records: Records) -> None:
    """Evaluate what is not in the records yet, one row after the other."""
    prepared: dict[tuple[str, int], Prepared] = {}
    rows = list(dict.fromkeys(case.row for case in CASES[study]()))
    cases = sorted(CASES[study](), key=lambda case: rows.index(case.row))
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(repr(replace(case, row="", corruption=("outliers", 0.0))), []).append(case)
    for group, seed in itertools.product(groups.values(), range(options.seeds)):
        family, column = group[0].family, group[0].column
        key = {"study": study, "family": family, "column": column, "seed": seed, "num_tasks": options.num_tasks}
        known = [bool(records.find(**key, row=case.row, **rule_of(case.row))) for case in group]
        if all(known):
            continue
        if (family, seed) not in prepared:
            prepared[family, seed] = Prepared(options.output, family, seed, records)
        prepared[family, seed].prepare(group[0])
        started = time.process_time()
        returns = run_cases(group, prepared[family, seed], options.num_tasks, seed)
        seconds = (time.process_time() - started) / len(group)
        for case, own, was_known in zip(group, returns, known, strict=True):
            if was_known:  # they are stepped together, and some were not written before an interruption
                continue
            line = {"cpu_seconds": seconds, "returns": np.round(own, 3).tolist()}
            records.add(**key, row=case.row, **rule_of(case.row), **line)
            print(f"{study}, {family}, {case.row}, {column}, seed {seed}: {np.mean(own):.1f}", flush=True)


def show(study: str, options: Options, records: Records) -> None:
    """Print the tables of a study: mean returns with 95 % intervals over seeds, and CPU seconds of an evaluation."""
    for family in dict.fromkeys(case.family for case in CASES[study]()):
        cases = [case for case in CASES[study]() if case.family == family]
        columns = list(dict.fromkeys(case.column for case in cases))
        rows = []
        for row in dict.fromkeys(case.row for case in cases):
            key = {"study": study, "family": family, "row": row, "num_tasks": options.num_tasks} | rule_of(row)
            cells = []
            for column in columns:
                lines = records.find(**key, column=column)
                lines = [line for line in lines if line["seed"] < options.seeds]
                cells.append(f"{estimate([line['returns'] for line in lines], 0):.1f}" if lines else "")
            seconds = [line["cpu_seconds"] for line in records.find(**key) if line["seed"] < options.seeds]
            rows.append([row, *cells, f"{np.mean(seconds):.1f}" if seconds else ""])
        print(f"\n{family}, {options.num_tasks} tasks, {options.seeds} seeds\n")
        print(format_markdown([study, *columns, "CPU seconds"], rows))


def compare_with_frozen(family: str, row: str, column: str, options: Options, records: Records) -> str:
    """The share of its clean gain that a row of the study ``corruption`` keeps, and in how many tasks it does harm."""
    agent = row.partition(",")[0]
    shares, num_worse = [], 0
    key = {"study": "corruption", "family": family, "column": column, "num_tasks": options.num_tasks}
    for seed in range(options.seeds):
        found = [records.find(**key, row=of, seed=seed, **rule_of(of)) for of in (row, agent, FROZEN[agent])]
        if not all(found):
            return ""
        returns, clean, frozen = (np.array(lines[0]["returns"]) for lines in found)
        shares.append([100 * (returns.mean() - frozen.mean()) / (clean.mean() - frozen.mean())])
        num_worse += int((returns < frozen - 0.02 * np.abs(frozen)).sum())
    return f"{estimate(shares, 0):.1f}, {num_worse}"


def show_corruption(options: Options, records: Records) -> None:
    """Print what is left of each gain."""
    cases = list(corruption_cases())
    columns = list(dict.fromkeys(case.column for case in cases))
    for family in FAMILIES:
        rows = list(dict.fromkeys(case.row for case in cases if case.row not in FROZEN.values()))
        cells = [
            [row, *(compare_with_frozen(family, row, column, options, records) for column in columns)] for row in rows
        ]
        print(f"\n{family}: per cent of the clean gain over the frozen policy, and how many of all tasks of")
        print(f"{options.seeds} seeds are worse than frozen by more than 2 %\n")
        print(format_markdown(["corruption", *columns], cells))


@stoppable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, evaluate and print."""
    torch.set_num_threads(1)
    options = parse_options(Options, arguments, description=__doc__)
    with hold_output(options.output):
        with refusing():
            records = Records(options.output / "runs.jsonl")
        for study in options.studies:
            run_study(study, options, records)
            show(study, options, records)
            if study == "corruption":
                show_corruption(options, records)
        prepared = [
            [line["family"], line["row"], str(line["seed"]), f"{line['cpu_seconds']:.0f}", f"{line['steps']}"]
            for line in records.find(study="prepared")
        ]
        print()
        print(format_markdown(["prepared", "what", "seed", "CPU seconds", "environment steps"], prepared))


if __name__ == "__main__":
    main()
