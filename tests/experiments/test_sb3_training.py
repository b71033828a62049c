import json
import re

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.experiments.logs import load_pending
from ssm_metarl_gym.experiments.runs import Stopwatch, find_checkpoints
from ssm_metarl_gym.experiments.sb3_training import (
    MODEL_FILES,
    SaveCheckpoints,
    check_finite,
    check_hyperparameters,
    load_checkpoint,
    save_agent,
    staying_finite,
)
from ssm_metarl_gym.files import check_checksums
from ssm_metarl_gym.wrappers import make_sb3_env


@pytest.fixture
def agent():
    """An agent whose rollouts have 8 timesteps."""
    env = VecNormalize(make_sb3_env("CartPole-v1", 2))
    return PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu")


@pytest.mark.parametrize(
    ("interval", "steps"), [(1, [8, 16, 24, 32]), (15, [8, 16, 24, 32]), (16, [16, 32]), (25, [24]), (100, [])]
)
def test_no_more_than_an_interval_lies_between_checkpoints(agent, interval, steps, tmp_path):
    said = []
    agent.learn(40, callback=SaveCheckpoints(tmp_path, interval, Stopwatch(), said.append))
    assert [int(line.split()[0]) for line in said] == steps
    assert [int(path.name) for path in find_checkpoints(tmp_path)] == steps[-2:]  # of which the last two are kept


def test_a_checkpoint_holds_all_that_is_needed_to_go_on(agent, tmp_path):
    watch = Stopwatch(wall_seconds=1000.0, cpu_seconds=500.0)
    agent.learn(24, callback=SaveCheckpoints(tmp_path, 16, watch, lambda line: None))
    (checkpoint,) = find_checkpoints(tmp_path)
    assert check_checksums(checkpoint)
    again, watch = load_checkpoint(PPO, checkpoint, VecNormalize(make_sb3_env("CartPole-v1", 2)), "cpu")
    assert again.num_timesteps == 16
    assert again.get_vec_normalize_env().obs_rms.count == pytest.approx(2 + 16, abs=0.1)
    assert 1000.0 < watch.read()["wall_seconds"] < 1100.0
    assert 500.0 < watch.read()["cpu_seconds"] < 600.0
    # What the update before the checkpoint left for the next row of the log.
    logger = Logger(None, [])
    load_pending(logger, checkpoint)
    assert logger.name_to_value["train/n_updates"] == 2
    assert np.isfinite(logger.name_to_value["train/loss"])


def test_a_saved_agent_is_whole(agent, tmp_path):
    save_agent(agent, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*MODEL_FILES, "checksums.json"}
    assert json.loads((tmp_path / "checksums.json").read_text()).keys() == set(MODEL_FILES)
    assert check_checksums(tmp_path)
    PPO.load(tmp_path / "model.zip", device="cpu")


def test_an_agent_without_statistics_cannot_be_saved(tmp_path):
    agent = A2C("MlpPolicy", make_sb3_env("CartPole-v1"), device="cpu")
    with pytest.raises(ValueError, match="must learn from environments in a VecNormalize"):
        save_agent(agent, tmp_path)


def test_weights_that_are_not_finite_end_the_training(agent, tmp_path):
    check_finite(agent)
    with torch.no_grad():
        next(agent.policy.parameters())[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the training diverged: after 0 timesteps weights are not finite"):
        agent.learn(40, callback=SaveCheckpoints(tmp_path, 1, Stopwatch(), print))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gamma", "a", "gamma must be of float or int; got 'a'."),
        ("gamma", True, "gamma must be of float or int; got True."),
        ("ent_coef", float("nan"), "ent_coef must be finite; got nan."),
        ("n_epochs", "2", "n_epochs must be of int; got '2'."),
        ("n_epochs", 1.5, "n_epochs must be of int; got 1.5."),
        ("n_epochs", 0, "n_epochs must be >= 1; got 0."),
        ("target_kl", "a", "target_kl must be of float or int; got 'a'."),
        ("policy_kwargs", 3, "policy_kwargs must be of dict; got 3."),
        ("normalize_advantage", 1, "normalize_advantage must be of bool; got 1."),
        ("rollout_buffer_class", "RolloutBuffer", "rollout_buffer_class must be of another kind than JSON has"),
    ],
)
def test_hyperparameters_of_another_kind_are_refused(name, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check_hyperparameters(PPO, {name: value})


def test_hyperparameters_of_the_right_kind_pass():
    check_hyperparameters(
        PPO,
        {"gamma": 1, "clip_range": 0.1, "target_kl": None, "sde_sample_freq": -1, "verbose": 0, "no_such_name": "a"},
    )


def test_a_policy_whose_outputs_are_no_numbers_has_diverged(agent):
    def draw_from_nothing():
        torch.distributions.Categorical(logits=torch.tensor([torch.nan, 0.0]))

    message = r"^the training diverged: the policy's outputs are not finite\."
    with pytest.raises(FloatingPointError, match=message), staying_finite(agent):
        draw_from_nothing()
