import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics

from ssm_metarl_gym.wrappers import (
    HistoryWindow,
    TransitionObservation,
    VectorHistoryWindow,
    VectorTransitionObservation,
)

NUM_ENVS = 3
# Episodes end at different steps, trials restart, and everything also ends at a time limit.
ENVS = {
    "ssm_metarl/CartPole-v0": {"max_episode_steps": 25},
    "ssm_metarl/CartPolePolarity-v0": {"max_episode_steps": 23},
    "ssm_metarl/Pendulum-v0": {"max_episode_steps": 13},
}
# The wrapper of a single environment, and its twin.
TWINS = {
    "window": (lambda env: HistoryWindow(env, 4), lambda env: VectorHistoryWindow(env, 4)),
    "transition": (TransitionObservation, VectorTransitionObservation),
    "window of transitions": (
        lambda env: HistoryWindow(TransitionObservation(env), 4),
        lambda env: VectorHistoryWindow(VectorTransitionObservation(env), 4),
    ),
}

all_envs = pytest.mark.parametrize("env_id", ENVS)
all_modes = pytest.mark.parametrize("mode", AutoresetMode)
all_twins = pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)


def make_both(env_fn, twins, mode=AutoresetMode.NEXT_STEP, **kwargs):
    """A vector environment of wrapped ones, and a wrapped vector environment."""
    wrapper, vector_wrapper = twins
    wrapped = SyncVectorEnv([lambda: wrapper(env_fn())] * NUM_ENVS, autoreset_mode=mode, **kwargs)
    return wrapped, vector_wrapper(SyncVectorEnv([env_fn] * NUM_ENVS, autoreset_mode=mode, **kwargs))


def make_both_of_one_row(env_id, twins, mode):
    """A vector environment of a wrapped one, and the wrapped batched environment of one row, which draws the same."""
    wrapper, vector_wrapper = twins
    wrapped = SyncVectorEnv([lambda: wrapper(gym.make(env_id, **ENVS[env_id]))], autoreset_mode=mode)
    return wrapped, vector_wrapper(gym.make_vec(env_id, 1, autoreset_mode=mode.value, **ENVS[env_id]))


def play(env, num_steps=70):
    """All that random actions give back, with resets of some rows: of those that ended, and now and then of others."""
    rng = np.random.default_rng(0)
    env.action_space.seed(0)
    mode = env.metadata["autoreset_mode"]
    history = [env.reset(seed=5)]
    for _ in range(num_steps):
        history.append(env.step(env.action_space.sample()))
        ended = history[-1][2] | history[-1][3]
        mask = ended & (mode is AutoresetMode.DISABLED) | (rng.random(env.num_envs) < 0.02)
        if mask.any():
            history.append(env.reset(options={"reset_mask": mask}))
    return history


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)) or (isinstance(one, np.ndarray) and one.dtype == object):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


@pytest.mark.each_value
@all_modes
@pytest.mark.parametrize(
    ("env_id", "twins"),
    [
        *((env_id, TWINS["window of transitions"]) for env_id in ENVS),
        ("ssm_metarl/CartPolePolarity-v0", TWINS["window"]),
        ("ssm_metarl/CartPolePolarity-v0", TWINS["transition"]),
    ],
)
def test_rows_are_bit_identical_to_wrapped_single_environments(env_id, mode, twins):
    singles, env = make_both(lambda: gym.make(env_id, **ENVS[env_id]), twins, mode)
    assert env.observation_space == singles.observation_space
    assert env.single_observation_space == singles.single_observation_space
    expected, history = play(singles), play(env)
    assert equal(history, expected)
    assert all(env.observation_space.contains(observations) for observations, *_ in history)
    ends = [step[2] | step[3] for step in history if len(step) == 5]
    assert np.sum(ends, axis=0).min() >= 2
    assert any(np.any(infos.get("restarted", False)) for *_, infos in history) == ("Polarity" in env_id)
    assert any("final_obs" in step[-1] for step in history) == (mode is AutoresetMode.SAME_STEP)


@pytest.mark.slow
@all_envs
@all_modes
@all_twins
def test_a_batched_row_is_bit_identical_to_a_wrapped_single_environment(env_id, mode, twins):
    single, env = make_both_of_one_row(env_id, twins, mode)
    assert env.observation_space == single.observation_space
    history = play(env, 150)
    assert equal(history, play(single, 150))
    assert np.sum([step[2] | step[3] for step in history if len(step) == 5]) >= 2
    assert any(np.any(infos.get("restarted", False)) for *_, infos in history) == ("Polarity" in env_id)


@pytest.mark.each_value
@pytest.mark.parametrize("env_id", ["CartPole-v1", "ssm_metarl/CartPole-v0", "ssm_metarl/Pendulum-v0"])
@all_twins
def test_a_natively_batched_environment_is_wrapped_too(env_id, twins):
    kwargs = ENVS.get(env_id, {})
    plain, wrapped = (gym.make_vec(env_id, NUM_ENVS, "vector_entry_point", **kwargs) for _ in range(2))
    env = twins[1](wrapped)
    plain.action_space.seed(0)
    observations, shown = plain.reset(seed=0)[0], env.reset(seed=0)[0]
    starts, ended, num_starts = np.ones(NUM_ENVS), np.zeros(NUM_ENVS), 0
    for _ in range(60):
        last = shown.reshape(NUM_ENVS, -1, shown.shape[-1])[:, -1]
        assert np.array_equal(last[:, : observations.shape[1]], observations)
        assert np.array_equal(last[:, -1], starts)
        actions = plain.action_space.sample()
        num_starts += starts.sum()
        starts = ended  # the step after the last one of an episode resets
        observations, _, terminations, truncations, _ = plain.step(actions)
        ended, shown = terminations | truncations, env.step(actions)[0]
    assert num_starts > NUM_ENVS


@all_twins
def test_bounds_that_differ_from_row_to_row_still_do(twins, scripted):
    bounds = iter(2 * [1.0, 2.0, 3.0])
    singles, env = make_both(
        lambda: scripted([[[0.5], [0.5]]], observation_space=spaces.Box(-next(bounds), 3.0, (1,))),
        twins,
        observation_mode="different",
    )
    assert env.observation_space == singles.observation_space
    assert equal(play(env, 5), play(singles, 5))


@pytest.mark.each_value
@all_twins
@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_observations_of_another_type_become_float32(twins, dtype, scripted):
    space = spaces.Box(0, 255, (1,), dtype)
    episode = np.array([[200], [10], [0.1], [255]], dtype)  # in uint8, 10 - 200 is 66
    singles, env = make_both(lambda: scripted([episode], observation_space=space), twins)
    assert env.observation_space == singles.observation_space
    history = play(env, 5)
    assert equal(history, play(singles, 5))
    assert all(observations.dtype == np.float32 for observations, *_ in history)
    assert all(env.observation_space.contains(observations) for observations, *_ in history)


@pytest.mark.each_value
@all_twins
@pytest.mark.parametrize(
    ("over", "mode"),
    [
        (RecordEpisodeStatistics, AutoresetMode.NEXT_STEP),
        (RecordEpisodeStatistics, AutoresetMode.SAME_STEP),
        (NormalizeObservation, AutoresetMode.NEXT_STEP),
    ],
)
def test_gymnasiums_wrappers_work_over_them(twins, over, mode):
    def steps(env):
        env.action_space.seed(0)
        history = [env.reset(seed=0)] + [env.step(env.action_space.sample()) for _ in range(60)]
        for *_, infos in history:
            infos.get("episode", {}).pop("t", None)  # the time that it took
        return history

    singles, env = (over(env) for env in make_both(lambda: gym.make("ssm_metarl/CartPole-v0"), twins, mode))
    assert equal(steps(env), steps(singles))


@pytest.mark.each_value
@all_modes
@all_twins
def test_nothing_returned_is_shared(mode, twins):
    def history(env, spoil):
        env.action_space.seed(0)
        kept = []
        for step in range(40):
            result = env.step(env.action_space.sample()) if step else env.reset(seed=0)
            if step and mode is AutoresetMode.DISABLED and (ended := result[2] | result[3]).any():
                result = env.reset(options={"reset_mask": ended})
            kept.append(copy.deepcopy(result))
            if spoil:
                result[0][:] = 9.0
                for final in result[-1].get("final_obs", []):
                    if final is not None:
                        final[:] = 9.0
        return kept

    # Gymnasium's own then hands out the buffer that it writes the next observations into.
    plain, spoilt = (
        twins[1](SyncVectorEnv([lambda: gym.make("ssm_metarl/CartPole-v0")] * 2, copy=own, autoreset_mode=mode))
        for own in (True, False)
    )
    assert equal(history(spoilt, spoil=True), history(plain, spoil=False))


class Spy(VectorWrapper):
    """Remembers the infos of the last step."""

    def step(self, actions):
        *rest, self.infos = super().step(actions)
        return *rest, self.infos


@all_twins
def test_the_infos_of_the_wrapped_environment_stay_as_they_are(twins, scripted):
    fns = [lambda: scripted([[[1.0], [2.0]]]), lambda: scripted([[[3.0], [4.0], [5.0]]])]
    spy = Spy(SyncVectorEnv(fns, autoreset_mode=AutoresetMode.SAME_STEP))
    env = twins[1](spy)
    env.reset()
    infos = env.step(np.array([0, 0]))[-1]
    assert spy.infos["final_obs"].tolist() == [[2.0], None]
    assert infos["final_obs"][0].shape == env.single_observation_space.shape
    assert infos["final_obs"][1] is None
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos.keys() == spy.infos.keys()


@all_twins
def test_the_options_of_the_caller_stay_as_they_are(twins):
    _, env = make_both(lambda: gym.make("ssm_metarl/CartPole-v0"), twins)
    env.reset(seed=0)
    mask = np.array([True, False, True])
    options = {"reset_mask": mask, "low": -0.01}
    env.reset(options=options)
    assert options == {"reset_mask": mask, "low": -0.01}
    assert mask.tolist() == [True, False, True]


class Failing(VectorWrapper):
    """Steps, and then fails where it is told to."""

    fails = False

    def step(self, actions):
        result = self.env.step(actions)
        if self.fails:
            raise ConnectionError("lost")
        return result


@all_modes
def test_after_a_step_that_failed_no_false_change_is_shown(mode):
    env = Failing(gym.make_vec("ssm_metarl/Pendulum-v0", NUM_ENVS, autoreset_mode=mode))
    vector, single = VectorTransitionObservation(env), TransitionObservation(gym.make("ssm_metarl/Pendulum-v0"))
    vector.reset(seed=0)
    single.reset(seed=0)
    actions = np.ones((NUM_ENVS, 1), dtype=np.float32)
    vector.step(actions)
    env.fails = True
    with pytest.raises(ConnectionError):
        vector.step(actions)
    step, single.env.step = single.env.step, lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        single.step(actions[0])
    env.fails, single.env.step = False, step
    for shown in (*vector.step(actions)[0], single.step(actions[0])[0]):
        assert shown[-1] == 1.0
        assert not shown[5:-1].any()
    for shown in (*vector.step(actions)[0], single.step(actions[0])[0]):
        assert shown[-1] == 0.0
        assert shown[5:-1].any()


@all_twins
def test_a_reset_that_fails_changes_nothing(twins):
    _, env = make_both(lambda: gym.make("ssm_metarl/CartPole-v0"), twins)
    other = copy.deepcopy(env)
    for each in (env, other):
        each.reset(seed=0)
        each.step(np.array([1, 0, 1]))
    with pytest.raises(ValueError, match="an option of reset must be one of"):
        env.reset(options={"reset_mask": np.array([True, False, False]), "left": 1})
    assert np.array_equal(*(each.step(np.array([1, 0, 1]))[0] for each in (env, other)))


@all_twins
@pytest.mark.parametrize("mode", [None, "NextStep"])
def test_the_autoreset_mode_must_be_known(twins, mode):
    env = SyncVectorEnv([lambda: gym.make("ssm_metarl/CartPole-v0")])
    env.metadata = {"autoreset_mode": mode}
    with pytest.raises(ValueError, match=f"'autoreset_mode'] to be an AutoresetMode; got {mode!r}. Set it to"):
        twins[1](env)


@pytest.mark.parametrize("wrapper", [lambda env: VectorHistoryWindow(env, 2), VectorTransitionObservation])
@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 2)), spaces.Discrete(3)])
def test_only_rows_of_flat_boxes_are_wrapped(wrapper, space, scripted):
    env = SyncVectorEnv([lambda: scripted([[[0.0]]], observation_space=space)])
    with pytest.raises(ValueError, match=r"observation space .*must be a one-dimensional Box; got (Box|Discrete)\("):
        wrapper(env)
