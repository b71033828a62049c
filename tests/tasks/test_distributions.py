import json
import math
import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


class AtItsEnds:
    """A generator whose uniform draws are the ends of the interval: ``uniform`` may round to the upper one."""

    def uniform(self, low, high, size):
        return np.resize([low, high], size)


def draw(marginal, size, seed=0):
    return marginal.sample(np.random.default_rng(seed), size)


def unions(*, positive):
    """Unions of up to three disjoint intervals in any order, some of them next to nothing."""
    bounds = st.floats(1e-3, 1e3) if positive else st.floats(-1e3, 1e3)

    def pair_up(ends, num_narrow):
        pairs = list(zip(*[iter(sorted(ends))] * 2, strict=True))
        return [(low, math.nextafter(low, math.inf)) for low, _ in pairs[:num_narrow]] + pairs[num_narrow:]

    ends = st.sampled_from([2, 4, 6]).flatmap(lambda n: st.lists(bounds, min_size=n, max_size=n, unique=True))
    intervals = st.builds(pair_up, ends, st.integers(0, 3)).flatmap(st.permutations)
    return intervals.map(lambda pairs: (LogUniform if positive else Uniform)(*pairs))


choices = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5).map(lambda values: Choice(*values))
marginals = st.one_of(unions(positive=False), unions(positive=True), choices)


class TestMarginals:
    @settings(deadline=None)
    @given(marginal=marginals, seed=st.integers(0, 2**32))
    def test_every_draw_is_contained(self, marginal, seed):
        draws = draw(marginal, 50, seed)
        low, high = marginal.bounds
        assert (draws.dtype, draws.shape) == (np.float64, (50,))
        assert all(map(marginal.contains, draws))
        assert low <= draws.min() <= draws.max() <= high
        assert np.abs(marginal.normalise(draws)).max() <= 1 + 1e-9

    @pytest.mark.parametrize(
        "marginal",
        [
            Uniform((1.11, 3.39)),  # where low + (high - low) > high
            Uniform((1.11, 3.39), (5, 6)),
            Uniform((5, 6), (0.1, 0.3), (1.11, 3.39)),
            LogUniform((0.35, 2.82)),  # where exp(log(low)) < low and exp(log(high)) > high
            LogUniform((3, 4), (0.35, 2.82)),
            LogUniform((1e10, 1e10 + 4e-6)),  # whose ends have the same logarithm
            LogUniform((3, 3 + 2**-51), (0.1, 0.1 + 2**-55)),
        ],
    )
    def test_rounding_carries_no_draw_out_of_its_interval(self, marginal):
        assert all(map(marginal.contains, marginal.sample(AtItsEnds(), 2)))
        assert all(map(marginal.contains, draw(marginal, 1000)))

    @pytest.mark.parametrize("marginal", [SPLIT, LOG_SPLIT, Choice(1, 2, 5), Uniform((3, 3))])
    def test_one_draw_calls_the_generator_once(self, marginal):
        at_once, one_by_one, reference = (np.random.default_rng(0) for _ in range(3))
        draws = marginal.sample(at_once, 51)
        assert draws.tolist() == [marginal.sample(one_by_one, 1)[0] for _ in range(51)]
        reference.integers(3, size=51) if isinstance(marginal, Choice) else reference.random(51)
        assert at_once.bit_generator.state == one_by_one.bit_generator.state == reference.bit_generator.state

    @pytest.mark.parametrize("marginal", [SPLIT, LOG_SPLIT, Choice(1, 2)])
    def test_no_draws_leave_the_generator_as_it_is(self, marginal):
        rng = np.random.default_rng(0)
        assert marginal.sample(rng, 0).shape == (0,)
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state

    @pytest.mark.parametrize("make", [Uniform, LogUniform, lambda *pairs: Choice(*pairs[0])])
    def test_are_frozen_values(self, make):
        marginal = make((1, 2), (4, 5))
        assert marginal == make([1.0, np.float32(2)], (4, 5))
        assert len({marginal, deepcopy(marginal), make((1, 2), (4, 5)), make((1, 3), (4, 5))}) == 2
        with pytest.raises(FrozenInstanceError):
            marginal.intervals = ()

    def test_of_different_kinds_differ(self):
        assert len({Uniform((1, 2)), LogUniform((1, 2)), Choice(1, 2)}) == 3

    @pytest.mark.parametrize("make", [Uniform, LogUniform])
    @pytest.mark.parametrize(
        "intervals",
        [
            (),
            ((2, 1),),
            ((0.5, 1), (3, 2)),
            ((1, math.nan),),
            ((1, math.inf),),
            ((1, 2, 3),),
            ((1,),),
            (1, 2),
            (("low", "high"),),
            ((True, 2),),
            ((1, None),),
        ],
    )
    def test_refuse_what_is_no_interval(self, make, intervals):
        with pytest.raises(ValueError, match=rf"^{make.__name__} needs at least one interval .*low <= high; got \("):
            make(*intervals)

    @pytest.mark.parametrize("interval", [(0, 1), (-1, 1), (-2, -1)])
    def test_only_positive_numbers_have_a_logarithm(self, interval):
        with pytest.raises(ValueError, match=r"^LogUniform needs .*0 < low <= high; got "):
            LogUniform((1, 2), interval)

    @pytest.mark.parametrize("values", [(), ("left",), (1, None), (True,), ((1, 2),)])
    def test_refuse_what_is_no_choice(self, values):
        with pytest.raises(ValueError, match=r"^Choice needs at least one value, and numbers only; got \("):
            Choice(*values)


class TestUniform:
    def test_draws_from_every_interval_in_proportion_to_its_length(self):
        draws = draw(SPLIT, 2000)
        low = draws[draws <= 5]
        assert abs(len(low) / len(draws) - 4 / 9) < 0.03
        assert abs(low.mean() - 3) < 0.15
        assert abs(draws[draws >= 15].mean() - 17.5) < 0.15

    def test_lays_one_draw_along_the_intervals(self):
        positions = 9 * np.random.default_rng(0).random(20)
        expected = [1 + position if position <= 4 else 15 + (position - 4) for position in positions]
        assert draw(SPLIT, 20) == pytest.approx(expected, rel=1e-14)
        assert {value < 10 for value in expected} == {True, False}

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(0.9, False), (1, True), (5, True), (5.1, False), (14.9, False), (17, True), (20, True), (21, False)],
    )
    def test_contains_both_intervals_and_nothing_between(self, value, expected):
        assert SPLIT.contains(value) is expected

    def test_bounds(self):
        assert Uniform((15, 20), (1, 5)).bounds == SPLIT.bounds == (1.0, 20.0)

    def test_a_point_is_an_interval(self):
        assert draw(Uniform((3, 3)), 2).tolist() == [3.0, 3.0]
        assert Uniform((3, 3)).normalise(np.array([3.0])) == [0.0]

    def test_normalises_in_proportion(self):
        assert SPLIT.normalise(np.array([1, 20, 10.5, 15.25, 29.5])).tolist() == [-1, 1, 0, 0.5, 2]


class TestLogUniform:
    def test_draws_from_every_interval_in_proportion_to_the_length_of_its_logarithm(self):
        draws = draw(LOG_SPLIT, 3000)
        low = draws[draws <= 2]
        assert abs(len(low) / len(draws) - 1 / 3) < 0.03
        assert abs(np.log2(low).mean() - 0.5) < 0.03
        assert abs(np.log2(draws[draws >= 4]).mean() - 3) < 0.05

    def test_its_median_is_the_geometric_mean(self):
        draws = draw(LogUniform((0.01, 100)), 10_000)
        assert abs(math.log(np.median(draws))) < 0.2  # standard deviation 0.05
        assert abs(np.mean(draws < 0.1) - 0.25) < 0.02
        assert draws.mean() > 8  # (100 - 0.01) / log(10^4) = 10.9 expected

    def test_lays_one_draw_along_the_logarithms(self):
        positions = 3 * np.random.default_rng(0).random(20)
        expected = [2**position if position <= 1 else 4 * 2 ** (position - 1) for position in positions]
        assert draw(LOG_SPLIT, 20) == pytest.approx(expected, rel=1e-13)
        assert {value < 3 for value in expected} == {True, False}

    @pytest.mark.parametrize(
        ("value", "expected"), [(0.9, False), (1, True), (2, True), (2.1, False), (3.9, False), (16, True), (17, False)]
    )
    def test_contains_both_intervals_and_nothing_between(self, value, expected):
        assert LOG_SPLIT.contains(value) is expected

    def test_bounds_are_numbers_and_not_logarithms(self):
        assert LOG_SPLIT.bounds == LogUniform((4, 16), (1, 2)).bounds == (1.0, 16.0)

    def test_normalises_the_logarithm(self):
        values = np.array([0.25, 0.5, 1, 2, 4, 16])
        assert LogUniform((0.25, 4)).normalise(values) == pytest.approx([-1, -0.5, 0, 0.5, 1, 2], abs=1e-15)
        assert LOG_SPLIT.normalise(values[2:]) == pytest.approx([-1, -0.5, 0, 1], abs=1e-15)

    def test_a_point_is_an_interval(self):
        assert draw(LogUniform((0.3, 0.3)), 2).tolist() == [0.3, 0.3]
        assert LogUniform((0.3, 0.3)).normalise(np.array([0.3])) == [0.0]


class TestChoice:
    def test_draws_every_value_equally_often(self):
        draws = draw(Choice(-1, 1), 1000)
        assert set(draws) == {-1, 1}
        assert abs(np.mean(draws)) < 0.1

    def test_draws_by_position(self):
        positions = np.random.default_rng(0).integers(3, size=20)
        assert draw(Choice(7, 5, 9), 20).tolist() == [(7, 5, 9)[position] for position in positions]

    def test_contains_and_bounds(self):
        assert Choice(1, 5, -1).contains(5)
        assert not Choice(1, 5, -1).contains(0)
        assert Choice(1, 5, -1).bounds == (-1, 5)

    def test_normalises_its_bounds_to_one(self):
        assert Choice(1, 5, -1).normalise(np.array([-1.0, 1, 2, 5])).tolist() == [-1, -1 / 3, 0, 1]


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
            ({"length": Uniform((0, 1))}, r"^length must be a finite number > 0; got 0\.0"),
            ({"length": Uniform((1, 2), (-1, -0.5))}, r"^length must be a finite number > 0; got -1\.0"),
            ({"length": Choice(1, 2, 0, 3)}, r"^length must be a finite number > 0; got 0\.0"),
            ({"length": Choice(1, math.nan)}, r"^length must be a finite number > 0; got nan"),
            ({"length": Choice(math.inf)}, r"^length must be a finite number > 0; got inf"),
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


@pytest.mark.parametrize("marginal", [Uniform, LogUniform])
@pytest.mark.parametrize(
    "intervals", [((1, 3), (2, 4)), ((2, 4), (1, 3)), ((1, 5), (2, 3)), ((1, 1), (2, 2)), ((1, 2), (4, 4))]
)
def test_several_intervals_must_be_disjoint_and_have_a_length(marginal, intervals):
    with pytest.raises(ValueError, match="several intervals must be disjoint and none of them a point; got"):
        marginal(*intervals)
    assert marginal((1, 2), (2, 3)).bounds == (1, 3)


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

    @pytest.mark.parametrize(
        ("marginal", "available"),
        [
            (Uniform((1, 1 + 2**-52)), 2),
            (LogUniform((1e10, 1e10 + 4e-6)), 1),
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
            (TaskBatch(PendulumTask, {}, 0), r"at least one task, all of one type; got \[\]"),
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

    @settings(deadline=None)
    @given(marginal=marginals)
    def test_is_exact_for_every_marginal(self, marginal):
        distribution = TaskDistribution(WindTask, {"wind": marginal})
        copy = TaskDistribution.from_json(distribution.to_json())
        assert copy == distribution
        assert repr(copy) == repr(distribution)  # tells -0.0 from 0.0
        assert hash(copy) == hash(distribution)

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
        with pytest.raises(ValueError, match=r"^task_type must be one of \['CartPoleTask', 'PendulumTask', .*; got "):
            distribution_from_dict({"task_type": name, "parameters": {}})

    def test_the_nearest_task_type_is_named(self):
        with pytest.raises(ValueError, match=r"got 'CartPolTask'\. Did you mean 'CartPoleTask'\?"):
            distribution_from_dict({"task_type": "CartPolTask", "parameters": {}})

    @pytest.mark.parametrize("text", ["", "{", "CartPole", "{'task_type': 'CartPoleTask'}"])
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
            ([{"length": "1"}], "length must be a finite number > 0; got '1'"),
            ([{"length": -1}], "length must be a finite number > 0; got -1"),
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
            ({"choice": []}, r"Choice needs at least one value, and numbers only; got \(\)"),
            ({"choice": [1, "x"]}, r"got \(1, 'x'\)"),
            ({"choice": [-1]}, r"length must be a finite number > 0; got -1\.0"),
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
