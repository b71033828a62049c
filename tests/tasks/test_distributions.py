import json
import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest

from ssm_metarl_gym.tasks.actuators import ActuatorDistribution
from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask
from ssm_metarl_gym.tasks.distributions import TaskDistribution, TaskSet, distribution_from_dict
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Marginal, Uniform
from ssm_metarl_gym.tasks.task import Task, TaskBatch

SPLIT = Uniform((1, 5), (15, 20))
LOG_SPLIT = LogUniform((1, 2), (4, 16))


@dataclass(frozen=True)
class WindTask(Task):
    """A type of tasks as a user writes one."""

    wind: float = 0.0


class TestTaskDistribution:
    length, sign = Uniform((0.25, 0.75)), Choice(-1, 1)
    distribution = TaskDistribution(CartPoleTask, {"length": length, "polarity": sign})

    def test_draws_what_varies_and_keeps_the_rest(self):
        rng = np.random.default_rng(0)
        drawn = [self.distribution.sample(rng) for _ in range(100)]
        assert all(map(self.distribution.contains, drawn))
        assert len({task.length for task in drawn}) == 100
        assert {task.polarity for task in drawn} == {-1, 1}
        assert {replace(task, length=0.5, polarity=1) for task in drawn} == {CartPoleTask()}

    def test_draws_what_it_always_drew(self):
        distribution = TaskDistribution(
            CartPoleTask,
            {
                "force_mag": SPLIT,
                "polarity": self.sign,
                "length": self.length,
                "masscart": Choice(1, 2, 4),
            },
        )
        rng = np.random.default_rng(7)
        drawn = [distribution.sample(rng) for _ in range(1000)]
        assert [(task.force_mag, task.polarity, task.length, task.masscart) for task in (*drawn[:3], drawn[-1])] == [
            (16.625859199442004, 1, 0.6378428451225968, 4.0),
            (3.0268647099153267, -1, 0.686776722698131, 1.0),
            (1.0473877410901724, -1, 0.6485347143760232, 4.0),
            (16.656882257912848, -1, 0.7296074290609638, 2.0),
        ]
        assert rng.random() == 0.20223500337931244

    def test_one_task_is_a_batch_of_one(self):
        single, batch = np.random.default_rng(3), np.random.default_rng(3)
        for _ in range(20):
            assert self.distribution.sample(single) == self.distribution.sample_batch(batch, 1)[0]
        assert single.bit_generator.state == batch.bit_generator.state

    def test_a_batch_is_drawn_parameter_by_parameter(self):
        rng, reference = np.random.default_rng(0), np.random.default_rng(0)
        batch = self.distribution.sample_batch(rng, 7)
        assert isinstance(batch, TaskBatch)
        assert batch.column("length").tolist() == self.length.sample(reference, 7).tolist()
        assert batch.column("polarity").tolist() == self.sign.sample(reference, 7).tolist()
        assert rng.bit_generator.state == reference.bit_generator.state
        assert all(map(self.distribution.contains, batch))
        assert len(self.distribution.sample_batch(rng, 0)) == 0
        assert rng.bit_generator.state == reference.bit_generator.state

    def test_nothing_needs_to_vary(self):
        rng = np.random.default_rng(0)
        assert list(TaskDistribution(PendulumTask, {}).sample_batch(rng, 2)) == [PendulumTask()] * 2
        assert TaskDistribution(PendulumTask, {}).normalise(PendulumTask()).shape == (0,)
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state

    @pytest.mark.parametrize("parameters", [{"length": 0.8}, {"gravity": 9.9}, {"length": 0.3, "masscart": 1.1}])
    def test_does_not_contain_other_values(self, parameters):
        assert not self.distribution.contains(CartPoleTask(**parameters))

    def test_does_not_contain_the_same_numbers_under_other_names(self):
        task = PendulumTask(g=9.8, m=1.0, l=0.1, gain=0.5)
        assert list(task.to_dict().values()) == list(CartPoleTask().to_dict().values())[:5]
        assert not self.distribution.contains(task)

    def test_does_not_contain_tasks_of_a_subclass(self):
        @dataclass(frozen=True)
        class WindyCartPoleTask(CartPoleTask):
            wind: float = 0.0

        assert not self.distribution.contains(WindyCartPoleTask())

    def test_one_seed_gives_one_sequence(self):
        first, second, other = (np.random.default_rng(seed) for seed in (0, 0, 1))
        assert [self.distribution.sample(first) for _ in range(3)] == [
            self.distribution.sample(second) for _ in range(3)
        ]
        assert self.distribution.sample(first) != self.distribution.sample(other)

    @pytest.mark.parametrize(
        ("parameters", "expected"),
        [
            ({"length": 0.25, "polarity": -1}, [-1, -1]),
            ({"length": 0.5}, [0, 1]),
            ({"length": 0.625}, [0.5, 1]),
            ({"length": 1.0, "gravity": 3.0}, [2, 1]),
        ],
    )
    def test_normalises_its_range_to_one(self, parameters, expected):
        normalised = self.distribution.normalise(CartPoleTask(**parameters))
        assert normalised.dtype == np.float32
        assert normalised.tolist() == expected

    def test_normalises_each_row_of_a_batch(self):
        distribution = TaskDistribution(PendulumTask, {"l": LogUniform((0.5, 2)), "polarity": self.sign, "g": SPLIT})
        batch = distribution.sample_batch(np.random.default_rng(0), 9)
        normalised = distribution.normalise(batch)
        assert (normalised.dtype, normalised.shape) == (np.float32, (9, 3))
        assert normalised.tolist() == [distribution.normalise(task).tolist() for task in batch]
        assert distribution.normalise(batch[:0]).shape == (0, 3)

    def test_normalises_the_logarithm_where_it_is_uniform(self):
        distribution = TaskDistribution(PendulumTask, {"m": LogUniform((0.25, 4))})
        assert distribution.normalise(PendulumTask(m=2)) == pytest.approx([0.5])

    def test_sets_and_maps_of_motors_normalise_too(self):
        tasks = TaskSet([PendulumTask(m=1, l=1), PendulumTask(m=2, l=1), PendulumTask(m=3, l=1)])
        assert tasks.normalise(TaskBatch.from_tasks(tasks.tasks)).tolist() == [[-1.0], [0.0], [1.0]]
        maps = ActuatorDistribution(1, gain=Uniform((1, 2)))
        assert maps.normalise(maps.task_type(map_0_0=-2.0)).tolist() == [-1.0]

    def test_normalises_a_point_to_zero(self):
        assert TaskDistribution(CartPoleTask, {"length": Choice(0.3)}).normalise(CartPoleTask(length=0.3)) == [0.0]

    def test_equality_and_hash_follow_the_content(self):
        same = TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.75)), "polarity": Choice(-1, 1)})
        others = [
            TaskDistribution(CartPoleTask, {"length": self.length}),
            TaskDistribution(CartPoleTask, {"masspole": self.length, "polarity": self.sign}),
            TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.7)), "polarity": self.sign}),
            TaskDistribution(CartPoleTask, {"length": LogUniform((0.25, 0.75)), "polarity": self.sign}),
            # Another order draws other tasks.
            TaskDistribution(CartPoleTask, {"polarity": self.sign, "length": self.length}),
        ]
        assert same == self.distribution == deepcopy(same) == pickle.loads(pickle.dumps(same))  # noqa: S301
        assert {same, deepcopy(same), self.distribution} == {same}
        assert len({same, *others}) == 6

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            self.distribution.task_type = PendulumTask
        self.distribution.parameters.clear()
        assert list(self.distribution.parameters) == ["length", "polarity"]

    def test_later_changes_to_its_argument_do_not_reach_it(self):
        parameters = {"length": self.length, "polarity": self.sign}
        distribution = TaskDistribution(CartPoleTask, parameters)
        parameters["length"] = Uniform((1, 2))
        assert distribution == self.distribution

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"masspol": Uniform((1, 2))}, r"a parameter of CartPoleTask .*got 'masspol'. Did you mean 'masspole'\?"),
            ({"length": (1, 2)}, r"^length must have a Uniform, a LogUniform or a Choice; got \(1, 2\)"),
            ({"length": Uniform((0, 1))}, r"^length must be a number in \[1e-06, 1e\+06\]; got 0\.0"),
            ({"length": Uniform((1, 2), (-1, -0.5))}, r"^length must be a number in \[1e-06, 1e\+06\]; got -1\.0"),
            ({"length": Choice(1, 2, 0, 3)}, r"^length must be a number in \[1e-06, 1e\+06\]; got 0\.0"),
            ({"length": Choice(1, 2e6)}, r"^length must be a number in \[1e-06, 1e\+06\]; got 2000000.0"),
            ({"polarity": Choice(-1, 0, 1)}, r"^polarity must be \+1 or -1; got 0\.0"),
            (
                {"polarity": Uniform((-1, 1))},
                r"^polarity must have a Choice of \+1 and -1, as it is a sign; got Uniform\(",
            ),
        ],
    )
    def test_refuses_to_draw_what_no_task_has(self, parameters, message):
        with pytest.raises(ValueError, match=message):
            TaskDistribution(CartPoleTask, parameters)


def test_other_marginals_are_refused_and_so_are_names_that_no_parameter_has():
    class Normal(Marginal):
        pass

    with pytest.raises(ValueError, match="m must have a Uniform, a LogUniform or a Choice; got"):
        TaskDistribution(PendulumTask, {"m": Normal()})

    @dataclass(frozen=True)
    class MisspeltTask(Task):
        positive = ("mas",)
        mass: float = 1.0

    with pytest.raises(
        ValueError, match=r"a parameter of MisspeltTask must be one of .*got 'mas'. Did you mean 'mass'\?"
    ):
        TaskDistribution(MisspeltTask, {})


@pytest.mark.parametrize(
    "distribution",
    [TaskDistribution(PendulumTask, {}), TaskDistribution(PendulumTask, {"m": SPLIT}), TaskSet([WindTask()])],
)
def test_draws_need_a_generator_and_a_number_of_tasks(distribution):
    for draw in (lambda: distribution.sample(0), lambda: distribution.sample_batch(0, 3)):
        with pytest.raises(
            ValueError, match=r"^rng must be a numpy.random.Generator; got 0. Use numpy.random.default_"
        ):
            draw()
    for size in (-1, 1.5, None, "3"):
        with pytest.raises(ValueError, match=r"^num_tasks must be an int >= 0; got "):
            distribution.sample_batch(np.random.default_rng(0), size)


class TestSplit:
    distribution = TaskDistribution(CartPoleTask, {"length": LogUniform((0.25, 0.75)), "polarity": Choice(-1, 1)})
    two_levels = TaskDistribution(
        PendulumTask,
        {"polarity": Choice(-1, 1), "m": Choice(1, 2, 2), "g": Uniform((9, 9)), "l": LogUniform((2, 2))},
    )

    def test_sets_have_their_sizes_and_share_no_task(self):
        sets = self.distribution.split(50, 20, np.int64(1))
        tasks = [task for task_set in sets for task in task_set.tasks]
        assert all(isinstance(task_set, TaskSet) for task_set in sets)
        assert [len(task_set.tasks) for task_set in sets] == [50, 20, 1]
        assert len(set(tasks)) == 71
        assert all(map(self.distribution.contains, tasks))

    def test_deals_out_one_batch(self):
        first, second = self.distribution.split(3, 2, seed=5)
        batch = self.distribution.sample_batch(np.random.default_rng(5), 5)
        assert first.tasks + second.tasks == tuple(batch)

    def test_one_seed_gives_one_result(self):
        assert self.distribution.split(5, 3) == self.distribution.split(5, 3, seed=0) == self.distribution.split(5, 3)
        tasks = [{*self.distribution.split(8, seed=seed)[0].tasks} for seed in range(3)]
        assert len(set.union(*tasks)) == 24

    def test_no_task_is_dealt_twice(self):
        first, second = self.two_levels.split(1, 3, seed=2)
        expected = {PendulumTask(polarity=sign, m=mass, g=9, l=2) for sign in (-1, 1) for mass in (1, 2)}
        assert {*first.tasks, *second.tasks} == expected
        (numbers,) = TaskDistribution(PendulumTask, {"g": Choice(*range(1, 101))}).split(100)
        assert sorted(task.g for task in numbers.tasks) == list(range(1, 101))

    @pytest.mark.parametrize(
        ("parameters", "available"),
        [
            ({}, 1),
            ({"polarity": Choice(-1, 1)}, 2),
            ({"g": Choice(3, 3, 4), "m": Choice(1, 2, 3)}, 6),
            ({"g": Uniform((3, 3)), "m": LogUniform((2, 2))}, 1),
            ({"g": Uniform((3, 3)), "m": Choice(1, 2), "l": Choice(5)}, 2),
        ],
    )
    def test_there_must_be_enough_tasks(self, parameters, available):
        distribution = TaskDistribution(PendulumTask, parameters)
        assert len(set(distribution.split(available)[0].tasks)) == available
        for sizes in ((available + 1,), (available, 1)):
            with pytest.raises(ValueError, match=f"only {available} different tasks; got {available + 1} to deal out"):
                distribution.split(*sizes)

    def test_of_a_finite_set(self):
        (tasks,) = self.distribution.split(9)
        first, second = tasks.split(6, 3, seed=1)
        assert set(first.tasks) | set(second.tasks) == set(tasks.tasks)
        with pytest.raises(ValueError, match="only 9 different tasks; got 10 to deal out"):
            tasks.split(10)

    def test_of_maps_of_motors(self):
        maps = ActuatorDistribution(2, gain=Choice(0.5, 2.0), permutation=True)
        (tasks,) = maps.split(2 * 4**2)
        assert len(set(tasks.tasks)) == 32
        assert all(map(maps.contains, tasks.tasks))
        with pytest.raises(ValueError, match="hardly more than 32 different tasks; got 33 to deal out"):
            maps.split(30, 3)

    @pytest.mark.parametrize(
        ("marginal", "available"),
        [
            (Uniform((1, 1 + 2**-52)), 2),
            (LogUniform((1e5, 1e5 + 4e-11)), 1),
        ],
    )
    def test_gives_up_where_intervals_hold_next_to_nothing(self, marginal, available):
        distribution = TaskDistribution(PendulumTask, {"m": marginal, "polarity": Choice(-1, 1)})
        assert len(distribution.split(2 * available)[0].tasks) == 2 * available
        with pytest.raises(ValueError, match=f"hardly more than {2 * available} different tasks; got 9 to deal out"):
            distribution.split(4, 5)

    @pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "all"])
    def test_refuses_other_sizes(self, size):
        with pytest.raises(ValueError, match=f"the size of a set must be an int >= 1; got {size!r}"):
            self.distribution.split(2, size)

    def test_needs_a_size(self):
        with pytest.raises(ValueError, match="split needs the size of at least one set; got none"):
            self.distribution.split()


class TestTaskSet:
    tasks = (PendulumTask(m=1.5), PendulumTask(m=0.5, polarity=-1), PendulumTask(m=2.0, polarity=-1))
    task_set = TaskSet(tasks)

    def test_draws_every_task_equally_often(self):
        batch = self.task_set.sample_batch(np.random.default_rng(0), 3000)
        shares = [np.mean([task == drawn for drawn in batch]) for task in self.tasks]
        assert sum(shares) == 1
        assert shares == pytest.approx([1 / 3] * 3, abs=0.03)

    def test_calls_the_generator_once_a_task(self):
        rng, reference, single = (np.random.default_rng(4) for _ in range(3))
        expected = [self.tasks[position] for position in reference.integers(3, size=9)]
        assert list(self.task_set.sample_batch(rng, 9)) == expected
        assert [self.task_set.sample(single) for _ in range(9)] == expected
        assert rng.bit_generator.state == reference.bit_generator.state == single.bit_generator.state

    def test_contains_its_tasks_alone(self):
        assert all(map(self.task_set.contains, self.tasks))
        assert not self.task_set.contains(PendulumTask(m=1.5, polarity=-1))
        assert not TaskSet([PendulumTask()]).contains(CartPoleTask())

    def test_says_what_varies(self):
        assert self.task_set.task_type is PendulumTask
        assert self.task_set.parameters == {"polarity": Choice(-1, 1), "m": Choice(0.5, 1.5, 2.0)}
        assert TaskSet(self.tasks[:1]).parameters == {}

    def test_equality_and_hash_follow_the_content(self):
        others = [TaskSet(self.tasks[:2]), TaskSet(self.tasks[::-1]), TaskSet([CartPoleTask()])]
        copies = [TaskSet(list(self.tasks)), TaskSet(TaskBatch.from_tasks(self.tasks)), deepcopy(self.task_set)]
        assert set(copies) == {self.task_set}
        assert len({self.task_set, *others}) == 4

    @pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
    def test_copies_draw_the_same(self, copy):
        rngs = [np.random.default_rng(0) for _ in range(2)]
        assert copy(self.task_set).sample_batch(rngs[0], 5) == self.task_set.sample_batch(rngs[1], 5)

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            self.task_set.tasks = ()
        tasks = list(self.tasks)
        task_set = TaskSet(tasks)
        tasks.clear()
        assert task_set == self.task_set

    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ([], r"at least one task, all of one type; got \[\]"),
            (TaskBatch(PendulumTask, {}, 0), r"at least one task, all of one type; got TaskBatch\(.*num_tasks=0\)"),
            ([PendulumTask(), CartPoleTask()], r"at least one task, all of one type; got \[PendulumTask\("),
            ([{"m": 1.0}], r"at least one task, all of one type; got \[\{'m': 1\.0\}\]"),
            (
                [PendulumTask(m=3), PendulumTask(), PendulumTask(m=3)],
                r"must differ; got more than one PendulumTask\(.*m=3",
            ),
            (TaskBatch(PendulumTask, {}, 2), r"must differ; got more than one PendulumTask\("),
            ([WindTask(wind=0.0), WindTask(wind=-0.0)], "must differ; got more than one WindTask"),
        ],
    )
    def test_refuses_tasks(self, tasks, message):
        with pytest.raises(ValueError, match=message):
            TaskSet(tasks)


DISTRIBUTIONS = [
    TaskDistribution(CartPoleTask, {}),
    TaskDistribution(CartPoleTask, {"length": SPLIT, "gravity": LOG_SPLIT, "polarity": Choice(-1, 1)}),
    TaskDistribution(PendulumTask, {"polarity": Choice(1), "m": Choice(0.1, 1 / 3, np.float32(0.1))}),
    TaskDistribution(WindTask, {"wind": Uniform((-1e300, -1e-300), (0.1, np.nextafter(0.1, 1)))}),
    TaskSet([CartPoleTask(), CartPoleTask(length=1 / 3, polarity=-1)]),
    TaskSet([WindTask(wind=-0.0)]),
    *TaskDistribution(WindTask, {"wind": Uniform((-3, 3))}).split(20),
]


class TestJSON:
    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    def test_gives_an_equal_distribution_back(self, distribution):
        kind = type(distribution)
        copies = [
            kind.from_json(distribution.to_json()),
            kind.from_json(distribution.to_json(), distribution.task_type),
            kind.from_dict(distribution.to_dict()),
            distribution_from_dict(json.loads(json.dumps(distribution.to_dict())), distribution.task_type),
        ]
        for copy in copies:
            assert type(copy) is kind
            assert copy == distribution
            assert hash(copy) == hash(distribution)
            assert copy.to_dict() == distribution.to_dict() == json.loads(distribution.to_json())
            rngs = [np.random.default_rng(0) for _ in range(2)]
            assert copy.sample_batch(rngs[0], 20) == distribution.sample_batch(rngs[1], 20)

    def test_is_what_the_documentation_says(self):
        distribution = TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.5), (1, 2)), "gravity": LOG_SPLIT})
        assert json.loads(distribution.to_json()) == {
            "task_type": "CartPoleTask",
            "parameters": {
                "length": {"uniform": [[0.25, 0.5], [1.0, 2.0]]},
                "gravity": {"log_uniform": [[1.0, 2.0], [4.0, 16.0]]},
            },
        }
        assert json.loads(TaskSet([WindTask(wind=2)]).to_json()) == {"task_type": "WindTask", "tasks": [{"wind": 2.0}]}
        chosen = TaskDistribution(WindTask, {"wind": Choice(1, 2)})
        assert json.loads(chosen.to_json())["parameters"] == {"wind": {"choice": [1.0, 2.0]}}

    def test_parameters_that_a_task_does_not_name_have_their_defaults(self):
        data = {"task_type": "PendulumTask", "tasks": [{}, {"m": 2}]}
        assert distribution_from_dict(data) == TaskSet([PendulumTask(), PendulumTask(m=2)])

    def test_task_types_are_found_by_name_or_given(self):
        @dataclass(frozen=True)
        class SubclassOfASubclassTask(WindTask):
            gusts: float = 0.0

        data = {"task_type": "SubclassOfASubclassTask", "parameters": {"gusts": {"choice": [1]}}}
        assert distribution_from_dict(data).task_type is SubclassOfASubclassTask
        assert distribution_from_dict(data, SubclassOfASubclassTask).task_type is SubclassOfASubclassTask
        with pytest.raises(ValueError, match="must be of type 'WindTask'; got 'SubclassOfASubclassTask'"):
            distribution_from_dict(data, WindTask)

    def test_other_types_of_tasks_are_refused(self):
        text = DISTRIBUTIONS[0].to_json()
        with pytest.raises(ValueError, match=r"^the tasks must be of type 'PendulumTask'; got 'CartPoleTask'\.$"):
            TaskDistribution.from_json(text, PendulumTask)

    @pytest.mark.parametrize(("kind", "other"), [(TaskSet, DISTRIBUTIONS[0]), (TaskDistribution, DISTRIBUTIONS[4])])
    def test_other_kinds_of_distributions_are_refused(self, kind, other):
        message = rf"^the data must be of a {kind.__name__}; got those of a {type(other).__name__}\.$"
        with pytest.raises(ValueError, match=message):
            kind.from_json(other.to_json())
        with pytest.raises(ValueError, match=message):
            kind.from_dict(other.to_dict())

    @pytest.mark.parametrize(
        "name",
        [
            "CartPolTask",
            "Task",
            "TaskBatch",
            "os.system",
            "ssm_metarl_gym.tasks.CartPoleTask",
            "__import__('os').abort()",
            "",
            None,
            ["CartPoleTask"],
            {"name": "CartPoleTask"},
        ],
    )
    def test_names_of_no_task_type_are_refused_and_never_run(self, name):
        with pytest.raises(ValueError, match=r"^task_type must be one of \[.*'CartPoleTask', 'PendulumTask', .*; got "):
            distribution_from_dict({"task_type": name, "parameters": {}})

    def test_the_nearest_task_type_is_named(self):
        with pytest.raises(ValueError, match=r"got 'CartPolTask'\. Did you mean 'CartPoleTask'\?"):
            distribution_from_dict({"task_type": "CartPolTask", "parameters": {}})

    @pytest.mark.parametrize(
        "text", ["", "{", "CartPole", "{'task_type': 'CartPoleTask'}", "[" * 100_000, "1" * 5000, 5, None]
    )
    def test_refuses_what_is_no_json(self, text):
        with pytest.raises(ValueError, match=r"^a distribution must be JSON; got "):
            TaskDistribution.from_json(text)

    @pytest.mark.parametrize(
        "data",
        [
            None,
            3,
            [],
            "CartPoleTask",
            {},
            {"task_type": "CartPoleTask"},
            {"parameters": {}},
            {"task_type": "CartPoleTask", "parameters": {}, "tasks": []},
            {"task_type": "CartPoleTask", "parameters": {}, "seed": 0},
        ],
    )
    def test_refuses_other_keys(self, data):
        message = r"^a distribution must be a dictionary of 'task_type' and either 'parameters' or 'tasks'; got "
        for parse in (distribution_from_dict, lambda data: TaskSet.from_json(json.dumps(data))):
            with pytest.raises(ValueError, match=message):
                parse(data)

    @pytest.mark.parametrize("entry", [{"parameters": [1]}, {"parameters": None}, {"tasks": 5}, {"tasks": {"a": {}}}])
    def test_refuses_other_containers(self, entry):
        with pytest.raises(
            ValueError, match=r"^'parameters' must be a dictionary and 'tasks' a list; got \{'task_type'"
        ):
            distribution_from_dict({"task_type": "CartPoleTask", **entry})

    @pytest.mark.parametrize(
        ("tasks", "message"),
        [
            ([], "at least one task"),
            (["default"], "a task must be a dictionary from parameter name to value; got 'default'"),
            ([{"lenght": 1}], r"a parameter of CartPoleTask .*got 'lenght'. Did you mean 'length'\?"),
            ([{"length": "1"}], r"length must be a number in \[1e-06, 1e\+06\]; got '1'"),
            ([{"length": -1}], r"length must be a number in \[1e-06, 1e\+06\]; got -1"),
            ([{}, {}], "must differ"),
        ],
    )
    def test_refuses_tasks(self, tasks, message):
        with pytest.raises(ValueError, match=message):
            distribution_from_dict({"task_type": "CartPoleTask", "tasks": tasks})

    @pytest.mark.parametrize(
        ("marginal", "message"),
        [
            ({"unifrom": [[1, 2]]}, r"^the distribution of length .*got 'unifrom'. Did you mean 'uniform'\?"),
            ({"normal": [0, 1]}, r"^the distribution of length must be one of \['uniform', .*; got 'normal'"),
            ({"__class__": []}, r"^the distribution of length must be one of .*; got '__class__'"),
            ({}, r"^the distribution of length must be like \{'uniform': .*; got \{\}"),
            ({"uniform": [[1, 2]], "choice": [1]}, r"must be like .*; got \{'uniform': \[\[1, 2\]\], 'choice'"),
            ({"uniform": 3}, r"must be like .*; got \{'uniform': 3\}"),
            ({"choice": "12"}, r"must be like .*; got \{'choice': '12'\}"),
            ([[1, 2]], r"must be like .*; got \[\[1, 2\]\]"),
            ("uniform", "must be like .*; got 'uniform'"),
            (0.5, r"must be like .*; got 0\.5"),
            ({"uniform": [1, 2]}, r"Uniform needs at least one interval \(low, high\) with low <= high; got \(1, 2\)"),
            ({"uniform": [[2, 1]]}, r"low <= high; got \(\(2, 1\),\)"),
            ({"uniform": [["1", "2"]]}, r"got \(\('1', '2'\),\)"),
            ({"log_uniform": [[0, 1]]}, r"0 < low <= high; got \(\(0, 1\),\)"),
            ({"choice": []}, r"Choice needs at least one value, and finite numbers only; got \(\)"),
            ({"choice": [1, "x"]}, r"got \(1, 'x'\)"),
            ({"choice": [-1]}, r"length must be a number in \[1e-06, 1e\+06\]; got -1\.0"),
        ],
    )
    def test_refuses_marginals(self, marginal, message):
        with pytest.raises(ValueError, match=message):
            distribution_from_dict({"task_type": "CartPoleTask", "parameters": {"length": marginal}})

    def test_refuses_parameters_that_do_not_exist(self):
        with pytest.raises(ValueError, match=r"a parameter of CartPoleTask .*got 'lenght'. Did you mean 'length'\?"):
            distribution_from_dict({"task_type": "CartPoleTask", "parameters": {"lenght": {"choice": [1]}}})

    def test_dictionaries_are_fresh(self):
        for distribution in DISTRIBUTIONS[1], DISTRIBUTIONS[4]:
            text = distribution.to_json()
            data = distribution.to_dict()
            for entry in data.values():
                entry.clear() if isinstance(entry, dict | list) else None
            assert distribution.to_json() == text
