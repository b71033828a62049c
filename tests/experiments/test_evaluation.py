import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, DynamicsModel
from ssm_metarl_gym.envs import HiddenActuators
from ssm_metarl_gym.experiments.evaluation import (
    draw_tasks,
    evaluate,
    find_splits,
    held_out_splits,
    mean_curve,
    returns_of,
    with_warm_up,
)
from ssm_metarl_gym.wrappers import OnlineAdaptation, make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SPLITS = ["interpolation", "extrapolation", "switch"]


class Countdown(gym.Env):
    """The observation counts down to 0, which ends the episode; the reward is the action times the count."""

    observation_space = gym.spaces.Box(0.0, 10.0, shape=(1,))
    action_space = gym.spaces.Discrete(3)

    def __init__(self, start):
        self.start = start

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = self.start
        return self._observation(), {}

    def step(self, action):
        self.count -= 1
        return self._observation(), float(action * (self.count + 1)), self.count == 0, False, {"count": self.count}

    def _observation(self):
        return np.array([self.count], dtype=np.float32)


class Counting:
    """Acts by how many steps it has seen of each episode, which it keeps in its state."""

    def __init__(self):
        self.calls = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        (steps,) = (np.zeros(len(observation), dtype=int),) if state is None else state
        steps = np.where(episode_start, 0, steps)
        self.calls.append((observation.copy(), episode_start.copy(), deterministic))
        return np.minimum(steps, 2), (steps + 1,)


class Balancing:
    """Pushes the cart to the side to which the pole falls."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 2] + observation[:, 3] > 0).astype(int), None


class Sampling:
    """Acts at random."""

    def __init__(self, space):
        self.space = space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.array([self.space.sample() for _ in observation]), None


def rows(*starts):
    return DummyVecEnv([lambda start=start: Countdown(start) for start in starts])


def test_the_rewards_are_those_of_one_episode_of_each_row():
    policy = Counting()
    # Actions 0, 1, 2, 2, times counts 4, 3, 2, 1: the policy's state comes back to it.
    assert evaluate(policy, rows(4, 1, 2), seed=0) == [[0.0, 3.0, 4.0, 2.0], [0.0], [0.0, 1.0]]
    observations, starts, deterministic = zip(*policy.calls, strict=True)
    assert np.ravel(observations).tolist() == [4, 1, 2, 3, 1, 1, 2, 1, 2, 1, 1, 1]
    assert np.flatnonzero(starts).tolist() == [0, 1, 2, 4, 7, 8, 10]
    assert all(deterministic)


def test_what_looks_on_sees_the_rewards_so_far_and_the_infos_of_the_last_step():
    seen = []
    evaluate(Counting(), rows(3), seed=0, before_step=lambda rewards, infos: seen.append((sum(rewards[0]), len(infos))))
    assert seen == [(0.0, 0), (0.0, 1), (2.0, 1)]


@pytest.mark.parametrize("flags", [{"training": False}, {"norm_reward": False}])
def test_what_normalises_must_stand_still(flags):
    env = VecNormalize(rows(4, 1), **flags)
    with pytest.raises(ValueError, match=r"VecNormalize must neither learn nor normalise rewards.*Set env\.training"):
        evaluate(Counting(), env, seed=0)
    env.training = env.norm_reward = False
    assert returns_of(evaluate(Counting(), env, seed=0)) == [9.0, 0.0]


@pytest.mark.parametrize("env_id", [ENV_ID, "CartPole-v1"])
def test_the_returns_are_those_that_sb3_finds(env_id):
    rewards = evaluate(Balancing(), make_sb3_env(env_id, 4, max_episode_steps=40), seed=7)
    env = make_sb3_env(env_id, 4, max_episode_steps=40)
    env.seed(7)
    mean, _ = evaluate_policy(Balancing(), env, 4)
    assert np.mean(returns_of(rewards)) == mean


def test_an_agent_behind_a_wrapper_meets_the_same_tasks_as_one_without():
    def make_env(wrapped):
        env = gym.make(ENV_ID, max_episode_steps=12, split="extrapolation")
        if not wrapped:
            return env
        model = DynamicsModel(env.observation_space, env.action_space)
        config = AdaptationConfig(0.1, 1.0, 1.0, 0.9, 0.0, 1)
        return OnlineAdaptation(env, Adapter(model, config), observe_predictions=True)

    wrapped, plain = (
        evaluate(Balancing(), DummyVecEnv([lambda wrapped=wrapped: make_env(wrapped)] * 3), seed=5)
        for wrapped in (True, False)
    )
    assert wrapped == plain
    assert len(set(map(tuple, plain))) > 1


@pytest.mark.parametrize(("env_id", "parameter"), [(ENV_ID, "length"), ("ssm_metarl/PointNavigation-v0", "goal_x")])
def test_rows_stepped_one_by_one_meet_the_tasks_of_those_stepped_together(env_id, parameter):
    met = {}
    single = DummyVecEnv([lambda: gym.make(env_id, split="interpolation", max_episode_steps=2)] * 3)
    together = make_sb3_env(env_id, 3, split="interpolation", max_episode_steps=2)
    tasks = draw_tasks(env_id, 3, 5, split="interpolation")
    for name, env, given in (("single", single, tasks), ("together", together, None)):

        def look(rewards, infos, env=env, name=name):
            met.setdefault(name, [task.to_dict() for task in env.get_attr("task")])

        evaluate(Sampling(env.action_space), env, seed=5, tasks=given, before_step=look)
    assert met["single"] == met["together"] == tasks
    assert len({task[parameter] for task in tasks}) == 3


def test_a_curve_sums_up_to_the_mean_return():
    rewards = [[1.0, 1.0, 1.0], [3.0]]
    assert returns_of(rewards) == [3.0, 3.0]
    assert mean_curve(rewards).tolist() == [2.0, 0.5, 0.5]


def test_splits_are_those_that_the_environment_has():
    assert list(find_splits("ssm_metarl/PendulumPolarity-v0", {})) == ["train", *SPLITS]
    assert find_splits("CartPole-v1", {}) == {"default": {}}
    assert list(find_splits("ssm_metarl/CartPole-v0", {"context": "visible"})) == ["train", *SPLITS[:2]]
    assert list(find_splits("ssm_metarl/PendulumPolarity-v0", {"context": "visible"})) == ["train", *SPLITS]
    assert find_splits("ssm_metarl/CartPole-v0", {})["switch"] == {"split": "interpolation", "switch": {"step": 250}}


def test_splits_of_motors_that_a_wrapper_hides(monkeypatch):
    def make(**kwargs):
        return HiddenActuators(gym.make("Pendulum-v1"), **kwargs)

    spec = gym.envs.registration.EnvSpec("Motor-v0", entry_point=make, max_episode_steps=200)
    monkeypatch.setitem(gym.registry, "Motor-v0", spec)
    assert list(find_splits("Motor-v0", {})) == ["train", *SPLITS]
    assert len({task["map_0_0"] for task in draw_tasks("Motor-v0", 3, 5, split="interpolation")}) == 3


def test_held_out_splits_of_any_environment_with_a_split():
    assert held_out_splits("ssm_metarl/CartPole-v0", {"max_episode_steps": 5}) == ["interpolation", "extrapolation"]
    assert held_out_splits("CartPole-v1", {}) == []


def test_splits_of_mujoco():
    pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")
    assert list(find_splits("ssm_metarl/HalfCheetahDir-v0", {})) == ["train", "interpolation", "switch"]
    assert held_out_splits("ssm_metarl/HalfCheetahDir-v0", {}) == ["interpolation"]
    assert list(find_splits("ssm_metarl/HopperParams-v0", {})) == ["train", "interpolation", "extrapolation"]
    assert list(find_splits("ssm_metarl/ReacherActuators-v0", {})) == ["train", *SPLITS]


class TestWarmUp:
    ENV_ID = "ssm_metarl/PendulumPolarity-v0"

    def test_lengthens_episodes_and_comes_before_a_switch(self):
        splits = with_warm_up(find_splits(self.ENV_ID, {}), self.ENV_ID, {}, 24)
        assert splits["extrapolation"] == {"split": "extrapolation", "warm_up_steps": 24, "max_episode_steps": 224}
        assert splits["switch"]["switch"] == {"step": 124}

    def test_does_not_count_but_agents_remember_it(self):
        splits = with_warm_up(find_splits(self.ENV_ID, {}), self.ENV_ID, {}, 3)
        env = make_sb3_env(self.ENV_ID, 2, **{**splits["interpolation"], "max_episode_steps": 8})
        agent = Still()
        rewards = evaluate(agent, env, seed=0)
        assert [np.flatnonzero(row).tolist() for row in rewards] == [[3, 4, 5, 6, 7]] * 2
        assert [starts.all() for starts in agent.starts] == [True] + [False] * 7

    def test_comes_before_a_switch_that_the_arguments_ask_for(self):
        for env_kwargs, chosen in (({"switch": {"step": 5}}, {}), ({}, {"switch": {"step": 5}})):
            splits = with_warm_up({"train": {"split": "train", **chosen}}, self.ENV_ID, env_kwargs, 3)
            assert splits["train"]["switch"] == {"step": 8}

    def test_comes_before_no_switch(self):
        without = {"interpolation": {"split": "interpolation", "switch": None}}
        splits = with_warm_up(without, "ssm_metarl/PendulumSwitch-v0", {}, 3)
        assert splits["interpolation"]["switch"] is None

    def test_is_for_environments_that_have_one(self):
        with pytest.raises(ValueError, match="a warm-up is for environments that take 'warm_up_steps'; CartPole-v1"):
            with_warm_up({"default": {}}, "CartPole-v1", {}, 3)


class Still:
    """Does nothing, and remembers when episodes started."""

    def __init__(self):
        self.starts = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.starts.append(episode_start.copy())
        return np.zeros((len(observation), 1)), None
