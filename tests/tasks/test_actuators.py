import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ssm_metarl_gym.tasks import (
    ActuatorDistribution,
    ActuatorTask,
    Choice,
    LogUniform,
    Task,
    TaskBatch,
    TaskDistribution,
    TaskFamily,
    TaskSet,
    Uniform,
    actuator_family,
    actuator_task_type,
    distribution_from_dict,
)

KINDS = [
    {},
    {"sign": False},
    {"permutation": True, "sign": False},
    {"rotation": True, "gain": Uniform((1.3, 2.0))},
    {"permutation": True, "rotation": True, "dead": 1},
    {"dead": 2, "gain": Choice(0.4, 1.7)},
    {"offset": Uniform((-0.2, 0.2)), "delay": (0, 2, 3)},
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


class TestTask:
    def test_the_class_of_a_number_of_motors_is_always_the_same(self):
        assert actuator_task_type(3) is actuator_task_type(3)
        assert actuator_task_type(3).__name__ == "ActuatorTask3"
        assert actuator_task_type(3).num_motors() == 3
        assert issubclass(actuator_task_type(3), Task)

    def test_the_default_changes_nothing(self):
        task = actuator_task_type(3)()
        assert task.matrix.tolist() == np.eye(3).tolist()
        assert (task.offsets.tolist(), task.delay) == ([0.0] * 3, 0.0)

    def test_parameters_are_named_row_by_row(self):
        task = actuator_task_type(2).from_matrix([[1, 2], [3, 4]], [5, 6], 7)
        assert task.to_dict() == {
            "map_0_0": 1.0,
            "map_0_1": 2.0,
            "map_1_0": 3.0,
            "map_1_1": 4.0,
            "offset_0": 5.0,
            "offset_1": 6.0,
            "delay": 7.0,
        }
        assert type(task).from_dict(json.loads(json.dumps(task.to_dict()))) == task
        assert (task.matrix.tolist(), task.offsets.tolist()) == ([[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0])

    @pytest.mark.parametrize("delay", [0.5, -1, 1001, float("nan"), float("inf")])
    def test_refuses_another_delay_alone_and_in_a_batch(self, delay):
        task_type = actuator_task_type(2)
        with pytest.raises(ValueError, match=r"^delay must be a whole number in \[0, 1000\]; got "):
            task_type(delay=delay)
        with pytest.raises(ValueError, match=r"^task 1: delay must be a whole number in \[0, 1000\]; got "):
            TaskBatch(task_type, {"delay": [3, delay]})

    def test_delays_are_drawn_from_a_choice(self):
        task_type = actuator_task_type(2)
        assert TaskDistribution(task_type, {"delay": Choice(0, 3)}).contains(task_type(delay=3))
        with pytest.raises(ValueError, match="delay must have a Choice, as it is a whole number; got Uniform"):
            TaskDistribution(task_type, {"delay": Uniform((0, 3))})

    def test_refuses_another_matrix_and_other_numbers_of_motors(self):
        for matrix in (np.eye(3), [[1, 2], [3]], [["a", "b"], ["c", "d"]]):
            with pytest.raises(ValueError, match=r"^matrix must be numbers of shape \(2, 2\); got "):
                actuator_task_type(2).from_matrix(matrix)
        for offsets in ([1, 2, 3], "left"):
            with pytest.raises(ValueError, match=r"^offsets must be one number or 2, one for each motor; got "):
                actuator_task_type(2).from_matrix(np.eye(2), offsets)
        with pytest.raises(ValueError, match=r"^map_0_0 must be a number in .*; got nan"):
            actuator_task_type(2).from_matrix(np.full((2, 2), np.nan))
        with pytest.raises(ValueError, match=r"one number of motors; got ActuatorTask's\. Use actuator_task_type\(2\)"):
            ActuatorTask.from_matrix(np.eye(2))
        for number in (0, 65, 1.5):
            with pytest.raises(ValueError, match="num_motors must be "):
                actuator_task_type(number)

    def test_another_process_reads_a_pickle(self):
        task = actuator_task_type(5)(map_1_3=0.25)
        assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301 - our own
        script = f"import pickle; print(pickle.loads({pickle.dumps(task)!r}).task_id)"
        result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)  # noqa: S603
        assert int(result.stdout) == task.task_id


class TestDistribution:
    @each_kind
    def test_draws_what_it_contains_and_one_task_as_many(self, kind):
        distribution = ActuatorDistribution(3, **kind)
        batch = distribution.sample_batch(np.random.default_rng(0), 20)
        assert len(set(batch.task_ids.tolist())) > 1
        assert all(map(distribution.contains, batch))
        assert type(batch[0])(**batch[0].to_dict()) == batch[0]
        one = distribution.sample(np.random.default_rng(1))
        assert one == distribution.sample_batch(np.random.default_rng(1), 1)[0]

    @each_kind
    def test_is_json_there_and_back(self, kind):
        distribution = ActuatorDistribution(3, **kind)
        assert distribution_from_dict(json.loads(distribution.to_json())) == distribution
        assert ActuatorDistribution.from_json(distribution.to_json()) == distribution
        family = TaskFamily(distribution, distribution)
        assert TaskFamily.from_dict(json.loads(json.dumps(family.to_dict())), actuator_task_type(3)) == family
        flags = dict.fromkeys(("sign", "permutation", "rotation"), np.bool_(True))
        assert json.loads(json.dumps(ActuatorDistribution(2, **flags).to_dict()))

    def test_numbers_of_numpy_are_json_too(self):
        one, two = np.array([1, 2])
        distribution = ActuatorDistribution(two, dead=one, delay=(one, two))
        assert distribution_from_dict(json.loads(distribution.to_json())) == distribution

    @each_kind
    def test_the_parameters_that_differ_are_named_with_their_intervals(self, kind):
        distribution = ActuatorDistribution(3, **kind)
        batch = distribution.sample_batch(np.random.default_rng(0), 200)
        defaults = batch.task_type().to_dict()
        for name, column in batch.to_dict().items():
            if name in distribution.parameters:
                low, high = distribution.parameters[name].bounds
                assert low - 1e-9 <= column.min() < column.max() <= high + 1e-9
            else:
                assert set(column.tolist()) == {defaults[name]}

    def test_a_rotation_keeps_angles_and_gains_stretch_the_columns(self):
        task = ActuatorDistribution(4, rotation=True, gain=Uniform((0.7, 1.3))).sample(np.random.default_rng(0))
        squares = task.matrix.T @ task.matrix
        assert squares == pytest.approx(np.diag(squares.diagonal()), abs=1e-12)
        assert np.all((np.sqrt(squares.diagonal()) > 0.7) & (np.sqrt(squares.diagonal()) < 1.3))
        assert np.count_nonzero(np.abs(task.matrix) > 1e-3) > 8

    def test_rotations_favour_no_direction(self):
        distribution = ActuatorDistribution(3, rotation=True, sign=False, gain=Choice(1.0))
        values = distribution.sample_batch(np.random.default_rng(0), 4000).values[:9]
        assert values.mean(axis=1) == pytest.approx(np.zeros(9), abs=0.05)
        assert np.square(values).mean(axis=1) == pytest.approx(np.full(9, 1 / 3), abs=0.03)

    def test_every_motor_takes_every_place_and_dies_equally_often(self):
        distribution = ActuatorDistribution(3, permutation=True, dead=1, sign=False)
        matrices = distribution.sample_batch(np.random.default_rng(0), 3000).values[:9].reshape(3, 3, -1)
        assert (matrices > 0).mean(axis=-1) == pytest.approx(np.full((3, 3), 2 / 9), abs=0.04)
        assert (matrices > 0).sum(axis=(0, 1)).tolist() == [2] * 3000

    @pytest.mark.parametrize(
        ("kind", "matrix"),
        [
            ({}, [[1.0, 0.2], [0.0, 1.0]]),
            ({}, [[0.0, 1.0], [1.0, 0.0]]),
            ({"sign": False}, [[-1.0, 0.0], [0.0, 1.0]]),
            ({}, [[1.5, 0.0], [0.0, 1.0]]),
            ({}, [[0.0, 0.0], [0.0, 1.0]]),
            ({"dead": 1}, [[1.0, 0.0], [0.0, 1.0]]),
            ({"rotation": True}, [[1.0, 0.1], [0.0, 1.0]]),
        ],
    )
    def test_does_not_contain_what_it_cannot_draw(self, kind, matrix):
        assert not ActuatorDistribution(2, **kind).contains(actuator_task_type(2).from_matrix(matrix))

    def test_offsets_and_delays_are_those_given(self):
        distribution, task_type = (
            ActuatorDistribution(2, delay=(1, 2), offset=Uniform((0.1, 0.2))),
            actuator_task_type(2),
        )
        assert distribution.contains(task_type.from_matrix(np.eye(2), 0.15, 2))
        assert not distribution.contains(task_type.from_matrix(np.eye(2), 0.15, 0))
        assert not distribution.contains(task_type.from_matrix(np.eye(2), 0.3, 1))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dead": 3}, "dead must be at most the number of motors, 2; got 3"),
            ({"gain": Uniform((-1, 1))}, "every gain must be > 0; .* Use sign=True"),
            ({"gain": 1.0}, "gain must be a Uniform"),
            ({"offset": 0.1}, "offset must be a Uniform"),
            ({"sign": 1}, "sign must be True or False; got 1"),
            ({"delay": ()}, "delay must be at least one"),
            ({"delay": (0, 1.5)}, "delay must be an int >= 0; got 1.5"),
            ({"delay": (2000,)}, "delay must be a whole number in"),
        ],
    )
    def test_refuses_other_fields(self, fields, message):
        with pytest.raises(ValueError, match=message):
            ActuatorDistribution(2, **fields)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"actuators": {}}, "'actuators' must be a dictionary with 'num_motors'"),
            ({"actuators": {"num_motors": 2, "gian": 1}}, "Did you mean 'gain'"),
            ({"task_type": "ActuatorTask3"}, "must be of type 'ActuatorTask2'; got 'ActuatorTask3'"),
        ],
    )
    def test_refuses_the_data_of_others(self, change, message):
        with pytest.raises(ValueError, match=message):
            distribution_from_dict(ActuatorDistribution(2).to_dict() | change)
        with pytest.raises(ValueError, match="must be of type 'ActuatorTask3'; got 'ActuatorTask2'"):
            distribution_from_dict(ActuatorDistribution(2).to_dict(), actuator_task_type(3))


def test_a_family_differs_in_its_gains_alone():
    family = actuator_family(3, permutation=True)
    assert family.splits == ["train", "interpolation", "extrapolation"]
    assert family.train == ActuatorDistribution(3, permutation=True)
    assert family.extrapolation == ActuatorDistribution(3, permutation=True, gain=Choice(0.4, 1.7))
    with pytest.raises(ValueError, match=r"argument of actuator_family must be one of .* got 'permute'.*'permutation'"):
        actuator_family(3, permute=True)
    for wrong in ({"gain": 1.0}, {"extrapolation_gain": (0.4, 1.7)}):
        with pytest.raises(ValueError, match="gain must be a Uniform, a LogUniform or a Choice; got"):
            actuator_family(2, **wrong)


@pytest.mark.parametrize(
    ("gain", "extrapolation_gain"),
    [
        (Uniform((0.2, 2.0)), Choice(0.4, 1.7)),
        (Uniform((0.6, 1.4)), Uniform((0.4, 0.7))),
        (Choice(0.5, 1.0), LogUniform((0.9, 2.0))),
        (Uniform((1.0, 1.0)), Uniform((1.0, 1.0))),
    ],
)
def test_gains_of_extrapolation_lie_outside(gain, extrapolation_gain):
    with pytest.raises(ValueError, match="the gains of extrapolation must lie outside those of training; got "):
        actuator_family(3, gain=gain, extrapolation_gain=extrapolation_gain)
    assert actuator_family(3, gain=Uniform((0.6, 1.4)), extrapolation_gain=Uniform((0.4, 0.6), (1.4, 2.0)))


def test_other_distributions_hold_these_tasks_too():
    task_type = actuator_task_type(2)
    marginals = TaskDistribution(task_type, {"map_0_0": Choice(-1, 1)})
    tasks = TaskSet(ActuatorDistribution(2).sample_batch(np.random.default_rng(0), 3))
    for distribution in (marginals, tasks):
        assert distribution_from_dict(distribution.to_dict(), task_type) == distribution
    assert TaskBatch.from_tasks(tasks.tasks)[1] == tasks.tasks[1]


def test_sets_of_tasks_are_read_where_their_class_was_not_made_yet():
    data = {"task_type": "ActuatorTask29", "tasks": [{"map_0_0": -1.0}]}
    assert distribution_from_dict(data).tasks[0].matrix[0, 0] == -1.0
    for name in ("ActuatorTask0", "ActuatorTask65", "Actuators3"):
        with pytest.raises(ValueError, match="task_type must be one of"):
            distribution_from_dict(data | {"task_type": name})
