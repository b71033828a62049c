"""Policies and models of a scoreboard: trained once for each seed, and kept in its folder."""

import importlib
import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from ssm_metarl_gym.agents import (
    Adapter,
    DynamicsModel,
    KalmanAdapter,
    MetaTrainer,
    RecursiveLeastSquares,
    SSMFeaturesExtractor,
    distill,
)
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.checks import explaining
from ssm_metarl_gym.experiments.dynamics_models import load_weights, make_model, save_weights
from ssm_metarl_gym.experiments.saved_agents import find_algorithm
from ssm_metarl_gym.experiments.scoreboard.agents import CORRECTED, TRAINED, adapts, agent_of
from ssm_metarl_gym.experiments.scoreboard.physics import physics_of, recipe_of, told_kwargs
from ssm_metarl_gym.files import replacing, write_json
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation, make_sb3_env

Line = dict[str, Any]  # of what is known: what something took, or an evaluation

__all__ = [
    "Board",
    "correct_by_filter",
    "find_maker",
    "fit_map_model",
    "learn_policy",
    "load_filter",
    "load_policy",
    "make_env",
    "make_own_agent",
    "meta_train",
    "note_costs",
    "read_costs",
    "rule_of",
    "spread_seed",
]

# To be raised whenever a default of the filter, or of the other adapters and their correction, changes: what adapts is
# then evaluated again.
RULE, FILTER_RULE = 4, 5
NUM_ROUNDS, STEPS_PER_ROUND = 20, 100  # of a student
META_UPDATES, INNER_STEPS, NUM_STREAMS = 1_500, 3, 1_000
# Where actions are mixed if anything is hidden, what they do tells of it sooner than what happens; by training tasks.
MIXING_GATES: Final[dict[str, Any]] = {"gate": 0.0, "prior_steps": 4.0}
_ADAPTING: Final = {"adapted_predictions_all": "all"}  # what adapts in the model of a row; else the last layer


@dataclass(frozen=True)
class Board:
    """Where a scoreboard lies, and how much is done for it.

    Attributes:
        folder: The folder.
        num_tasks: Tasks of each evaluation.
        percent: Steps and updates, in per cent of the full ones.
    """

    folder: Path
    num_tasks: int
    percent: int = 100

    @property
    def lines(self) -> Path:
        """The file of what is known, to which processes that run side by side only append."""
        return self.folder / "runs.jsonl"

    def stem(self, name: str, seed: int, what: str) -> Path:
        """The path of a policy or a model of some physics, without the ending; other settings have other paths."""
        budget = "" if self.percent == 100 else f" {self.percent} percent"
        return self.folder / re.sub(r"\W+", "_", f"{name} {seed} {what}{budget} {recipe_of(name)}")

    def settings_of(self, name: str) -> dict[str, Any]:
        """What a line says of how that which it tells of has learned."""
        return {"percent": self.percent, "recipe": recipe_of(name)}

    def scaled(self, amount: int) -> int:
        """So much of an amount of work as is to be done."""
        return max(1, amount * self.percent // 100)

    def nominal_steps(self, name: str) -> int:
        """Steps of the policy of the nominal physics."""
        return self.scaled(physics_of(name).nominal_steps)


def make_env(board: Board, name: str, row: str, seed: int, num_rows: int, **env_kwargs: Any) -> VecEnv:
    """Rows of an environment as an agent sees them, with what stands between.

    Args:
        board: The scoreboard.
        name: The physics.
        row: The agent.
        seed: That of its policy and its model.
        num_rows: Number of rows.
        **env_kwargs: Arguments of the environment.
    """
    physics, agent = physics_of(name), agent_of(row)
    told = told_kwargs(name) if agent.context == "visible" else {}
    env_kwargs = {**physics.env_kwargs, **told, **env_kwargs, "context": agent.context}
    if row == "as_is" or (row not in CORRECTED and not agent.sees_predictions):
        return make_sb3_env(physics.env_id, num_rows, observation=agent.observation, **env_kwargs)
    envs: Any = make_rows(physics.env_id, num_rows, autoreset_mode=AutoresetMode.SAME_STEP, **env_kwargs)
    if row == "corrected_filter":
        return SB3VecEnv(correct_by_filter(name, envs, load_filter(board, name, seed)))
    trainer = _load_trainer(board, name, seed, _ADAPTING.get(row, "last_layer"))
    if row == "corrected_rls":
        envs = VectorOnlineAdaptation(envs, RecursiveLeastSquares(trainer.model))
    else:
        bounds = trainer.adaptation_config()
        if agent.predictions == "frozen":
            bounds = replace(bounds, lr=0.0)
        envs = VectorOnlineAdaptation(envs, Adapter(trainer.model, bounds), observe_predictions=agent.sees_predictions)
    if agent.sees_predictions:
        return SB3VecEnv(envs)
    reference = board.stem(name, seed, "reference").with_suffix(".pt")
    gates = MIXING_GATES if physics.mixes_actions else {}
    model = load_weights(physics.env_id, reference, **physics.env_kwargs)
    return SB3VecEnv(VectorActionCorrection(envs, model, **gates))


def learn_policy(board: Board, name: str, row: str, seed: int, steps: int) -> list[Line]:
    """Train a policy, in the nominal physics or on the training tasks, where it is not there yet; what that took."""
    path = _policy_path(board, name, row, seed, steps)
    if path.exists():
        return read_costs(path)
    started, physics, agent = time.process_time(), physics_of(name), agent_of(row)
    tasks: dict[str, Any] = {"split": "train"} if row in TRAINED else {"task": {}}
    if agent.switch_probability and physics.changes:
        tasks["switch"] = {"probability": agent.switch_probability}
    env = VecNormalize(make_env(board, name, row, seed, physics.num_envs, **tasks), clip_obs=5.0, gamma=physics.gamma)
    policy_kwargs: dict[str, Any] = {"log_std_init": physics.log_std_init}
    if agent.observation == "window":  # the state-space model ends in gated layers of its own
        policy_kwargs |= {"net_arch": [], "features_extractor_class": SSMFeaturesExtractor}
    model = find_algorithm(agent.algorithm)(
        agent.policy,
        env,
        learning_rate=LinearSchedule(physics.learning_rate, physics.learning_rate_left * physics.learning_rate, 1.0),
        n_steps=physics.rollout_length,
        batch_size=physics.minibatch(remembers=agent.remembers),
        n_epochs=physics.num_epochs,
        gamma=physics.gamma,
        gae_lambda=physics.gae_lambda,
        ent_coef=physics.ent_coef,
        seed=spread_seed(seed),
        device="cpu",
        policy_kwargs=policy_kwargs,
        use_sde=physics.explores_smoothly,
        sde_sample_freq=16,
    )
    if agent.teacher is None:
        taken = model.learn(steps).num_timesteps
    else:
        told = make_env(board, name, agent.teacher, seed, physics.num_envs, **tasks)
        teacher, told = load_policy(board, name, agent.teacher, seed, steps, told)
        rounds = {"num_rounds": board.scaled(NUM_ROUNDS), "steps_per_round": STEPS_PER_ROUND}
        distill(teacher, model, told, **rounds, seed=spread_seed(seed))
        taken = physics.num_envs * STEPS_PER_ROUND * rounds["num_rounds"]
    with replacing(path.with_suffix(".pkl")) as temporary:
        env.save(str(temporary))
    costs = note_costs(path, board, name, f"policy, {row}", seed, started, taken)
    with replacing(path) as temporary:
        model.save(temporary)
    return costs


def _policy_path(board: Board, name: str, row: str, seed: int, steps: int) -> Path:
    # A policy that was trained on what an adapter predicts is one of that adapter's rule.
    rule = f" rule {rule_of(row)}" if row in TRAINED and adapts(row) else ""
    return board.stem(name, seed, f"{row} {steps}{rule}").with_suffix(".zip")


def load_policy(board: Board, name: str, row: str, seed: int, steps: int, env: VecEnv) -> tuple[Any, VecNormalize]:
    """A policy, and the environment with the observations scaled as it knows them."""
    path = _policy_path(board, name, row, seed, steps)
    scaled = VecNormalize.load(str(path.with_suffix(".pkl")), env)
    scaled.training = scaled.norm_reward = False
    return find_algorithm(agent_of(row).algorithm).load(path, device="cpu"), scaled


def find_maker(maker: str) -> Any:
    """The function that makes a user's agent, ``"module:function"``.

    Raises:
        ValueError: It cannot be imported.
    """
    module, colon, function = maker.partition(":")
    if not (module and colon and function):
        raise ValueError(f"an agent of your own must be module:function; got {maker!r}.")
    with explaining(f"the agent {maker} cannot be imported"):
        return getattr(importlib.import_module(module), function)


def make_own_agent(board: Board, name: str, maker: str, seed: int, steps: int) -> tuple[Any, Line]:
    """An agent of a user's, which has learned, if it can, and what that took.

    Args:
        board: The scoreboard.
        name: The physics.
        maker: ``"module:function"``; the function takes the rows of the training tasks, a ``VecEnv``, and ``seed``, and
            gives what has SB3's ``predict`` and may have its ``learn``.
        seed: Its seed.
        steps: Steps to learn.
    """
    started, physics = time.process_time(), physics_of(name)
    env = make_sb3_env(physics.env_id, physics.num_envs, split="train", **physics.env_kwargs)
    env.seed(spread_seed(seed))  # for makers that reset it themselves
    agent = find_maker(maker)(env, seed=spread_seed(seed))
    if hasattr(agent, "learn"):
        agent.learn(steps)
    return agent, _costs(board, name, f"policy, {maker}", seed, started, steps if hasattr(agent, "learn") else 0)


def fit_map_model(board: Board, name: str, seed: int) -> list[Line]:
    """Fit the model of the nominal physics around the policy's behaviour, where it is not there yet; what that took."""
    path = board.stem(name, seed, "map").with_suffix(".pt")
    if path.exists():
        return read_costs(path)
    started, fit = time.process_time(), physics_of(name).map_model
    torch.manual_seed(seed)
    model = _make_map_model(name)
    env = make_env(board, name, "nominal", seed, 8, task={})
    policy, scaled = load_policy(board, name, "nominal", seed, board.nominal_steps(name), env)
    model.fit(
        scaled,
        policy,
        num_transitions=fit.transitions,
        num_updates=board.scaled(fit.updates),
        learning_rate=fit.learning_rate,
        seed=seed,
    )
    costs = note_costs(path, board, name, "model of the nominal physics", seed, started, fit.transitions)
    save_weights(model, path)
    return costs


def load_filter(board: Board, name: str, seed: int, **options: Any) -> KalmanAdapter:
    """The filter of the model that :func:`fit_map_model` fitted, with more options of its own."""
    model = _make_map_model(name)
    model.load_state_dict(torch.load(board.stem(name, seed, "map").with_suffix(".pt"), weights_only=True))
    return KalmanAdapter(model, mixed=physics_of(name).mixes_actions, **options)


def correct_by_filter(name: str, envs: Any, adapter: KalmanAdapter) -> VectorActionCorrection:
    """Rows of an environment whose actions are corrected by a filter, as all of them are in some physics."""
    options: dict[str, Any] = {"exploration": physics_of(name).exploration} if adapter.mixed else {}
    return VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), **options)


def rule_of(row: str) -> int:
    """The rule by which a row is evaluated in which something adapts."""
    return FILTER_RULE if row == "corrected_filter" else RULE


def meta_train(board: Board, name: str, seed: int, adapting: str = "last_layer") -> list[Line]:
    """Meta-train the model of the dynamics and fit its reference, where they are not there yet; what that took."""
    path = board.stem(name, seed, _model_name(adapting)).with_suffix(".pt")
    if path.exists():
        return read_costs(path)
    started, physics = time.process_time(), physics_of(name)
    torch.manual_seed(seed)
    trainer = MetaTrainer(
        physics.env_id,
        _make_model(name, adapting),
        env_kwargs=physics.env_kwargs,
        seed=seed,
        num_streams=NUM_STREAMS,
        inner_steps=INNER_STEPS,
    ).learn(board.scaled(META_UPDATES))
    if adapting == "last_layer":
        save_weights(trainer.reference(), board.stem(name, seed, "reference").with_suffix(".pt"))
    what = "meta-learned model" + (", all layers" if adapting == "all" else "")
    costs = note_costs(path, board, name, what, seed, started, NUM_STREAMS * trainer.options.stream_length)
    trainer.save(path)
    return costs


def spread_seed(seed: int) -> int:
    """A seed far from those of other seeds: SB3 seeds environment i with it plus i."""
    return int(np.random.SeedSequence([seed, 0]).generate_state(1)[0])


def adapting_of(row: str) -> str:
    """What adapts in the meta-learned model of a row."""
    return _ADAPTING.get(row, "last_layer")


def _model_name(adapting: str) -> str:
    return "dynamics" if adapting == "last_layer" else f"dynamics {adapting}"


def _make_model(name: str, adapting: Any) -> DynamicsModel:
    return make_model(physics_of(name).env_id, adapting, **physics_of(name).env_kwargs)


def _load_trainer(board: Board, name: str, seed: int, adapting: str) -> MetaTrainer:
    path = board.stem(name, seed, _model_name(adapting)).with_suffix(".pt")
    return MetaTrainer.load(path, _make_model(name, adapting))


def _make_map_model(name: str) -> DynamicsModel:
    """An untrained model of the dynamics that adapts a map of the actions, as small as such physics need."""
    physics = physics_of(name)
    envs = make_rows(physics.env_id, 1, **physics.env_kwargs)
    spaces, width = (envs.single_observation_space, envs.single_action_space), physics.map_model.width
    core = nn.Sequential(
        nn.Linear(DynamicsModel.input_dim(*spaces), width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
    )
    return DynamicsModel(*spaces, core, adapts="action_map")


def _costs(board: Board, name: str, what: str, seed: int, started: float, steps: int) -> Line:
    """What something took that others stand on."""
    key = {"study": "prepared", "physics": name, "row": what, "seed": seed, **board.settings_of(name)}
    return key | {"cpu_seconds": round(time.process_time() - started, 1), "steps": steps}


def note_costs(path: Path, *costs: Any, **more: Any) -> list[Line]:
    """What something took, kept beside the file that is written next: whoever finds that one there knows it.

    Args:
        path: The file of what was made.
        *costs: The scoreboard, the physics, what it is, its seed, when it was begun (``time.process_time()``), and its
            steps.
        **more: What else the line says.
    """
    line = _costs(*costs) | more
    write_json(path.with_suffix(".json"), line)
    return [line]


def read_costs(path: Path) -> list[Line]:
    """What :func:`note_costs` kept beside a file; nothing where it did not."""
    costs = path.with_suffix(".json")
    return [json.loads(costs.read_text())] if costs.exists() else []
