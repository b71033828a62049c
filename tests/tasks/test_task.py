import functools
import itertools
import json
import math
import pickle
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask, PointNavigationTask
from ssm_metarl_gym.tasks.distributions import TaskDistribution
from ssm_metarl_gym.tasks.marginals import Choice
from ssm_metarl_gym.tasks.task import Task, TaskBatch


@dataclass(frozen=True)
class SlopeTask(Task):
    """A type of tasks as a user writes one: without signs, and with one parameter of any size."""

    positive = ("friction",)

    slope: float = 0.0
    friction: float = 1.0


TASK_TYPES = (CartPoleTask, PendulumTask, PointNavigationTask, SlopeTask)
SIGNED = (CartPoleTask, PendulumTask)
POSITIVE_PARAMETERS = [(task_type, name) for task_type in TASK_TYPES for name in task_type.positive]


def tasks(task_type):
    def values(name):
        if name in task_type.signs:
            return st.sampled_from([-1, 1])
        low, high = task_type.limits.get(name, (0.0 if name in task_type.positive else None, None))
        return st.floats(low, high, exclude_min=low == 0.0, allow_nan=False, allow_infinity=False)

    return st.builds(task_type, **{name: values(name) for name in task_type.parameter_names()})


any_task = st.one_of(map(tasks, TASK_TYPES))
some_tasks = st.one_of(st.lists(tasks(task_type), min_size=1, max_size=5) for task_type in TASK_TYPES)


class TestTask:
    @settings(deadline=None, max_examples=40)
    @given(task=any_task)
    def test_dictionaries_and_json_give_an_equal_task_back(self, task):
        copy = type(task).from_dict(json.loads(json.dumps(task.to_dict())))
        assert copy == task
        assert (hash(copy), copy.task_id, copy.to_dict()) == (hash(task), task.task_id, task.to_dict())

    @pytest.mark.parametrize(
        ("task_type", "name"),
        [
            *POSITIVE_PARAMETERS,
            *((PointNavigationTask, name) for name in ("goal_x", "goal_y")),
            (SlopeTask, "slope"),
        ],
    )
    def test_every_parameter_counts(self, task_type, name):
        default, changed = task_type(), task_type.from_dict({name: 2})
        assert changed == replace(default, **{name: 2.0}) != default
        assert changed.task_id != default.task_id
        assert isinstance(changed.to_dict()[name], float)

    @pytest.mark.parametrize("task_type", SIGNED)
    def test_a_sign_counts_and_is_an_integer(self, task_type):
        task = task_type(polarity=-1.0)
        assert isinstance(task.polarity, int)
        assert task != task_type()
        assert task.task_id != task_type().task_id

    def test_all_but_a_sign_and_what_must_be_positive_may_be_any_finite_number(self):
        assert SlopeTask(slope=-1).to_dict() == {"slope": -1.0, "friction": 1.0}
        with pytest.raises(ValueError, match=r"^slope must be a finite number; got -inf\.$"):
            SlopeTask(slope=-math.inf)

    def test_a_whole_number_has_no_fraction(self):
        @dataclass(frozen=True)
        class CountTask(Task):
            positive = whole = ("count",)
            count: float = 1.0

        assert CountTask(count=np.int64(3)) == CountTask(count=3.0)
        for count in (1.5, -1.0, math.inf):
            for refused in (
                lambda count=count: CountTask(count),
                lambda count=count: TaskBatch(CountTask, {"count": count}),
            ):
                with pytest.raises(ValueError, match=rf"count must be a finite whole number > 0; got {count}"):
                    refused()

    def test_a_class_that_is_no_dataclass_is_refused(self):
        class PlainTask(SlopeTask):
            height: float = 1.0

        makers = (functools.partial(maker, PlainTask) for maker in (TaskBatch, TaskDistribution))
        for refused in (PlainTask.from_dict, *makers):
            with pytest.raises(ValueError, match=r"^PlainTask must be a dataclass\. Put @dataclass\(frozen=True\)"):
                refused({"height": Choice(1)})

    def test_tasks_of_different_types_differ(self):
        assert CartPoleTask() != PendulumTask()

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            CartPoleTask().length = 1.0

    def test_its_dictionary_is_a_copy(self):
        task = CartPoleTask()
        task.to_dict()["length"] = 7.0
        assert task == CartPoleTask()

    @pytest.mark.each_value
    @pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "heavy", None, True, [1.0]])
    @pytest.mark.parametrize(("task_type", "name"), POSITIVE_PARAMETERS)
    def test_refuses_what_is_not_positive_and_finite(self, task_type, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*got "):
            task_type(**{name: value})

    @pytest.mark.parametrize(
        ("task_type", "name", "value", "rule"),
        [
            (PendulumTask, "l", 1e-200, r"in \[1e-06, 1e\+06\]"),  # whose square is zero, by which the physics divide
            (PendulumTask, "m", 2e6, r"in \[1e-06, 1e\+06\]"),
            (PendulumTask, "g", 1e300, r"> 0 and <= 1e\+06"),
            (CartPoleTask, "length", 9e-7, r"in \[1e-06, 1e\+06\]"),
            (CartPoleTask, "masspole", 10**400, r"> 0 and <= 1e\+06"),
            (PointNavigationTask, "goal_x", -1e200, r"in \[-1e\+06, 1e\+06\]"),
        ],
    )
    def test_refuses_what_the_physics_cannot_compute(self, task_type, name, value, rule):
        with pytest.raises(ValueError, match=rf"^{name} must be a number {rule}; got .{{1,201}}$"):
            task_type(**{name: value})
        with pytest.raises(ValueError, match=rf"{name} must be a number.*; got .{{1,201}}$"):
            TaskBatch(task_type, {name: [value]})

    def test_limits_are_valid_themselves(self):
        for task_type in TASK_TYPES:
            for name, (low, high) in task_type.limits.items():
                for value in (max(low, 1e-300), high):
                    assert getattr(task_type(**{name: value}), name) == value

    @pytest.mark.parametrize("value", [0, 2, -0.5, math.nan, "left", None])
    def test_refuses_other_signs(self, value):
        with pytest.raises(ValueError, match=r"^polarity must be .*got "):
            PendulumTask(polarity=value)

    def test_names_the_nearest_parameter(self):
        with pytest.raises(ValueError, match=r"got 'lenght'. Did you mean 'length'\?"):
            CartPoleTask.from_dict({"lenght": 0.5})
        with pytest.raises(ValueError, match="must be a dictionary"):
            CartPoleTask.from_dict([("length", 0.5)])


class TestTaskIds:
    @settings(deadline=None, max_examples=40)
    @given(task=any_task)
    def test_have_31_bits(self, task):
        assert isinstance(task.task_id, int)
        assert 0 <= task.task_id < 2**31

    def test_use_all_31_bits(self):
        ids = TaskBatch(CartPoleTask, {"length": np.arange(1, 1001)}).task_ids
        share = [np.mean(ids >> bit & 1) for bit in range(31)]
        assert min(share) > 0.4  # the standard deviation is 0.016
        assert max(share) < 0.6

    def test_do_not_depend_on_the_process(self):
        assert CartPoleTask().task_id == 1374873146
        assert PendulumTask(polarity=-1, g=9.81, l=0.7).task_id == 408754546
        assert PointNavigationTask(goal_x=-0.25).task_id == 1442571900

    def test_are_equal_for_zeros_of_either_sign(self):
        assert SlopeTask(slope=0.0) == SlopeTask(slope=-0.0)
        assert SlopeTask(slope=0.0).task_id == SlopeTask(slope=-0.0).task_id

    def test_differ_between_types_with_the_same_numbers(self):
        class OtherSlopeTask(SlopeTask):
            pass

        assert SlopeTask(slope=2.0).task_id != OtherSlopeTask(slope=2.0).task_id

    @pytest.mark.parametrize(("one", "other"), [*itertools.combinations(CartPoleTask.positive, 2)])
    def test_differ_where_two_parameters_change_places(self, one, other):
        assert CartPoleTask(**{one: 2, other: 3}).task_id != CartPoleTask(**{one: 3, other: 2}).task_id

    # Of n tasks, n^2 / 2^32 pairs share an id by chance: 0.26 of 33,614 and 0.58 of 50,000.
    @pytest.mark.parametrize(
        "levels",
        [np.arange(1.0, 8.0), np.arange(1.0, 8.0) / 10, 2.0 ** np.arange(-3.0, 4.0), 1 + np.arange(7) * 2.0**-52],
        ids=["whole numbers", "tenths", "powers of two", "neighbours"],
    )
    def test_collide_no_more_than_chance_on_a_grid(self, levels):
        grid = np.meshgrid([-1, 1], *[levels] * 5)
        batch = TaskBatch(
            CartPoleTask, {n: g.ravel() for n, g in zip(CartPoleTask.parameter_names(), grid, strict=True)}
        )
        assert len(batch) == 33_614
        assert len(np.unique(batch.task_ids)) >= 33_614 - 4

    def test_collide_no_more_than_chance_at_random(self):
        rng = np.random.default_rng(0)
        draws = {name: rng.uniform(0.01, 20.0, 50_000) for name in CartPoleTask.positive}
        batch = TaskBatch(CartPoleTask, draws | {"polarity": rng.choice([-1, 1], 50_000)})
        assert len(np.unique(batch.task_ids)) >= 50_000 - 4

    @pytest.mark.slow
    def test_collide_as_often_as_chance_has_it(self):
        rng = np.random.default_rng(0)
        ids = TaskBatch(PendulumTask, {"m": rng.uniform(0.5, 1.5, 2_000_000), "l": 1.0}).task_ids
        num_collisions = 2_000_000 - len(np.unique(ids))
        assert 750 < num_collisions < 1110  # 931 expected, standard deviation 31


class TestTaskBatch:
    batch = TaskBatch(CartPoleTask, {"length": [0.4, 0.6, 0.8], "polarity": [1, -1, 1], "gravity": 5})
    tasks = tuple(
        CartPoleTask(length=length, polarity=sign, gravity=5) for length, sign in ((0.4, 1), (0.6, -1), (0.8, 1))
    )

    def test_is_a_sequence_of_its_tasks(self):
        assert len(self.batch) == 3
        assert tuple(self.batch) == self.tasks
        assert [self.batch[i] for i in (0, 2, -1, np.int64(1), np.array(1))] == [self.tasks[i] for i in (0, 2, 2, 1, 1)]
        assert list(reversed(self.batch)) == list(reversed(self.tasks))
        assert self.tasks[1] in self.batch
        assert CartPoleTask() not in self.batch
        assert (self.batch.index(self.tasks[2]), self.batch.count(self.tasks[0])) == (2, 1)
        assert isinstance(self.batch[0].polarity, int)
        for index in (3, -4):
            with pytest.raises(IndexError):
                self.batch[index]

    @pytest.mark.parametrize(
        ("index", "expected"),
        [
            (slice(None), [0, 1, 2]),
            (slice(1, None), [1, 2]),
            (slice(None, None, -2), [2, 0]),
            (slice(3, None), []),
            (np.array([True, False, True]), [0, 2]),
            ([False, False, False], []),
            (np.array([2, 0, 2]), [2, 0, 2]),
            ([1, -1], [1, 2]),
            ([], []),
        ],
    )
    def test_a_part_of_it_is_a_batch(self, index, expected):
        part = self.batch[index]
        assert isinstance(part, TaskBatch)
        assert list(part) == [self.tasks[i] for i in expected]
        assert part.values.shape == (6, len(expected))
        assert part.task_ids.tolist() == [self.tasks[i].task_id for i in expected]

    @pytest.mark.parametrize("index", [[True, False], np.array([3]), [0.5], "length", np.array([[0, 1]]), None])
    def test_refuses_other_indices(self, index):
        with pytest.raises((IndexError, ValueError)):
            self.batch[index]

    def test_holds_its_parameters_column_by_column(self):
        assert self.batch.task_type is CartPoleTask
        assert self.batch.values.dtype == np.float64
        assert self.batch.values.tolist() == [
            [1, -1, 1],
            [5, 5, 5],
            [1, 1, 1],
            [0.1, 0.1, 0.1],
            [0.4, 0.6, 0.8],
            [10, 10, 10],
        ]
        assert self.batch.column("length").tolist() == [0.4, 0.6, 0.8]
        assert self.batch.column("polarity").tolist() == [1, -1, 1]
        with pytest.raises(ValueError, match=r"a parameter of CartPoleTask must be .*Did you mean 'length'\?"):
            self.batch.column("lengths")

    def test_its_dictionary_gives_it_back(self):
        columns = self.batch.to_dict()
        assert {name: column.tolist() for name, column in columns.items()} == {
            name: [task.to_dict()[name] for task in self.tasks] for name in CartPoleTask.parameter_names()
        }
        assert {name: column.dtype.kind for name, column in columns.items() if column.dtype.kind != "f"} == {
            "polarity": "i"
        }
        assert TaskBatch(CartPoleTask, columns) == self.batch
        columns["length"][:] = 7.0
        assert self.batch.column("length").tolist() == [0.4, 0.6, 0.8]

    @settings(deadline=None, max_examples=40)
    @given(tasks=some_tasks)
    def test_tasks_give_themselves_back(self, tasks):
        batch = TaskBatch.from_tasks(tasks)
        assert batch.task_type is type(tasks[0])
        assert list(batch) == tasks
        assert TaskBatch(batch.task_type, batch.to_dict()) == batch
        assert TaskBatch.from_tasks(batch) == TaskBatch.from_tasks(tuple(tasks)) == batch

    @settings(deadline=None, max_examples=40)
    @given(tasks=some_tasks)
    def test_the_ids_are_those_of_the_tasks(self, tasks):
        ids = TaskBatch.from_tasks(tasks).task_ids
        assert ids.dtype == np.int64
        assert ids.tolist() == [task.task_id for task in tasks]

    def test_broadcasts_numbers_and_defaults(self):
        assert list(TaskBatch(PendulumTask, {"m": 2}, 3)) == [PendulumTask(m=2)] * 3
        assert (
            list(TaskBatch(PendulumTask, {"m": [2]})) == list(TaskBatch(PendulumTask, {"m": 2})) == [PendulumTask(m=2)]
        )
        assert list(TaskBatch(PendulumTask, {})) == [PendulumTask()]
        assert list(TaskBatch(PendulumTask, {}, 2)) == [PendulumTask()] * 2
        for empty in (TaskBatch(PendulumTask, {}, 0), TaskBatch(PendulumTask, {"m": []})):
            assert len(empty) == len(empty.task_ids) == len(empty.column("m")) == 0
            assert list(empty) == []

    def test_equality_and_hash_follow_the_content(self):
        same = TaskBatch.from_tasks(self.tasks)
        others = [
            self.batch[:2],
            self.batch[[0, 2, 1]],
            TaskBatch(CartPoleTask, {"length": [0.4, 0.6, 0.8]}),
            TaskBatch(SlopeTask, {}, 3),
        ]
        assert same == self.batch == self.batch[:]
        assert hash(same) == hash(self.batch) == hash(self.batch[:])
        assert len({same, self.batch, *others}) == 5
        assert self.batch != self.tasks

    def test_zeros_of_either_sign_are_equal(self):
        plus, minus = (TaskBatch(SlopeTask, {"slope": [zero, 1.0]}) for zero in (0.0, -0.0))
        assert plus == minus
        assert (hash(plus), plus.task_ids.tolist()) == (hash(minus), minus.task_ids.tolist())

    def test_the_same_numbers_of_another_type_are_not_equal(self):
        class OtherSlopeTask(SlopeTask):
            pass

        assert TaskBatch(SlopeTask, {}, 3) != TaskBatch(OtherSlopeTask, {}, 3)

    @pytest.mark.parametrize(
        "make",
        [
            lambda batch: batch,
            lambda batch: batch[1:],
            lambda batch: batch[[0, 1]],
            lambda batch: TaskBatch.from_tasks(list(batch)),
            lambda batch: TaskBatch.from_tasks([batch[0]]),
            copy,
            deepcopy,
            lambda batch: pickle.loads(pickle.dumps(batch)),  # noqa: S301
        ],
        ids=["itself", "slice", "list", "tasks", "one task", "copy", "deepcopy", "pickle"],
    )
    def test_cannot_be_written(self, make):
        batch = make(self.batch)
        for array in (batch.values, batch.column("length"), batch.task_ids):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 1
        assert self.batch == TaskBatch.from_tasks(self.tasks)

    @pytest.mark.parametrize("copy", [copy, deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
    def test_copies_are_equal(self, copy):
        assert copy(self.batch) == self.batch

    def test_later_changes_to_its_arguments_do_not_reach_it(self):
        lengths = np.array([0.4, 0.6])
        parameters = {"length": lengths}
        batch = TaskBatch(CartPoleTask, parameters)
        lengths[:] = 7.0
        parameters["length"] = [8.0]
        assert batch.column("length").tolist() == [0.4, 0.6]
        lengths[0] = 9.0  # it took no array over, so the user's own can still be written

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            (
                {"length": [1, 2, -3.5]},
                r"^task 2: length must be a number in \[1e-06, 1e\+06\]; got -3\.5\.$",
            ),
            ({"length": [1, 0]}, r"^task 1: length must be a number in \[1e-06, 1e\+06\]; got 0\.0"),
            ({"length": [math.inf, 1]}, r"^task 0: length must be a number in \[1e-06, 1e\+06\]; got inf"),
            ({"length": -1}, r"^task 0: length must be a number in \[1e-06, 1e\+06\]; got -1\.0"),
            ({"masspole": [1, math.nan]}, r"^task 1: masspole must be a number > 0 and <= 1e\+06; got nan"),
            ({"polarity": [1, -1, 0]}, r"^task 2: polarity must be \+1 or -1; got 0\.0\.$"),
            ({"polarity": [math.nan]}, r"^task 0: polarity must be \+1 or -1; got nan\.$"),
            ({"length": "long"}, r"^length must be a number, or one for each task; got 'long'\.$"),
            ({"length": [1, None]}, r"^length must be a number, or one for each task; got \[1, None\]\.$"),
            ({"length": [True]}, r"^length must be a number, or one for each task; got \[True\]\.$"),
            ({"length": [[1.0]]}, r"^length must be a number, or one for each task; got \[\[1\.0\]\]\.$"),
            ({"lenght": [1]}, r"^a parameter of CartPoleTask must be one of .*Did you mean 'length'\?$"),
            ([1], r"^a task must be a dictionary from parameter name to value; got \[1\]\.$"),
        ],
    )
    def test_refuses_parameters(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            TaskBatch(CartPoleTask, parameters)

    def test_refuses_what_is_not_finite_where_any_sign_is_allowed(self):
        assert TaskBatch(SlopeTask, {"slope": [-1, 0]}).column("slope").tolist() == [-1, 0]
        with pytest.raises(ValueError, match=r"^task 1: slope must be a finite number; got -inf\.$"):
            TaskBatch(SlopeTask, {"slope": [1, -math.inf]})

    @pytest.mark.parametrize(
        ("parameters", "num_tasks", "got"),
        [
            ({"length": [1, 2]}, 3, r"the 3 tasks; got \{'length': 2\}"),
            ({"length": [1]}, 2, r"the 2 tasks; got \{'length': 1\}"),
            ({"length": []}, 1, r"the 1 tasks; got \{'length': 0\}"),
            ({"length": [1, 2], "masspole": [1, 2, 3], "gravity": 1}, None, r"got \{'length': 2, 'masspole': 3\}"),
        ],
    )
    def test_refuses_columns_of_different_lengths(self, parameters, num_tasks, got):
        with pytest.raises(ValueError, match=f"each parameter must be one number or one for each of .*{got}"):
            TaskBatch(CartPoleTask, parameters, num_tasks)

    @pytest.mark.parametrize("num_tasks", [-1, 1.0, True, "two"])
    def test_refuses_other_sizes(self, num_tasks):
        with pytest.raises(ValueError, match=f"num_tasks must be an int >= 0; got {num_tasks!r}"):
            TaskBatch(CartPoleTask, {}, num_tasks)

    @pytest.mark.parametrize(
        "tasks", [[], [CartPoleTask(), PendulumTask()], [{"length": 1}], (None,), TaskBatch(CartPoleTask, {}, 0)]
    )
    def test_needs_tasks_of_one_type(self, tasks):
        with pytest.raises(ValueError, match="a batch needs at least one task, all of one type; got "):
            TaskBatch.from_tasks(tasks)


def test_only_the_fields_of_a_task_are_its_parameters():
    @dataclass(frozen=True, slots=True)
    class SlottedTask(Task):
        mass: float = 1.0

    @dataclass(frozen=True)
    class CachingTask(Task):
        mass: float = 1.0

        @functools.cached_property
        def weight(self):
            return 9.8 * self.mass

    for task in (SlottedTask(2.0), CachingTask(2.0)):
        first_id = task.task_id
        assert getattr(task, "weight", 19.6) == 19.6
        assert task.to_dict() == {"mass": 2.0}
        assert task.task_id == first_id == type(task)(2.0).task_id
        assert TaskBatch.from_tasks([task, task]).values.tolist() == [[2.0, 2.0]]
