"""What a bundle cannot hold is refused when it is written."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel, KalmanAdapter, MetaPolicy
from ssm_metarl_gym.bundle import load_bundle
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorActionCorrection, VectorOnlineAdaptation

CARTPOLE = "ssm_metarl/CartPolePolarity-v0"
BOUNDS = AdaptationConfig(0.1, 1.0, 1.0, 0.9, 0.0, 1)


class OwnAdapter(Adapter):
    """An adapter of one's own."""


def make_model(core=None, kind=torch.float32):
    env = gym.make(CARTPOLE)
    core = nn.Sequential(nn.Linear(6, 4), nn.Tanh()) if core is None else core
    return DynamicsModel(env.observation_space, env.action_space, core.to(kind))


def make_env(model=None, *, bounds=BOUNDS, kind=Adapter, **online):
    model = make_model() if model is None else model
    return ActionCorrection(OnlineAdaptation(gym.make(CARTPOLE), kind(model, bounds), **online), model)


def late_env():
    env = gym.make("Pendulum-v1")
    model = DynamicsModel(env.observation_space, env.action_space, adapts="action_map")
    model.residual_variance.fill_(1.0)
    return ActionCorrection(OnlineAdaptation(env, KalmanAdapter(model, largest_delay=1)))


@pytest.fixture(scope="module")
def policy():
    return PPO("MlpPolicy", gym.make(CARTPOLE), seed=0, device="cpu")


def frozen_head():
    model = make_model()
    model.head.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_env(loss_fn=lambda x, y: (x - y).abs().amax()), "loss_fn must be one of torch's"),
        (lambda: make_env(bounds=replace(BOUNDS, entropy_weight=0.1)), "entropy_weight must be 0"),
        (lambda: make_env(kind=OwnAdapter), "the adapter must be one of Adapter, .* got OwnAdapter"),
        (lambda: make_env(make_model(nn.Sequential(nn.Linear(6, 4), nn.ELU()))), "the core of the model must be"),
        (lambda: make_env(make_model(kind=torch.bfloat16)), "must be of single or double precision"),
        (late_env, "largest_delay must be 0 to be part of a bundle"),
        (lambda: make_env(frozen_head()), r"just \['head.weight', 'head.bias'\] must require a gradient"),
    ],
)
def test_what_a_bundle_cannot_hold_is_named(make, message, policy, tmp_path):
    with pytest.raises(ValueError, match=message):
        make().save_bundle(tmp_path / "robot", policy)
    assert not list(tmp_path.iterdir())


def test_a_policy_of_other_spaces_or_kind_is_refused(policy, tmp_path):
    with pytest.raises(ValueError, match="the policy must take the 12 numbers that the wrappers show"):
        make_env(observe_predictions=True).save_bundle(tmp_path / "robot", policy)
    with pytest.raises(ValueError, match=r"policy must be an algorithm or a policy .* got <function"):
        make_env().save_bundle(tmp_path / "robot", make_env)
    with pytest.raises(ValueError, match="normalizer must be a VecNormalize or None; got 3"):
        make_env().save_bundle(tmp_path / "robot", policy, normalizer=3)


@pytest.mark.parametrize("length", [1, 3])
def test_a_normaliser_of_other_observations_is_refused(policy, length, tmp_path):
    rows = VecNormalize(DummyVecEnv([lambda: gym.make(CARTPOLE)]))
    rows.obs_rms = RunningMeanStd(shape=(length,))
    with pytest.raises(ValueError, match=r"must normalise observations of the policy's shape \(4,\); got one of"):
        make_env().save_bundle(tmp_path / "robot", policy, normalizer=rows)
    assert not list(tmp_path.iterdir())


def test_what_a_robot_could_not_load_is_told_when_it_is_written(tmp_path):
    class Whole(gym.Env):
        observation_space, action_space = gym.spaces.Box(-9.0, 9.0, (2,)), gym.spaces.Box(-3, 3, (1,), np.int8)

    env = Whole()
    model = DynamicsModel(env.observation_space, env.action_space, nn.Sequential(nn.Linear(3, 4), nn.Tanh()))
    corrected = ActionCorrection(OnlineAdaptation(env, Adapter(model, BOUNDS)), model)
    policy = PPO("MlpPolicy", corrected, device="cpu")
    with pytest.raises(
        ValueError, match="cannot be a bundle: actions of a box must be floating-point numbers; got int8"
    ):
        corrected.save_bundle(tmp_path / "robot", policy)
    assert not list(tmp_path.iterdir())


def test_many_rows_write_the_same_file(policy, tmp_path):
    torch.manual_seed(0)
    model = make_model()
    make_env(model).save_bundle(tmp_path / "single", policy)
    envs = VectorOnlineAdaptation(gym.make_vec(CARTPOLE, 3), Adapter(model, BOUNDS))
    VectorActionCorrection(envs, model).save_bundle(tmp_path / "many", policy)
    assert (tmp_path / "single").read_bytes() == (tmp_path / "many").read_bytes()


def test_the_normaliser_of_the_training_comes_along(tmp_path):
    rows = VecNormalize(DummyVecEnv([lambda: gym.make(CARTPOLE)]), clip_obs=1.5)
    rows.obs_rms.mean, rows.obs_rms.var = np.arange(4.0), np.arange(4.0) + 0.5
    model = PPO("MlpPolicy", rows, seed=0, device="cpu")
    env = make_env()
    env.save_bundle(tmp_path / "robot", model)
    env.save_bundle(tmp_path / "given", model.policy, normalizer=rows)
    bundle = load_bundle(tmp_path / "robot")
    assert (tmp_path / "robot").read_bytes() == (tmp_path / "given").read_bytes()
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 3
    expected, _ = model.predict(rows.normalize_obs(observations), deterministic=True)
    taken = []
    for observation in observations:
        bundle.act(observation)
        taken.append(int(bundle.info["correction"]["asked"]))
    assert taken == expected.tolist()
    assert len(set(taken)) == 2


def test_a_meta_policy_comes_along(tmp_path):
    env = gym.make(CARTPOLE)
    torch.manual_seed(0)
    policy = MetaPolicy(env.observation_space, env.action_space, width=8)
    make_env().save_bundle(tmp_path / "robot", policy)
    bundle = load_bundle(tmp_path / "robot")
    observation = np.array([0.1, -0.2, 0.3, 0.1], dtype=np.float32)
    expected, _ = policy.to_sb3().predict(observation, deterministic=True)
    assert int(bundle.act(observation)) == int(expected)
