import copy
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.wrappers import OnlineAdaptation, VectorOnlineAdaptation

CARTPOLE = "ssm_metarl/CartPolePolarity-v0"
BOUNDS = AdaptationConfig(
    lr=0.1, grad_clip_norm=1.0, trust_region_eps=0.5, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=1
)


def make_adapter():
    env = gym.make(CARTPOLE)
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    return Adapter(DynamicsModel(env.observation_space, env.action_space, core), BOUNDS)


def wrap(leave_out, num_envs=None, mode=AutoresetMode.NEXT_STEP, vectorized="vector_entry_point"):
    options = {"observe_predictions": True, "leave_out": leave_out, "every": 100}
    if num_envs is None:
        return OnlineAdaptation(gym.make(CARTPOLE, max_episode_steps=2), make_adapter(), **options)
    kwargs = {"max_episode_steps": 2} | ({} if vectorized == "sync" else {"autoreset_mode": mode})
    arguments = {"vector_kwargs": {"autoreset_mode": mode}} if vectorized == "sync" else {}
    envs = gym.make_vec(CARTPOLE, num_envs, vectorization_mode=vectorized, **arguments, **kwargs)
    return VectorOnlineAdaptation(envs, make_adapter(), **options)


def left_out(env, num_episodes, seed):
    """Whether each episode is left out, and that it is as it says: all of its predictions are zero, or none."""
    flags = []
    for episode in range(num_episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        flags.append(info["adaptation"]["left_out"])
        for _ in range(2):
            assert np.all((observation[4:] == 0.0) == flags[-1])
            observation, *_, info = env.step(0)
            assert info["adaptation"]["left_out"] == flags[-1]
    return flags


@pytest.mark.parametrize(("share", "expected"), [(0.0, False), (1.0, True)])
def test_none_or_all(share, expected):
    assert left_out(wrap(share), 3, 0) == 3 * [expected]
    shown, infos = wrap(share, 4).reset(seed=0)
    assert infos["adaptation"]["left_out"].tolist() == 4 * [expected]
    assert np.all((shown[:, 4:] == 0.0) == expected)


def test_a_share_of_the_episodes_follows_from_the_seed_and_from_nothing_else():
    flags = left_out(wrap(0.3), 200, seed=1)
    assert 40 < sum(flags) < 80
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - which must have no influence
    torch.manual_seed(0)
    assert left_out(wrap(0.3), 20, seed=1) == flags[:20]
    assert left_out(wrap(0.3), 20, seed=2) != flags[:20]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("vectorized", "seed"), [("vector_entry_point", 5), ("sync", [5, 6, 7])])
def test_every_row_draws_what_a_single_wrapper_with_its_seed_does(mode, vectorized, seed):
    envs = wrap(0.5, 3, mode, vectorized)
    expected = np.array([left_out(wrap(0.5), 6, row_seed) for row_seed in (5, 6, 7)]).T
    shown, infos = envs.reset(seed=seed)
    episodes = [infos["adaptation"]["left_out"]]
    while len(episodes) < 6:
        shown, _, terminations, truncations, infos = envs.step(np.zeros(3, dtype=int))
        assert np.array_equal(np.all(shown[:, 4:] == 0.0, axis=1), infos["adaptation"]["left_out"])
        if (terminations | truncations).all():
            if mode is AutoresetMode.DISABLED:
                _, infos = envs.reset(options={"reset_mask": np.ones(3, dtype=np.bool_)})
            elif mode is AutoresetMode.NEXT_STEP:
                *_, infos = envs.step(np.zeros(3, dtype=int))
            episodes.append(infos["adaptation"]["left_out"])
    assert np.array_equal(episodes, expected)


def test_only_rows_that_are_reset_draw():
    envs = wrap(0.5, 16, AutoresetMode.DISABLED)
    before = envs.reset(seed=0)[1]["adaptation"]["left_out"]
    mask = np.arange(16) < 8
    twin = copy.deepcopy(envs)
    after = envs.reset(options={"reset_mask": mask})[1]["adaptation"]["left_out"]
    assert np.array_equal(after[8:], before[8:])
    assert not np.array_equal(after[:8], before[:8])
    assert np.array_equal(twin.reset(options={"reset_mask": mask})[1]["adaptation"]["left_out"], after)


def test_what_adapts_and_what_it_predicts_stay_as_they_are():
    plain, without = wrap(0.0), wrap(1.0)
    for env in (plain, without):
        env.reset(seed=0)
        env.step(1)
    actions = np.array([0, 1])
    observations = np.zeros((2, 4), dtype=np.float32)
    assert torch.equal(plain.predict(observations, actions), without.predict(observations, actions))


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan, "0.5"])
def test_a_wrong_share_is_refused(wrong):
    for num_envs in (None, 2):
        with pytest.raises(ValueError, match=r"leave_out must be a number in \[0, 1\]; got"):
            wrap(wrong, num_envs)


def test_a_share_without_predictions_is_refused():
    for env, wrapper in (
        (gym.make(CARTPOLE), OnlineAdaptation),
        (gym.make_vec(CARTPOLE, 2), VectorOnlineAdaptation),
    ):
        with pytest.raises(ValueError, match=r"leave_out must be 0 where no .* got 0\.5\. Set observe_predictions"):
            wrapper(env, make_adapter(), leave_out=0.5)
