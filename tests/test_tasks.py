import json
import math
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.tasks import FAMILIES, SPLITS, CartPoleTask, Choice, PendulumTask, TaskDistribution, Uniform

TASK_TYPES = (CartPoleTask, PendulumTask)
POSITIVE_PARAMETERS = [
    (task_type, name) for task_type in TASK_TYPES for name in task_type.parameter_names() if name != "polarity"
]
SPLIT = Uniform((1, 5), (15, 20))


def tasks(task_type):
    positive = st.floats(min_value=0.0, exclude_min=True, allow_infinity=False)
    names = task_type.parameter_names()
    return st.builds(task_type, **dict.fromkeys(names, positive) | {"polarity": st.sampled_from([-1, 1])})


class TestTask:
    @settings(deadline=None)
    @given(task=st.one_of(map(tasks, TASK_TYPES)))
    def test_dictionaries_and_json_give_an_equal_task_back(self, task):
        copy = type(task).from_dict(json.loads(json.dumps(task.to_dict())))
        assert copy == task
        assert (hash(copy), copy.task_id, copy.to_dict()) == (hash(task), task.task_id, task.to_dict())
        assert 0 <= task.task_id < 2**63

    @pytest.mark.parametrize(("task_type", "name"), POSITIVE_PARAMETERS)
    def test_every_parameter_counts(self, task_type, name):
        default, changed = task_type(), task_type.from_dict({name: 2})
        assert changed == replace(default, **{name: 2.0}) != default
        assert changed.task_id != default.task_id
        assert isinstance(changed.to_dict()[name], float)

    @pytest.mark.parametrize("task_type", TASK_TYPES)
    def test_polarity_counts_and_is_an_integer(self, task_type):
        task = task_type(polarity=-1.0)
        assert isinstance(task.polarity, int)
        assert task.task_id != task_type().task_id

    def test_ids_do_not_depend_on_the_process(self):
        assert CartPoleTask().task_id == 7537875888509260580

    def test_tasks_of_different_types_differ(self):
        assert CartPoleTask() != PendulumTask()
        assert CartPoleTask().task_id != PendulumTask().task_id

    def test_is_frozen(self):
        with pytest.raises(FrozenInstanceError):
            CartPoleTask().length = 1.0

    def test_its_dictionary_is_a_copy(self):
        task = CartPoleTask()
        task.to_dict()["length"] = 7.0
        assert task == CartPoleTask()

    @pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "heavy", None, [1.0]])
    @pytest.mark.parametrize(("task_type", "name"), POSITIVE_PARAMETERS)
    def test_refuses_what_is_not_positive_and_finite(self, task_type, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*got "):
            task_type(**{name: value})

    @pytest.mark.parametrize("value", [0, 2, -0.5, math.nan, "left", None])
    def test_refuses_other_polarities(self, value):
        with pytest.raises(ValueError, match=r"^polarity must be .*got "):
            PendulumTask(polarity=value)

    def test_names_the_nearest_parameter(self):
        with pytest.raises(ValueError, match=r"got 'lenght'. Did you mean 'length'\?"):
            CartPoleTask.from_dict({"lenght": 0.5})
        with pytest.raises(ValueError, match="must be a dictionary"):
            CartPoleTask.from_dict([("length", 0.5)])


class TestUniform:
    def test_draws_from_every_interval_in_proportion_to_its_length(self):
        draws = np.array([SPLIT.sample(rng) for rng in [np.random.default_rng(0)] for _ in range(2000)])
        assert all(map(SPLIT.contains, draws))
        low = draws[draws <= 5]
        assert abs(len(low) / len(draws) - 4 / 9) < 0.03
        assert abs(low.mean() - 3) < 0.15
        assert abs(draws[draws >= 15].mean() - 17.5) < 0.15

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(0.9, False), (1, True), (5, True), (5.1, False), (14.9, False), (17, True), (21, False)],
    )
    def test_contains_both_intervals_and_nothing_between(self, value, expected):
        assert SPLIT.contains(value) is expected

    def test_bounds(self):
        assert Uniform((15, 20), (1, 5)).bounds == SPLIT.bounds == (1.0, 20.0)

    def test_a_point_is_an_interval(self):
        assert Uniform((3, 3)).sample(np.random.default_rng(0)) == 3.0

    @pytest.mark.parametrize("intervals", [(), ((2, 1),), ((0, 1), (3, 2))])
    def test_refuses_intervals_that_hold_nothing(self, intervals):
        with pytest.raises(ValueError, match="low <= high; got"):
            Uniform(*intervals)


class TestChoice:
    def test_draws_every_value_equally_often(self):
        rng = np.random.default_rng(0)
        draws = [Choice(-1, 1).sample(rng) for _ in range(1000)]
        assert set(draws) == {-1, 1}
        assert abs(np.mean(draws)) < 0.1

    def test_contains_and_bounds(self):
        assert Choice(1, 5, -1).contains(5)
        assert not Choice(1, 5, -1).contains(0)
        assert Choice(1, 5, -1).bounds == (-1, 5)

    def test_refuses_to_be_empty(self):
        with pytest.raises(ValueError, match="at least one value"):
            Choice()


@pytest.mark.parametrize("distribution", [SPLIT, Choice(-1, 1)])
def test_one_draw_calls_the_generator_once(distribution):
    drawn, reference = np.random.default_rng(0), np.random.default_rng(0)
    for _ in range(50):
        distribution.sample(drawn)
        reference.integers(2) if isinstance(distribution, Choice) else reference.random()
    assert drawn.bit_generator.state == reference.bit_generator.state


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

    @pytest.mark.parametrize("parameters", [{"length": 0.8}, {"gravity": 9.9}, {"length": 0.3, "masscart": 1.1}])
    def test_does_not_contain_other_values(self, parameters):
        assert not self.distribution.contains(CartPoleTask(**parameters))

    def test_does_not_contain_the_same_numbers_under_other_names(self):
        task = PendulumTask(g=9.8, m=1.0, l=0.1, gain=0.5)
        assert list(task.to_dict().values()) == list(CartPoleTask().to_dict().values())[:5]
        assert not self.distribution.contains(task)

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

    def test_normalises_a_point_to_zero(self):
        assert TaskDistribution(CartPoleTask, {"length": Choice(0.3)}).normalise(CartPoleTask(length=0.3)) == [0.0]

    def test_equality_and_hash_follow_the_content(self):
        same = TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.75)), "polarity": Choice(-1, 1)})
        others = [
            TaskDistribution(CartPoleTask, {"length": self.length}),
            TaskDistribution(CartPoleTask, {"masspole": self.length, "polarity": self.sign}),
            TaskDistribution(CartPoleTask, {"length": Uniform((0.25, 0.7)), "polarity": self.sign}),
        ]
        assert same == self.distribution == deepcopy(same)
        assert {same, deepcopy(same), self.distribution} == {same}
        assert len({same, *others}) == 4

    def test_later_changes_to_its_argument_do_not_reach_it(self):
        parameters = {"length": self.length, "polarity": self.sign}
        distribution = TaskDistribution(CartPoleTask, parameters)
        parameters["length"] = Uniform((1, 2))
        assert distribution == self.distribution

    def test_refuses_unknown_parameters(self):
        with pytest.raises(ValueError, match=r"got 'masspol'. Did you mean 'masspole'\?"):
            TaskDistribution(CartPoleTask, {"masspol": self.length})


class TestFamilies:
    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
    def test_splits_are_what_they_say(self, family, split):
        rng = family.generator(split, 0)
        drawn = [family.distribution(split).sample(rng) for _ in range(200)]
        continuous = [name for name in family.train.parameters if name != "polarity"]
        inside = [
            [family.train.parameters[name].contains(getattr(task, name)) for name in continuous] for task in drawn
        ]
        assert np.all(inside) if split != "extrapolation" else not np.any(inside)
        assert all(map(family.distribution(split).contains, drawn))

    def test_splits_never_share_a_stream(self):
        family = FAMILIES["CartPole"]
        numbers = {x for split in SPLITS for seed in range(5) for x in family.generator(split, seed).random(8)}
        assert len(numbers) == len(SPLITS) * 5 * 8

    @pytest.mark.parametrize(
        ("name", "train", "extrapolation"),
        [
            (
                "CartPole",
                {"force_mag": ((5, 15),), "length": ((0.25, 0.75),), "masspole": ((0.05, 0.5),)},
                {
                    "force_mag": ((1, 5), (15, 20)),
                    "length": ((0.05, 0.25), (0.75, 1)),
                    "masspole": ((0.01, 0.05), (0.5, 1)),
                },
            ),
            (
                "Pendulum",
                {"m": ((0.75, 1.25),), "l": ((0.75, 1.25),)},
                {"m": ((0.5, 0.75), (1.25, 1.5)), "l": ((0.5, 0.75), (1.25, 1.5))},
            ),
        ],
    )
    def test_ranges_are_those_of_packer_et_al_times_the_sign(self, name, train, extrapolation):
        for split, ranges in (("train", train), ("interpolation", train), ("extrapolation", extrapolation)):
            plain, *signed = (FAMILIES[name + suffix].distribution(split) for suffix in ("", "Polarity", "Switch"))
            assert {parameter: uniform.intervals for parameter, uniform in plain.parameters.items()} == ranges
            assert all(other.parameters == {**plain.parameters, "polarity": Choice(-1, 1)} for other in signed)

    def test_refuses_unknown_splits(self):
        with pytest.raises(
            ValueError, match=r"split must be one of .*got 'extrapolate'. Did you mean 'extrapolation'\?"
        ):
            FAMILIES["CartPole"].distribution("extrapolate")
