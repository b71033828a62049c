import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ssm_metarl_gym.wrappers import HistoryWindow, TransitionObservation, VectorTransitionObservation

ENV_IDS = ["ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumSwitch-v0"]
EPISODES = [[[1, -1], [2, -3], [4, 0]], [[5, 5], [7, 8], [0, 0]]]
INF = np.inf


def make(env_id, **kwargs):
    return TransitionObservation(gym.make(env_id, **kwargs))


# How the twin for vector environments tells episodes apart, it shares with others: see test_observations.py.


def test_transitions_over_two_episodes(scripted):
    env = TransitionObservation(scripted(EPISODES))
    #                                  observation, action, reward, change, flag
    assert env.reset()[0].tolist() == [1, -1, 0, 0, 0, 0, 0, 1]
    assert env.step(1)[0].tolist() == [2, -3, 0, 1, 1, 1, -2, 0]
    assert env.step(0)[0].tolist() == [4, 0, 1, 0, 2, 2, 3, 0]
    assert env.reset()[0].tolist() == [5, 5, 0, 0, 0, 0, 0, 1]
    assert env.step(0)[0].tolist() == [7, 8, 1, 0, 1, 2, 3, 0]


def test_at_a_restart_action_and_reward_are_those_of_the_fall(scripted):
    env = TransitionObservation(scripted(EPISODES, restarts=(1,)))
    env.reset()
    assert env.step(1)[0].tolist() == [2, -3, 0, 1, 1, 0, 0, 1]
    assert env.step(1)[0].tolist() == [4, 0, 0, 1, 2, 2, 3, 0]


def test_a_fall_in_a_trial_is_a_restart():
    env = make(ENV_IDS[0], task={"polarity": 1})
    env.reset(seed=0, options={"state": [0.0, 0.0, 0.2, 1.0]})
    observation, reward, *_, info = env.step(0)
    assert info["restarted"]
    assert reward == -9.0
    assert observation[4:].tolist() == [1, 0, -9, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("mode", "rows", "final_rows"),
    [
        (AutoresetMode.NEXT_STEP, [[4, 0, 0, 1, 2, 2, 3, 0], [5, 5, 0, 0, 0, 0, 0, 1], [7, 8, 0, 1, 1, 2, 3, 0]], []),
        (
            AutoresetMode.SAME_STEP,
            [[5, 5, 0, 0, 0, 0, 0, 1], [7, 8, 0, 1, 1, 2, 3, 0], [1, -1, 0, 0, 0, 0, 0, 1]],
            [[4, 0, 0, 1, 2, 2, 3, 0], [0, 0, 0, 1, 2, -7, -8, 0]],
        ),
    ],
)
def test_an_autoreset_starts_from_nothing(mode, rows, final_rows, scripted):
    env = VectorTransitionObservation(SyncVectorEnv([lambda: scripted(EPISODES)], autoreset_mode=mode))
    env.reset()
    env.step([1])
    steps = [env.step([1]) for _ in rows]
    assert [observations[0].tolist() for observations, *_ in steps] == rows
    assert [infos["final_obs"][0].tolist() for *_, infos in steps if "final_obs" in infos] == final_rows


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_trial_that_ends_with_a_fall_ends_with_the_restart(mode, scripted):
    env = SyncVectorEnv([lambda: scripted(EPISODES, restarts=(2,)), lambda: scripted(EPISODES)], autoreset_mode=mode)
    env = VectorTransitionObservation(env)
    env.reset()
    env.step([1, 1])
    observations, *_, infos = env.step([1, 0])
    last = list(infos.get("final_obs", observations))
    assert [row.tolist() for row in last] == [[4, 0, 0, 1, 2, 0, 0, 1], [4, 0, 1, 0, 2, 2, 3, 0]]


@pytest.mark.parametrize("flag", [True, np.True_, np.array(True)])
def test_a_restart_may_be_told_in_any_type(flag, scripted):
    class Env(scripted):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, {"restarted": flag} if info["restarted"] else {}

    env = VectorTransitionObservation(SyncVectorEnv([lambda: Env(EPISODES, restarts=(1,)), lambda: Env(EPISODES)]))
    env.reset()
    assert env.step([1, 1])[0].tolist() == [[2, -3, 0, 1, 1, 0, 0, 1], [2, -3, 0, 1, 1, 1, -2, 0]]


ACTIONS = [
    (spaces.Discrete(3), 2, [0, 0, 1]),
    (spaces.Discrete(3, start=-1), -1, [1, 0, 0]),
    (spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
    (spaces.MultiDiscrete([2, 3], start=[5, -1]), [5, 1], [1, 0, 0, 0, 1]),
    (spaces.MultiDiscrete([[2, 1], [1, 2]]), [[1, 0], [0, 0]], [0, 1, 1, 1, 1, 0]),
    (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
    (spaces.MultiBinary([2, 2]), [[1, 0], [0, 0]], [1, 0, 0, 0]),
    (spaces.Box(-2.0, 2.0, (2,)), [0.5, -2.0], [0.5, -2.0]),
    (spaces.Box(1, 5, (2,), np.int64), [1, 5], [1, 5]),
]
all_actions = pytest.mark.parametrize(("space", "action", "encoded"), ACTIONS, ids=str)


@pytest.fixture
def with_actions(scripted):
    def make(space, observation_space=None):
        env = scripted(EPISODES, observation_space=observation_space)
        env.action_space = space
        return env

    return make


@all_actions
def test_actions_become_numbers(space, action, encoded, with_actions):
    action = np.array(action, dtype=space.dtype)
    assert space.contains(action)
    env = TransitionObservation(with_actions(space))
    vector_env = VectorTransitionObservation(SyncVectorEnv([lambda: with_actions(space)] * 2))
    assert vector_env.single_observation_space == env.observation_space
    env.reset()
    vector_env.reset()
    observation, rows = env.step(action)[0], vector_env.step(np.stack([action, action]))[0]
    assert observation.tolist() == [2, -3, *encoded, 1, 1, -2, 0]
    assert np.array_equal(rows, [observation, observation])


@all_actions
def test_the_space_holds_every_observation(space, action, encoded, with_actions):
    box = spaces.Box(np.array([0.0, -3.0]), np.array([7.0, 8.0]), dtype=np.float64)
    env = TransitionObservation(with_actions(space, observation_space=box))
    assert env.observation_space.dtype == np.float32
    for _ in EPISODES:
        assert env.observation_space.contains(env.reset()[0])
        assert all(env.observation_space.contains(env.step(space.sample())[0]) for _ in range(2))


def test_the_bounds_are_those_of_the_parts(scripted):
    box, action_space = spaces.Box(-1.0, 7.0, (2,)), spaces.Box(np.float32([-2.0, 1.0]), np.float32([-1.0, 3.0]))
    space = TransitionObservation(
        scripted(EPISODES, observation_space=box, action_space=action_space)
    ).observation_space
    assert space.low.tolist() == [-1, -1, -2, 0, -INF, -INF, -INF, 0]
    assert space.high.tolist() == [7, 7, 0, 3, INF, INF, INF, 1]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_only_the_observation_changes(env_id, rollout):
    plain, wrapped = rollout(gym.make(env_id), 250, seed=3), rollout(make(env_id), 250, seed=3)
    dim = len(plain[0][0])
    assert [rest for _, *rest in wrapped] == [rest for _, *rest in plain]
    assert [observation[:dim] for observation, *_ in wrapped] == [observation for observation, *_ in plain]


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_an_earlier_episode_leaves_no_trace(env_id, rollout):
    env = make(env_id)
    first = rollout(env, 30, seed=3)
    assert rollout(env, 30, seed=3) == first
    assert rollout(make(env_id), 30, seed=3) == first


def test_returned_observations_are_the_callers_own(scripted):
    env = TransitionObservation(scripted(EPISODES))
    env.reset()[0][:] = 9.0
    first = env.step(1)[0]
    assert first.tolist() == [2, -3, 0, 1, 1, 1, -2, 0]
    first[:] = 9.0
    assert env.step(1)[0].tolist() == [4, 0, 0, 1, 2, 2, 3, 0]


@pytest.mark.usefixtures("fast_windows")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gymnasium_finds_no_fault(env_id):
    check_env(make(env_id))
    check_env(HistoryWindow(make(env_id), 3))


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_spec_in_json_makes_the_same_environment(env_id, rollout):
    env = HistoryWindow(make(env_id, split="extrapolation"), 3)
    text = env.spec.to_json()
    assert [wrapper["kwargs"] for wrapper in json.loads(text)["additional_wrappers"]] == [{}, {"length": 3}]
    made = gym.make(EnvSpec.from_json(text))
    assert made.spec == env.spec
    assert rollout(made, 30, seed=1) == rollout(env, 30, seed=1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (2, 2)),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Text(3),
    ],
)
def test_only_actions_of_plain_numbers_are_shown(space, scripted):
    message = rf"needs a Discrete, .* or one-dimensional Box as action space; got {type(space).__name__}\(.*Transform"
    with pytest.raises(ValueError, match=f"^TransitionObservation {message}"):
        TransitionObservation(scripted(EPISODES, action_space=space))


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 2)), spaces.Discrete(3)])
def test_only_flat_boxes_are_wrapped(scripted, space):
    with pytest.raises(ValueError, match=r"^the observation space must be a one-dimensional Box; got (Box|Discrete)\("):
        TransitionObservation(scripted([[[0.0]]], observation_space=space))
