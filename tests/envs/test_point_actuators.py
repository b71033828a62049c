import math

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.envs import TaskPointActuatorsEnv
from ssm_metarl_gym.envs.point_actuators import LateCommands
from ssm_metarl_gym.tasks import ActuatorDistribution, Uniform, actuator_family, actuator_task_type


def make(**kwargs):
    return gym.make("ssm_metarl/PointActuators-v0", **kwargs)


def test_a_step_by_hand():
    env = make(task={"map_0_0": 0.5, "map_0_1": -1.0, "offset_1": 0.25})
    env.reset(options={"state": [0.5, -1.0, 0.0, 1.0]})
    observation, reward, terminated, truncated, _ = env.step(np.array([0.4, 7.0]))  # as 1
    # M u + offset = [0.5 * 0.4 - 1, 1 + 0.25]
    velocity = [0.1 * 4 * -0.8, 0.9 + 0.1 * 4 * 1.25]
    position = [0.5 + 0.1 * velocity[0], -1.0 + 0.1 * velocity[1]]
    assert observation == pytest.approx([*position, *velocity])
    rms = math.sqrt((position[0] ** 2 + position[1] ** 2) / 2)
    assert reward == pytest.approx(1 - 2 * rms - 0.02 * (0.4**2 + 1.0) / 2, rel=1e-12)
    assert (type(reward), terminated, truncated) == (float, False, False)


@pytest.mark.parametrize("dimension", [1, 2, 5, pytest.param(16, marks=pytest.mark.slow)])
def test_the_dimension_is_that_of_all(dimension):
    env = make(dimension=dimension, context="visible")
    assert env.action_space.shape == (dimension,)
    assert env.observation_space.shape == (2 * dimension + dimension**2,)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert np.abs(observation[:dimension]).max() <= 1.0
    assert not observation[dimension : 2 * dimension].any()
    assert env.unwrapped.task == actuator_task_type(dimension)(**info["task_params"])
    batched = gym.make_vec("ssm_metarl/PointActuators-v0", 2, dimension=dimension, context="visible")
    assert batched.single_observation_space == env.observation_space
    assert batched.unwrapped.tasks.task_type is actuator_task_type(dimension)


def test_maps_are_orthogonal_with_gains_of_the_split():
    for split, low, high in (("train", 0.7, 1.3), ("interpolation", 0.7, 1.3), ("extrapolation", 1.3, 2.0)):
        env = make(dimension=4, split=split)
        for seed in range(5):
            env.reset(seed=seed)
            matrix = env.unwrapped.task.matrix
            squares = matrix.T @ matrix
            assert squares == pytest.approx(np.diag(squares.diagonal()), abs=1e-12)
            gains = np.sqrt(squares.diagonal())
            assert np.all((low - 1e-9 <= gains) & (gains <= high + 1e-9))


def test_whoever_undoes_the_map_comes_to_the_origin_and_who_does_not_may_not():
    returns = {}
    for undoes in (True, False):
        env, totals = make(split="extrapolation"), []
        for seed in range(20):
            observation, _ = env.reset(seed=seed)
            inverse = np.linalg.inv(env.unwrapped.task.matrix) if undoes else np.eye(2)
            total, truncated = 0.0, False
            while not truncated:
                wanted = -2.5 * observation[:2] - 0.8 * observation[2:]
                observation, reward, _, truncated, _ = env.step(inverse @ wanted)
                total += reward
            totals.append(total)
        returns[undoes] = np.mean(totals)
    assert returns[True] > 85
    assert returns[False] < 0


def test_walls_hold_the_point():
    env = make(task={})
    env.reset(options={"state": [2.95, 0.0, 4.0, 0.0]})
    observation, reward, *_ = env.step(np.ones(2))
    assert observation[0] == 3.0
    assert observation[2] == pytest.approx(4.0)
    assert reward < 1 - 2 * 3 / math.sqrt(2)


def test_late_actions_arrive_late():
    env = make(task={"delay": 2})
    for _ in range(2):  # nothing is left of the first episode in the second
        env.reset(options={"state": np.zeros(4)})
        speeds = [env.step(np.array([action, 0.0]))[0][2] for action in (1.0, 0.5, 0.0, 0.0)]
        assert speeds == pytest.approx([0.0, 0.0, 0.4, 0.9 * 0.4 + 0.2])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_rows_are_late_as_single_environments_are(mode, leader_and_rows, play_both):
    family = actuator_family(2, delay=(0, 1, 3), offset=Uniform((-0.2, 0.2))).to_dict()
    env, rows = leader_and_rows(
        "ssm_metarl/PointActuators-v0", 4, family=family, autoreset_mode=mode, max_episode_steps=7
    )
    history = play_both(env, rows, 40)
    delays = {delay for *_, infos in history if infos["_task_id"].all() for delay in infos["task_params"]["delay"]}
    assert delays == {0.0, 1.0, 3.0}


def test_commands_that_have_not_arrived_are_zero():
    late = LateCommands(3)
    delays, elapsed = np.array([0.0, 1.0, 3.0]), np.zeros(3, dtype=np.int64)
    arrived = []
    for step in range(5):
        arrived.append(late.send(np.full((1, 3), step + 1.0), delays, elapsed)[0].tolist())
        elapsed += 1
        elapsed[1] = elapsed[1] % 3  # its episodes have three steps
    assert arrived == [[1, 0, 0], [2, 1, 0], [3, 2, 0], [4, 0, 1], [5, 4, 2]]


class TestSwitch:
    def test_draws_a_new_map_that_later_episodes_do_not_depend_on(self):
        plain, env = make(), make(switch={"step": 3})
        for each in (plain, env):
            each.reset(seed=0)
        tasks = [env.step(np.zeros(2)) and env.unwrapped.task for _ in range(6)]
        assert len(set(tasks[:2])) == len(set(tasks[2:])) == 1
        assert tasks[1] != tasks[2]
        assert all(map(ActuatorDistribution(2, Uniform((0.7, 1.3)), sign=False, rotation=True).contains, tasks))
        assert env.reset()[0].tolist() == plain.reset()[0].tolist()
        assert env.unwrapped.task == plain.unwrapped.task

    def test_of_rows_at_steps_of_their_own(self):
        env = gym.make_vec("ssm_metarl/PointActuators-v0", 3, switch={"step": [1, 3, 99]}, context="visible")
        observations, infos = env.reset(seed=0)
        ids, shown = [infos["task_id"]], [observations[:, 4:]]
        for _ in range(4):
            observations, *_, infos = env.step(np.zeros((3, 2)))
            ids.append(infos["task_id"])
            shown.append(observations[:, 4:])
        for changes in (np.diff(ids, axis=0) != 0, np.diff(shown, axis=0).any(axis=2)):
            assert changes.argmax(axis=0).tolist() == [0, 2, 0]
            assert changes.sum(axis=0).tolist() == [1, 1, 0]

    @pytest.mark.parametrize("gain", [0.0, -1.0, 0.5])
    def test_lets_a_motor_fail(self, gain):
        switch = {"step": 2, "motor": gain}
        single = make(dimension=3, switch=switch)
        rows = gym.make_vec("ssm_metarl/PointActuators-v0", 40, dimension=3, switch=switch)
        one_row = gym.make_vec("ssm_metarl/PointActuators-v0", 1, dimension=3, switch=switch)
        for env in (single, rows, one_row):
            env.reset(seed=0)
        before = [*rows.unwrapped.tasks, single.unwrapped.task]
        for _ in range(3):
            single.step(np.zeros(3))
            rows.step(np.zeros((40, 3)))
            one_row.step(np.zeros((1, 3)))
        failed = []
        for task, after in zip(before, [*rows.unwrapped.tasks, single.unwrapped.task], strict=True):
            ratios = after.matrix / task.matrix
            assert np.all(ratios == ratios[0])
            failed.append(int(np.argmax(ratios[0] == gain)))
            assert sorted(ratios[0].tolist()) == sorted([gain, 1.0, 1.0])
        assert set(failed) == {0, 1, 2}
        assert one_row.unwrapped.tasks[0] == single.unwrapped.task

    def test_comes_as_often_as_a_probability_says(self):
        env = gym.make_vec("ssm_metarl/PointActuators-v0", 50, switch={"probability": 0.2}, max_episode_steps=None)
        ids = [env.reset(seed=0)[1]["task_id"]] + [env.step(np.zeros((50, 2)))[-1]["task_id"] for _ in range(40)]
        assert 320 < np.count_nonzero(np.diff(ids, axis=0)) < 480  # 400 expected, standard deviation 18


def test_tasks_are_given_in_every_form():
    task = actuator_task_type(2).from_matrix([[0.0, 1.0], [-1.0, 0.0]])
    for given in (task, task.to_dict(), {"map_0_0": 0.0, "map_0_1": 1.0, "map_1_0": -1.0, "map_1_1": 0.0}):
        assert make().reset(options={"task": given})[1]["task_params"] == task.to_dict()
    assert make(task=task.to_dict()).reset()[1]["task_id"] == task.task_id
    env = make().unwrapped
    env.reset(options={"state": np.zeros(4)})
    env.task = task
    assert env.step(np.array([0.0, 1.0]))[0][2:] == pytest.approx([0.4, 0.0])


def test_a_name_of_a_family_is_that_of_the_dimension():
    assert TaskPointActuatorsEnv("PointActuators", dimension=5).task_type is actuator_task_type(5)
    with pytest.raises(ValueError, match="must be of type 'ActuatorTask3'; got 'ActuatorTask2'"):
        make(dimension=3, family=actuator_family(2).to_dict())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dimension": 0}, "dimension must be an int >= 1; got 0"),
        ({"dimension": 17}, "dimension must be at most 16; got 17"),
        ({"dimension": 2.0}, "dimension must be an int >= 1; got 2.0"),
        ({"task": {"map_0_2": 1.0}}, "a parameter of ActuatorTask2 must be one of"),
        ({"switch": {"step": 0}}, "switch must be None"),
        ({"switch": {"step": 3, "motor": 2.0}}, r"the 'motor' of a switch must be a number in \[-1, 1\]"),
        ({"split": "extrapolate"}, "Did you mean 'extrapolation'"),
        ({"family": "PointNavigation"}, r"family must be one of \['PointActuators'"),
    ],
)
def test_refuses_other_arguments(kwargs, message):
    for maker in (make, lambda **kwargs: gym.make_vec("ssm_metarl/PointActuators-v0", 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            maker(**kwargs)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_a_picture_shows_pairs_of_coordinates(dimension):
    env = make(dimension=dimension, render_mode="rgb_array", task={})
    position = [-1.5, 1.5, 2.4][:dimension]
    env.reset(options={"state": position + [0.0] * dimension})
    rows, columns = np.nonzero((env.render() == (204, 77, 77)).all(axis=2))
    seen = {(int(x) // 50, int(y) // 50) for x, y in zip(columns, rows, strict=True)}
    expected = {1: {(125, 250)}, 2: {(125, 125)}, 3: {(125, 125), (450, 250)}}[dimension]
    assert all((x // 50, y // 50) in seen for x, y in expected)
    assert len(rows) > 100 * len(expected)
    env.close()
