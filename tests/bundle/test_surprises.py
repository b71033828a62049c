import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.bundle.surprises import Surprises, Verdict

ONE = np.array([True])


def verdicts(errors, **options):
    """The steps of outliers, of suspicions and of changes along one row."""
    surprises = Surprises(1, **options)
    judged = [surprises.judge(np.array([error]), ONE) for error in errors]
    return [[t for t, verdict in enumerate(judged) if verdict[kind]] for kind in range(3)]


@pytest.mark.parametrize(
    ("errors", "outliers", "suspicions", "changes"),
    [
        # The mean starts at .02 and is .018 after an error of 0, so that .09 is expected and .091 a surprise.
        ([0.0, 0.09, 0.09, 0.09], [], [], []),
        ([0.0, 0.091], [], [1], []),
        ([0.0, 0.41, 0.01, 0.41, 0.41, 0.01, 0.41], [], [1, 3, 4, 6], []),
        ([0.0, 0.41, 0.41, 0.41], [], [1, 2], [3]),
        # After a change the mean is that error / 5: what is no worse is no surprise again.
        ([0.0, 0.41, 0.41, 5.0, 4.9, 4.9, 4.9], [], [1, 2], [3]),
        # Who has predicted nothing well yet doubts nothing: at the start, and after a change.
        ([0.5, 0.6, 0.7, 0.8], [], [], []),
        ([0.0, 0.41, 0.41, 0.41, 0.5, 0.6, 0.7, 0.8], [], [1, 2], [3]),
        ([0.5, 0.4, 4.0], [], [2], []),
        # Outliers say nothing of changes, before, between or after surprises.
        ([50.1, 50.1, 1e9], [0, 1, 2], [], []),
        ([0.0, 0.41, 50.1, 0.41, math.nan, 0.41], [2, 4], [1, 3], [5]),
        ([math.nan, 0.01, -math.inf, math.inf, 0.41, 0.41, 0.41], [0, 2, 3], [4, 5], [6]),
        ([0.0, 50.0, 50.0, 50.0], [], [1, 2], [3]),
    ],
)
def test_hand_made_series(errors, outliers, suspicions, changes):
    assert verdicts(errors) == [outliers, suspicions, changes]


def test_the_mean_follows_unsurprising_errors_down_to_its_floor():
    # .02 -> .9 * .02 + .1 * .05 = .023, or with .06 in place of .1, which is more than three times .02, .024.
    assert verdicts([0.05, 0.1149])[1] == []
    assert verdicts([0.05, 0.1151])[1] == [1]
    assert verdicts([0.1, 0.1199])[1] == []
    assert verdicts([0.1, 0.1201])[1] == [1]
    quiet = [0.0] * 100
    assert verdicts([*quiet, 0.00499])[1] == []
    assert verdicts([*quiet, 0.00501])[1] == [100]


def test_the_options_are_the_numbers_of_the_rule():
    options = {"outlier_error": 9.0, "change_ratio": 2.0, "error_start": 1.0, "error_decay": 0.5, "error_floor": 0.5}
    assert verdicts([0.0, 9.1, 9.0, 9.0, 9.0], **options) == [[1], [2, 3], [4]]
    assert verdicts([0.0, 0.0, 0.0, 0.99, 1.5], **options) == [[], [4], []]
    assert verdicts([math.nan, 0.0, 1e300, 1e300, 1e300], outlier_error=math.inf) == [[0], [2, 3], [4]]
    assert verdicts([1.0, 49.0, 49.0, 49.0], change_ratio=math.inf) == [[], [], []]


def test_what_is_doubted_is_not_learned_from():
    verdict = Verdict(*np.eye(3, 4, dtype=np.bool_))
    assert verdict.doubted.tolist() == [True, True, False, False]
    assert not Verdict.nothing(2).doubted.any()


def test_an_episode_begins_with_nothing_suspected_and_the_first_mean():
    surprises, both = Surprises(2), np.array([True, True])
    for error in (0.0, 0.41, 0.41):
        surprises.judge(np.array([error, error]), both)
    surprises.forget(np.array([True, False]))
    assert surprises.judge(np.array([0.1, 0.41]), both).changes.tolist() == [False, True]
    # The means are now .024 and .082, and only the model of the first row has predicted anything.
    assert surprises.judge(np.array([0.13, 0.42]), both).suspicions.tolist() == [True, False]


ERRORS = st.sampled_from([0.0, 0.01, 0.3, 0.5, 2.0, 60.0, math.nan, math.inf])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*2 * [st.tuples(ERRORS, st.booleans())]), max_size=12))
def test_each_row_is_judged_by_itself(steps):
    """A row is that of a series alone, without the steps at which it has no transition."""
    together, alone = Surprises(2), [Surprises(1), Surprises(1)]
    for step in steps:
        errors, rows = (np.array(column) for column in zip(*step, strict=True))
        verdict = together.judge(errors, rows)
        for row in range(2):
            expected = alone[row].judge(errors[[row]], ONE) if rows[row] else ([False], [False], [False])
            assert [bool(flags[row]) for flags in verdict] == [bool(flags[0]) for flags in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outlier_error": 0.0}, r"outlier_error must be a number > 0 \(inf for never\); got 0\.0\."),
        ({"change_ratio": math.nan}, r"change_ratio must be a number > 0 .*; got nan"),
        ({"error_start": math.inf}, "error_start must be a finite number > 0; got inf"),
        ({"error_decay": 1.0}, r"error_decay must be a number in \[0, 1\); got 1\.0"),
        ({"error_floor": -1.0, "error_start": "1"}, "error_start must be .* got '1'.*error_floor must be"),
    ],
)
def test_numbers_outside_their_ranges_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Surprises(1, **options)
