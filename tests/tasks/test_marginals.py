import json
import math
from copy import deepcopy
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Uniform, marginal_from_dict

SPLIT = Uniform((1, 5), (15, 20))
LOG_SPLIT = LogUniform((1, 2), (4, 16))


class AtItsEnds(np.random.Generator):
    """A generator whose uniform draws are the ends of the interval: ``uniform`` may round to the upper one."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

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
    @settings(deadline=None, max_examples=40)
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

    @pytest.mark.parametrize("make", [Uniform, LogUniform, lambda *pairs: Choice(*pairs[0])])
    def test_numbers_that_no_float_can_hold_are_refused(self, make):
        with pytest.raises(ValueError, match=r"needs at least one (interval|value)"):
            make((1, 10**400))

    @pytest.mark.each_value
    @pytest.mark.parametrize("marginal", [SPLIT, LOG_SPLIT, Choice(1, 2)])
    @pytest.mark.parametrize("rng", [0, None, np.random, np.random.PCG64(0)])
    def test_draws_need_a_generator(self, marginal, rng):
        with pytest.raises(ValueError, match=r"^rng must be a numpy.random.Generator; got .* Use numpy.random.def"):
            marginal.sample(rng, 3)

    @pytest.mark.parametrize(
        ("make", "values", "used"),
        [
            (Uniform, (0.25, 0.75), r"Uniform\(\(0, 1\)\)"),
            (LogUniform, (0.25, 0.75), r"LogUniform\(\(0\.5, 2\)\)"),
            (Choice, ((-1, 1),), r"Choice\(-1, 1\)"),
        ],
    )
    def test_who_mistakes_the_brackets_is_shown_them(self, make, values, used):
        with pytest.raises(ValueError, match=rf"; got \(.*\)\. Use {used}"):
            make(*values)

    @pytest.mark.parametrize("values", [(), ("left",), (1, None), (True,), ((1, 2),), (1, math.nan), (math.inf,)])
    def test_refuse_what_is_no_choice(self, values):
        with pytest.raises(ValueError, match=r"^Choice needs at least one value, and finite numbers only; got \("):
            Choice(*values)

    @settings(deadline=None, max_examples=40)
    @given(marginal=marginals)
    def test_json_gives_an_equal_one_back(self, marginal):
        copy = marginal_from_dict("length", json.loads(json.dumps(marginal.to_dict())))
        assert copy == marginal
        assert repr(copy) == repr(marginal)  # tells -0.0 from 0.0
        assert hash(copy) == hash(marginal)

    def test_what_json_holds(self):
        assert SPLIT.to_dict() == {"uniform": [[1.0, 5.0], [15.0, 20.0]]}
        assert LOG_SPLIT.to_dict() == {"log_uniform": [[1.0, 2.0], [4.0, 16.0]]}
        assert Choice(-1, 1).to_dict() == {"choice": [-1.0, 1.0]}


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

    def test_normalises_what_has_no_logarithm_as_the_least_that_has_one(self):
        negative, zero, tiny, low = LogUniform((0.25, 4)).normalise(np.array([-3.0, 0.0, 2.0**-1022, 0.25]))
        # -1 is two powers of 2 from the middle, the least number 1022 of them.
        assert negative == zero == tiny == pytest.approx(-511)
        assert low == -1

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


@pytest.mark.parametrize("marginal", [Uniform, LogUniform])
@pytest.mark.parametrize(
    "intervals", [((1, 3), (2, 4)), ((2, 4), (1, 3)), ((1, 5), (2, 3)), ((1, 1), (2, 2)), ((1, 2), (4, 4))]
)
def test_several_intervals_must_be_disjoint_and_have_a_length(marginal, intervals):
    with pytest.raises(ValueError, match="several intervals must be disjoint and none of them a point; got"):
        marginal(*intervals)
    assert marginal((1, 2), (2, 3)).bounds == (1, 3)
