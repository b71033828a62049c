import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssm_metarl_gym.agents.adaptation.batch import finite_rows, num_shared_rows, parse_batch, row_bytes


def rows(values):
    return row_bytes(torch.tensor(values, dtype=torch.float64).view(-1, 1))


def test_finite_rows():
    one = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [0.0, -math.inf], [1e38, 2.0]])
    other = torch.tensor([1.0, 2.0, 3.0, math.inf])
    assert finite_rows(one).tolist() == [True, False, False, True]
    assert finite_rows(one, other).tolist() == [True, False, False, False]
    assert finite_rows(one[:, :, None], other).tolist() == [True, False, False, False]


@pytest.mark.parametrize("arrivals", [[1, 2, 3], torch.arange(2), torch.zeros(3, 1), torch.tensor(3)], ids=str)
def test_arrivals_are_a_number_for_each_row(arrivals):
    batch = {"states": torch.zeros(3, 2), "targets": torch.zeros(3, 1)}
    assert parse_batch(batch).arrivals is None
    assert parse_batch(batch | {"arrivals": torch.arange(3)}).arrivals.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="arrivals must be a tensor of a number for each of the 3 rows; got"):
        parse_batch(batch | {"arrivals": arrivals})


@pytest.mark.parametrize(
    ("last", "new", "shared"),
    [
        ([1, 2, 3], [2, 3, 4], 2),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [3], 1),
        ([1, 2, 3], [2], 0),
        ([1, 2, 3], [4, 5], 0),
        ([1, 2, 3], [1, 2], 0),
        ([2, 1, 2], [2, 3], 1),
        ([2, 1, 2], [2, 1, 2, 3], 3),
        ([5, 5], [5, 5, 5], 2),
        ([1, math.nan], [math.nan, 2], 1),
        ([0.0], [-0.0], 0),
    ],
)
def test_hand_computed_overlaps(last, new, shared):
    assert num_shared_rows(rows(last), rows(new)) == shared


def test_before_the_first_batch_and_after_one_of_another_width_nothing_is_shared():
    assert num_shared_rows(torch.empty(0, 0, dtype=torch.uint8), rows([1, 2])) == 0
    assert num_shared_rows(row_bytes(torch.zeros(2, 2)), row_bytes(torch.zeros(2, 3))) == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_it_is_the_longest_overlap(last, new):
    expected = max(n for n in range(min(len(last), len(new)) + 1) if last[len(last) - n :] == new[:n])
    assert num_shared_rows(rows(last), rows(new)) == expected
