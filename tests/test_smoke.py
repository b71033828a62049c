"""One short use of everything: what the gate runs with the newest versions of the dependencies that are allowed.

The other tests hold the values. Here only a version that no longer fits is to be noticed, in less than a minute.
"""

import importlib
import pkgutil
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import ssm_metarl_gym
from ssm_metarl_gym.agents import SSMPPO, Adapter, MetaTrainer, SSMFeaturesExtractor
from ssm_metarl_gym.wrappers import HistoryWindow, OnlineAdaptation, make_sb3_env

pytestmark = pytest.mark.slow

IDS = sorted(env_id for env_id, spec in gym.registry.items() if spec.namespace == "ssm_metarl")
SCRIPTS = sorted(path.name for path in (Path(__file__).parents[1] / "scripts").glob("*.py"))
# Of each objective: an environment, and options that make an update small.
OBJECTIVES = {
    "dynamics": ("ssm_metarl/PendulumPolarity-v0", {"num_streams": 8, "meta_batch_size": 4}),
    "policy": ("ssm_metarl/PointNavigation-v0", {"meta_batch_size": 2}),
}


def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages(ssm_metarl_gym.__path__, "ssm_metarl_gym."):
        importlib.import_module(module.name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_takes(name, checkout, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(checkout / "scripts" / name), run_name="__main__")
    assert stop.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("env_id", IDS)
def test_an_environment_steps(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        observation, reward, *_ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert np.isfinite(reward)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_rows_of_an_environment_step(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(5):
        observations, rewards, *_ = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert np.isfinite(rewards).all()
    envs.close()


def test_the_recurrent_policy_learns_acts_and_is_saved(tmp_path):
    envs = make_sb3_env("ssm_metarl/CartPolePolarity-v0", 2, observation="transition")
    model = SSMPPO("SSMPolicy", envs, n_steps=8, n_epochs=1, seed=0, device="cpu").learn(32)
    model.save(tmp_path / "model")
    loaded = SSMPPO.load(tmp_path / "model", env=envs, device="cpu")
    observations = envs.reset()
    actions, state = model.predict(observations, deterministic=True)
    loaded_actions, loaded_state = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(loaded_actions, actions)
    np.testing.assert_array_equal(loaded_state, state)
    loaded.learn(16)


def test_the_features_extractor_learns_in_an_algorithm_of_sb3(tmp_path):
    env = HistoryWindow(gym.make("ssm_metarl/Pendulum-v0"), 4)
    policy_kwargs = {"features_extractor_class": SSMFeaturesExtractor}
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, policy_kwargs=policy_kwargs, device="cpu").learn(32)
    model.save(tmp_path / "model")
    window, _ = env.reset(seed=0)
    action, _ = model.predict(window, deterministic=True)
    np.testing.assert_array_equal(
        PPO.load(tmp_path / "model", device="cpu").predict(window, deterministic=True)[0], action
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_is_meta_trained_and_saved(objective, tmp_path):
    env_id, options = OBJECTIVES[objective]
    trainer = MetaTrainer(env_id, objective=objective, seed=0, **options).learn(2)
    results = trainer.evaluate("interpolation", num_steps=(0, 1), num_tasks=2)
    assert all(np.isfinite(values).all() for values in results.values())
    trainer.save(tmp_path / "trainer.pt")
    loaded = MetaTrainer.load(tmp_path / "trainer.pt")
    assert loaded.num_updates == 2
    trainer.learn(1)
    loaded.learn(1)
    for one, other in zip(trainer.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_is_adapted_online():
    env_id, options = OBJECTIVES["dynamics"]
    trainer = MetaTrainer(env_id, seed=0, **options).learn(1)
    adapter = Adapter(trainer.model, trainer.adaptation_config())
    env = OnlineAdaptation(gym.make(env_id), adapter, observe_predictions=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        observation, *_, info = env.step(env.action_space.sample())
        assert observation in env.observation_space
    assert info["adaptation"]["steps"] > 0
    assert np.isfinite(info["adaptation"]["loss"])
