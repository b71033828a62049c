from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from ssm_metarl_gym.agents import MetaPolicy
from ssm_metarl_gym.experiments.scoreboard import meta_policies
from ssm_metarl_gym.experiments.scoreboard.board import Board
from ssm_metarl_gym.experiments.scoreboard.meta_policies import AdaptedPolicies, adapt_meta_policy, learn_meta_policy
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS

NAME = "PointActuators-2"


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-2.0, 2.0, (2,))])
def test_each_row_acts_by_the_policy_of_its_own_task(actions):
    torch.manual_seed(0)
    policies = [MetaPolicy(spaces.Box(-1.0, 1.0, (4,)), actions, width=8) for _ in range(3)]
    for policy in policies:
        torch.nn.init.normal_(policy.head.weight)
    observations = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    chosen, state = AdaptedPolicies(policies).predict(observations, state="kept")
    expected = [
        policy.to_sb3().predict(one, deterministic=True)[0] for policy, one in zip(policies, observations, strict=True)
    ]
    np.testing.assert_allclose(
        chosen, np.clip(expected, actions.low, actions.high) if actions.shape else expected, rtol=1e-5
    )
    assert state == "kept"
    assert chosen.dtype == actions.dtype


def test_it_is_trained_once_and_adapts_to_each_task(tmp_path, monkeypatch):
    monkeypatch.setattr(meta_policies, "NUM_TASKS", 2)
    monkeypatch.setattr(meta_policies, "EPISODES_BEFORE", 2)
    kwargs = {**PHYSICS[NAME].env_kwargs, "max_episode_steps": 10}
    monkeypatch.setitem(PHYSICS, NAME, replace(PHYSICS[NAME], length=10, env_kwargs=kwargs))
    board = Board(tmp_path, 20)
    (costs,) = learn_meta_policy(board, NAME, 3, 100)
    assert (costs["row"], costs["seed"], costs["steps"]) == ("policy, meta_policy", 3, 2 * 2 * 2 * 2 * 10)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert learn_meta_policy(board, NAME, 3, 100) == [costs]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files

    tasks = [{"map_0_0": gain} for gain in (1.0, -1.0)]
    actions, again = (
        adapt_meta_policy(board, NAME, 3, 100, tasks).predict(np.ones((2, 4), dtype=np.float32))[0] for _ in range(2)
    )
    np.testing.assert_array_equal(actions, again)
    assert not np.array_equal(*actions)
