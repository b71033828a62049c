import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import nn

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents import DynamicsModel
from ssm_metarl_gym.agents.models.supervision import (
    Transitions,
    collect_transitions,
    descend,
    random_actions,
    with_noise,
)

BOX, DISCRETE = spaces.Box(np.float32([-1.0, -2.0]), np.float32([1.0, 6.0])), spaces.Discrete(3, start=1)


class Adder(gym.Env):
    """Shows the sum of the actions of an episode of 4 steps and how many there were; the second of a trial restarts."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))

    def __init__(self, action_space=BOX, *, trial=False):
        self.action_space = action_space
        self.trial = trial

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.num_steps = 0
        self.seen = np.float32([self.np_random.normal(), 0.0])
        return self.seen.copy(), {}

    def step(self, action):
        self.num_steps += 1
        restarted = self.trial and self.num_steps == 2
        self.seen = self.seen + np.float32([np.sum(action), 1.0])
        if restarted:
            self.seen[0] = 1000.0
        return self.seen.copy(), 0.0, False, self.num_steps == 4, {"restarted": restarted}


class Recorder:
    """Always the same action, with a memory of how often it was asked since the start of an episode."""

    def __init__(self, action):
        self.action = np.asarray(action)
        self.shown = []
        self.counts = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert deterministic
        state = np.zeros(len(observation), dtype=int) if state is None else state
        state = np.where(episode_start, 1, state + 1)
        self.shown.append(np.array(observation))
        self.counts.append(state)
        return np.tile(self.action, (len(observation), *(1,) * self.action.ndim)), state


def vector(mode, trial=False):
    return SyncVectorEnv([lambda: Adder(trial=trial) for _ in range(3)], autoreset_mode=mode)


ENVS = {
    "single": Adder,
    "VecEnv": lambda **options: DummyVecEnv([lambda: Adder(**options) for _ in range(3)]),
    "VecNormalize": lambda **options: VecNormalize(DummyVecEnv([lambda: Adder(**options) for _ in range(3)])),
    "next step": lambda **options: vector(AutoresetMode.NEXT_STEP, **options),
    "same step": lambda **options: vector(AutoresetMode.SAME_STEP, **options),
    "disabled": lambda **options: vector(AutoresetMode.DISABLED, **options),
}
each_env = pytest.mark.parametrize("make", ENVS.values(), ids=ENVS)


@each_env
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_transitions_to_and_from_what_is_not_finite_are_left_out(make, bad, monkeypatch):
    step = Adder.step

    def failing_step(self, action):
        seen, *rest = step(self, action)
        return (np.float32([0.0, bad]) if self.num_steps == 2 else seen), *rest

    monkeypatch.setattr(Adder, "step", failing_step)
    (transitions,) = collect_transitions(make(), None, 120, seed=0)
    assert set(transitions.observations[:, 1].tolist()) == {0.0, 3.0}
    assert (transitions.next_observations[:, 1] == transitions.observations[:, 1] + 1.0).all()
    assert len(transitions.actions) == 60


@pytest.mark.parametrize("policy", [None, Recorder([0.0, 0.0])])
def test_a_simulator_that_shows_nothing_finite_is_refused(policy, monkeypatch):
    monkeypatch.setattr(Adder, "reset", lambda self, **options: (np.full(2, np.nan, np.float32), {}))
    monkeypatch.setattr(
        Adder, "step", lambda self, action: (np.full(2, np.nan, np.float32), 0.0, False, False, {"restarted": False})
    )
    model = DynamicsModel(Adder.observation_space, BOX, nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"finite observations, .*; of about 150 there are 0\. Mend"):
        model.fit(Adder(), policy, num_transitions=150)


def test_no_policy_is_shown_what_a_failed_sensor_says(monkeypatch):
    begin = Adder.reset
    monkeypatch.setattr(
        Adder, "reset", lambda self, **options: (begin(self, **options)[0] + np.float32([np.nan, np.inf]), {})
    )
    recorder = Recorder([0.0, 0.0])
    parts = collect_transitions(Adder(), recorder, 60, seed=0)
    shown = np.concatenate(recorder.shown)
    assert np.isfinite(shown).all()
    assert (shown == 0.0).all(axis=1).any()
    assert all(np.isfinite(part.observations).all() for part in parts)


@each_env
@pytest.mark.parametrize("trial", [False, True])
class TestCollecting:
    @pytest.mark.each_value
    def test_every_transition_is_one_of_the_environment(self, make, trial):
        for part in collect_transitions(make(trial=trial), Recorder([0.5, 1.0]), 120, seed=0):
            change = part.next_observations - part.observations
            np.testing.assert_allclose(change[:, 0], part.actions.sum(1), rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(change[:, 1], 1.0, rtol=1e-5)

    @pytest.mark.each_value
    def test_all_steps_of_an_episode_are_there(self, make, trial):
        (part,) = collect_transitions(make(trial=trial), None, 240, seed=0)
        assert 240 <= len(part.actions) < 243
        num_taken = np.bincount(part.observations[:, 1].astype(int), minlength=4)
        assert num_taken[1] == (0 if trial else num_taken[2])
        assert num_taken[0] - num_taken[2] in (0, 1, 2, 3)
        assert num_taken[2] - num_taken[3] in (0, 1, 2, 3)

    @pytest.mark.each_value
    def test_one_seed_gives_one_result_and_no_other_randomness(self, untouched_rng, make, trial):
        first = [collect_transitions(make(trial=trial), Recorder([0.0, 0.0]), 60, seed=seed) for seed in (3, 4)]
        np.random.seed(5)  # noqa: NPY002
        with untouched_rng():
            again = collect_transitions(make(trial=trial), Recorder([0.0, 0.0]), 60, seed=3)
        for one, other in zip(first[0], again, strict=True):
            for name, column in vars(one).items():
                np.testing.assert_array_equal(column, vars(other)[name])
        assert not np.array_equal(first[0][0].actions[:20], first[1][0].actions[:20])


class TestActions:
    def test_a_third_is_random_and_the_rest_has_noise_of_three_sizes(self):
        parts = collect_transitions(Adder(), Recorder([0.1, 2.5]), 2700, seed=0)
        assert [len(part.actions) for part in parts] == [900, 600, 600, 600]
        assert all(part.actions.dtype == np.float32 for part in parts)
        np.testing.assert_allclose(parts[0].actions.min(0), BOX.low, atol=0.05)
        np.testing.assert_allclose(parts[0].actions.max(0), BOX.high, atol=0.05)
        for part, noise in zip(parts[1:3], (0.05, 0.2), strict=True):
            np.testing.assert_allclose(part.actions.mean(0), [0.1, 2.5], atol=0.1)
            np.testing.assert_allclose(part.actions.std(0), [noise, 4.0 * noise], rtol=0.1)
        assert BOX.contains(parts[3].actions.max(0))
        assert BOX.contains(parts[3].actions.min(0))
        assert 0.4 < parts[3].actions[:, 0].std() < 0.5

    def test_of_a_discrete_space_as_many_are_replaced(self):
        parts = collect_transitions(Adder(DISCRETE), Recorder(2), 4500, seed=0)
        assert set(np.unique(parts[0].actions)) == {1, 2, 3}
        for part, noise in zip(parts[1:], (0.05, 0.2, 0.5), strict=True):
            assert np.mean(part.actions != 2) == pytest.approx(2.0 / 3.0 * noise, abs=0.03)

    def test_without_a_policy_all_are_random(self):
        (part,) = collect_transitions(Adder(), None, 500, seed=0)
        assert part.actions.std(0) == pytest.approx(np.array([2.0, 8.0]) / 12.0**0.5, rel=0.1)

    @each_env
    def test_a_policy_with_memory_is_told_where_an_episode_starts(self, make):
        policy = Recorder([0.0, 0.0])
        collect_transitions(make(), policy, 180, seed=0)
        longest = 5 if make is ENVS["next step"] else 4  # there a step resets the row
        assert max(counts.max() for counts in policy.counts) == longest
        is_first = np.concatenate(policy.shown)[:, 1] == 0.0
        assert (np.concatenate(policy.counts)[is_first] == 1).all()

    def test_behind_vec_normalize_the_policy_alone_sees_what_is_normalised(self):
        env = ENVS["VecNormalize"]()
        env.reset()
        for _ in range(20):
            env.step(np.ones((3, 2), dtype=np.float32))
        mean = env.obs_rms.mean.copy()
        policy = Recorder([0.0, 0.0])
        collect_transitions(env, policy, 90, seed=0)
        collected = collect_transitions(env.venv, Recorder([0.0, 0.0]), 90, seed=0)
        np.testing.assert_array_equal(policy.shown[1], env.normalize_obs(collected[1].observations[3:6]))
        np.testing.assert_array_equal(env.obs_rms.mean, mean)

    def test_within_other_wrappers_vec_normalize_is_refused(self):
        with pytest.raises(ValueError, match=r"VecNormalize must be the outermost wrapper; got <.*VecMonitor"):
            collect_transitions(VecMonitor(ENVS["VecNormalize"]()), None, 10, seed=0)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_they_are_of_a_box_in_its_own_type_of_numbers(self, dtype):
        space = spaces.Box(dtype(-0.1), dtype(0.1), (2,), dtype=dtype)  # 0.1 is another number in each type
        rng = np.random.default_rng(0)
        at_random = random_actions(space, rng, (50,))
        noisy = with_noise(np.full((50, 2), 0.1), at_random, space, 0.5, rng)
        assert noisy.max() == space.high[0]
        assert all(space.contains(action) for action in (*at_random, *noisy))

    def test_a_policy_of_sb3(self):
        env = gym.make("Pendulum-v1")
        policy = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
        parts = collect_transitions(env, policy, 90, seed=0)
        expected, _ = policy.predict(parts[1].observations, deterministic=True)
        assert np.abs(parts[1].actions - expected).max() < 5 * 0.05 * 2.0

    @pytest.mark.parametrize("space", [spaces.Box(-np.inf, np.inf, (2,)), spaces.MultiBinary(2)], ids=str)
    def test_actions_without_bounds(self, space):
        with pytest.raises(ValueError, match="the action space must be Discrete or a bounded Box; got"):
            random_actions(space, np.random.default_rng(0), (3,))


def test_transitions_are_split_and_joined_in_their_order():
    columns = np.arange(20.0).reshape(10, 2), np.arange(10), np.arange(20.0, 40.0).reshape(10, 2)
    whole = Transitions(*columns)
    first, rest = whole.split(0.7)
    assert (first.actions.tolist(), rest.actions.tolist()) == ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    first, rest = Transitions(*(np.concatenate([column] * 4) for column in columns)).split(0.9, 8)  # four of ten each
    assert rest.actions.tolist() == [9] * 4
    assert first.actions.tolist() == list(range(9)) * 4
    first, rest = whole.split(0.7)
    for column, joined in zip(columns, vars(Transitions.joined([first, rest])).values(), strict=True):
        np.testing.assert_array_equal(column, joined)


def test_the_descent_finds_the_least_squares_and_draws_nothing_from_elsewhere(untouched_rng):
    inputs = torch.randn(500, 3)
    targets = inputs @ torch.randn(3, 2) + 0.5
    networks = [nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    with untouched_rng():
        for network in networks:
            descend(
                network,
                network.parameters(),
                inputs,
                targets,
                num_updates=300,
                batch_size=64,
                learning_rate=0.05,
                rng=np.random.default_rng(0),
            )
    assert nn.functional.mse_loss(networks[0](inputs), targets) < 1e-4
    assert torch.equal(networks[0].weight, networks[1].weight)


@pytest.mark.parametrize(("dtype", "learning_rate"), [(torch.float32, 1e20), (torch.float16, 1e-3)], ids=str)
def test_a_descent_that_diverges_says_so(dtype, learning_rate):
    env = Adder(BOX)
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(4, 64), nn.Tanh()).to(dtype)
    model = DynamicsModel(env.observation_space, env.action_space, core)
    with pytest.raises(FloatingPointError, match=f"must be finite after the fit; they are not, of {dtype} with a step"):
        model.fit(env, num_transitions=100, num_updates=5, learning_rate=learning_rate)
