import copy
import json
import math
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from ssm_metarl_gym.envs import HiddenActuators
from ssm_metarl_gym.tasks import (
    ActuatorDistribution,
    Choice,
    TaskDistribution,
    TaskSet,
    actuator_family,
    actuator_task_type,
)


class Echo(gym.Env):
    """Shows the action that was executed, as a fraction of the bounds; starts at a random number."""

    def __init__(self, low=(-1.0, -1.0), high=(1.0, 1.0)):
        self.action_space = spaces.Box(np.array(low), np.array(high), dtype=np.float64)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(len(low),), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(len(self.action_space.low)), {"options": options}

    def step(self, action):
        assert self.action_space.contains(action)
        return action.copy(), 1.0, False, False, {}


def make(env=None, **kwargs):
    return HiddenActuators(Echo() if env is None else env, **kwargs)


def executed(env, actions, **options):
    """What is executed in each step of an episode."""
    env.reset(options=options or None)
    return [env.step(np.array(action, dtype=np.float64))[0].tolist() for action in actions]


MATRIX = {"map_0_0": 0.0, "map_0_1": -0.5, "map_1_0": 2.0, "map_1_1": 0.0}


def test_a_map_by_hand():
    env = make(task=MATRIX | {"offset_0": 0.25})
    # Motor 0 does -1/2 of what motor 1 is told, and 1/4 more; motor 1 twice what motor 0 is told, clipped.
    assert executed(env, [[0.25, 0.5], [0.75, -1.0], [-9.0, 0.0]]) == [[0.0, 0.5], [0.75, 1.0], [0.25, -1.0]]


def test_the_map_acts_in_half_ranges_around_the_middle():
    env = make(Echo(low=(0.0, -4.0), high=(2.0, 4.0)), task={"map_0_0": -1.0, "map_1_1": 0.5, "offset_1": 0.25})
    assert executed(env, [[2.0, 4.0], [0.5, 0.0]]) == [[0.0, 3.0], [1.5, 1.0]]


def test_late_actions_arrive_late_and_the_middle_comes_first():
    env = make(task={"delay": 2, "map_1_1": 0.0})
    actions = [[0.1, 1.0], [0.2, 1.0], [0.3, 1.0], [0.4, 1.0]]
    for _ in range(2):  # nothing is left of the first episode in the second
        assert executed(env, actions) == [[0.0, 0.0], [0.0, 0.0], [0.1, 0.0], [0.2, 0.0]]


def test_the_action_of_a_step_that_failed_never_took_place():
    env = make(task={"delay": 1})
    assert executed(env, [[0.1, 0.0]]) == [[0.0, 0.0]]
    step, env.env.step = env.env.step, lambda action: 1 / 0
    with pytest.raises(ZeroDivisionError):
        env.step(np.array([0.9, 0.0]))
    env.env.step = step
    assert [env.step(np.array([size, 0.0]))[0].tolist() for size in (0.2, 0.3)] == [[0.1, 0.0], [0.2, 0.0]]


def test_the_default_task_changes_nothing():
    plain, env = gym.make("Pendulum-v1"), make(gym.make("Pendulum-v1"), task={})
    assert plain.reset(seed=0)[0].tolist() == env.reset(seed=0)[0].tolist()
    for action in np.linspace(-2, 2, 20, dtype=np.float32):
        one, other = plain.step(np.array([action])), env.step(np.array([action]))
        assert (one[0].tolist(), one[1]) == (other[0].tolist(), other[1])


def test_every_reset_draws_a_task_of_the_split():
    family = actuator_family(2, permutation=True)
    for split in family.splits:
        env = make(family=family, split=split)
        tasks = [env.reset(seed=seed)[1]["task_id"] and env.task for seed in (0, None, None, 0)]
        assert all(map(family.distribution(split).contains, tasks))
        assert len(set(tasks)) == 3
        assert tasks[0] == tasks[3]
        if split != "train":
            assert make(family=family).reset(seed=0)[1]["task_id"] != tasks[0].task_id


def test_a_family_that_is_set_is_drawn_from_at_the_next_reset():
    env, swapped = make(), actuator_family(2, permutation=True, sign=False)
    env.reset(seed=0)
    task = env.task
    env.set_family(swapped)
    assert (env.task, env.family) == (task, swapped)
    env.reset()
    assert swapped.train.contains(env.task)
    with pytest.raises(ValueError, match="split must be one of"):
        make(split="extrapolation").set_family(swapped.train)


def test_neither_the_task_nor_a_switch_changes_the_states_of_a_seed_or_later_tasks():
    plain = make()
    starts = [plain.reset(seed=5)[0].tolist(), plain.reset()[0].tolist()]
    task = plain.task
    for env in (make(switch={"step": 1}), make(switch={"probability": 0.7, "motor": 0.0})):
        assert env.reset(seed=5, options={"task": MATRIX})[0].tolist() == starts[0]
        for _ in range(4):
            env.step(np.zeros(2))
        assert env.reset()[0].tolist() == starts[1]
        assert env.task == task


def test_tasks_of_wrapped_hidden_tasks_are_independent():
    inner = gym.make("ssm_metarl/PendulumPolarity-v0")
    env = make(inner)
    signs = []
    for seed in range(40):
        env.reset(seed=seed)
        signs.append((inner.unwrapped.task.polarity, np.sign(env.task.map_0_0)))
    assert len(set(signs)) == 4


def test_tasks_of_wrapped_hidden_motors_are_independent():
    inner = make()
    env = make(gym.wrappers.TimeLimit(inner, 9))
    pairs = []
    for seed in range(40):
        env.reset(seed=seed)
        pairs.append((np.sign(inner.task.map_0_0), np.sign(env.task.map_0_0)))
    assert len(set(pairs)) == 4


class TestChosenTasks:
    def test_the_option_goes_before_the_argument_and_holds_for_one_episode(self):
        env = make(task={"map_0_0": 0.5})
        assert env.reset(options={"task": {"map_0_0": 0.25}})[1]["task_params"]["map_0_0"] == 0.25
        assert env.reset(options={"task": actuator_task_type(2)(delay=1)})[1]["task_params"]["delay"] == 1
        assert env.reset()[1]["task_params"]["map_0_0"] == 0.5

    def test_other_options_go_to_the_environment(self):
        env = make()
        assert env.reset(options={"task": {}, "height": 3})[1]["options"] == {"height": 3}
        assert env.reset(options={"task": {}})[1]["options"] is None

    def test_the_task_can_be_set_in_mid_episode(self):
        env = make(task={})
        env.reset()
        env.task = MATRIX
        observation, *_, info = env.step(np.array([0.25, 0.5]))
        assert observation.tolist() == [-0.25, 0.5]
        assert info["task_params"]["map_0_1"] == -0.5
        info["task_params"].clear()
        assert env.task.map_0_1 == -0.5
        assert env.step(np.zeros(2))[-1]["task_params"]

    def test_a_family_may_be_any_distribution(self):
        task_type = actuator_task_type(2)
        tasks = TaskSet([task_type(map_0_0=0.5), task_type(map_0_0=0.25)])
        env = make(family=tasks)
        assert {env.reset(seed=seed)[1]["task_params"]["map_0_0"] for seed in range(10)} == {0.25, 0.5}
        assert make(family=tasks.to_dict()).reset(seed=3)[1] == make(family=tasks).reset(seed=3)[1]


class TestSwitch:
    def tasks(self, switch, num_steps, **kwargs):
        env = make(switch=switch, **kwargs)
        env.reset(seed=0)
        tasks = [env.task]
        for _ in range(num_steps):
            info = env.step(np.zeros(2))[-1]
            assert info["task_id"] == env.task.task_id
            tasks.append(env.task)
        return tasks

    def test_a_new_task_comes_once_after_a_number_of_steps(self):
        tasks = self.tasks({"step": 3}, 8)
        assert len(set(tasks[:3])) == len(set(tasks[3:])) == 1
        assert tasks[2] != tasks[3]
        assert actuator_family(2).train.contains(tasks[3])

    def test_new_tasks_come_as_often_as_a_probability_says(self):
        num_changes = len(set(self.tasks({"probability": 0.25}, 400))) - 1
        assert 65 < num_changes < 135  # 100 expected, standard deviation 9
        assert len(set(self.tasks({"probability": 0}, 50))) == 1

    @pytest.mark.parametrize("gain", [0.0, -1.0, 0.5])
    def test_one_motor_fails(self, gain):
        before, *_, after = self.tasks({"step": 3, "motor": gain}, 6)
        changed = after.matrix.diagonal() / before.matrix.diagonal()
        assert sorted(changed.tolist()) == sorted([gain, 1.0])

    def test_a_motor_that_is_told_of_goes_on_with_its_delay(self):
        env = make(task={"delay": 1}, switch={"step": 1, "motor": -1.0})
        first, second = executed(env, [[0.5, 0.5], [0.0, 0.0]])
        assert first == [0.0, 0.0]
        assert sorted(second) == [-0.5, 0.5]

    @pytest.mark.parametrize(
        ("switch", "message"),
        [
            ({"step": 0}, "with a whole number n >= 1; got {'step': 0}"),
            ({"step": 3, "motor": 2.0}, r"the 'motor' of a switch must be a number in \[-1, 1\]"),
            ({"motor": 0.0}, "must have a 'step' or a 'probability' beside it; got {'motor': 0.0}"),
            ({"step": 3, "probability": 0.1}, "switch must be None, "),
            (3, "switch must be None, "),
        ],
    )
    def test_refuses_another(self, switch, message):
        with pytest.raises(ValueError, match=message):
            make(switch=switch)


class TestVisible:
    def test_the_parameters_that_vary_follow_the_observation(self):
        env = make(context="visible", task={"map_0_0": -0.7, "map_1_1": 1.4})
        assert env.observation_space.shape == (4,)
        assert env.reset(seed=0)[0][2:] == pytest.approx([-0.5, 1.0])  # of gains of at most 1.4, with signs
        assert env.step(np.zeros(2))[0][2:] == pytest.approx([-0.5, 1.0])

    def test_a_mix_shows_every_entry_and_a_switch_is_seen(self):
        env = make(family=ActuatorDistribution(2, rotation=True, delay=(0, 4)), context="visible", switch={"step": 1})
        start, _ = env.reset(seed=0)
        observation, *_ = env.step(np.zeros(2))
        assert start.shape == (2 + 4 + 1,)
        assert observation[2:6] == pytest.approx(env.task.matrix.ravel() / 1.4)
        assert observation[2:6].tolist() != start[2:6].tolist()

    def test_the_motors_of_a_chosen_task_are_seen_in_units_of_its_entries(self):
        chosen = actuator_task_type(2).from_matrix([[0, 3], [-2, 0]])
        late = TaskDistribution(actuator_task_type(2), {"delay": Choice(0, 1)})
        env = make(family=late, context="visible", task=chosen.to_dict(), switch={"step": 1, "motor": 0.0})
        # The delay, which varies, the diagonal of the default task, and the entries of the chosen one beside it.
        assert env.reset(seed=0)[0][2:].tolist() == [-1.0, 0.0, 1.0, -1.0, 0.0]
        assert env.step(np.zeros(2))[0][2:].tolist() in ([-1, 0, 0, -1, 0], [-1, 0, 1, 0, 0])

    @pytest.mark.parametrize(
        ("family", "shown"),
        [
            (TaskDistribution(actuator_task_type(2), {"delay": Choice(0, 1)}), 3),
            # One that swaps them, in which each motor acts on the other.
            (TaskSet([actuator_task_type(2).from_matrix([[0, 1], [1, 0]])]), 4),
            (actuator_family(2), 2),
        ],
    )
    @pytest.mark.parametrize("batched", [False, True])
    def test_a_motor_that_fails_is_seen_where_its_gain_does_not_vary(self, family, shown, batched):
        make_env, own = (gym.make_vec, {"num_envs": 1}) if batched else (gym.make, {})
        switch = {"step": 2, "motor": 0.5}
        env = make_env("ssm_metarl/PointActuators-v0", family=family, context="visible", switch=switch, **own)
        start, _ = env.reset(seed=0)
        assert np.shape(start)[-1] == 4 + shown
        seen = [env.step(np.zeros(env.action_space.shape, dtype=np.float32))[0][..., 4:] for _ in range(3)]
        np.testing.assert_array_equal(seen[0], start[..., 4:])
        changes = np.ravel(seen[2]) != np.ravel(seen[0])
        assert changes.sum() == 1
        assert np.ravel(seen[2])[changes] == 0.5 * np.ravel(seen[0])[changes]

    def test_other_observations_must_stay_hidden(self):
        env = Echo()
        env.observation_space = spaces.Dict({"a": spaces.Discrete(2)})
        make(env)
        with pytest.raises(ValueError, match="must have a Box as observation space"):
            make(env, context="visible")


VARIANTS = [
    {},
    {"family": actuator_family(1, delay=(0, 1)), "split": "extrapolation", "context": "visible"},
    {"family": actuator_family(1).to_dict(), "task": {"map_0_0": 0.5}, "switch": {"step": 5, "motor": 0.0}},
]


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")  # which has no hidden motors
@pytest.mark.parametrize("kwargs", VARIANTS)
def test_both_checkers_find_no_fault_and_a_spec_in_json_makes_the_same(kwargs, rollout):
    from stable_baselines3.common.env_checker import check_env as check_sb3

    env = make(gym.make("ssm_metarl/Pendulum-v0"), **kwargs)
    check_env(env, skip_render_check=True)
    check_sb3(env)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert type(again) is HiddenActuators
    assert rollout(again, 30, seed=1) == rollout(env, 30, seed=1)


def test_motors_of_a_robot():
    pytest.importorskip("mujoco")
    plain, env = gym.make("HalfCheetah-v5"), make(gym.make("HalfCheetah-v5"))
    start, info = env.reset(seed=0)
    assert plain.reset(seed=0)[0].tolist() == start.tolist()
    action = np.linspace(-1, 1, 6, dtype=np.float32)
    inverse = np.clip(np.linalg.inv(env.task.matrix) @ (0.5 * action), -1, 1)
    expected = plain.step(env.task.matrix.astype(np.float32) @ inverse.astype(np.float32))[0]
    assert env.step(inverse)[0] == pytest.approx(expected, abs=1e-4)
    assert len(info["task_params"]) == 36 + 6 + 1


def test_arguments_are_recorded_as_json():
    env = make(gym.make("Pendulum-v1"), family=TaskDistribution(actuator_task_type(1), {}))
    assert json.loads(env.spec.to_json())["additional_wrappers"][-1]["name"] == "HiddenActuators"


@pytest.mark.parametrize(
    "switch",
    [{"step": np.int64(3)}, {"probability": np.float32(0.5)}, {"motor": Fraction(1, 2), "step": np.array(3)}],
    ids=["step", "probability", "motor"],
)
def test_numbers_of_numpy_are_json_too(switch):
    env = make(gym.make("Pendulum-v1"), switch=switch)
    assert gym.make(EnvSpec.from_json(env.spec.to_json())).spec.additional_wrappers[-1].kwargs["switch"] == switch
    env.reset(seed=0)
    for _ in range(4):
        env.step(env.action_space.sample())


def test_a_copy_goes_on_alike():
    env = make(switch={"probability": 0.5}, task={"delay": 1})
    env.reset(seed=0)
    env.step(np.ones(2))
    twin = copy.deepcopy(env)
    for _ in range(5):
        one, other = env.step(np.ones(2)), twin.step(np.ones(2))
        assert one[0].tolist() == other[0].tolist()
        assert one[-1] == other[-1]


@pytest.mark.parametrize("action", [[math.nan, 0.0], [0.0], [[0.0, 0.0]], "left", None])
def test_refuses_other_actions(action):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"an action must be finite numbers in an array of shape \(2,\); got "):
        env.step(action)


def test_refuses_environments_without_a_bounded_box_of_actions():
    for env in (gym.make("CartPole-v1"), Echo(low=(-np.inf, 0.0))):
        with pytest.raises(ValueError, match="env must have a bounded Box of floats as action space; got "):
            make(env)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"context": "shown"}, "context must be one of"),
        ({"task": {"map_0_2": 1.0}}, "a parameter of ActuatorTask2 must be one of"),
        ({"family": actuator_family(3)}, "over ActuatorTask2s; got "),
    ],
)
def test_refuses_other_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_refused_reset_changes_nothing():
    env = make()
    env.reset(seed=0)
    task = env.task
    with pytest.raises(ValueError, match="Did you mean 'map_0_0'"):
        env.reset(seed=1, options={"task": {"map_00": 1.0}})
    assert env.task is task
    env.reset()
    twin = make()
    twin.reset(seed=0)
    twin.reset()
    assert env.task == twin.task
