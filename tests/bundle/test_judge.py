"""One robot's transitions are judged as those of many rows are."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.bundle.judge import Judge
from ssm_metarl_gym.bundle.source_fallback import SourceFallback
from ssm_metarl_gym.bundle.surprises import Surprises

ONE = np.array([True])
OPTIONS = [
    {},
    {"change_ratio": 2.0},
    {"outlier_error": 0.5, "error_start": 0.1, "error_decay": 0.5, "error_floor": 0.1},
]
ERRORS = st.one_of(st.sampled_from([0.0, 0.3, 0.41, 60.0, math.nan, math.inf]), st.floats(0.0, 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(ERRORS, ERRORS), max_size=20), st.sampled_from(OPTIONS))
def test_a_single_row_is_judged_as_one_of_many(steps, options):
    surprises, fallback, judge = Surprises(1, **options), SourceFallback(1), Judge(Surprises(1, **options))
    for error, source_error in steps:
        verdict = surprises.judge(np.array([error]), ONE)
        fallback.learn(np.array([error]), np.array([source_error]), ONE, verdict)
        judgement = judge.judge(error, source_error)
        assert tuple(judgement) == tuple(bool(flags[0]) for flags in verdict)
        assert judgement.is_doubted == verdict.doubted[0]
        assert judge.is_source_used == fallback.used[0]
        assert judge.num_used == fallback.num_used[0]


def test_an_episode_begins_with_nothing_known():
    judge = Judge(Surprises(1))
    for _ in range(2):
        assert [judge.judge(error, 0.0).is_suspicion for error in (0.0, 0.41, 0.41)] == [False, True, True]
        assert judge.judge(0.41, 0.0).is_change
        judge.forget()
        assert not judge.is_source_used
        assert judge.num_used == 0
