"""A policy of one physics, kept in another: the README's example, in half a minute."""

from typing import Any, Final

import gymnasium as gym
from stable_baselines3 import PPO

from ssm_metarl_gym.agents import Adapter, MetaTrainer
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, make_sb3_env

__all__ = ["show_demo"]

_ENV_ID: Final = "ssm_metarl/CartPolePolarity-v0"
_TASK: Final = {"polarity": -1, "length": 0.7}


def show_demo(*, policy_steps: int = 80_000, model_updates: int = 150) -> tuple[float, float]:
    """Train a policy in one physics, and print what it gets in another one as it is and corrected.

    Args:
        policy_steps: Steps that the policy is trained for.
        model_updates: Updates that the model of the dynamics is trained for.

    Returns:
        The two returns.
    """
    print(f"PPO learns {_ENV_ID} in one physics, that of CartPole ...", flush=True)
    envs = make_sb3_env(_ENV_ID, 64, task={})
    policy = PPO("MlpPolicy", envs, n_steps=32, batch_size=512, learning_rate=1e-3, seed=0, device="cpu")
    policy.learn(policy_steps)
    print("A model of the dynamics is meta-trained on other physics, with random actions ...", flush=True)
    trainer = MetaTrainer(_ENV_ID, num_streams=300, inner_steps=3, seed=0).learn(model_updates)

    print(f"The policy meets a physics that it never saw, {_TASK}. Its return, of at most 200:")
    env: gym.Env[Any, Any] = gym.make(_ENV_ID, task=_TASK)
    as_it_is = _play(policy, env)
    print(f"    as it is   {as_it_is:.0f}")
    env = OnlineAdaptation(env, Adapter(trainer.model, trainer.adaptation_config()))
    corrected = _play(policy, ActionCorrection(env, trainer.reference()))
    print(f"    corrected  {corrected:.0f}")
    return as_it_is, corrected


def _play(policy: PPO, env: gym.Env[Any, Any]) -> float:
    """The return of one episode."""
    (observation, _), total, is_over = env.reset(seed=0), 0.0, False
    while not is_over:
        observation, reward, terminated, truncated, _ = env.step(policy.predict(observation, deterministic=True)[0])
        total, is_over = total + float(reward), terminated or truncated
    return total
