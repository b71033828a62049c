import json
import math
import pickle
import threading
from copy import deepcopy
from dataclasses import dataclass, replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import AcrobotEnv, MountainCarEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from ssm_metarl_gym import (
    CartPoleTask,
    Choice,
    LogUniform,
    PendulumTask,
    Task,
    TaskDistribution,
    TaskFamily,
    TaskSet,
    Uniform,
)
from ssm_metarl_gym.envs import DerivedQuantity, HiddenTask, TaskParameter
from ssm_metarl_gym.tasks import families
from ssm_metarl_gym.tasks.families import SPLITS

SIGNED_PHYSICS = ("CartPole", "Pendulum")
PHYSICS = (*SIGNED_PHYSICS, "PointNavigation")
FAMILIES = {name: family for name, family in families.FAMILIES.items() if name.startswith(PHYSICS)}
# One family of each class: the others differ in what they draw and in their defaults, of which test_registration tells.
each_physics = pytest.mark.parametrize("family", PHYSICS)
each_signed_physics = pytest.mark.parametrize("family", SIGNED_PHYSICS)


def make(family, /, **kwargs):
    return gym.make(f"ssm_metarl/{family}-v0", **kwargs)


def play(env, num_steps):
    """The unwrapped environment's own steps, which no time limit ends, under a harmless action."""
    action = 0 if "CartPole" in env.spec.id else np.zeros(env.action_space.shape, dtype=np.float32)
    return [env.unwrapped.step(action) for _ in range(num_steps)]


def another_task(family):
    """Parameters that no default task has."""
    return {"polarity": -1} if family.startswith(SIGNED_PHYSICS) else {"goal_x": -0.3}


class TestDrawing:
    @pytest.mark.each_value
    @each_physics
    @pytest.mark.parametrize("split", SPLITS)
    def test_every_episode_has_a_new_task_of_its_split(self, family, split):
        env = make(family, split=split).unwrapped
        drawn = [env.reset(seed=0) and env.task] + [env.reset() and env.task for _ in range(30)]
        assert all(map(FAMILIES[family].distribution(split).contains, drawn))
        assert len(set(drawn)) == len(drawn)

    @each_physics
    def test_one_seed_gives_one_result(self, family, rollout):
        env = make(family)
        first = rollout(env, 50, seed=1)
        assert rollout(make(family), 50, seed=1) == first
        assert rollout(env, 50, seed=1) == first
        assert rollout(env, 50, seed=2) != first

    @each_physics
    def test_one_seed_gives_different_tasks_in_each_split(self, family):
        tasks = {make(family, split=split).reset(seed=1)[1]["task_id"] for split in SPLITS}
        assert len(tasks) == len(SPLITS)

    @each_physics
    def test_a_given_task_leaves_both_streams_as_they_are(self, family):
        drawn, fixed, chosen = make(family), make(family, task={}), make(family)
        later = []
        for env, options in ((drawn, {}), (fixed, {}), (chosen, {"task": another_task(family)})):
            env.reset(seed=5, options=options)
            start = env.unwrapped.state.tolist()
            later.append([(start, *(env.reset() and tuple(env.unwrapped.state) for _ in range(3)))])
        assert later[0] == later[1] == later[2]
        assert drawn.unwrapped.task == chosen.unwrapped.task != fixed.unwrapped.task

    @each_signed_physics
    def test_the_tasks_of_later_episodes_do_not_depend_on_earlier_steps(self, family):
        played, skipped = (make(family, switch={"probability": 0.5}) for _ in range(2))
        for env in (played, skipped):
            env.reset(seed=5)
        play(played, 5)
        assert [played.reset()[1] for _ in range(3)] == [skipped.reset()[1] for _ in range(3)]

    @each_physics
    def test_a_task_is_chosen_for_good_or_for_one_episode(self, family):
        task_type = FAMILIES[family].train.task_type
        fixed, once = task_type(**another_task(family) | {task_type.parameter_names()[1]: 5.0}), task_type()
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

    @each_physics
    def test_every_parameter_is_an_attribute_of_its_own_environment(self, family):
        task_type = FAMILIES[family].task_type
        env, other = make(family).unwrapped, make(family).unwrapped
        for name, default in task_type().to_dict().items():
            value = -1 if name == "polarity" else 2 * default
            assert getattr(env, name) == default
            setattr(env, name, value)
            assert getattr(env, name) == value
            assert env.task == replace(env.task, **{name: value})
        assert other.task == task_type()
        env.reset(options={"task": {}})
        env.task = replace(env.task, **another_task(family))
        info = play(env, 1)[0][-1]
        assert (info["task_id"], info["task_params"]) == (env.task.task_id, env.task.to_dict())


class TestSwitching:
    @each_signed_physics
    def test_at_a_step(self, family):
        env = make(family, switch={"step": 3})
        for _ in range(2):
            sign = env.reset(seed=0)[1]["task_params"]["polarity"]
            for step in range(1, 8):
                info = play(env, 1)[0][-1]
                expected = -sign if step >= 3 else sign
                assert env.unwrapped.task.polarity == info["task_params"]["polarity"] == expected

    @pytest.mark.each_value
    @each_signed_physics
    @pytest.mark.parametrize(("switch", "flips"), [({"probability": 1.0}, 6), ({"probability": 0.0}, 0), (None, 0)])
    def test_always_or_never(self, family, switch, flips):
        env = make(family, switch=switch)
        sign = env.reset(seed=0)[1]["task_params"]["polarity"]
        signs = [sign] + [info["task_params"]["polarity"] for *_, info in play(env, 6)]
        assert np.count_nonzero(np.diff(signs)) == flips

    @pytest.mark.parametrize("family", ["CartPoleSwitch"])
    def test_once_in_a_trial_on_average(self, family):
        env = make(family)
        env.reset(seed=0)
        signs = [info["task_params"]["polarity"] for *_, info in play(env, 4000)]
        assert 5 < np.count_nonzero(np.diff(signs)) < 38  # 20 expected, standard deviation 4.5

    @each_signed_physics
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
    @pytest.mark.each_value
    @pytest.mark.parametrize(
        ("family", "task", "expected"),
        [
            ("CartPole", {"force_mag": 15, "length": 0.25, "masspole": 0.275}, [1, -1, 0]),
            ("CartPoleSwitch", {"force_mag": 20, "length": 0.625, "masspole": 0.05}, [2, 0.5, -1, 1]),
            ("CartPolePolarity", {"force_mag": 10, "length": 0.5, "masspole": 0.5, "polarity": -1}, [0, 0, 1, -1]),
            ("Pendulum", {"m": 1.25, "l": 0.875}, [1, -0.5]),
            ("PendulumPolarity", {"m": 1.5, "l": 0.75, "polarity": -1}, [2, -1, -1]),
            ("PointNavigation", {"goal_x": 0.25, "goal_y": -0.75}, [0.5, -1.5]),
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

    @each_physics
    def test_infos_are_fresh_objects(self, family):
        env = make(family, switch=None)
        infos = [env.reset(seed=0)[1]]
        for _ in range(3):
            infos[-1]["task_params"].clear()
            infos.append(play(env, 1)[0][-1])
            assert infos[-1]["task_params"] == env.unwrapped.task.to_dict()
        infos[-1].clear()
        assert play(env, 1)[0][-1].keys() >= {"task_id", "task_params"}

    @each_physics
    def test_array_libraries_of_32_bits_hold_the_infos(self, family):
        pytest.importorskip("array_api_compat")
        jnp = pytest.importorskip("jax.numpy")
        from gymnasium.wrappers.array_conversion import array_conversion

        env, envs = make(family), gym.make_vec(f"ssm_metarl/{family}-v0", 3)
        for info in (env.reset(seed=0)[1], envs.reset(seed=0)[1]):
            converted = array_conversion(info, jnp)
            assert converted["task_id"].tolist() == np.asarray(info["task_id"]).tolist()

    @each_physics
    def test_ids_are_numbers_of_32_bits_with_a_sign(self, family):
        ids = [make(family).reset(seed=seed)[1]["task_id"] for seed in range(20)]
        assert np.array(ids, dtype=np.int32).tolist() == ids  # which NumPy refuses for greater ones

    @each_physics
    def test_ids_tell_tasks_apart(self, family):
        env = make(family)
        ids = [env.reset(seed=seed)[1]["task_id"] for seed in (0, 1, 0)]
        assert ids[0] == ids[2] != ids[1]


@pytest.mark.usefixtures("fast_windows")
class TestCopies:
    @pytest.mark.each_value
    @pytest.mark.parametrize(
        "copy",
        [deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
        ids=["deepcopy", "pickle"],
    )
    @pytest.mark.parametrize(
        ("family", "render_mode"),
        [*((family, mode) for family in PHYSICS for mode in (None, "rgb_array")), ("CartPole", "human")],
    )
    def test_continue_identically(self, family, copy, render_mode, rollout):
        switch = {"probability": 0.3} if family.startswith(SIGNED_PHYSICS) else None
        env = make(family, render_mode=render_mode, switch=switch)
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

    @each_physics
    def test_a_frame_is_the_callers_own_and_survives_the_end_of_pygame(self, family):
        env = make(family, render_mode="rgb_array", task=another_task(family))
        frames = []
        for _ in range(3):
            env.reset(seed=0)
            frame = env.render()
            frames.append(frame.copy())
            frame[:] = 7
            env.close()  # which makes the fonts of pygame useless
        assert np.array_equal(frames[0], frames[1])
        assert np.array_equal(frames[0], frames[2])

    def test_a_caption_wider_than_the_picture_is_cut_off(self):
        env = make(
            "Pendulum", render_mode="rgb_array", task={"g": 1.25e-5, "m": 2.25e-5, "l": 3.25e-5, "gain": 4.25e-5}
        )
        env.reset(seed=0, options={"state": [np.pi, 0.0]})
        frame = env.render()
        assert frame.shape == (500, 500, 3)
        assert (frame[10:28, 480:] < 200).any()

    @pytest.mark.parametrize(
        ("family", "state"), [("CartPole", [1, 0, 0.1, 0]), ("Pendulum", [2, 0]), ("PointNavigation", [0.2, -0.3])]
    )
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
    @pytest.mark.each_value
    @each_signed_physics
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

    @each_signed_physics
    def test_switches(self, family):
        with pytest.raises(ValueError, match=r"^switch must be None, .*; got "):
            make(family, switch={"steps": 5})

    @each_signed_physics
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

    @pytest.mark.parametrize(
        ("family", "task"),
        [("CartPole", PendulumTask()), ("Pendulum", CartPoleTask()), ("PointNavigation", CartPoleTask())],
    )
    def test_tasks_and_families_of_other_physics(self, family, task):
        env = make(family).unwrapped
        with pytest.raises(ValueError, match=f"task must be a {family}Task; got {type(task).__name__}"):
            env.task = task
        with pytest.raises(ValueError, match="family must be one of "):
            make(family, family=type(task).__name__.removesuffix("Task"))

    @pytest.mark.each_value
    @each_signed_physics
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


DISTRIBUTION = TaskDistribution(
    CartPoleTask, {"length": LogUniform((0.25, 1)), "gravity": Uniform((5, 8), (12, 15)), "polarity": Choice(-1, 1)}
)
TRAIN, TEST = DISTRIBUTION.split(6, 4)
GIVEN = [
    DISTRIBUTION,
    TRAIN,
    TaskFamily(DISTRIBUTION),
    TaskFamily(TRAIN, interpolation=TEST, extrapolation=DISTRIBUTION),
]


class TestGivenFamilies:
    """A user's own tasks in place of those that an id names."""

    @pytest.mark.parametrize("given", GIVEN)
    def test_objects_and_dictionaries_are_drawn_from(self, given):
        family = given if isinstance(given, TaskFamily) else TaskFamily(given)
        for split in family.splits:
            rng = family.generator(split, 3)
            expected = [family.distribution(split).sample(rng) for _ in range(10)]
            for form in (given, given.to_dict(), json.loads(json.dumps(given.to_dict()))):
                env = make("CartPole", family=form, split=split).unwrapped
                assert [env.reset(seed=3) and env.task] + [env.reset() and env.task for _ in range(9)] == expected

    def test_sets_of_a_split_share_no_task(self):
        for split, tasks in (("train", TRAIN.tasks), ("interpolation", TEST.tasks)):
            env = make("CartPole", family=GIVEN[-1].to_dict(), split=split).unwrapped
            assert {env.reset() and env.task for _ in range(100)} == set(tasks)

    @pytest.mark.each_value
    @pytest.mark.parametrize("split", ["train", "extrapolation"])
    @pytest.mark.parametrize("train", [DISTRIBUTION, TRAIN])
    def test_visible_parameters_are_scaled_over_what_is_trained_on(self, train, split):
        env = make("CartPole", family=TaskFamily(train, DISTRIBUTION).to_dict(), split=split, context="visible")
        scale = train if train is DISTRIBUTION else TaskDistribution(CartPoleTask, train.parameters)
        shown = []
        for seed in range(20):
            observation = env.reset(seed=seed)[0]
            shown.append(observation[4:])
            assert shown[-1].tolist() == scale.normalise(env.unwrapped.task).tolist()
        assert np.shape(shown) == (20, 3)
        assert split == "extrapolation" or np.abs(shown).max() <= 1
        assert env.observation_space.shape == (7,)

    def test_visible_parameters_by_hand(self):
        task = {"length": 0.5, "gravity": 12.5, "polarity": -1}
        env = make("CartPole", family=DISTRIBUTION.to_dict(), context="visible", task=task)
        assert env.reset()[0][4:] == pytest.approx([0, 0.5, -1], abs=1e-6)

    @pytest.mark.each_value
    @pytest.mark.parametrize("given", GIVEN)
    @pytest.mark.parametrize("kwargs", [{}, {"context": "visible", "switch": {"step": 3}}])
    def test_a_spec_in_json_makes_the_same_environment(self, given, kwargs, rollout):
        env = make("CartPole", family=given.to_dict(), **kwargs)
        copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert copy.spec == env.spec
        assert rollout(copy, 60, seed=1) == rollout(env, 60, seed=1) != rollout(make("CartPole", **kwargs), 60, seed=1)

    def test_without_extrapolation_there_is_no_such_split(self):
        with pytest.raises(ValueError, match=r"split must be one of \['train', 'interpolation'\]; got 'extrapolation'"):
            make("CartPole", family=DISTRIBUTION, split="extrapolation")

    def test_a_switch_flips_what_the_set_holds(self):
        env = make("CartPole", family=TaskSet([CartPoleTask()]).to_dict(), switch={"step": 1}, context="visible")
        assert env.reset()[0][4:].tolist() == [1.0]
        assert env.step(0)[0][4:].tolist() == [-1.0]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (TaskDistribution(PendulumTask, {}), "family must be a name, a TaskFamily or .* over CartPoleTasks; got "),
            (TaskSet([PendulumTask()]), "family must be a name, a TaskFamily or .* over CartPoleTasks; got "),
            (families.FAMILIES["Pendulum"], "family must be a name, a TaskFamily or .* over CartPoleTasks; got "),
            (families.FAMILIES["Pendulum"].to_dict(), "must be of type 'CartPoleTask'; got 'PendulumTask'"),
            (TaskDistribution(PendulumTask, {}).to_dict(), "must be of type 'CartPoleTask'; got 'PendulumTask'"),
            (5, "family must be a name, .*; got 5"),
            ({"train": {}}, "a distribution must be a dictionary"),
        ],
    )
    def test_refuses_others(self, given, message):
        with pytest.raises(ValueError, match=message):
            make("CartPole", family=given)


@dataclass(frozen=True)
class HillTask(Task):
    """A type without signs, and without a parameter that must be positive."""

    gravity: float = 0.0025
    force: float = 0.001


class TaskHillEnv(HiddenTask, MountainCarEnv):
    task_type = HillTask
    gravity = TaskParameter()
    force = TaskParameter()
    steepness = DerivedQuantity(lambda env: env.gravity / env.force)


@dataclass(frozen=True)
class ArmTask(Task):
    signs = ("direction",)
    positive = ("mass",)

    mass: float = 1.0
    direction: int = 1


class TaskArmEnv(HiddenTask, AcrobotEnv):
    """An environment whose parameters are no attributes of its own."""

    task_type = ArmTask

    def __init__(self, family, **kwargs):
        self.applied = []
        super().__init__(family, **kwargs)

    def _apply_task(self):
        assert self.action_space.n == 3, "it was not constructed yet"
        self.applied.append(self.task)
        self.LINK_MASS_2 = self.task.mass
        self.AVAIL_TORQUE = [-self.task.direction, 0.0, self.task.direction]


HILLS = TaskDistribution(HillTask, {"gravity": Uniform((0.002, 0.003))})
ARMS = TaskDistribution(ArmTask, {"mass": LogUniform((0.5, 2)), "direction": Choice(-1, 1)})
each_own = pytest.mark.parametrize(("name", "family"), [("Hill", HILLS), ("Arm", ARMS)])
OWN_OPTIONS = [
    {},
    {"context": "visible"},
    {"split": "interpolation", "task": {}},
]


class TestOwnEnvironments:
    """What the docstring of ``HiddenTask`` says of any class of Gymnasium environments."""

    @pytest.fixture(autouse=True)
    def registered(self):
        for name, family in (("Hill", HILLS), ("Arm", ARMS)):
            gym.register(
                f"tests/{name}-v0",
                entry_point=f"{__name__}:Task{name}Env",
                max_episode_steps=50,
                kwargs={"family": family.to_dict()},
            )
        yield
        for name in ("Hill", "Arm"):
            del gym.registry[f"tests/{name}-v0"]

    @pytest.mark.each_value
    @each_own
    @pytest.mark.parametrize("kwargs", OWN_OPTIONS)
    def test_gymnasium_finds_no_fault(self, name, family, kwargs):
        check_env(gym.make(f"tests/{name}-v0", **kwargs).unwrapped)

    @pytest.mark.each_value
    @pytest.mark.parametrize("switch", [{"step": 2}, {"probability": 1.0}])
    @pytest.mark.parametrize("context", ["hidden", "visible"])
    def test_gymnasium_finds_no_fault_with_a_switch(self, switch, context):
        check_env(gym.make("tests/Arm-v0", switch=switch, context=context).unwrapped)

    @pytest.mark.each_value
    @each_own
    @pytest.mark.parametrize("kwargs", OWN_OPTIONS)
    def test_a_spec_in_json_makes_the_same_environment(self, name, family, kwargs, rollout):
        env = gym.make(f"tests/{name}-v0", **kwargs)
        copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert copy.spec == env.spec
        assert rollout(copy, 60, seed=1) == rollout(env, 60, seed=1) != rollout(env, 60, seed=2)

    @pytest.mark.each_value
    @each_own
    @pytest.mark.parametrize("copy", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
    def test_copies_continue_identically(self, name, family, copy, rollout):
        env = gym.make(f"tests/{name}-v0", render_mode="rgb_array")
        rollout(env, 3, seed=0)
        env.render()
        twin = copy(env)
        assert rollout(twin, 60) == rollout(env, 60)
        assert np.array_equal(twin.render(), env.render())

    @each_own
    def test_every_episode_has_a_new_task(self, name, family):
        env, rng = gym.make(f"tests/{name}-v0").unwrapped, TaskFamily(family).generator("train", 4)
        infos = [env.reset(seed=4)[1]] + [env.reset()[1] for _ in range(9)]
        expected = [family.sample(rng) for _ in range(10)]
        assert [info["task_params"] for info in infos] == [task.to_dict() for task in expected]
        assert [info["task_id"] for info in infos] == [task.task_id for task in expected]

    @each_own
    def test_a_given_task_leaves_the_states_as_they_are(self, name, family):
        drawn, fixed, chosen = (gym.make(f"tests/{name}-v0", **kwargs) for kwargs in ({}, {"task": {}}, {}))
        starts = [
            [env.reset(seed=5, options=options)[0].tolist(), env.reset()[0].tolist(), env.unwrapped.task]
            for env, options in ((drawn, None), (fixed, None), (chosen, {"task": {}}))
        ]
        assert starts[0][:2] == starts[1][:2] == starts[2][:2]
        tasks = [task for *_, task in starts]  # those of the second episodes
        assert tasks[0] == tasks[2] != tasks[1] == family.task_type()

    def test_the_task_governs_the_step(self):
        env = gym.make("tests/Hill-v0", task={"gravity": -0.004, "force": 0.002}).unwrapped
        env.reset()
        env.state = (0.1, 0.02)
        velocity = 0.02 + 0.002 - 0.004 * -math.cos(3 * 0.1)
        observation, reward, *_ = env.step(2)
        assert observation.tolist() == pytest.approx([0.1 + velocity, velocity], rel=1e-6)
        assert (type(reward), reward) == (float, -1.0)

    def test_the_default_task_is_gymnasiums_own_environment(self, rollout):
        for name, original in (("Hill", "MountainCar-v0"), ("Arm", "Acrobot-v1")):
            env, reference = gym.make(f"tests/{name}-v0", task={}), gym.make(original, max_episode_steps=50)
            for own, expected in zip(rollout(env, 60, seed=3), rollout(reference, 60, seed=3), strict=True):
                assert own[:-1] == expected[:-1]

    def test_attributes_and_task_never_disagree(self):
        env = gym.make("tests/Hill-v0").unwrapped
        assert (env.gravity, env.force, env.steepness) == (0.0025, 0.001, 2.5)
        env.reset(options={"task": {"gravity": 0.004}})
        assert (env.gravity, env.force, env.steepness) == (0.004, 0.001, 4.0)
        env.force = 0.002
        assert (env.task, env.steepness) == (HillTask(gravity=0.004, force=0.002), 2.0)
        env.task = {"force": 0.005}
        assert (env.task, env.steepness) == (HillTask(force=0.005), 0.5)
        assert env.step(1)[-1] == {"task_id": env.task.task_id, "task_params": env.task.to_dict()}
        with pytest.raises(ValueError, match="steepness follows from the task and cannot be set; got 7"):
            env.steepness = 7

    def test_a_task_is_applied_once_each_time_that_it_changes(self):
        env = gym.make("tests/Arm-v0", switch={"step": 2}).unwrapped
        assert env.applied == [ArmTask()]
        env.reset(seed=0)
        first = env.task
        assert env.applied == [ArmTask(), first]
        env.step(0)
        assert len(env.applied) == 2
        env.step(0)
        flipped = replace(first, direction=-first.direction)
        assert env.applied == [ArmTask(), first, flipped]
        assert (env.LINK_MASS_2, env.AVAIL_TORQUE[2]) == (first.mass, -first.direction)
        env.reset(options={"task": {"mass": 3}})
        env.task = replace(env.task, mass=4.0)
        assert env.applied[3:] == [ArmTask(mass=3), ArmTask(mass=4)]
        assert env.LINK_MASS_2 == 4.0

    def test_a_fixed_task_is_applied_before_the_first_reset(self):
        env = gym.make("tests/Arm-v0", task={"mass": 2, "direction": -1}).unwrapped
        assert env.applied == [ArmTask(mass=2, direction=-1)]
        assert env.LINK_MASS_2 == 2.0

    def test_the_first_sign_flips_whatever_its_name(self):
        env = gym.make("tests/Arm-v0", switch={"probability": 1.0}, context="visible", task={"mass": 2}).unwrapped
        shown = [env.reset()[0][-2:].tolist()] + [env.step(1)[0][-2:].tolist() for _ in range(3)]
        assert shown == [[1, 1], [1, -1], [1, 1], [1, -1]]

    @pytest.mark.parametrize("context", ["hidden", "visible"])
    @pytest.mark.parametrize("switch", [{"step": 1}, {"probability": 0.1}, {}])
    def test_a_switch_needs_a_sign(self, context, switch):
        with pytest.raises(ValueError, match=r"^switch must be None, as a HillTask has no sign to flip; got \{"):
            gym.make("tests/Hill-v0", switch=switch, context=context)

    def test_asymmetric_bounds_of_the_observation_are_kept(self):
        low, high = np.float32([-1.2, -0.07]), np.float32([0.6, 0.07])
        hidden, visible = (gym.make("tests/Hill-v0", context=context) for context in ("hidden", "visible"))
        assert hidden.observation_space == gym.make("MountainCar-v0").observation_space
        assert hidden.observation_space == gym.spaces.Box(low, high)
        assert visible.observation_space == gym.spaces.Box(
            np.append(low, np.float32(-np.inf)), np.append(high, np.float32(np.inf))
        )
        observation = visible.reset(options={"task": {"gravity": 0.00275}})[0]
        assert observation[2] == pytest.approx(0.5, abs=1e-6)
        assert visible.observation_space.contains(observation)

    def test_options_and_arguments_of_the_environment_reach_it(self):
        env = gym.make("tests/Hill-v0", goal_velocity=0.03)
        assert env.unwrapped.goal_velocity == 0.03
        observation = env.reset(options={"low": -0.3, "high": -0.3, "task": {"force": 0.5}})[0]
        assert observation.tolist() == np.float32([-0.3, 0]).tolist()
        assert env.unwrapped.task == HillTask(force=0.5)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"family": "Pendulum"}, r"family must be one of \[\]; got 'Pendulum'"),
            ({"family": ARMS}, "family must be a name, a TaskFamily or a TaskDistribution over HillTasks; got "),
            ({"family": ARMS.to_dict()}, "must be of type 'HillTask'; got 'ArmTask'"),
            ({"task": {"gravty": 1}}, r"a parameter of HillTask must be .*Did you mean 'gravity'\?"),
            ({"task": ArmTask()}, r"task must be a HillTask; got ArmTask\("),
            ({"split": "extrapolation"}, "split must be one of .*; got 'extrapolation'"),
        ],
    )
    def test_bad_arguments(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            gym.make("tests/Hill-v0", **kwargs)

    def test_a_refused_task_changes_nothing(self):
        env = gym.make("tests/Arm-v0").unwrapped
        env.reset(seed=0)
        task, state, stream = env.task, env.state.copy(), env.np_random.bit_generator.state
        for options in ({"task": {"mass": -1}}, {"task": HillTask()}):
            with pytest.raises(ValueError, match="must be"):
                env.reset(seed=1, options=options)
        assert (env.task, env.np_random.bit_generator.state, len(env.applied)) == (task, stream, 2)
        assert (env.state == state).all()


@dataclass(frozen=True)
class ShoveTask(Task):
    """A push to the right of an environment that Gymnasium pickles by its constructor's arguments."""

    shove: float = 0.0


SHOVES = TaskDistribution(ShoveTask, {"shove": Uniform((0, 1))})


class PickledByArguments(MountainCarEnv, gym.utils.EzPickle):
    def __init__(self, goal_velocity=0.0, render_mode=None):
        MountainCarEnv.__init__(self, render_mode, goal_velocity)
        gym.utils.EzPickle.__init__(self, goal_velocity, render_mode)
        self.shove = 0.0


class TaskShoveEnv(HiddenTask[ShoveTask], PickledByArguments):
    task_type = ShoveTask
    shove = TaskParameter()


@pytest.mark.parametrize("copy", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_copies_keep_the_family_and_the_episode_whatever_gymnasium_would_do(copy, rollout):
    env = TaskShoveEnv(SHOVES, goal_velocity=0.01)
    rollout(env, 5, seed=0)
    twin = copy(env)
    assert (twin.task, list(twin.state), twin.goal_velocity) == (env.task, list(env.state), 0.01)
    assert rollout(twin, 250) == rollout(env, 250)


class WithHandle(MountainCarEnv):
    """Counts seconds in `clock`, and holds what cannot be copied, which it makes anew."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.shove, self.clock, self.lock = 0.0, 0.0, threading.Lock()

    def step(self, action):
        self.clock += 0.1
        return super().step(action)

    def __getstate__(self):
        state = vars(self).copy()
        del state["lock"]  # as is customary: a copy that has none yet cannot be asked for its state
        return state

    def __setstate__(self, state):
        vars(self).update(state)
        self.lock = threading.Lock()


class TaskWithHandleEnv(HiddenTask[ShoveTask], WithHandle):
    task_type = ShoveTask
    shove = TaskParameter()


@pytest.mark.parametrize("copy", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_copies_go_through_what_the_environment_has_for_it(copy, rollout):
    env = TaskWithHandleEnv(SHOVES)
    rollout(env, 5, seed=0)
    twin = copy(env)
    assert (twin.task, twin.clock) == (env.task, env.clock)
    assert twin.clock > 0.0
    assert twin.lock is not env.lock
    assert rollout(twin, 250) == rollout(env, 250)


class KeepsArguments(MountainCarEnv):
    def __getstate__(self):
        return {"goal_velocity": self.goal_velocity}

    def __setstate__(self, state):
        KeepsArguments.__init__(self, **state)


class AddsToArguments(PickledByArguments):
    def __getstate__(self):
        return super().__getstate__() | {"extra": 1}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.extra = state["extra"]


class MakesItselfAnew(MountainCarEnv):
    def __getstate__(self):
        return dict(vars(self))

    def __setstate__(self, state):
        MakesItselfAnew.__init__(self)


@pytest.mark.parametrize("base", [KeepsArguments, AddsToArguments, MakesItselfAnew])
def test_copies_keep_the_task_whatever_the_environment_keeps(base):
    env_type = type("TaskEnv", (HiddenTask, base), {"task_type": ShoveTask, "shove": TaskParameter()})
    env = env_type(SHOVES, context="visible")
    env.reset(seed=0)
    twin = deepcopy(env)
    assert (twin.task, twin.observation_space) == (env.task, env.observation_space)
    assert twin.step(1)[0].tolist() == env.step(1)[0].tolist() or base is MakesItselfAnew  # elsewhere
    assert twin.reset(seed=1)[0].tolist() == env.reset(seed=1)[0].tolist()


def test_copies_keep_what_is_of_pygame_and_no_picture():
    pygame = pytest.importorskip("pygame")
    env = TaskWithHandleEnv(SHOVES)
    env.place, env.surf = pygame.Vector2(1, 2), pygame.Surface((2, 2))
    twin = deepcopy(env)
    assert (twin.place, twin.surf) == (env.place, None)


def test_a_mixin_in_front_may_have_the_same_names():
    class InFront:
        def _apply_task(self):
            self.applied = self.task
            super()._apply_task()

        def __getstate__(self):
            return super().__getstate__() | {"copied": True}

        def __setstate__(self, state):
            super().__setstate__(state)

    class TaskEnv(InFront, HiddenTask[ShoveTask], MountainCarEnv):
        task_type = ShoveTask
        shove = TaskParameter()

    env = TaskEnv(SHOVES)
    env.reset(seed=0)
    assert env.applied == env.task
    twin = deepcopy(env)
    assert (twin.task, twin.copied) == (env.task, True)


@pytest.mark.parametrize("name", ["_info", "task", "set_family"])
def test_what_hidden_task_has_for_itself_is_no_name_of_a_method(name):
    theirs = type("Maze", (MountainCarEnv,), {name: lambda self: {}})
    with pytest.raises(ValueError, match=f"Maze must not have {name}, as HiddenTask has for itself. Rename it there"):
        type("TaskMaze", (HiddenTask, theirs), {})


@pytest.mark.parametrize(
    ("name", "value"), [("_start", np.ones(2)), ("_switch", False), ("_task", "north"), ("_parameters", {"goal": 1.0})]
)
def test_nor_of_what_the_environment_sets(name, value):
    class Maze(MountainCarEnv):
        def __init__(self):
            super().__init__()
            setattr(self, name, value)

    class TaskMaze(HiddenTask[ShoveTask], Maze):
        task_type = ShoveTask

    with pytest.raises(ValueError, match=f"TaskMaze must not set .*{name}.*, as HiddenTask has for itself"):
        TaskMaze(SHOVES)


def test_a_parameter_of_the_task_is_given_by_the_task_alone():
    with pytest.raises(ValueError, match=r"shove is set by the task; got shove=0.5. Give task=\{...\}."):
        TaskShoveEnv(SHOVES, shove=0.5)


def test_a_task_parameter_must_be_one_of_the_task():
    class Misspelt(HiddenTask[ShoveTask], MountainCarEnv):
        task_type = ShoveTask
        shvoe = TaskParameter()

    with pytest.raises(ValueError, match=r"a TaskParameter of Misspelt must be one of .*Did you mean 'shove'\?"):
        Misspelt(SHOVES)


class Spaced(MountainCarEnv):
    def __init__(self, space):
        super().__init__()
        self.observation_space = space


class TaskSpacedEnv(HiddenTask[ShoveTask], Spaced):
    task_type = ShoveTask


@pytest.mark.parametrize(
    ("space", "context", "message"),
    [
        (gym.spaces.Dict({"a": gym.spaces.Box(0, 1)}), "hidden", "must have a Box as observation space; got Dict"),
        (gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), "visible", "needs a one-dimensional Box of floats"),
        (gym.spaces.Box(0, 9, (2,), np.int64), "visible", "needs a one-dimensional Box of floats"),
    ],
)
def test_observations_that_cannot_be_shown_are_refused(space, context, message):
    with pytest.raises(ValueError, match=message):
        TaskSpacedEnv(SHOVES, space=space, context=context)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", [np.finfo(np.float32).max, np.finfo(np.float64).max, np.inf])
def test_a_bound_as_large_as_a_type_can_hold_is_none(bound, dtype):
    if np.isfinite(bound):
        bound = min(bound, np.finfo(dtype).max)
    space = gym.spaces.Box(np.array([-bound, -1, -bound], dtype), np.array([bound, 1, 7], dtype), dtype=dtype)
    expected = gym.spaces.Box(np.array([-np.inf, -1, -np.inf], dtype), np.array([np.inf, 1, 7], dtype), dtype=dtype)
    assert TaskSpacedEnv(SHOVES, space=space).observation_space == expected


@pytest.mark.parametrize(
    "space", [gym.spaces.Box(0, 255, (4, 4, 3), np.uint8), gym.spaces.Box(-(2**60), 2**60, (2,), np.int64)]
)
def test_other_boxes_stay_as_they_are(space):
    assert TaskSpacedEnv(SHOVES, space=space).observation_space == space


SHORT = TaskDistribution(CartPoleTask, {"length": Uniform((0.1, 0.2))})
LONG = TaskDistribution(CartPoleTask, {"length": Uniform((0.8, 0.9)), "polarity": Choice(-1, 1)})


def test_a_family_that_is_set_is_drawn_from_at_the_next_reset():
    env = make("CartPole", family=SHORT, context="visible")
    env.reset(seed=0)
    before = env.unwrapped.task
    env.unwrapped.set_family(LONG)
    assert env.unwrapped.task == before  # the episode goes on as it is
    observation, _ = env.reset()
    assert LONG.contains(env.unwrapped.task)
    assert env.unwrapped.family.train == LONG
    # What is shown keeps its scale, in which the new tasks lie beyond 1.
    assert observation[4:] == pytest.approx(SHORT.normalise(env.unwrapped.task))
    assert env.observation_space.contains(observation)


def test_a_family_without_the_split_or_of_other_tasks_is_refused():
    env = make("CartPole", split="extrapolation").unwrapped
    family = env.family
    for other in (SHORT, "Pendulum"):
        with pytest.raises(ValueError, match="must be one of"):
            env.set_family(other)
    assert env.family is family
