"""Whatever has SB3's predict runs behind the correction as it is, and asks for what it would have asked for anyway."""

import copy

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from ssm_metarl_gym import agents
from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.envs.making import make_rows
from ssm_metarl_gym.experiments.evaluation import evaluate
from ssm_metarl_gym.wrappers import SB3VecEnv, VectorActionCorrection, VectorOnlineAdaptation

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=1.0, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=1
)
ROLLOUTS = {"n_steps": 4, "policy_kwargs": {"net_arch": [8]}}
REPLAYS = {"buffer_size": 10, "policy_kwargs": {"net_arch": [8]}}
POLICIES = {
    "PPO": (stable_baselines3.PPO, "MlpPolicy", PENDULUM, ROLLOUTS | {"batch_size": 8}),
    "A2C": (stable_baselines3.A2C, "MlpPolicy", CARTPOLE, ROLLOUTS),
    "DQN": (stable_baselines3.DQN, "MlpPolicy", CARTPOLE, REPLAYS),
    "SAC": (stable_baselines3.SAC, "MlpPolicy", PENDULUM, REPLAYS),
    "TD3": (stable_baselines3.TD3, "MlpPolicy", PENDULUM, REPLAYS),
    "TQC": (sb3_contrib.TQC, "MlpPolicy", PENDULUM, REPLAYS),
    "TRPO": (sb3_contrib.TRPO, "MlpPolicy", CARTPOLE, ROLLOUTS | {"batch_size": 8}),
    "RecurrentPPO": (sb3_contrib.RecurrentPPO, "MlpLstmPolicy", CARTPOLE, {"n_steps": 4, "batch_size": 8}),
    "SSMPPO": (agents.SSMPPO, "SSMPolicy", PENDULUM, {"n_steps": 4, "batch_size": 8}),
}


def make_env(env_id, gate=None):
    """Rows in which nothing is known yet, normalised as for training; corrected where there is a gate."""
    envs = make_rows(env_id, 2, autoreset_mode=AutoresetMode.SAME_STEP, max_episode_steps=12)
    if gate is not None:
        models = []
        for seed in range(2):
            torch.manual_seed(seed)
            spaces = envs.single_observation_space, envs.single_action_space
            core = nn.Sequential(nn.Linear(DynamicsModel.input_dim(*spaces), 8), nn.Tanh())
            models.append(DynamicsModel(*spaces, core))
        envs = VectorOnlineAdaptation(envs, Adapter(models[0], BOUNDS))
        envs = VectorActionCorrection(envs, models[1], gate=gate, effect_gate=np.inf)
    env = VecNormalize(SB3VecEnv(envs), training=False, norm_reward=False)
    env.obs_rms.mean += 0.1
    return env


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_runs_behind_the_correction_as_it_is(name):
    algorithm, policy, env_id, options = copy.deepcopy(POLICIES[name])  # some algorithms change what they are given
    agent = algorithm(policy, make_env(env_id), seed=0, device="cpu", **options)
    plain, closed, corrected = (make_env(env_id, gate) for gate in (None, np.inf, 0.0))
    rewards = evaluate(agent, plain, seed=3)
    assert evaluate(agent, closed, seed=3) == rewards
    assert evaluate(agent, corrected, seed=3) != rewards
    mean, _ = evaluate_policy(agent, corrected, n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)
