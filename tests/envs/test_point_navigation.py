import math

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.tasks import families


def make(**kwargs):
    return gym.make("ssm_metarl/PointNavigation-v0", **kwargs)


def run(env, policy, **kwargs):
    """The rewards of an episode, and whether it terminated, under a function from position to action."""
    observation, _ = env.reset(**kwargs)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        rewards.append(reward)
    return rewards, terminated


@pytest.mark.parametrize(("action", "move"), [([0.5, -0.25], [0.05, -0.025]), ([-3.0, 7], [-0.1, 0.1])])
def test_a_step_by_hand(action, move):
    env = make(task={"goal_x": 0.3, "goal_y": -0.4})
    env.reset(options={"state": [0.1, 0.2]})
    observation, reward, terminated, truncated, _ = env.step(np.array(action))
    position = [0.1 + move[0], 0.2 + move[1]]
    assert env.unwrapped.state == pytest.approx(position, rel=1e-12)
    assert observation == pytest.approx(position, rel=1e-6)
    assert reward == pytest.approx(-((position[0] - 0.3) ** 2 + (position[1] + 0.4) ** 2), rel=1e-12)
    assert (type(reward), terminated, truncated) == (float, False, False)


def test_an_episode_starts_at_the_origin_whatever_the_seed():
    env = make()
    for seed in (0, 1, None):
        observation, _ = env.reset(seed=seed)
        assert observation.tolist() == env.unwrapped.state.tolist() == [0.0, 0.0]
        env.step(np.ones(2))


@pytest.mark.parametrize(
    ("position", "terminates"),
    [
        ([0.3, 0.4], True),
        ([0.3099, 0.4], True),
        ([0.3, 0.3901], True),
        ([0.307, 0.407], True),
        ([0.3101, 0.4], False),
        ([0.3, 0.3899], False),
        ([0.308, 0.408], False),  # within 0.01 in each coordinate is not enough
    ],
)
def test_an_episode_ends_within_a_hundredth_of_the_goal(position, terminates):
    env = make(task={"goal_x": 0.3, "goal_y": 0.4})
    env.reset(options={"state": position})
    _, reward, terminated, truncated, _ = env.step(np.zeros(2))
    assert (terminated, truncated) == (terminates, False)
    assert (reward >= -1e-4) == terminates


def test_an_episode_is_cut_off_after_a_hundred_steps():
    rewards, terminated = run(make(task={"goal_x": 0.3, "goal_y": 0.4}), lambda position: np.zeros(2))
    assert not terminated
    assert rewards == pytest.approx([-0.25] * 100)


@pytest.mark.parametrize("split", ["train", "extrapolation"])
def test_who_is_told_the_goal_walks_there_at_once(split):
    env = make(split=split, context="visible")
    for seed in range(20):
        # The goal is shown as a multiple of 0.5, and a step of 1 goes 0.1 far.
        rewards, terminated = run(env, lambda shown: (0.5 * shown[2:] - shown[:2]) / 0.1, seed=seed)
        task = env.unwrapped.task
        assert terminated
        num_steps = math.ceil(max(abs(task.goal_x), abs(task.goal_y)) / 0.1)
        assert num_steps - 1 <= len(rewards) <= num_steps  # the last one may be shorter than the radius of the goal
        assert np.all(np.diff(rewards) > 0)


def test_only_the_reward_tells_tasks_apart():
    one, other = make(task={"goal_x": -0.4}), make(task={"goal_y": 0.3})
    assert one.reset(seed=0)[0].tolist() == other.reset(seed=0)[0].tolist()
    for action in np.linspace(-1, 1, 10).reshape(5, 2):
        result, expected = one.step(action), other.step(action)
        assert result[0].tolist() == expected[0].tolist()
        assert result[1] != expected[1]


def test_standing_still_earns_what_the_variance_of_the_goals_says():
    goals = families.FAMILIES["PointNavigation"]
    rng = np.random.default_rng(0)
    for split, variance in (("train", 1 / 12), ("extrapolation", (0.75**3 - 0.5**3) / (3 * 0.25))):
        drawn = goals.distribution(split).sample_batch(rng, 20_000).values
        assert np.square(drawn).mean(axis=1) == pytest.approx([variance] * 2, rel=0.03)


def test_the_goal_can_be_set():
    env = make().unwrapped
    env.reset(seed=0)
    env.goal_x, env.goal_y = 0.05, 0.0
    assert env.task.to_dict() == {"goal_x": 0.05, "goal_y": 0.0}
    assert env.step(np.array([0.5, 0.0]))[1:3] == (0.0, True)


def test_a_goal_has_no_sign_to_flip():
    with pytest.raises(ValueError, match="switch must be None, as a PointNavigationTask has no sign to flip"):
        make(switch={"step": 3})


@pytest.mark.parametrize("on_failure", ["terminate", "restart"])
def test_who_is_at_the_goal_has_not_failed(on_failure):
    env = make(on_failure=on_failure, task={"goal_x": 0.1, "goal_y": 0.0})
    env.reset()
    assert env.step(np.array([1, 0]))[2]


def test_refuses_another_on_failure():
    with pytest.raises(ValueError, match=r"on_failure must be one of .*Did you mean 'restart'\?"):
        make(on_failure="restrat")


@pytest.mark.parametrize("action", [[math.nan, 0], [0, math.inf], [0.1], 0.5, [[0.5, 0.5]], [], "left", None])
def test_refuses_other_actions(action):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action must be finite numbers in an array of shape \(2,\); got "):
        env.step(action)
    assert env.state.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [0.0]}, "'state' must be 2 finite numbers, of at most 1e.06; got "),
        ({"state": [0.0, math.inf]}, "'state' must be 2 finite numbers, of at most 1e.06; got "),
        ({"state": None}, "'state' must be 2 finite numbers, of at most 1e.06; got "),
        ({"sate": [0.0, 0.0]}, r"Did you mean 'state'\?"),
        ({"task": {"goal": 0.1}}, r"a parameter of PointNavigationTask must be one of .*Did you mean 'goal_[xy]'\?"),
        ({"task": {"goal_x": math.nan}}, r"goal_x must be a number in \[-1e\+06, 1e\+06\]; got nan"),
    ],
)
def test_a_refused_reset_changes_nothing(options, message):
    env = make().unwrapped
    env.reset(seed=0)
    env.step(np.ones(2))
    task, state, stream = env.task, env.state.tolist(), env.np_random.bit_generator.state
    with pytest.raises(ValueError, match=message):
        env.reset(seed=1, options=options)
    assert (env.task, env.state.tolist(), env.np_random.bit_generator.state) == (task, state, stream)


class TestRendering:
    COLOURS = {"goal": (46, 125, 50), "point": (204, 77, 77)}  # noqa: RUF012

    def centre(self, frame, what):
        """The middle of what has a colour, as x and y."""
        rows, columns = np.nonzero((frame == self.COLOURS[what]).all(axis=2))
        return [(columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2]

    def test_point_and_goal_are_where_they_are_with_y_upwards(self):
        env = make(render_mode="rgb_array", task={"goal_x": 0.5, "goal_y": -0.2})
        env.reset(options={"state": [-0.4, 0.6]})
        frame = env.render()
        assert (frame.shape, frame.dtype) == ((500, 500, 3), np.uint8)
        assert self.centre(frame, "goal") == pytest.approx([375, 300], abs=1)
        assert self.centre(frame, "point") == pytest.approx([150, 100], abs=1)
        env.close()

    def test_a_point_that_has_left_is_at_the_edge(self):
        env = make(render_mode="rgb_array")
        env.reset(options={"state": [0.2, 70.0]})
        assert self.centre(env.render(), "point") == pytest.approx([300, 3], abs=4)

    def test_the_caption_shows_the_goal(self):
        frames = []
        for x in (0.5, 0.5 + 1e-3):  # less than a pixel
            env = make(render_mode="rgb_array", task={"goal_x": x})
            env.reset()
            frames.append(env.render())
        assert not np.array_equal(*frames)
        assert np.array_equal(frames[0][40:], frames[1][40:])

    def test_no_picture_without_a_render_mode_or_before_the_first_reset(self):
        env = make().unwrapped
        env.reset()
        with pytest.warns(UserWarning, match=r'render_mode="rgb_array"'):
            assert env.render() is None
        with pytest.raises(gym.error.ResetNeeded, match="before render"):
            make(render_mode="rgb_array").unwrapped.render()

    def test_refuses_another_render_mode(self):
        with pytest.raises(ValueError, match="render_mode must be None, 'human' or 'rgb_array'; got 'ansi'"):
            type(make().unwrapped)(render_mode="ansi")

    def test_closing_twice_and_going_on(self):
        env = make(render_mode="rgb_array").unwrapped
        env.reset(seed=0)
        frame = env.render()
        env.close()
        env.close()
        assert np.array_equal(env.render(), frame)
