"""The bundles that the page shows: a policy of one physics, and what corrects its actions in others."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import Adapter, DynamicsModel, MetaTrainer
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.dynamics_models import make_model
from ssm_metarl_gym.experiments.evaluation import evaluate, returns_of
from ssm_metarl_gym.files import write_json
from ssm_metarl_gym.wrappers import (
    ActionCorrection,
    OnlineAdaptation,
    SB3VecEnv,
    VectorActionCorrection,
    VectorOnlineAdaptation,
    make_sb3_env,
)

__all__ = ["FILES", "RECIPES", "Recipe", "train_bundles"]

_NUM_ENVS: Final = 64
_INNER_STEPS: Final = 3
_EVALUATION_SEED: Final = 1_000_000


@dataclass(frozen=True)
class Recipe:
    """How the policy of one family is trained, in its default physics.

    Attributes:
        family: The family of environments.
        timesteps: Steps of the policy.
        learning_rate: That of PPO at first; it falls to a tenth.
        gamma: PPO's discount.
        rollout_length: Steps of each environment between two updates.
        num_epochs: Passes over them.
        ent_coef: PPO's weight of the entropy.
        policy_kwargs: Arguments of the policy.
        meta_updates: Updates of the model of the dynamics.
        num_streams: Streams of transitions that it is trained on.
        reference_updates: Updates of the reference.
        num_tasks: Episodes in which each return is measured.
        flip: What happens half-way in the episodes in which the correction is measured.
    """

    family: str
    timesteps: int
    learning_rate: float
    gamma: float
    rollout_length: int
    num_epochs: int
    flip: Mapping[str, Any]
    ent_coef: float = 0.0
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    meta_updates: int = 1_000
    num_streams: int = 1_000
    reference_updates: int = 2_000
    num_tasks: int = 20

    @property
    def env_id(self) -> str:
        """The id of the environment."""
        return f"ssm_metarl/{self.family}-v0"


RECIPES: Final = {
    "cartpole": Recipe("CartPolePolarity", 300_000, 1.5e-3, 0.98, 128, 4, {"step": 100}, ent_coef=0.01),
    "pendulum": Recipe("PendulumPolarity", 600_000, 1e-3, 0.95, 128, 4, {"step": 100}),
    # What is tried at random at first would else hit the bounds.
    "point": Recipe(
        "PointActuators",
        75_000,
        2e-3,
        0.9,
        32,
        8,
        {"step": 50, "motor": -1.0},
        policy_kwargs={"log_std_init": -0.7},
    ),
}

FILES: Final = (*(f"{name}.safetensors" for name in RECIPES), "bundles.json")


def train_bundles(
    folder: Path,
    recipes: Mapping[str, Recipe] = RECIPES,
    *,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> None:
    """Train policies and models, and write the bundles and ``bundles.json``, the list of them with their hashes.

    Args:
        folder: Where to.
        recipes: How each of them is trained.
        seed: Seeds all that is random.
        say: Is told what is done, and what a policy gets before and after a flip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for name, recipe in recipes.items():
        say(f"{recipe.env_id}: PPO, {recipe.timesteps:,} steps, and a model, {recipe.meta_updates:,} updates ...")
        policy, normaliser = _train_policy(recipe, seed)
        torch.manual_seed(seed)
        trainer = MetaTrainer(
            recipe.env_id,
            make_model(recipe.env_id),
            seed=seed,
            num_streams=recipe.num_streams,
            inner_steps=_INNER_STEPS,
        ).learn(recipe.meta_updates)
        adapter = Adapter(trainer.model, trainer.adaptation_config())
        reference = trainer.reference(num_updates=recipe.reference_updates)
        path = folder / f"{name}.safetensors"
        env = ActionCorrection(OnlineAdaptation(gym.make(recipe.env_id), adapter), reference)
        env.save_bundle(path, policy, normalizer=normaliser)
        returns = dict(_measure(recipe, policy, normaliser, adapter, reference))
        say("    " + "; ".join(f"{words}: {mean}" for words, mean in returns.items()))
        listed[name] = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "returns": returns}
    write_json(folder / "bundles.json", listed)


def _measure(
    recipe: Recipe, policy: PPO, normaliser: VecNormalize, adapter: Adapter, reference: DynamicsModel
) -> Iterator[tuple[str, float]]:
    """The mean return in the physics that the policy knows, and where a motor flips half-way, both ways to act."""
    for column, env_kwargs in {"nominal": {}, "flip": {"switch": recipe.flip}}.items():
        for row in ("as it is", "corrected"):
            envs: Any = make_rows(
                recipe.env_id, recipe.num_tasks, autoreset_mode=AutoresetMode.SAME_STEP, task={}, **env_kwargs
            )
            if row == "corrected":
                envs = VectorActionCorrection(VectorOnlineAdaptation(envs, adapter), reference)
            scaled = copy.deepcopy(normaliser)  # without what it is around
            scaled.set_venv(SB3VecEnv(envs))
            returns = returns_of(evaluate(policy, scaled, seed=_EVALUATION_SEED))
            yield f"{column}, {row}", round(float(np.mean(returns)), 1)


def _train_policy(recipe: Recipe, seed: int) -> tuple[PPO, VecNormalize]:
    env = VecNormalize(make_sb3_env(recipe.env_id, _NUM_ENVS, task={}), clip_obs=5.0, gamma=recipe.gamma)
    policy = PPO(
        "MlpPolicy",
        env,
        learning_rate=LinearSchedule(recipe.learning_rate, 0.1 * recipe.learning_rate, 1.0),
        n_steps=recipe.rollout_length,
        batch_size=recipe.rollout_length * _NUM_ENVS // 4,
        n_epochs=recipe.num_epochs,
        gamma=recipe.gamma,
        ent_coef=recipe.ent_coef,
        # SB3 seeds environment i with seed + i: these lie far apart.
        seed=int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]),
        device="cpu",
        policy_kwargs=dict(recipe.policy_kwargs),
    ).learn(recipe.timesteps)
    env.training = env.norm_reward = False
    return policy, env
