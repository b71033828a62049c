import numpy as np
import pytest
from gymnasium import spaces

from ssm_metarl_gym.envs.actuators import Actuators, check_actuator_switch, fail_motors, task_after_switch
from ssm_metarl_gym.tasks import ActuatorDistribution, Choice, TaskBatch, actuator_task_type

TASK = actuator_task_type(2)(map_0_0=0.0, map_0_1=-0.5, map_1_0=2.0, map_1_1=0.0, offset_0=0.25)


@pytest.fixture
def actuators():
    return Actuators(spaces.Box(-1.0, 1.0, (2,), np.float64))


def test_motors_obey_the_identity_and_then_what_they_are_given(actuators):
    action = np.array([0.25, 0.5])
    assert actuators.execute(action).tolist() == [0.25, 0.5]
    actuators.obey(TASK)
    # Motor 0 does -1/2 of what motor 1 is told, and 1/4 more; motor 1 twice what motor 0 is told.
    assert actuators.execute(action).tolist() == [0.0, 0.5]
    assert action.tolist() == [0.25, 0.5]


def test_actions_of_an_episode_that_is_over_never_arrive(actuators):
    actuators.obey(actuator_task_type(2)(delay=1))
    assert actuators.execute([0.5, 0.5]).tolist() == [0.0, 0.0]
    actuators.clear()
    assert actuators.execute([0.25, 0.25]).tolist() == [0.0, 0.0]
    assert actuators.execute([0.0, 0.0]).tolist() == [0.25, 0.25]


def test_actions_of_any_shape_keep_their_type():
    actuators = Actuators(spaces.Box(-2.0, 2.0, (2, 3), np.float32))
    actuators.obey(actuator_task_type(6)(map_5_5=-0.5))
    executed = actuators.execute(np.ones((2, 3), np.float32))
    assert (executed.dtype, executed.tolist()) == (np.float32, [[1.0, 1.0, 1.0], [1.0, 1.0, -0.5]])


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(-np.inf, 1.0, (1,)), spaces.Box(0, 1, (1,), np.int8)])
def test_other_actions_are_refused(space):
    with pytest.raises(ValueError, match="env must have a bounded Box of floats as action space; got "):
        Actuators(space)


def test_a_motor_without_a_range_is_refused():
    with pytest.raises(ValueError, match=r"every motor must have a range, low < high; got Box"):
        Actuators(spaces.Box(np.array([-1.0, 0.5]), np.array([1.0, 0.5]), dtype=np.float64))


def test_a_switch_draws_a_new_task_or_lets_one_motor_fail():
    rng, distribution = np.random.default_rng(0), ActuatorDistribution(2, gain=Choice(0.125, 0.25))
    assert distribution.contains(task_after_switch(TASK, {"step": 1}, distribution, rng))
    failed = task_after_switch(TASK, {"step": 1, "motor": 0.0}, distribution, rng)
    (dead,) = np.flatnonzero((failed.matrix == 0.0).all(axis=0))
    expected = TASK.matrix
    expected[:, dead] = 0.0
    assert (failed.matrix.tolist(), failed.offsets.tolist()) == (expected.tolist(), TASK.offsets.tolist())


def test_switches_are_checked():
    assert check_actuator_switch(None) == {}
    switch = {"motor": -1.0, "step": 3}
    assert check_actuator_switch(switch) == switch
    with pytest.raises(ValueError, match=r"the 'motor' of a switch must be a number in \[-1, 1\]"):
        check_actuator_switch({"step": 3, "motor": 1.5})
    with pytest.raises(ValueError, match=r"a 'step' or a 'probability' beside it; got \{'motor': 0, 'stp': 3\}"):
        check_actuator_switch({"motor": 0, "stp": 3})


def test_a_motor_of_each_task_fails():
    tasks = ActuatorDistribution(3, rotation=True).sample_batch(np.random.default_rng(0), 30)
    failed = fail_motors(tasks, np.random.default_rng(1), gain=-0.5)
    motors = np.random.default_rng(1).integers(3, size=30)
    for before, after, motor in zip(tasks, failed, motors, strict=True):
        expected = before.matrix
        expected[:, motor] *= -0.5
        assert after == type(before).from_matrix(expected)
    # One row alone is a single environment.
    one = fail_motors(TaskBatch.from_tasks([TASK]), np.random.default_rng(2), gain=0.0)[0]
    assert one == task_after_switch(TASK, {"motor": 0.0}, None, np.random.default_rng(2))
