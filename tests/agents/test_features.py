import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import SSMFeaturesExtractor
from ssm_metarl_gym.wrappers import HistoryWindow

ENV_ID = "ssm_metarl/CartPolePolarity-v0"


def window_space(length, width=3):
    low, high = np.full((length, width + 1), -np.inf), np.full((length, width + 1), np.inf)
    low[:, -1], high[:, -1] = 0.0, 1.0
    return spaces.Box(low, high, dtype=np.float64)


class TestWindows:
    def test_padding_never_changes_the_features(self):
        """The first steps of an episode in a window of 16, with whatever padding, against a window of their length."""
        extractor = SSMFeaturesExtractor(window_space(16), features_dim=5, hidden_dim=8)
        episode = torch.randn(2, 16, 3)
        for num_steps in (1, 2, 7, 16):
            start = torch.ones(2, 16, 1)
            start[:, 16 - num_steps + 1 :] = 0.0
            exact = extractor.ssm.scan(episode[:, :num_steps])[0][:, -1]
            for padding in (0.0, 1e3):
                rows = torch.cat([torch.full((2, 16 - num_steps, 3), padding), episode[:, :num_steps]], dim=1)
                torch.testing.assert_close(extractor(torch.cat([rows, start], dim=2)), exact)

    def test_windows_of_an_environment_give_the_features_of_its_episode(self):
        extractor = SSMFeaturesExtractor(window_space(4, 4), features_dim=5, hidden_dim=8)
        narrow, wide = (HistoryWindow(gym.make(ENV_ID), length) for length in (4, 9))
        windows = [[env.reset(seed=0)[0]] + [env.step(t % 2)[0] for t in range(8)] for env in (narrow, wide)]
        for t, (short, long) in enumerate(zip(*windows, strict=True)):
            same = torch.allclose(*(extractor(torch.from_numpy(window)[None]) for window in (short, long)), atol=1e-6)
            assert same == (t < 4)  # then the narrow one has forgotten the first observation
        episode = torch.from_numpy(windows[1][-1][None, :, :-1])
        torch.testing.assert_close(
            extractor(torch.from_numpy(windows[1][-1])[None]), extractor.ssm.scan(episode)[0][:, -1]
        )

    def test_what_lies_before_a_start_in_mid_window_does_not_count(self):
        extractor = SSMFeaturesExtractor(window_space(6), features_dim=5, hidden_dim=8)
        window = torch.randn(1, 6, 4)
        window[..., -1] = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        other = window.clone()
        other[:, :2, :-1] = 7.0
        assert torch.equal(extractor(window), extractor(other))
        other[:, 2, :-1] = 7.0
        assert not torch.allclose(extractor(window), extractor(other))


def test_a_single_observation_is_one_step():
    extractor = SSMFeaturesExtractor(spaces.Box(-1.0, 1.0, (3,)), features_dim=5, hidden_dim=8, num_layers=1)
    observations = torch.randn(7, 3)
    assert extractor.features_dim == 5
    assert extractor(observations).shape == (7, 5)
    assert torch.equal(extractor(observations), extractor.ssm(observations))
    assert (extractor.ssm.hidden_dim, extractor.ssm.num_layers) == (8, 1)


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(0, 1, (2, 3, 4)), spaces.Box(0, 1, ())], ids=str)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="SSMFeaturesExtractor needs a Box of shape"):
        SSMFeaturesExtractor(space)


def test_a_stack_without_a_start_mask_is_refused():
    stack = gym.wrappers.FrameStackObservation(gym.make(ENV_ID), 8)
    with pytest.raises(ValueError, match="the last column of a window must be a start mask"):
        SSMFeaturesExtractor(stack.observation_space)


@pytest.mark.parametrize("length", [None, 16])
def test_ppo_learns_is_saved_and_predicts_the_same(tmp_path, length):
    env = gym.make(ENV_ID)
    env = env if length is None else HistoryWindow(env, length)
    policy_kwargs = {
        "features_extractor_class": SSMFeaturesExtractor,
        "features_extractor_kwargs": {"features_dim": 16, "hidden_dim": 16},
    }
    model = PPO(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu"
    )
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    model.learn(256)
    after = model.policy.features_extractor.parameters()
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))

    model.save(tmp_path / "ppo")
    loaded = PPO.load(tmp_path / "ppo", device="cpu")
    observations = np.stack([env.reset(seed=seed)[0] for seed in range(9)])
    logits = [
        one.policy.get_distribution(torch.from_numpy(observations)).distribution.logits for one in (model, loaded)
    ]
    assert torch.equal(*logits)
    actions = [one.predict(observations, deterministic=True)[0] for one in (model, loaded)]
    np.testing.assert_array_equal(*actions)
