import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from ssm_metarl_gym import CartPoleTask, PendulumTask, PointNavigationTask, TaskBatch, TaskSet
from ssm_metarl_gym.envs.arguments import (
    check_reset_options,
    check_seed,
    check_switch,
    parse_autoreset_mode,
    parse_numbers,
    parse_reset_mask,
    parse_state,
    parse_task,
    parse_tasks,
    parse_whole_numbers,
)

MASK = np.array([True, False, True])
TASKS = [CartPoleTask(length=0.3), CartPoleTask(), CartPoleTask(polarity=-1)]


def test_a_task_is_taken_as_it_is_and_as_a_dictionary():
    assert parse_task(TASKS[0], CartPoleTask) is TASKS[0]
    assert parse_task({"length": 0.3}, CartPoleTask) == TASKS[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (PendulumTask(), r"^task must be a CartPoleTask; got PendulumTask\("),
        ("heavy", "^a task must be a dictionary from parameter name to value; got 'heavy'"),
        ({"polarty": 1}, r"Did you mean 'polarity'\?"),
        ({"polarity": 0}, r"polarity must be \+1 or -1; got 0"),
    ],
)
def test_other_tasks_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        parse_task(task, CartPoleTask)


@pytest.mark.parametrize(
    "given",
    [
        TASKS,
        tuple(TASKS),
        TaskSet(TASKS),
        TaskBatch.from_tasks(TASKS),
        [task.to_dict() for task in TASKS],
        [TASKS[0], *(task.to_dict() for task in TASKS[1:])],
        TaskBatch.from_tasks(TASKS).to_dict(),
    ],
)
def test_tasks_of_rows_are_taken_in_every_form(given):
    assert list(parse_tasks(given, CartPoleTask, 3)) == TASKS


def test_one_task_is_that_of_all_rows():
    assert list(parse_tasks(TASKS[0], CartPoleTask, 3)) == [TASKS[0]] * 3
    assert list(parse_tasks({"length": 0.3}, CartPoleTask, 3)) == [TASKS[0]] * 3


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{}, {}], r"one task for each of the 3 rows; got \[{}, {}\]"),
        ([{}, {}, {"polarty": 1}], r"Did you mean 'polarity'\?"),
        ([{}, {}, {"polarity": 0}], r"polarity must be \+1 or -1; got 0"),
        ({"polarity": [1, 1, 0]}, r"task 2: polarity must be \+1 or -1; got 0"),
        ({"polarity": [1, 1]}, "one for each of the 3 tasks; got {'polarity': 2}"),
        ({"polarty": 1}, r"Did you mean 'polarity'\?"),
        ([1, 2, 3], "all of one type; got"),
        ([{}, CartPoleTask(), PendulumTask()], "all of one type; got"),
        ([PendulumTask()] * 3, "^tasks must be CartPoleTasks; got PendulumTasks"),
        ("abc", "one task for each of the 3 rows; got 'abc'"),
        (3, "one task for each of the 3 rows; got 3"),
    ],
)
def test_other_tasks_of_rows_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        parse_tasks(tasks, CartPoleTask, 3)


def test_options_of_a_reset():
    assert check_reset_options(None, ("state",)) == {}
    assert check_reset_options({"state": 1}, ("state",)) == check_reset_options({"state": 1}) == {"state": 1}
    for options in (0, [], "state", [("state", 1)], np.zeros(2)):
        with pytest.raises(ValueError, match=r"^the options of a reset must be a dictionary or None; got "):
            check_reset_options(options, ("state",))
    with pytest.raises(ValueError, match=r"^an option of reset must be one of \['state'\]; got 'sate'. Did you mean"):
        check_reset_options({"sate": 1}, ("state",))


@pytest.mark.parametrize(
    "state",
    ["upright", None, [0.0, 1e7], [0, 10**400], [0.0], [[0.0, 0.0]], [0.0, math.nan], [0.0, math.inf], [0, 1, 2]],
)
def test_other_states_are_refused(state):
    given = np.array([0.5, 1.0])
    parsed = parse_state(given, (1e6, 8.0))
    assert (parsed.dtype, parsed.tolist(), parsed is given) == (np.float64, [0.5, 1.0], False)
    with pytest.raises(ValueError, match=r"^the option 'state' must be 2 finite numbers, of at most 1e.06 and 8; got "):
        parse_state(state, (1e6, 8.0))
    with pytest.raises(ValueError, match=r"^the option 'state' must be 2 finite numbers for each of the 3 rows, of at"):
        parse_state(state, (1e6, 8.0), 3)


def test_switches_are_taken_for_one_environment_and_for_rows():
    for num_rows in (None, 3):
        assert check_switch(None, PointNavigationTask, num_rows) == {}
        for switch in ({"step": 5}, {"step": np.int64(5)}, {"probability": 0.0}, {"probability": 1}):
            assert check_switch(switch, CartPoleTask, num_rows) == switch
    assert check_switch({"step": [1, 2, 3]}, CartPoleTask, 3) == {"step": [1, 2, 3]}


@pytest.mark.parametrize(
    "switch",
    [
        *({"step": value} for value in ([1, 2], [1, 2, 0], [1, 2, 1.5], [[1, 2, 3]], [1, [2, 3]], 0, -1, 1.5, True)),
        *({"step": value} for value in ("last", None)),
        *({"probability": value} for value in ([0.1, 0.1, 0.1], 1.5, -0.1, math.nan, "often", None, True)),
        *({}, {"steps": 3}, {"step": 5, "probability": 0.1}, "step", 0.5),
    ],
)
def test_other_switches_are_refused(switch):
    for num_rows, rows in ((None, ""), (3, ", or 3 of them, one for each row")):
        with pytest.raises(ValueError, match=rf"^switch must be None, .* n >= 1{rows}; got "):
            check_switch(switch, CartPoleTask, num_rows)


@pytest.mark.parametrize("switch", [{"step": 5}, {"probability": 0.1}, {}])
def test_a_switch_needs_a_sign(switch):
    with pytest.raises(ValueError, match=r"^switch must be None, as a PointNavigationTask has no sign to flip; got \{"):
        check_switch(switch, PointNavigationTask)


def test_autoreset_modes_by_name_and_as_they_are():
    for mode in AutoresetMode:
        assert parse_autoreset_mode(mode) is parse_autoreset_mode(mode.value) is mode
    for mode in ("samestep", None):
        with pytest.raises(ValueError, match=r"^autoreset_mode must be one of "):
            parse_autoreset_mode(mode)


def test_a_mask_is_a_copy_that_cannot_be_written():
    assert parse_reset_mask(None, 3, started=False) is None
    mask = MASK.copy()
    parsed = parse_reset_mask(mask, 3, started=True)
    mask[:] = False
    assert parsed.tolist() == [True, False, True]
    assert not parsed.flags.writeable


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (MASK.tolist(), TypeError, "'reset_mask' must be a NumPy array of booleans; got list"),
        (MASK.astype(int), TypeError, "'reset_mask' must be a NumPy array of booleans; got int64"),
        (True, TypeError, "'reset_mask' must be a NumPy array of booleans; got bool"),
        (MASK[:2], ValueError, r"one entry for each of the 3 rows.* got shape \(2,\)"),
        (MASK[:, None], ValueError, r"one entry for each of the 3 rows.* got shape \(3, 1\)"),
        (np.zeros(3, np.bool_), ValueError, r"at least one True; got shape \(3,\) with 0 True"),
    ],
)
def test_other_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        parse_reset_mask(mask, 3, started=True)


def test_the_first_reset_must_be_of_all_rows():
    assert parse_reset_mask(np.ones(3, np.bool_), 3, started=False).all()
    with pytest.raises(gym.error.ResetNeeded, match="the first reset must be of all rows"):
        parse_reset_mask(MASK, 3, started=False)


def test_a_seed_is_one_for_all_rows():
    for seed, mask in ((None, MASK), (3, None), (np.int64(3), np.ones(3, np.bool_))):
        check_seed(seed, mask, 3)
    for seed in ([0, 1, 2], 1.0, "1"):
        with pytest.raises(ValueError, match=r"^seed must be one int for all 3 rows, or None; got "):
            check_seed(seed, None, 3)
    with pytest.raises(ValueError, match=r"^a seed is for all rows, which share their streams; got seed=1 with"):
        check_seed(1, MASK, 3)


@pytest.mark.parametrize("actions", [[0, 1], [0.0, 1.0, 0.0], [[0, 1, 0]], None, [True, False, True], [0, 1, None]])
def test_discrete_actions_are_whole_numbers(actions):
    for dtype in (np.int64, np.uint8):
        assert parse_whole_numbers(np.array([0, 1, 7], dtype), 3).tolist() == [0, 1, 7]
    with pytest.raises(ValueError, match=r"^actions must be 3 whole numbers, one for each row; got shape"):
        parse_whole_numbers(actions, 3)


@pytest.mark.parametrize(
    "actions", [[0.0, 1.0], [[0.0], [1.0]], "abc", None, [[True, False]], [[0.0, None]], [["0", "1"]]]
)
def test_continuous_actions_are_numbers(actions):
    assert parse_numbers([[1, 2], [3, 4]], 2, 2).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"^actions must be numbers in an array of shape \(1, 2\); got shape"):
        parse_numbers(actions, 1, 2)
    with pytest.raises(ValueError, match=r"^an action must be finite; got \[0.0, nan\] in row 1"):
        parse_numbers([[0.0, 0.0], [0.0, math.nan]], 2, 2)
