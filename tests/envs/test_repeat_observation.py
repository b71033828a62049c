import pickle
from collections import deque
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ssm_metarl_gym.envs import RepeatObservationEnv, RepeatObservationVectorEnv
from ssm_metarl_gym.wrappers import HistoryWindow, SB3VecEnv

ENV_ID = "ssm_metarl/RepeatObservation-v0"
MODES = [mode.value for mode in AutoresetMode]
# Episodes of five steps, of which the last three are graded.
SHORT = {"delay": 2, "num_symbols": 3, "num_steps": 3}
VARIANTS = [{}, SHORT, {"delay": 0}, {"delay": 9, "num_symbols": 2, "num_steps": 1}]

each_variant = pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
each_mode = pytest.mark.parametrize("mode", MODES)
each_copy = pytest.mark.parametrize(
    "copied",
    [deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
each_form = pytest.mark.parametrize("make", [gym.make, gym.make_vec])


def returns(env, act, num_episodes, seed=0):
    """The return of each episode; ``act`` is given the observation, and None before the first one of an episode."""
    totals = []
    for episode in range(num_episodes):
        act(None)
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        totals.append(0.0)
        terminated = False
        while not terminated:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            totals[-1] += reward
            assert not truncated
    return totals


def remembering(delay):
    """An agent that names what it saw ``delay`` steps ago."""
    seen = deque(maxlen=delay + 1)

    def act(observation):
        if observation is None:
            seen.clear()
            return None
        seen.append(observation.argmax())
        return seen[0]

    return act


def short_env(symbols):
    env = gym.make(ENV_ID, **SHORT)
    env.reset(seed=0)
    env.unwrapped.symbols = np.array(symbols)
    return env


class TestTheEpisode:
    def test_computed_by_hand(self):
        env = short_env([1, 0, 2, 2, 1, 0])
        #          the action       the symbol two steps ago
        #          |  the next symbol     |
        expected = [
            (1, [1.0, 0.0, 0.0], 0.0),  # none: what it sees
            (1, [0.0, 0.0, 1.0], 0.0),  # none: what came before
            (1, [0.0, 0.0, 1.0], 1 / 3),  # 1
            (1, [0.0, 1.0, 0.0], 0.0),  # 0
            (2, [1.0, 0.0, 0.0], 1 / 3),  # 2
        ]
        for step, (action, shown, reward) in enumerate(expected):
            result = env.step(action)
            assert (result[0].tolist(), *result[1:]) == (shown, reward, step == 4, False, {})
            assert [type(value) for value in result[1:4]] == [float, bool, bool]
            assert result[0].dtype == np.float32

    def test_no_action_is_right_before_the_delay_is_over(self):
        for action in range(3):
            env = short_env([action] * 6)
            assert [env.step(action)[1] for _ in range(5)] == [0.0, 0.0, 1 / 3, 1 / 3, 1 / 3]

    @each_variant
    def test_lasts_for_the_delay_and_the_graded_steps(self, kwargs):
        env = gym.make(ENV_ID, **kwargs)
        env.reset(seed=0)
        steps = 1
        while not env.step(0)[2]:
            steps += 1
        assert steps == kwargs.get("delay", 4) + kwargs.get("num_steps", 64)
        with pytest.raises(gym.error.ResetNeeded, match="after the end of an episode"):
            env.step(0)
        env.reset()
        env.step(0)

    def test_observations_are_the_symbols_and_the_callers_own(self):
        env = gym.make(ENV_ID)
        seen = [env.reset(seed=0)[0]] + [env.step(0)[0] for _ in range(68)]
        assert np.argmax(seen, axis=1).tolist() == env.unwrapped.symbols.tolist()
        assert np.sum(seen, axis=1).tolist() == [1.0] * 69
        seen[0][:] = 7.0
        assert env.reset()[0].sum() == 1.0

    def test_every_symbol_is_equally_likely_whatever_came_before(self):
        env = gym.make(ENV_ID, num_symbols=3, num_steps=9_000)
        env.reset(seed=0)
        symbols = env.unwrapped.symbols
        for delay in range(1, 6):
            pairs = np.bincount(3 * symbols[:-delay] + symbols[delay:], minlength=9) / (len(symbols) - delay)
            assert pairs == pytest.approx(np.full(9, 1 / 9), abs=0.015)


class TestAgents:
    @each_variant
    def test_one_that_remembers_is_always_right(self, kwargs):
        env = gym.make(ENV_ID, **kwargs)
        assert returns(env, remembering(env.unwrapped.delay), 5) == pytest.approx([1.0] * 5)

    @pytest.mark.parametrize("delay", [0, 3, 5])
    def test_one_that_remembers_another_time_guesses(self, delay):
        assert np.mean(returns(gym.make(ENV_ID), remembering(delay), 100)) == pytest.approx(0.25, abs=0.025)

    @pytest.mark.parametrize("num_symbols", [2, 5])
    def test_one_that_guesses_is_right_as_often_as_chance_has_it(self, num_symbols):
        rng = np.random.default_rng(0)
        env = gym.make(ENV_ID, num_symbols=num_symbols)
        rewards = returns(env, lambda _: rng.integers(num_symbols), 100)
        assert np.mean(rewards) == pytest.approx(1 / num_symbols, abs=0.025)

    def test_without_a_delay_none_needs_a_memory(self):
        env = gym.make(ENV_ID, delay=0)
        assert returns(env, lambda observation: observation is not None and int(observation.argmax()), 3) == [1.0] * 3

    def test_a_window_as_long_as_the_delay_makes_memory_needless(self):
        env = HistoryWindow(gym.make(ENV_ID, delay=2), 3)

        assert returns(env, lambda window: window is not None and window[0, :-1].argmax(), 3) == [1.0] * 3


class TestSingle:
    @each_variant
    def test_checkers_find_no_fault(self, kwargs):
        from stable_baselines3.common import env_checker

        check_env(gym.make(ENV_ID, **kwargs).unwrapped)
        env_checker.check_env(gym.make(ENV_ID, **kwargs))

    def test_stable_baselines3_makes_many(self):
        from stable_baselines3.common.env_util import make_vec_env

        envs = make_vec_env(ENV_ID, 2, env_kwargs=SHORT)
        envs.reset()
        infos = [envs.step(np.zeros(2, dtype=np.int64))[3] for _ in range(5)][-1]
        assert [info["TimeLimit.truncated"] for info in infos] == [False, False]

    @each_variant
    def test_a_seed_determines_all_episodes(self, kwargs, rollout):
        env = gym.make(ENV_ID, **kwargs)
        first = rollout(env, 200, seed=1)
        assert rollout(env, 200, seed=1) == first == rollout(gym.make(ENV_ID, **kwargs), 200, seed=1)
        assert rollout(env, 200, seed=2) != first

    @each_variant
    def test_a_spec_in_json_makes_the_same_environment(self, kwargs, rollout):
        env = gym.make(ENV_ID, **kwargs)
        copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert copy.spec == env.spec
        assert env.spec.max_episode_steps is None
        assert rollout(copy, 100, seed=1) == rollout(env, 100, seed=1)

    @each_copy
    def test_copies_continue_identically(self, copied, rollout):
        env = gym.make(ENV_ID)
        rollout(env, 7, seed=0)
        twin = copied(env)
        assert rollout(twin, 150) == rollout(env, 150)


class Led:
    """What a single environment draws its symbols from: what a row of a batched one, which steps first, drew."""

    def __init__(self, leader, row):
        self.leader, self.row = leader, row

    def integers(self, high, size):
        symbols = self.leader.unwrapped.symbols[self.row]
        assert symbols.max() < high
        assert len(symbols) == size
        return symbols.copy()


def leader_and_rows(mode, num_envs=3, **kwargs):
    leader = gym.make_vec(ENV_ID, num_envs, autoreset_mode=mode, **SHORT, **kwargs)
    rows = SyncVectorEnv([lambda: gym.make(ENV_ID, **SHORT, **kwargs)] * num_envs, autoreset_mode=mode)
    for row, env in enumerate(rows.envs):
        env.unwrapped.np_random = Led(leader, row)
    return leader, rows


class TestBatched:
    def test_is_what_make_vec_makes(self):
        assert type(gym.make_vec(ENV_ID, 2)) is RepeatObservationVectorEnv
        assert type(gym.make_vec(ENV_ID, 2, vectorization_mode="sync")) is SyncVectorEnv

    @pytest.mark.each_value
    @each_mode
    @pytest.mark.parametrize("kwargs", [{}, {"max_episode_steps": 4}, {"max_episode_steps": 1}])
    def test_is_equal_to_single_environments(self, mode, kwargs, assert_same):
        env, rows = leader_and_rows(mode, **kwargs)
        for name in ("observation_space", "single_observation_space", "action_space", "single_action_space"):
            assert getattr(env, name) == getattr(rows, name)
        assert_same(env.reset(seed=0), rows.reset())
        rng, ends, right = np.random.default_rng(0), 0, 0
        for _ in range(80):
            actions = rng.integers(3, size=3)
            result = env.step(actions)
            assert_same(result, rows.step(actions))
            ended = result[2] | result[3]
            ends, right = ends + ended, right + (result[1] > 0.0)
            mask = (rng.random(3) < 0.1) | (ended & (mode == "Disabled"))
            if mask.any():
                given = [{"options": {"reset_mask": mask.copy()}} for _ in range(2)]
                assert_same(env.reset(**given[0]), rows.reset(**given[1]))
        assert ends.min() > 5
        assert right.min() > (5 if not kwargs else -1)

    def test_one_row_draws_as_the_single_environment(self):
        env, single = gym.make_vec(ENV_ID, 1, autoreset_mode="SameStep"), gym.make(ENV_ID)
        assert env.reset(seed=5)[0][0].tolist() == single.reset(seed=5)[0].tolist()
        for _ in range(150):
            observation, reward, terminated, *_ = single.step(2)
            if terminated:
                observation, _ = single.reset()
            observations, rewards, *_ = env.step(np.array([2]))
            assert (observations[0].tolist(), rewards[0]) == (observation.tolist(), reward)

    def test_rows_differ_and_a_seed_determines_them(self):
        env = gym.make_vec(ENV_ID, 50)
        symbols = []
        for seed in (0, 0, 1):
            env.reset(seed=seed)
            symbols.append(env.unwrapped.symbols.tolist())
        assert symbols[0] == symbols[1] != symbols[2]
        assert len({tuple(row) for row in symbols[0]}) == 50

    @pytest.mark.each_value
    @each_mode
    @each_copy
    def test_copies_continue_identically(self, mode, copied, assert_same):
        env = gym.make_vec(ENV_ID, 3, autoreset_mode=mode)
        env.reset(seed=0)
        env.step(np.zeros(3, dtype=np.int64))
        twin = copied(env)
        for _ in range(67):
            assert_same(env.step(np.ones(3, dtype=np.int64)), twin.step(np.ones(3, dtype=np.int64)))

    def test_a_spec_in_json_makes_the_same_environment(self, assert_same):
        env = gym.make_vec(ENV_ID, 3, autoreset_mode="SameStep", **SHORT)
        twin = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
        assert_same(env.reset(seed=0), twin.reset(seed=0))
        for _ in range(10):
            assert_same(env.step(np.zeros(3, dtype=np.int64)), twin.step(np.zeros(3, dtype=np.int64)))

    def test_stable_baselines3_takes_it(self):
        envs = SB3VecEnv(gym.make_vec(ENV_ID, 3, autoreset_mode="SameStep", **SHORT))
        envs.seed(0)
        envs.reset()
        symbols = envs.get_attr("symbols")
        for _ in range(5):
            observations, _, dones, infos = envs.step(np.zeros(3, dtype=np.int64))
        assert dones.all()
        for row, info in enumerate(infos):
            assert info["terminal_observation"].argmax() == symbols[row][-1]
            assert info["TimeLimit.truncated"] is False
            assert observations[row].argmax() == envs.get_attr("symbols")[row][0]

    def test_what_was_handed_out_stays_as_it_was(self):
        env = gym.make_vec(ENV_ID, 2, autoreset_mode="SameStep", delay=0, num_steps=1)
        history = [env.reset(seed=0)] + [env.step(np.zeros(2, dtype=np.int64)) for _ in range(9)]
        before = pickle.dumps(history[:5])
        env.step(np.zeros(2, dtype=np.int64))
        assert pickle.dumps(history[:5]) == before


class TestPictures:
    def test_show_the_symbols_from_the_one_to_name_to_the_present_one(self):
        env = gym.make(ENV_ID, render_mode="rgb_array", **SHORT)
        env.reset(seed=0)
        env.unwrapped.symbols = np.array([1, 0, 2, 2, 1, 0])
        for steps, columns in [(0, [None, None, 1]), (1, [None, 1, 0]), (2, [1, 0, 2]), (3, [0, 2, 2])]:
            frame = env.render()
            assert (frame.shape, frame.dtype) == ((96, 96, 3), np.uint8)
            squares = frame[16::32, 16::32, 0]
            expected = [[255 * (symbol == shown) for shown in columns] for symbol in range(3)]
            assert squares.tolist() == expected, steps
            env.step(0)

    @each_mode
    def test_of_the_batched_environment_are_those_of_single_ones(self, mode):
        env, single = (
            make(ENV_ID, render_mode="rgb_array", **kwargs)
            for make, kwargs in [(gym.make_vec, {"num_envs": 1, "autoreset_mode": mode}), (gym.make, {})]
        )
        env.reset(seed=0)
        single.reset(seed=0)
        for _ in range(9):
            assert np.array_equal(env.render()[0], single.render())
            env.step(np.array([0]))
            single.step(0)


class TestBadInput:
    @each_form
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"delay": -1}, "delay must be an int >= 0; got -1."),
            ({"delay": 2.0}, "delay must be an int >= 0; got 2.0."),
            ({"num_symbols": 1}, "num_symbols must be an int >= 2; got 1."),
            ({"num_steps": 0}, "num_steps must be an int >= 1; got 0."),
            ({"num_steps": True}, "num_steps must be an int >= 1; got True."),
        ],
    )
    def test_arguments(self, make, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make(ENV_ID, **kwargs)

    @pytest.mark.parametrize("kwargs", [{"num_envs": 0}, {"autoreset_mode": "samestep"}])
    def test_arguments_of_the_batched_environment(self, kwargs):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))} must be "):
            gym.make_vec(ENV_ID, **kwargs)

    def test_render_modes(self):
        with pytest.raises(ValueError, match="render_mode must be None or 'rgb_array'; got 'human'"):
            RepeatObservationEnv(render_mode="human")

    @each_form
    def test_the_order_of_calls(self, make):
        env = make(ENV_ID, render_mode="rgb_array").unwrapped
        for call in (lambda: env.step(env.action_space.sample()), env.render):
            with pytest.raises(gym.error.ResetNeeded, match="reset"):
                call()
        env.render_mode = None
        with pytest.warns(UserWarning, match="needs a render mode"):
            assert env.render() is None

    @each_form
    def test_options(self, make):
        with pytest.raises(ValueError, match="an option of reset must be one of"):
            make(ENV_ID).reset(options={"task": {}})

    @pytest.mark.parametrize("action", [4, -1, 1.0, None, [1]])
    def test_actions(self, action):
        env = gym.make(ENV_ID).unwrapped
        env.reset(seed=0)
        with pytest.raises(ValueError, match="an action must be an int from 0 to 3; got"):
            env.step(action)

    @pytest.mark.parametrize(
        ("actions", "message"),
        [
            ([0, 4], "an action must be an int from 0 to 3; got 4 in row 1."),
            ([-1, 0], "an action must be an int from 0 to 3; got -1 in row 0."),
            ([0.0, 1.0], "actions must be 2 whole numbers, one for each row; got shape .2,. of float64."),
            ([0], "actions must be 2 whole numbers"),
        ],
    )
    def test_actions_of_the_batched_environment(self, actions, message):
        env = gym.make_vec(ENV_ID, 2)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(actions)

    def test_rows_that_nobody_reset(self):
        env = gym.make_vec(ENV_ID, 2, autoreset_mode="Disabled", delay=0, num_steps=1)
        env.reset(seed=0)
        env.step(np.zeros(2, dtype=np.int64))
        with pytest.raises(gym.error.ResetNeeded, match=r"must be reset before step\(\); got \[0, 1\]"):
            env.step(np.zeros(2, dtype=np.int64))

    def test_a_seed_for_some_rows(self):
        env = gym.make_vec(ENV_ID, 2)
        env.reset(seed=0)
        with pytest.raises(ValueError, match="a seed is for all rows"):
            env.reset(seed=0, options={"reset_mask": np.array([True, False])})
