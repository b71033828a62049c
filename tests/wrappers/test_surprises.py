import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.wrappers.surprises import Surprises

ONE = np.array([True])


def verdicts(errors, **options):
    """The steps of outliers and of changes along one row."""
    surprises = Surprises(1, **options)
    judged = [surprises.judge(np.array([error]), ONE) for error in errors]
    return [[t for t, verdict in enumerate(judged) if verdict[kind]] for kind in (0, 1)]


@pytest.mark.parametrize(
    ("errors", "outliers", "changes"),
    [
        # The mean starts at .02, so that .4 is expected and .41 a surprise.
        ([0.4, 0.4, 0.4], [], []),
        ([0.41], [], []),
        ([0.41, 0.01, 0.41, 0.01], [], []),
        ([0.41, 0.41], [], [1]),
        # After a change the mean is that error / 20: what is no worse is no surprise again.
        ([0.41, 5.0, 4.9, 4.9], [], [1]),
        ([0.41, 5.0, 5.1, 5.1], [], [1, 3]),
        ([5.0, 0.45, 0.44, 0.44], [], [1]),
        # Outliers say nothing of changes, before, between or after surprises.
        ([50.1, 50.1, 1e9], [0, 1, 2], []),
        ([0.41, 50.1, 0.41], [1], [2]),
        ([math.nan, 0.41, -math.inf, math.inf, 0.01, 0.41, 0.41], [0, 2, 3], [6]),
        ([50.0, 50.0], [], [1]),
    ],
)
def test_hand_made_series(errors, outliers, changes):
    assert verdicts(errors) == [outliers, changes]


def test_the_mean_follows_unsurprising_errors_down_to_its_floor():
    # .02 -> .98 * .02 + .02 * .12 = .022, then by .98 a step down to .001.
    assert verdicts([0.12, 0.4401, 0.0, 0.4299, 0.4225]) == [[], []]
    assert verdicts([0.12, 0.4401, 0.4401]) == [[], [2]]
    quiet = [0.0] * 200
    assert verdicts([*quiet, 0.0199, 0.0199]) == [[], []]
    assert verdicts([*quiet, 0.0201, 0.0201]) == [[], [201]]


def test_the_options_are_the_numbers_of_the_rule():
    options = {"outlier_error": 9.0, "change_ratio": 2.0, "error_start": 1.0, "error_decay": 0.5, "error_floor": 0.5}
    assert verdicts([2.0, 9.1, 9.0, 9.0], **options) == [[1], [3]]
    assert verdicts([0.0, 0.0, 0.0, 0.99, 1.5, 1.5], **options) == [[], [5]]
    assert verdicts([math.nan, 1e300, 1e300], outlier_error=math.inf) == [[0], [2]]
    assert verdicts([1.0, 49.0, 49.0], change_ratio=math.inf) == [[], []]


def test_an_episode_begins_with_nothing_suspected_and_the_first_mean():
    surprises = Surprises(2)
    for errors in ([0.0, 0.0], [0.41, 0.41]):
        surprises.judge(np.array(errors), np.array([True, True]))
    surprises.forget(np.array([True, False]))
    assert surprises.judge(np.array([0.41, 0.41]), np.array([True, True])).changes.tolist() == [False, True]
    assert surprises.judge(np.array([0.41, 0.41]), np.array([True, True])).changes.tolist() == [True, False]


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
            expected = alone[row].judge(errors[[row]], ONE) if rows[row] else ([False], [False])
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
