import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym import budget
from ssm_metarl_gym.agents import AdaptationConfig, Adapter
from ssm_metarl_gym.agents.adaptation.rows import AdapterRows

BOUNDS = AdaptationConfig(
    lr=0.5, grad_clip_norm=1.0, trust_region_eps=0.2, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=5
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for the losses that are computed: the next ones take so many milliseconds each."""

    class Clock:
        def __init__(self):
            self.now = 100.0
            self.num_reads = 0
            self.durations = iter(())

        def read(self):
            self.num_reads += 1
            return self.now

        def loss(self, prediction, target):
            self.now += 0.001 * next(self.durations)
            return F.mse_loss(prediction, target)

    clock = Clock()
    monkeypatch.setattr(budget, "perf_counter", clock.read)
    return clock


def make_adapter(**options):
    torch.manual_seed(0)
    return Adapter(nn.Linear(3, 2), BOUNDS, **options)


def make_batch(*shape):
    rng = np.random.default_rng(0)
    return {
        "states": torch.as_tensor(rng.normal(size=(*shape, 3)), dtype=torch.float32),
        "targets": torch.as_tensor(rng.normal(size=(*shape, 2)), dtype=torch.float32),
    }


def stat(adapter, name):
    """Of one adapter or of each row."""
    return np.asarray(getattr(adapter.stats, name))


# The first loss is that before any step, each other one belongs to a step.
CASES = pytest.mark.parametrize(
    ("budget_ms", "durations", "num_steps"),
    [
        (6.5, [1, 1, 1, 1, 1, 1], 5),
        (3.5, [1, 1, 1], 2),
        (2.5, [1, 1], 1),
        (1.5, [1], 0),
        (9.5, [1, 3, 1, 1, 1], 4),  # at 7 ms: one more could take 3 again
        (0.5, [1], 0),
    ],
)


@CASES
@pytest.mark.parametrize("num_rows", [None, 3])
def test_no_step_begins_that_may_end_too_late(clock, budget_ms, durations, num_steps, num_rows):
    adapter = make_adapter(budget_ms=budget_ms)
    adapter = adapter if num_rows is None else AdapterRows(adapter, num_rows)
    clock.durations = iter(durations)
    adapter.adapt(clock.loss, make_batch(8) if num_rows is None else make_batch(num_rows, 8))
    assert np.all(stat(adapter, "steps") == num_steps)
    assert np.all(stat(adapter, "cut_calls") == (num_steps < 5))
    assert np.all(stat(adapter, "rejected_steps") == 0)


@pytest.mark.parametrize("num_rows", [None, 3])
def test_the_steps_that_were_taken_are_those_of_fewer_steps(clock, num_rows):
    cut, short = make_adapter(budget_ms=2.5), Adapter(make_adapter().model, replace(BOUNDS, max_steps_per_call=1))
    batch = make_batch(8) if num_rows is None else make_batch(num_rows, 8)
    if num_rows is not None:
        cut, short = AdapterRows(cut, num_rows), AdapterRows(short, num_rows)
    for _ in range(4):
        clock.durations = iter([1, 1])
        loss = cut.adapt(clock.loss, batch)
        assert torch.equal(torch.as_tensor(loss), torch.as_tensor(short.adapt(F.mse_loss, batch)))
    assert np.all(stat(cut, "cut_calls") == 4)
    assert np.all(stat(cut, "projected_steps") == stat(short, "projected_steps"))
    assert np.all(stat(cut, "distance") <= BOUNDS.trust_region_eps)


def test_one_interrupted_call_does_not_change_the_next(clock):
    adapter = make_adapter(budget_ms=7.0)
    for durations, num_steps in [([1, 1000], 1), ([1] * 6, 6)]:
        clock.durations = iter(durations)
        adapter.adapt(clock.loss, make_batch(8))
        assert adapter.stats.steps == num_steps
    assert adapter.stats.cut_calls == 1


def test_without_a_budget_no_clock_is_read(clock):
    clock.durations = iter([math.inf] * 6)
    adapter = make_adapter()
    adapter.adapt(clock.loss, make_batch(8))
    assert clock.num_reads == 0
    assert (adapter.stats.steps, adapter.stats.cut_calls) == (5, 0)


def test_a_call_that_is_rejected_was_not_cut(clock):
    adapter = make_adapter(budget_ms=1.0)
    clock.durations = iter([5])
    batch = make_batch(8)
    batch["targets"][:] = math.inf
    adapter.adapt(clock.loss, batch)
    assert (adapter.stats.rejected_steps, adapter.stats.cut_calls) == (1, 0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, "1"])
def test_a_wrong_budget_is_refused(wrong):
    with pytest.raises(ValueError, match=r"budget_ms must be a number > 0 \(None takes all steps"):
        make_adapter(budget_ms=wrong)
