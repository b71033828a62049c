import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssm_metarl_gym.agents.adaptation.flat_weights import FlatWeights

HALVES = (torch.bfloat16, torch.float16)


class Mixed(nn.Module):
    """A parameter of each type of numbers."""

    def __init__(self, *types):
        super().__init__()
        self.parts = nn.ParameterList(nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype)) for dtype in types)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([torch.float32], torch.float32),
        ([torch.float64], torch.float64),
        ([torch.bfloat16], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.bfloat16], torch.float32),
        ([torch.float16, torch.float64], torch.float64),
        ([torch.complex64], torch.float32),
        ([torch.complex128, torch.float32], torch.float64),
    ],
)
def test_the_vector_is_of_the_widest_type_and_single_at_least(types, expected):
    model = Mixed(*types)
    weights = FlatWeights(model)
    assert weights.dtype == weights.read().dtype == expected
    named = weights.by_name(weights.read())
    assert {name: tensor.dtype for name, tensor in named.items()} == {
        name: parameter.dtype for name, parameter in model.named_parameters()
    }
    for name, parameter in model.named_parameters():
        assert torch.equal(named[name], parameter)
    assert torch.equal(weights.parse(named), weights.read())
    exact = weights.by_name(weights.read(), exact=True)
    assert torch.equal(weights.parse(exact), weights.read())


@pytest.mark.parametrize("dtype", HALVES)
def test_what_a_type_cannot_hold_is_remembered_until_somebody_else_writes(dtype):
    model = Mixed(dtype, torch.float32)
    weights = FlatWeights(model)
    small = torch.full((6,), 1e-4)
    with torch.no_grad():
        for _ in range(100):
            moved = weights.read() + small
            weights.write(moved, weights.rounded(moved))
        torch.testing.assert_close(weights.read()[:3], torch.tensor([1.01, -1.99, 0.51]))
        assert torch.equal(model.parts[0], torch.tensor([1.01, -1.99, 0.51]).to(dtype))
        model.parts[0][1] = 7.0
    torch.testing.assert_close(weights.read()[:3], torch.tensor([1.01, 7.0, 0.51]))
    for twin in (copy.deepcopy(weights), weights):
        assert torch.equal(twin.read(), weights.read())


@settings(deadline=None, max_examples=100)
@given(
    dtype=st.sampled_from([*HALVES, torch.float32]),
    pairs=st.lists(st.tuples(*2 * [st.floats(-3e4, 3e4, allow_subnormal=False)]), min_size=1, max_size=5),
)
def test_rounding_towards_the_source_leads_away_in_no_number(dtype, pairs):
    source, goal = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    model = Mixed(dtype, torch.float64)
    model.parts[0] = nn.Parameter(source.to(dtype))
    model.parts[1] = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    weights = FlatWeights(model)
    source = weights.read()
    goal = torch.cat([goal, torch.zeros(1, dtype=torch.float64)])
    rounded = weights.rounded_towards(source, goal)
    assert ((rounded - source).abs() <= (goal - source).abs()).all()
    assert torch.equal(rounded[:-1].to(dtype).double(), rounded[:-1])
    spacing = 2.0 * torch.finfo(dtype).eps * goal.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((rounded - goal).abs() <= spacing + torch.finfo(dtype).smallest_normal).all()


def test_there_must_be_something_finite_to_adapt():
    with pytest.raises(ValueError, match=r"must have a parameter that requires a gradient.*requires_grad_"):
        FlatWeights(nn.Linear(2, 1).requires_grad_(False))
    for value in (float("nan"), float("inf")):
        model = nn.Linear(2, 1)
        nn.init.constant_(model.bias, value)
        with pytest.raises(ValueError, match="parameters that adapt must be finite; got NaN or infinity in bias"):
            FlatWeights(model)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"bias": torch.zeros(2)}, "bias has the shape"),
        ({"bias": torch.zeros(1, dtype=torch.long)}, "bias is of the type torch.int64 instead of torch.float32"),
        ({"bias": torch.zeros(1, dtype=torch.complex64)}, "bias is of the type torch.complex64"),
        ({"bias": torch.full((1,), torch.nan)}, "bias is not finite"),
        ({"more": torch.zeros(1)}, "the parameters are"),
    ],
)
def test_weights_of_another_model_are_refused(damage, message):
    weights = FlatWeights(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=message):
        weights.parse(weights.by_name(weights.read()) | damage)
