"""What holds of all environments whose physics are told for n rows at once, single and batched."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

MODES = [mode.value for mode in AutoresetMode]
# Of each class, and what can be asked of it.
CASES = [
    ("PointActuators", {"dimension": 3, "switch": {"step": 5}, "context": "visible"}),
    ("PointActuators", {"dimension": 9, "split": "extrapolation"}),
    ("DoubleIntegrator", {"contexts": "aib", "switch": {"step": [1, 4, 9]}, "context": "visible"}),
    ("DoubleIntegratorFriction", {"split": "extrapolation"}),
    ("ComplexODE", {"contexts": "aib", "split": "interpolation"}),
    ("PointNavigation", {}),
]
each_mode = pytest.mark.parametrize("mode", MODES)
each_case = pytest.mark.parametrize(("family", "kwargs"), CASES, ids=[f"{name}-{kwargs}" for name, kwargs in CASES])


def make_vec(family, num_envs=3, **kwargs):
    return gym.make_vec(f"ssm_metarl/{family}-v0", num_envs, **kwargs)


@pytest.mark.each_value
@each_case
@each_mode
def test_every_row_is_a_single_environment(family, kwargs, mode, leader_and_rows, play_both, assert_same):
    # Where a switch draws tasks, rows that share a stream draw others than single environments.
    kwargs = kwargs if family == "DoubleIntegrator" else kwargs | {"switch": None}
    env, rows = leader_and_rows(f"ssm_metarl/{family}-v0", 3, autoreset_mode=mode, max_episode_steps=8, **kwargs)
    assert env.observation_space == rows.observation_space
    assert env.action_space == rows.action_space
    play_both(env, rows, 20, scale=1.3)
    assert_same(env.unwrapped.state, np.array([row.unwrapped.state for row in rows.envs]))


@pytest.mark.each_value
@each_case
@each_mode
def test_one_row_is_a_single_environment_of_the_same_seed(family, kwargs, mode, play_both):
    if family == "DoubleIntegrator":
        kwargs = kwargs | {"switch": {"probability": 0.3}}
    kwargs = {"max_episode_steps": 8, "observation_noise": 0.1, "warm_up_steps": 3, **kwargs}
    env = make_vec(family, 1, autoreset_mode=mode, **kwargs)
    single = SyncVectorEnv([lambda: gym.make(f"ssm_metarl/{family}-v0", **kwargs)], autoreset_mode=mode)
    for seed in (5, None):
        play_both(env, single, 20, seed=seed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_actions_of_any_type_act_alike(dtype, leader_and_rows, play_both):
    env, rows = leader_and_rows("ssm_metarl/PointActuators-v0", 3, max_episode_steps=12)
    play_both(env, rows, 15, scale=1.7, dtype=dtype)


@each_case
def test_single_precision_is_near(family, kwargs):
    kwargs = {"task": {}, **kwargs, "switch": None}
    env, reference = (make_vec(family, 16, dtype=dtype, **kwargs) for dtype in ("float32", "float64"))
    env.action_space.seed(0)
    observations, expected = (each.reset(seed=0)[0] for each in (env, reference))
    for _ in range(20):
        assert observations == pytest.approx(expected, abs=1e-4)
        actions = env.action_space.sample()
        observations, expected = (each.step(actions)[0] for each in (env, reference))
    assert env.unwrapped.state.dtype == np.float32


@each_case
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_copies_go_on_alike(family, kwargs, copied, assert_same):
    env = make_vec(family, max_episode_steps=7, observation_noise=0.1, **kwargs)
    env.reset(seed=0)
    env.action_space.seed(0)
    env.step(env.action_space.sample())
    twin = copied(env)
    for _ in range(10):
        actions = env.action_space.sample()
        assert_same(env.step(actions), twin.step(actions))


@each_case
def test_a_spec_in_json_makes_the_same_environment(family, kwargs, assert_same):
    env = make_vec(family, **kwargs)
    twin = gym.make_vec(EnvSpec.from_json(env.spec.to_json()))
    assert twin.spec == env.spec
    assert_same(env.reset(seed=1), twin.reset(seed=1))


@each_case
def test_arguments_are_those_of_the_single_environment(family, kwargs):
    del kwargs
    with pytest.raises(TypeError, match="unexpected keyword argument 'dimensions'"):
        make_vec(family, dimensions=2)
    with pytest.raises(ValueError, match="on_failure must be one of"):
        make_vec(family, on_failure="restrat")


@each_case
def test_pictures_differ_with_the_state(family, kwargs):
    env = make_vec(family, 2, render_mode="rgb_array", **kwargs | {"switch": None})
    env.reset(seed=0)
    state = np.zeros_like(env.unwrapped.state)
    state[1, 0] = 0.5
    env.unwrapped.state = state
    frames = env.render()
    assert [frame.shape for frame in frames] == [(500, 500, 3)] * 2
    assert not np.array_equal(frames[0][60:], frames[1][60:])  # below the caption
    env.close()


@pytest.mark.parametrize("action", [[0.0], [[0.0, 0.0]], [np.nan, 0.0], "left", None])
def test_refuses_other_actions(action):
    env = gym.make("ssm_metarl/PointActuators-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action must be finite numbers in an array of shape \(2,\); got "):
        env.step(action)


def test_steps_before_the_first_reset():
    env = gym.make("ssm_metarl/ComplexODE-v0").unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2))
