import copy
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv

from ssm_metarl_gym.agents import SSM
from ssm_metarl_gym.wrappers import HistoryWindow, VectorHistoryWindow

ENV_IDS = ["ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumSwitch-v0"]


def make(env_id, length=5, **kwargs):
    return HistoryWindow(gym.make(env_id, **kwargs), length)


def test_rows_and_flags_over_two_episodes(scripted):
    env = HistoryWindow(scripted([[[1, -1], [2, -2], [3, -3], [4, -4]], [[5, -5], [6, -6], [7, -7], [8, -8]]]), 3)
    assert env.reset()[0].tolist() == [[0, 0, 1], [0, 0, 1], [1, -1, 1]]
    assert env.step(0)[0].tolist() == [[0, 0, 1], [1, -1, 1], [2, -2, 0]]
    assert env.step(0)[0].tolist() == [[1, -1, 1], [2, -2, 0], [3, -3, 0]]
    assert env.step(0)[0].tolist() == [[2, -2, 0], [3, -3, 0], [4, -4, 0]]
    assert env.reset()[0].tolist() == [[0, 0, 1], [0, 0, 1], [5, -5, 1]]
    assert env.step(0)[0].tolist() == [[0, 0, 1], [5, -5, 1], [6, -6, 0]]


def test_a_window_of_one_is_the_observation_and_its_flag(scripted):
    env = HistoryWindow(scripted([[[1, -1], [2, -2]]]), 1)
    assert env.reset()[0].tolist() == [[1, -1, 1]]
    assert env.step(0)[0].tolist() == [[2, -2, 0]]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_an_earlier_episode_leaves_no_trace(env_id, rollout):
    env = make(env_id)
    first = rollout(env, 30, seed=3)
    assert rollout(env, 30, seed=3) == first
    assert rollout(make(env_id), 30, seed=3) == first


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_only_the_observation_changes(env_id, rollout):
    plain, wrapped = rollout(gym.make(env_id), 250, seed=3), rollout(make(env_id), 250, seed=3)
    assert [rest for _, *rest in wrapped] == [rest for _, *rest in plain]
    assert [window[-1][:-1] for window, *_ in wrapped] == [observation for observation, *_ in plain]


def test_returned_windows_are_the_callers_own():
    env, other = make(ENV_IDS[0]), make(ENV_IDS[0])
    reset_to, _ = env.reset(seed=0)
    kept = reset_to.copy()
    stepped_to, *_ = env.step(0)
    assert np.array_equal(reset_to, kept)
    reset_to[:], stepped_to[:] = 9.0, 9.0
    other.reset(seed=0)
    other.step(0)
    assert np.array_equal(env.step(1)[0], other.step(1)[0])


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize("context", ["hidden", "visible"])
def test_the_space_holds_every_window(env_id, context):
    env = make(env_id, context=context, split="extrapolation")
    windows = [env.reset(seed=0)[0]] + [env.step(env.action_space.sample())[0] for _ in range(40)]
    assert all(env.observation_space.contains(window) for window in windows)


@pytest.mark.parametrize(("low", "high", "start"), [(3.0, 9.0, 5.0), (-9.0, -3.0, -5.0)])
def test_the_space_holds_the_empty_rows_where_no_observation_is_zero(scripted, low, high, start):
    env = HistoryWindow(scripted([[[start], [start]]], observation_space=spaces.Box(low, high, (1,))), 2)
    window, _ = env.reset()
    assert env.observation_space.contains(window)
    window[0, 0] = 2 * (low + high)
    assert not env.observation_space.contains(window)


@pytest.mark.usefixtures("fast_windows")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gymnasium_finds_no_fault(env_id):
    check_env(make(env_id))


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_spec_in_json_makes_the_same_environment(env_id, rollout):
    env = make(env_id, np.int64(7), split="extrapolation")
    text = env.spec.to_json()
    assert [wrapper["kwargs"] for wrapper in json.loads(text)["additional_wrappers"]] == [{"length": 7}]
    made = gym.make(EnvSpec.from_json(text))
    assert made.spec == env.spec
    assert rollout(made, 30, seed=1) == rollout(env, 30, seed=1)


def test_a_copy_in_mid_episode_goes_on_alone():
    env = make(ENV_IDS[0])
    env.reset(seed=0)
    env.step(0)
    twin = copy.deepcopy(env)
    after = [env.step(1)[0] for _ in range(5)]
    assert np.array_equal(after, [twin.step(1)[0] for _ in range(5)])


def test_a_reader_that_clears_its_state_at_the_flags_sees_exactly_the_episode():
    torch.manual_seed(0)
    env, ssm = make(ENV_IDS[0], 8), SSM(4, 16, 3)
    for num_steps in range(8):
        window, _ = env.reset(seed=num_steps)
        episode = [window[-1, :-1]]
        for _ in range(num_steps):
            window = env.step(env.action_space.sample())[0]
            episode.append(window[-1, :-1])
        window = torch.as_tensor(window)[None]
        read, _ = ssm.scan(window[..., :-1], start=window[..., -1] > 0.5)
        expected = ssm(torch.as_tensor(np.array(episode))[None])
        torch.testing.assert_close(read[:, -1], expected[:, -1])


@pytest.mark.parametrize("length", [0, -1, 2.0, "3", None])
def test_a_length_that_is_no_positive_integer_is_refused(length):
    with pytest.raises(ValueError, match=f"length must be an int >= 1; got {length!r}"):
        make(ENV_IDS[0], length)


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 2)), spaces.Discrete(3)])
def test_only_flat_boxes_are_wrapped(scripted, space):
    with pytest.raises(ValueError, match=r"the observation space must be a one-dimensional Box; got (Box|Discrete)\("):
        HistoryWindow(scripted([[[0.0]]], observation_space=space), 4)


# How the twin for vector environments tells episodes apart, it shares with others: see test_observations.py.


def test_rows_of_a_vector_environment_have_windows_of_their_own(scripted):
    short, long = [[1], [2]], [[3], [4], [5], [6]]
    env = VectorHistoryWindow(SyncVectorEnv([lambda: scripted([short]), lambda: scripted([long])]), 2)
    assert env.reset()[0].tolist() == [[[0, 1], [1, 1]], [[0, 1], [3, 1]]]
    assert env.step([0, 0])[0].tolist() == [[[1, 1], [2, 0]], [[3, 1], [4, 0]]]
    assert env.step([0, 0])[0].tolist() == [[[0, 1], [1, 1]], [[4, 0], [5, 0]]]  # the first row began anew
    assert env.step([0, 0])[0].tolist() == [[[1, 1], [2, 0]], [[5, 0], [6, 0]]]


def test_the_window_remembers_what_was_before_a_restart(scripted):
    episode = [[1], [2], [3], [4]]
    env = HistoryWindow(scripted([episode], restarts=(2,)), 3)
    vector_env = VectorHistoryWindow(SyncVectorEnv([lambda: scripted([episode], restarts=(2,))]), 3)
    env.reset()
    vector_env.reset()
    for _ in range(2):
        window, vector_window = env.step(0)[0], vector_env.step([0])[0][0]
    assert window.tolist() == vector_window.tolist() == [[1, 1], [2, 0], [3, 0]]


@pytest.mark.parametrize("length", [0, 2.0])
def test_a_vector_window_needs_a_positive_length(length):
    with pytest.raises(ValueError, match=f"length must be an int >= 1; got {length!r}"):
        VectorHistoryWindow(SyncVectorEnv([lambda: gym.make(ENV_IDS[0])]), length)
