from dataclasses import astuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents.meta_training.streams import collect_streams, make_stream_env
from ssm_metarl_gym.envs import HiddenActuators

ENV_IDS = [f"ssm_metarl/{name}-v0" for name in ("CartPole", "CartPolePolarity", "Pendulum")]
each_env = pytest.mark.parametrize("env_id", ENV_IDS)
S, T = 6, 40


class Spy(gym.Wrapper):
    """Keeps the action, the next observation, the task and ``info`` of every step."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = []

    def step(self, action):
        task = getattr(self.unwrapped, "task", None)
        result = self.env.step(action)
        self.steps.append((action, result[0].copy(), task, result[4].get("restarted", False)))
        return result


class Scripted(gym.Env):
    """Counts its steps over all episodes, each of which ends after two."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    total = 0

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        assert not options
        super().reset(seed=seed)
        self.left = 2
        return np.array([-1.0], dtype=np.float32), {}

    def step(self, action):
        self.total, self.left = self.total + 1, self.left - 1
        return np.array([self.total], dtype=np.float32), 0.0, False, self.left == 0, {}


def collect(env, seed=0):
    return collect_streams(env, S, T, seed=np.random.SeedSequence(seed))


@pytest.mark.parametrize(
    ("given", "kept"), [(np.float64, np.float64), (np.float32, np.float32), (np.uint8, np.float32)]
)
def test_observations_keep_their_precision(given, kept):
    env = Scripted(spaces.Discrete(2))
    env.observation_space = spaces.Box(0, 100, (1,), given)
    assert collect(env).observations.dtype == collect(env).next_observations.dtype == kept


def test_a_policy_is_not_shown_what_a_failed_sensor_says(monkeypatch):
    class Looking:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            assert np.isfinite(observation).all()
            return np.zeros(len(observation), dtype=int), state

    env = Scripted(spaces.Discrete(2))
    monkeypatch.setattr(env, "reset", lambda **options: (setattr(env, "left", 2), (np.array([np.nan]), {}))[1])
    streams = collect_streams(env, S, T, seed=np.random.SeedSequence(0), policy=Looking())
    assert np.isnan(streams.observations).any()


@pytest.mark.parametrize("inner_id", ["MountainCarContinuous-v0", "ssm_metarl/PendulumPolarity-v0"])
def test_an_episode_that_ends_goes_on_with_the_task_that_a_wrapper_hides(inner_id):
    env = HiddenActuators(gym.make(inner_id, max_episode_steps=10))
    seen = []

    class Watching(gym.Wrapper):
        def step(self, action):
            result = self.env.step(action)
            seen.append(result[4]["task_id"])
            return result

    collect(Watching(env))
    assert [len(set(ids)) for ids in np.reshape(seen, (S, T))] == [1] * S
    assert len(set(seen)) == S


class VectorSpy(gym.vector.VectorWrapper):
    """Keeps the state and the tasks before every step."""

    def __init__(self, env):
        super().__init__(env)
        self.steps = []

    def step(self, actions):
        self.steps.append((self.unwrapped.state, list(self.unwrapped.tasks)))
        return self.env.step(actions)


def make(env_id, kind):
    """An environment of one task at a time, or the batched one."""
    return make_stream_env(env_id, S) if kind == "batched" else gym.make(env_id)


each_kind = pytest.mark.parametrize("kind", ["single", "batched"])


@each_env
def test_a_stream_holds_what_the_environment_did(env_id):
    env = Spy(gym.make(env_id))
    streams = collect(env)
    action_shape = env.action_space.shape or ()
    assert streams.observations.shape == streams.next_observations.shape == (S, T, *env.observation_space.shape)
    assert streams.actions.shape == (S, T, *action_shape)
    assert streams.observations.dtype == streams.next_observations.dtype == np.float32
    actions, next_observations, _, restarted = zip(*env.steps, strict=True)
    np.testing.assert_array_equal(streams.actions.reshape(S * T, *action_shape), actions)
    np.testing.assert_array_equal(streams.next_observations.reshape(S * T, -1), next_observations)
    np.testing.assert_array_equal(streams.restarted.reshape(-1), restarted)
    assert streams.restarted.any() == (env_id == "ssm_metarl/CartPolePolarity-v0")
    assert all(map(env.action_space.contains, streams.actions.reshape(S * T, *action_shape)))
    assert len(np.unique(streams.actions)) > 1


@each_env
def test_batched_streams_hold_what_single_environments_do(env_id):
    """Each step is taken again by a single environment in the same task and state."""
    envs, env = VectorSpy(make_stream_env(env_id, S)), gym.make(env_id).unwrapped
    streams = collect(envs)
    env.reset(seed=0)
    for t, (states, tasks) in enumerate(envs.steps):
        for row in range(S):
            env.reset(options={"task": tasks[row], "state": states[row]})
            observation, _, _, _, info = env.step(streams.actions[row, t])
            restarted = info.get("restarted", False)
            assert streams.restarted[row, t] == restarted
            if not restarted:  # where a new state is drawn
                np.testing.assert_array_equal(streams.next_observations[row, t], observation)
    assert [len(set(column)) for column in zip(*(tasks for _, tasks in envs.steps), strict=True)] == [1] * S
    assert len(set(envs.steps[0][1])) == S
    assert streams.restarted.any() == (env_id == "ssm_metarl/CartPolePolarity-v0")
    assert all(map(env.action_space.contains, streams.actions.reshape(S * T, *(env.action_space.shape or ()))))


def test_a_batched_stream_whose_episode_ends_starts_widely_again():
    env_id = "ssm_metarl/CartPole-v0"
    streams = collect(make_stream_env(env_id, S, max_episode_steps=2))
    starts = streams.observations[:, ::2]
    assert not (streams.next_observations[:, 1:-1:2] == starts[:, 1:]).any()
    assert (starts[..., 0].std(axis=1) > 0.5).all()


def test_only_environments_with_a_batched_form_are_batched():
    assert isinstance(make_stream_env("ssm_metarl/CartPole-v0", 3), gym.vector.VectorEnv)
    assert isinstance(make_stream_env("ssm_metarl_gym:ssm_metarl/CartPole-v0", 3), gym.vector.VectorEnv)
    env = make_stream_env("CartPole-v1", 3, sutton_barto_reward=True)  # Gymnasium's own cannot go on with a task
    assert isinstance(env, gym.Env)
    assert collect_streams(env, 3, 4, seed=np.random.SeedSequence(0)).observations.shape == (3, 4, 4)


@pytest.mark.each_value
@each_kind
@each_env
def test_a_transition_starts_where_the_last_one_ended(env_id, kind):
    streams = collect(make(env_id, kind))
    joined = (streams.next_observations[:, :-1] == streams.observations[:, 1:]).all(axis=-1)
    if env_id == "ssm_metarl/CartPole-v0":
        # An episode that ended within the stream: its last observation is kept, and the next one starts anew.
        last = streams.next_observations[:, :-1][~joined]
        fallen = (np.abs(last[:, 0]) > 2.4) | (np.abs(last[:, 2]) > np.deg2rad(12.0))
        assert len(fallen)
        assert fallen.all()
    else:
        assert joined.all()


@each_env
def test_a_stream_has_one_task_and_each_has_another(env_id):
    env = Spy(gym.make(env_id))
    collect(env)
    tasks = [step[2] for step in env.steps]
    per_stream = [set(tasks[start : start + T]) for start in range(0, S * T, T)]
    assert all(len(tasks) == 1 for tasks in per_stream)
    assert len(set.union(*per_stream)) == S


@pytest.mark.each_value
@each_kind
@each_env
def test_streams_start_in_states_from_far_apart(env_id, kind):
    spread, env = collect(make(env_id, kind)).observations[:, 0].std(axis=0), gym.make(env_id)
    usual = np.std([env.reset(seed=seed)[0] for seed in range(S)], axis=0)
    assert (spread[-1:] > 2.0 * usual[-1:]).all()


@pytest.mark.each_value
@each_kind
@each_env
def test_one_seed_gives_one_result(env_id, kind, untouched_rng):
    env = make(env_id, kind)
    with untouched_rng():
        first, again, other = collect(env), collect(make(env_id, kind)), collect(env, seed=1)
    for same in (again, collect(env)):
        for one, another in zip(astuple(first), astuple(same), strict=True):
            np.testing.assert_array_equal(one, another)
    assert not (first.observations[:, 0] == other.observations[:, 0]).any()
    assert not np.array_equal(first.actions, other.actions)


def test_any_environment_will_do():
    streams = collect_streams(Scripted(spaces.Discrete(3, start=-1)), 2, 5, seed=np.random.SeedSequence(0))
    assert streams.observations[..., 0].tolist() == [[-1, 1, -1, 3, -1], [-1, 6, -1, 8, -1]]
    assert streams.next_observations[..., 0].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert not streams.restarted.any()


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(2), spaces.Discrete(3, start=-1), spaces.Box(np.float32([-1, 5]), np.float32([1, 6]))],
    ids=str,
)
def test_actions_are_uniform_over_the_space(space):
    actions = collect_streams(Scripted(space), 20, 20, seed=np.random.SeedSequence(0)).actions
    assert all(map(space.contains, actions.reshape(400, *space.shape)))
    if isinstance(space, spaces.Discrete):
        values, counts = np.unique(actions, return_counts=True)
        assert values.tolist() == list(range(space.start, space.start + space.n))
        assert (counts > 0.8 * 400 / space.n).all()
    else:
        for column, low, high in zip(actions.reshape(400, 2).T, space.low, space.high, strict=True):
            assert np.histogram(column, 4, (low, high))[0].min() > 75


@pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, (1,)), spaces.MultiBinary(2)], ids=str)
def test_actions_that_cannot_be_drawn_are_refused(space):
    with pytest.raises(ValueError, match="the action space must be Discrete or a bounded Box"):
        collect_streams(Scripted(space), 1, 1, seed=np.random.SeedSequence(0))


def test_observations_of_no_shape_are_refused():
    env = Scripted(spaces.Discrete(2))
    env.observation_space = spaces.Dict()
    with pytest.raises(ValueError, match="the observation space must be a Box"):
        collect_streams(env, 1, 1, seed=np.random.SeedSequence(0))


class Counting:
    """Acts by the number of steps since the start of the episode, which is its state."""

    def __init__(self, act):
        self._act = act

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.zeros(len(observation)) if state is None else state
        state = np.where(episode_start, 0.0, state + 1.0)
        return self._act(state), state


class TestAroundAPolicy:
    def test_streams_act_at_random_or_as_the_policy_with_noise(self):
        env = make_stream_env("ssm_metarl/Pendulum-v0", 18)
        policy = Counting(lambda state: np.full((len(state), 1), 0.4, dtype=np.float32))
        seed = np.random.SeedSequence(0)
        streams, at_random = (collect_streams(env, 18, 100, seed=seed, policy=one) for one in (policy, None))
        ways = np.arange(18) % 9
        np.testing.assert_array_equal(streams.actions[ways < 3], at_random.actions[ways < 3])
        for noise, chosen in ((0.05, (3, 4)), (0.2, (5, 6)), (0.5, (7, 8))):
            actions = streams.actions[np.isin(ways, chosen)]
            assert actions.mean() == pytest.approx(0.4, abs=0.1)
            assert actions.std() == pytest.approx(noise * env.single_action_space.high.item(), rel=0.1)
        env.close()

    def test_what_it_remembers_begins_with_every_episode(self):
        for batched in (False, True):
            env = make_stream_env("ssm_metarl/CartPole-v0", 9) if batched else gym.make("ssm_metarl/CartPole-v0")
            # Left, but for the third step of an episode.
            policy = Counting(lambda state: (state == 2.0).astype(np.int64))
            streams = collect_streams(env, 9, 60, seed=np.random.SeedSequence(1), policy=policy)
            # Where an episode begins, the observation is not where the last step led.
            begins = (streams.observations[3, 1:] != streams.next_observations[3, :-1]).any(axis=1)
            starts = np.append(0, np.flatnonzero(begins) + 1)
            assert len(starts) > 2
            since = np.arange(60) - starts[np.searchsorted(starts, np.arange(60), side="right") - 1]
            assert (streams.actions[3] == (since == 2)).mean() > 0.9  # all but those of the noise
            env.close()
