import math
import pickle
from copy import deepcopy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym import CartPoleTask, PendulumTask
from ssm_metarl_gym.tasks import FAMILIES, SPLITS

PHYSICS = ("CartPole", "Pendulum")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_physics = pytest.mark.parametrize("family", PHYSICS)


def make(family, /, **kwargs):
    return gym.make(f"ssm_metarl/{family}-v0", **kwargs)


def play(env, num_steps):
    """The unwrapped environment's own steps, which no time limit ends, under a harmless action."""
    action = 0 if "CartPole" in env.spec.id else np.zeros(1, dtype=np.float32)
    return [env.unwrapped.step(action) for _ in range(num_steps)]


class TestDrawing:
    @each_family
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_episode_has_a_new_task_of_its_split(self, family, split):
        env = make(family, split=split).unwrapped
        drawn = [env.reset(seed=0) and env.task] + [env.reset() and env.task for _ in range(30)]
        assert all(map(FAMILIES[family].distribution(split).contains, drawn))
        assert len(set(drawn)) == len(drawn)

    @each_family
    def test_one_seed_gives_one_result(self, family, rollout):
        env = make(family)
        first = rollout(env, 50, seed=1)
        assert rollout(make(family), 50, seed=1) == first
        assert rollout(env, 50, seed=1) == first
        assert rollout(env, 50, seed=2) != first

    @each_family
    def test_one_seed_gives_different_tasks_in_each_split(self, family):
        tasks = {make(family, split=split).reset(seed=1)[1]["task_id"] for split in SPLITS}
        assert len(tasks) == len(SPLITS)

    @each_family
    def test_a_given_task_leaves_both_streams_as_they_are(self, family):
        drawn, fixed, chosen = make(family), make(family, task={}), make(family)
        later = []
        for env, options in ((drawn, {}), (fixed, {}), (chosen, {"task": {"polarity": -1}})):
            env.reset(seed=5, options=options)
            start = env.unwrapped.state.tolist()
            later.append([(start, *(env.reset() and tuple(env.unwrapped.state) for _ in range(3)))])
        assert later[0] == later[1] == later[2]
        assert drawn.unwrapped.task == chosen.unwrapped.task != fixed.unwrapped.task

    @each_family
    def test_the_tasks_of_later_episodes_do_not_depend_on_earlier_steps(self, family):
        played, skipped = (make(family, switch={"probability": 0.5}) for _ in range(2))
        for env in (played, skipped):
            env.reset(seed=5)
        play(played, 5)
        assert [played.reset()[1] for _ in range(3)] == [skipped.reset()[1] for _ in range(3)]

    @each_physics
    def test_a_task_is_chosen_for_good_or_for_one_episode(self, family):
        task_type = FAMILIES[family].train.task_type
        fixed, once = task_type(polarity=-1, **{task_type.parameter_names()[1]: 5.0}), task_type()
        env = make(family, task=fixed.to_dict()).unwrapped
        assert env.task == fixed
        for options, expected in ((None, fixed), ({"task": once}, once), ({"task": once.to_dict()}, once), ({}, fixed)):
            info = env.reset(options=options)[1]
            assert env.task == expected
            assert info["task_params"] == expected.to_dict()

    @each_physics
    def test_the_users_own_generator_decides_the_task(self, family):
        tasks = []
        for seed in (0, 0, 1):
            env = make(family).unwrapped
            env.np_random = np.random.default_rng(seed)
            env.reset()
            tasks.append(env.task)
        assert tasks[0] == tasks[1] != tasks[2]

    @pytest.mark.parametrize(("task_type", "family"), [(CartPoleTask, "CartPole"), (PendulumTask, "Pendulum")])
    def test_every_parameter_is_an_attribute_of_its_own_environment(self, task_type, family):
        env, other = make(family).unwrapped, make(family).unwrapped
        for name, default in task_type().to_dict().items():
            value = -1 if name == "polarity" else 2 * default
            assert getattr(env, name) == default
            setattr(env, name, value)
            assert getattr(env, name) == value
            assert env.task == replace(env.task, **{name: value})
        assert other.task == task_type()
        env.reset(options={"task": {}})
        env.task = replace(env.task, polarity=-1)
        info = play(env, 1)[0][-1]
        assert (info["task_id"], info["task_params"]) == (env.task.task_id, env.task.to_dict())


class TestSwitching:
    @each_family
    def test_at_a_step(self, family):
        env = make(family, switch={"step": 3})
        for _ in range(2):
            sign = env.reset(seed=0)[1]["task_params"]["polarity"]
            for step in range(1, 8):
                info = play(env, 1)[0][-1]
                expected = -sign if step >= 3 else sign
                assert env.unwrapped.task.polarity == info["task_params"]["polarity"] == expected

    @each_family
    @pytest.mark.parametrize(("switch", "flips"), [({"probability": 1.0}, 6), ({"probability": 0.0}, 0), (None, 0)])
    def test_always_or_never(self, family, switch, flips):
        env = make(family, switch=switch)
        sign = env.reset(seed=0)[1]["task_params"]["polarity"]
        signs = [sign] + [info["task_params"]["polarity"] for *_, info in play(env, 6)]
        assert np.count_nonzero(np.diff(signs)) == flips

    @pytest.mark.parametrize("family", ["CartPoleSwitch", "PendulumSwitch"])
    def test_once_in_a_trial_on_average(self, family):
        env = make(family)
        env.reset(seed=0)
        signs = [info["task_params"]["polarity"] for *_, info in play(env, 10_000)]
        assert 25 < np.count_nonzero(np.diff(signs)) < 75  # 50 expected, standard deviation 7

    @each_physics
    def test_only_the_sign_changes_and_acts_from_the_next_step_on(self, family):
        env = make(family, switch={"step": 1})
        env.reset(seed=0, options={"task": {}})
        reference = make(family, task={}, switch=None)
        reference.reset(seed=0)
        env.action_space.seed(0)
        actions = [np.asarray(env.action_space.sample()) for _ in range(3)]
        for step, action in enumerate(actions):
            mirrored = 1 - action if family == "CartPole" else -action
            expected = reference.unwrapped.step(action if step == 0 else mirrored)
            assert env.unwrapped.step(action)[0].tolist() == expected[0].tolist()
        assert env.unwrapped.task == FAMILIES[family].train.task_type(polarity=-1)


class TestObserving:
    @pytest.mark.parametrize(
        ("family", "task", "expected"),
        [
            ("CartPole", {"force_mag": 15, "length": 0.25, "masspole": 0.275}, [1, -1, 0]),
            ("CartPoleSwitch", {"force_mag": 20, "length": 0.625, "masspole": 0.05}, [2, 0.5, -1, 1]),
            ("CartPolePolarity", {"force_mag": 10, "length": 0.5, "masspole": 0.5, "polarity": -1}, [0, 0, 1, -1]),
            ("Pendulum", {"m": 1.25, "l": 0.875}, [1, -0.5]),
            ("PendulumPolarity", {"m": 1.5, "l": 0.75, "polarity": -1}, [2, -1, -1]),
        ],
    )
    @pytest.mark.parametrize("split", ["train", "extrapolation"])
    def test_visible_parameters_are_scaled_by_the_training_range(self, family, task, expected, split):
        env, hidden = (make(family, context=context, task=task, split=split) for context in ("visible", "hidden"))
        physical = hidden.reset(seed=0)[0]
        observation = env.reset(seed=0)[0]
        assert observation.dtype == np.float32
        assert observation[: len(physical)].tolist() == physical.tolist()
        assert observation[len(physical) :] == pytest.approx(expected, abs=1e-6)
        assert env.observation_space.contains(observation)

    @pytest.mark.parametrize("family", ["CartPoleSwitch", "PendulumSwitch"])
    def test_the_flipping_step_shows_the_new_sign(self, family):
        env = make(family, context="visible", task={}, switch={"step": 2})
        signs = [env.reset(seed=0)[0][-1]] + [observation[-1] for observation, *_ in play(env, 3)]
        assert signs == [1, 1, -1, -1]

    @each_family
    def test_infos_are_fresh_objects(self, family):
        env = make(family, switch=None)
        infos = [env.reset(seed=0)[1]]
        for _ in range(3):
            infos[-1]["task_params"].clear()
            infos.append(play(env, 1)[0][-1])
            assert infos[-1]["task_params"] == env.unwrapped.task.to_dict()
        infos[-1].clear()
        assert play(env, 1)[0][-1].keys() >= {"task_id", "task_params"}

    @each_family
    def test_ids_tell_tasks_apart(self, family):
        env = make(family)
        ids = [env.reset(seed=seed)[1]["task_id"] for seed in (0, 1, 0)]
        assert ids[0] == ids[2] != ids[1]


@pytest.mark.usefixtures("fast_windows")
class TestCopies:
    @pytest.mark.parametrize(
        "copy",
        [deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
        ids=["deepcopy", "pickle"],
    )
    @each_family
    @pytest.mark.parametrize("render_mode", [None, "rgb_array", "human"])
    def test_continue_identically(self, family, copy, render_mode, rollout):
        env = make(family, render_mode=render_mode, switch={"probability": 0.3})
        rollout(env, 2, seed=0)
        if render_mode == "rgb_array":
            env.render()
        twin = copy(env)
        assert rollout(twin, 10) == rollout(env, 10)
        if render_mode == "rgb_array":
            assert np.array_equal(twin.render(), env.render())
        env.close()


class TestRendering:
    @pytest.mark.parametrize(("family", "shape"), [("CartPole", (400, 600, 3)), ("Pendulum", (500, 500, 3))])
    def test_frames_of_one_state_differ_with_the_hidden_task(self, family, shape):
        env = make(family, render_mode="rgb_array").unwrapped
        mass = "masspole" if family == "CartPole" else "m"
        frames = []
        for task in ({}, {"polarity": -1}, {mass: 0.3}):
            env.reset(seed=0, options={"task": task})
            frames.append(env.render())
            assert frames[-1].dtype == np.uint8
            assert frames[-1].shape == shape
        assert len({frame.tobytes() for frame in frames}) == 3
        # All of the difference is in the caption.
        assert len({frame[40:].tobytes() for frame in frames}) == 1

    @pytest.mark.parametrize(("family", "state"), [("CartPole", [1, 0, 0.1, 0]), ("Pendulum", [2, 0])])
    def test_the_window_shows_the_frame_of_the_current_state(self, family, state):
        import pygame

        frame_env, window_env = (make(family, render_mode=mode, task={}) for mode in ("rgb_array", "human"))
        for env in (frame_env, window_env):
            env.reset(seed=0, options={"state": state})
        window = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
        assert np.array_equal(window, frame_env.render())
        assert window_env.render() is None
        window_env.close()


class TestBadInput:
    @each_physics
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"split": "extrapolate"}, r"split must be one of .*Did you mean 'extrapolation'\?"),
            ({"context": "visble"}, r"context must be one of .*Did you mean 'visible'\?"),
            ({"task": {"polarty": 1}}, r"a parameter of \w+ must be one of .*Did you mean 'polarity'\?"),
            ({"task": {"polarity": 0}}, r"polarity must be \+1 or -1; got 0"),
            ({"task": ["polarity"]}, "a task must be a dictionary"),
            ({"family": "Polarity"}, r"family must be one of .*Did you mean '\w+Polarity'\?"),
        ],
    )
    def test_arguments(self, family, kwargs, message):
        with pytest.raises(ValueError, match=message):
            make(family, **kwargs)

    @each_physics
    @pytest.mark.parametrize(
        "switch",
        [
            *({"probability": value} for value in (-0.1, 1.1, math.nan, "often", None)),
            *({"step": value} for value in (0, -1, 1.5, "last", None)),
            *({}, {"steps": 5}, {"step": 5, "probability": 0.1}, 0.5, "step"),
        ],
    )
    def test_switches(self, family, switch):
        with pytest.raises(ValueError, match=r"^switch must be None, .*; got "):
            make(family, switch=switch)

    @each_physics
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tasks": {}}, r"an option of reset must be one of .*Did you mean 'task'\?"),
            ({"sate": [0, 0]}, r"Did you mean 'state'\?"),
            ({"task": {"polarty": 1}}, r"Did you mean 'polarity'\?"),
            ({"task": "heavy"}, r"a task must be a dictionary from parameter name to value; got 'heavy'"),
        ],
    )
    def test_reset_options(self, family, options, message):
        with pytest.raises(ValueError, match=message):
            make(family).reset(options=options)

    @pytest.mark.parametrize(("family", "task"), [("CartPole", PendulumTask()), ("Pendulum", CartPoleTask())])
    def test_tasks_and_families_of_other_physics(self, family, task):
        env = make(family).unwrapped
        with pytest.raises(ValueError, match=f"task must be a {family}Task; got {type(task).__name__}"):
            env.task = task
        with pytest.raises(ValueError, match="family must be one of "):
            make(family, family=type(task).__name__.removesuffix("Task"))

    @each_physics
    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "long"])
    def test_attributes(self, family, value):
        env = make(family).unwrapped
        name = FAMILIES[family].train.task_type.parameter_names()[-1]
        with pytest.raises(ValueError, match=f"{name} must be .*got "):
            setattr(env, name, value)
        assert env.task == FAMILIES[family].train.task_type()

    @each_physics
    def test_a_step_before_the_first_reset(self, family):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            play(make(family), 1)


@pytest.mark.parametrize("options", [{"state": "x"}, {"task": {"polarity": 0}}])
@pytest.mark.parametrize("family", ["CartPole", "Pendulum"])
def test_a_refused_reset_changes_nothing(family, options):
    env = gym.make(f"ssm_metarl/{family}-v0").unwrapped
    env.reset(seed=0)
    task, state, stream = env.task, env.state.copy(), env.np_random.bit_generator.state
    with pytest.raises(ValueError, match="must be"):
        env.reset(options=options)
    assert (env.task, env.np_random.bit_generator.state) == (task, stream)
    assert (env.state == state).all()


def test_whoever_is_told_the_parameters_sees_the_switch_of_a_family_without_hidden_sign():
    env = gym.make("ssm_metarl/CartPole-v0", context="visible", switch={"step": 1})
    observation, _ = env.reset(seed=0)
    assert observation[-1] == 1.0
    assert env.step(0)[0][-1] == -1.0


def test_the_caption_shows_whatever_differs_from_the_default():
    frames = []
    for task in ({}, {"gravity": 20.0}):
        env = gym.make("ssm_metarl/CartPole-v0", task=task, render_mode="rgb_array")
        env.reset(options={"state": [0.0, 0.0, 0.0, 0.0]})
        frames.append(env.render())
    assert (frames[0] != frames[1]).any()
