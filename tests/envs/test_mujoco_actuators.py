import pickle
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from ssm_metarl_gym.envs import HiddenActuators
from ssm_metarl_gym.tasks import FAMILIES, actuator_family, actuator_task_type

pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")

# The family, the environment of Gymnasium that it is made from, the number of motors and the time limit.
BASES = {
    "ReacherActuators": ("Reacher-v5", 2, 50),
    "HalfCheetahActuators": ("HalfCheetah-v5", 6, 400),
    "AntActuators": ("Ant-v5", 8, 400),
    "HopperActuators": ("Hopper-v5", 3, 400),
    "Walker2dActuators": ("Walker2d-v5", 6, 400),
}
each_family = pytest.mark.parametrize("family", BASES)


def make(family, /, **kwargs):
    return gym.make(f"ssm_metarl/{family}-v0", **kwargs)


def play(env, num_steps):
    """The observations, rewards and ends of an episode of one seed."""
    history = [env.reset(seed=5)[0].tolist()]
    env.action_space.seed(0)
    for _ in range(num_steps):
        observation, reward, *ended, _ = env.step(env.action_space.sample())
        history.append((observation.tolist(), reward, ended))
        if any(ended):
            break
    return history


@each_family
def test_the_default_task_moves_like_gymnasiums_environment_bit_for_bit(family):
    base, _, limit = BASES[family]
    assert play(make(family, task={}), limit) == play(gym.make(base, max_episode_steps=limit), limit)


@each_family
def test_motors_execute_what_the_wrapper_makes_of_actions(family):
    base, num_motors, limit = BASES[family]
    drawn = actuator_family(num_motors, rotation=True, delay=(0, 2)).train.sample(np.random.default_rng(3))
    tasks = [drawn.to_dict() | {"delay": delay, "offset_0": 0.25} for delay in (0, 2)]
    for task in tasks:
        ours = make(family, task=task)
        theirs = HiddenActuators(gym.make(base, max_episode_steps=limit), task=task)
        assert play(ours, 30) == play(theirs, 30) != play(make(family, task={}), 30)
    # Nothing of the episode before is left in the next.
    assert play(ours, 30) == play(theirs, 30)


@each_family
def test_every_episode_has_a_new_task_of_its_split(family):
    assert FAMILIES[family].splits == ["train", "interpolation", "extrapolation"]
    for split in FAMILIES[family].splits:
        env = make(family, split=split)
        drawn = [env.reset(seed=0 if i == 0 else None) and env.unwrapped.task for i in range(10)]
        assert all(map(FAMILIES[family].distribution(split).contains, drawn))
        assert len({task.task_id for task in drawn}) > 7  # in extrapolation Reacher has 32 in all
        gains = np.abs([task.matrix[task.matrix != 0.0] for task in drawn])
        if split == "extrapolation":
            assert set(gains.ravel().tolist()) == {0.4, 1.7}
        else:
            assert 0.6 <= gains.min() < 0.8 < 1.2 < gains.max() <= 1.4
        is_swapped = [not np.array_equal(task.matrix, np.diag(task.matrix.diagonal())) for task in drawn]
        assert any(is_swapped) == (family == "ReacherActuators")


def test_the_family_of_an_id_is_that_of_its_class_and_others_have_signs_and_gains():
    from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv

    from ssm_metarl_gym.envs.mujoco_actuators import MujocoActuators

    class TaskSwimmerActuatorsEnv(MujocoActuators, SwimmerEnv):
        task_type = actuator_task_type(2)

    class OfThreeMotors(TaskSwimmerActuatorsEnv):
        task_type = actuator_task_type(3)

    for family in BASES:
        env = make(family).unwrapped
        assert type(env)().family == env.family == FAMILIES[family]
    assert TaskSwimmerActuatorsEnv().family == actuator_family(2)
    with pytest.raises(ValueError, match=r"^task_type must be actuator_task_type\(2\), .*; got ActuatorTask3\.$"):
        OfThreeMotors()


class TestSwitch:
    def tasks(self, switch, num_steps, **kwargs):
        env = make("ReacherActuators", switch=switch, **kwargs)
        start, info = env.reset(seed=0)
        tasks, observations = [env.unwrapped.task], [start]
        for _ in range(num_steps):
            observation, *_, info = env.step(env.action_space.sample())
            assert info["task_params"] == env.unwrapped.task.to_dict()
            tasks.append(env.unwrapped.task)
            observations.append(observation)
        return tasks, observations

    def test_a_new_map_comes_half_way(self):
        tasks, _ = self.tasks({"step": 25}, 49)
        assert len(set(tasks[:25])) == len(set(tasks[25:])) == 1
        assert tasks[24] != tasks[25]
        assert FAMILIES["ReacherActuators"].train.contains(tasks[25])

    def test_new_maps_come_with_a_probability(self):
        assert 3 < len(set(self.tasks({"probability": 0.25}, 49)[0])) < 25  # 13 expected

    @pytest.mark.parametrize("gain", [0.0, -1.0, 0.5])
    def test_one_motor_fails_half_way(self, gain):
        tasks, _ = self.tasks({"step": 25, "motor": gain}, 30, task={})
        assert sorted(tasks[-1].matrix.diagonal().tolist()) == sorted([gain, 1.0])

    def test_who_is_told_sees_the_new_map(self):
        tasks, observations = self.tasks({"step": 2}, 4, context="visible")
        assert observations[0].shape == (10 + 4,)
        for task, observation in zip(tasks, observations, strict=True):
            assert observation[-4:] == pytest.approx(task.matrix.ravel() / 1.4)

    def test_neither_the_task_nor_a_switch_changes_the_states_of_a_seed_or_later_tasks(self):
        plain, env = make("ReacherActuators"), make("ReacherActuators", switch={"step": 1})
        plain.reset(seed=5)
        env.reset(seed=5, options={"task": {"map_0_0": -1.0}})
        for _ in range(3):
            env.step(env.action_space.sample())
        assert plain.reset()[0].tolist() == env.reset()[0].tolist()
        assert plain.unwrapped.task == env.unwrapped.task


@each_family
def test_checkers_find_no_fault(family):
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common import env_checker

    kwargs = {"context": "visible", "split": "extrapolation", "switch": {"step": 3, "motor": 0.0}}
    check_env(make(family, **kwargs).unwrapped, skip_render_check=True)
    env_checker.check_env(make(family))


@each_family
def test_a_spec_in_json_makes_the_same_environment(family, rollout):
    num_motors = BASES[family][1]
    tasks = actuator_family(num_motors, permutation=True, dead=1, delay=(0, 3))
    env = make(family, family=tasks.to_dict(), context="visible", switch={"probability": 0.1})
    copy = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert copy.spec == env.spec
    assert env.spec.max_episode_steps == BASES[family][2]
    assert rollout(copy, 30, seed=1) == rollout(env, 30, seed=1) != rollout(env, 30, seed=2)
    assert tasks.train.contains(make(family, family=tasks).reset(seed=0) and copy.reset(seed=0) and copy.unwrapped.task)


@pytest.mark.parametrize(
    "copy",
    [deepcopy, lambda env: pickle.loads(pickle.dumps(env))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_copies_continue_identically_with_the_actions_that_are_on_their_way(copy, rollout):
    env = make("HopperActuators", task={"delay": 2, "map_0_0": -1.0}, switch={"probability": 0.2})
    rollout(env, 3, seed=0)
    twin = copy(env)
    assert rollout(twin, 30) == rollout(env, 30)
    twin.unwrapped.task = {}  # nothing is shared
    assert rollout(twin, 3) != rollout(env, 3)


def test_rows_of_a_vector_environment_have_tasks_of_their_own():
    envs = gym.make_vec("ssm_metarl/ReacherActuators-v0", num_envs=3, vectorization_mode="sync")
    _, infos = envs.reset(seed=0)
    single = make("ReacherActuators")
    assert [single.reset(seed=seed)[1]["task_id"] for seed in range(3)] == infos["task_id"].tolist()
    envs.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "test"}, "split must be one of"),
        ({"task": {"map_0_2": 1.0}}, "a parameter of ActuatorTask2 must be one of"),
        ({"family": actuator_family(3)}, "over ActuatorTask2s; got "),
        ({"family": "HalfCheetahActuators"}, r"family must be one of \[.*'ReacherActuators'\]"),
        ({"switch": {"step": 3, "motor": 2.0}}, r"the 'motor' of a switch must be a number in \[-1, 1\]"),
    ],
)
def test_other_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make("ReacherActuators", **kwargs)


@each_family
def test_other_actions_options_and_orders_of_calls_are_refused(family):
    env = make(family).unwrapped
    action = env.action_space.sample()
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(action)
    env.reset(seed=0)
    state = env.state_vector().tolist()
    for bad in (np.full_like(action, np.nan), action[1:]):
        with pytest.raises(ValueError, match="an action must be finite numbers in an array of shape"):
            env.step(bad)
    with pytest.raises(ValueError, match="Did you mean 'map_0_0'"):
        env.reset(options={"task": {"map_00": 1.0}})
    assert env.state_vector().tolist() == state


def test_the_task_can_be_set_in_mid_episode():
    env = make("ReacherActuators", task={}).unwrapped
    env.reset(seed=0)
    env.task = actuator_task_type(2)(map_0_0=0.0, map_1_1=0.0)
    reward, info = env.step(np.ones(2, np.float32))[1], env.step(np.ones(2, np.float32))[-1]
    assert info["reward_ctrl"] == 0.0  # dead motors cost nothing
    assert reward > -1.0
    assert info["task_params"]["map_0_0"] == 0.0
