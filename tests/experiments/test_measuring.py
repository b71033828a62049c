import gc
import time

import pytest

from ssm_metarl_gym.experiments.measuring import compare_in_turns


@pytest.fixture
def clock(monkeypatch):
    """The CPU clock, which stands still unless it is moved."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(time, "process_time", clock)
    return clock


def test_a_ratio_is_the_median_of_those_of_neighbouring_chunks(clock):
    # The first call of each side fills the chunk that finds its length, which is one call.
    seconds = {"theirs": iter([1.0, 4.0, 100.0, 6.0]), "ours": iter([1.0, 2.0, 10.0, 2.0])}
    order = []

    def make(name):
        def call():
            clock.now += next(seconds[name])
            order.append(name)

        return call

    ratios = compare_in_turns({name: make(name) for name in seconds}, 3)
    assert list(ratios) == ["ours"]
    assert ratios["ours"].median == 3.0
    assert ratios["ours"].low == pytest.approx(2.2)
    assert ratios["ours"].high == pytest.approx(8.6)
    assert order == ["theirs", "ours"] * 4


def test_chunks_last_as_long_as_they_are_told(clock):
    calls = {"slow": 0, "fast": 0}

    def make(name, seconds):
        def call():
            clock.now += seconds
            calls[name] += 1

        return call

    ratios = compare_in_turns({"slow": make("slow", 0.25), "fast": make("fast", 0.0625)}, 2, chunk_seconds=0.5)
    assert ratios["fast"].median == 4.0
    assert calls == {"slow": 3 * 2, "fast": 3 * 8}


def test_the_garbage_collector_rests_meanwhile_and_is_back_whatever_happens():
    def fail():
        assert gc.isenabled() == (len(seen) == 0)
        seen.append(None)
        if len(seen) > 1:
            raise RuntimeError

    seen = []
    with pytest.raises(RuntimeError):
        compare_in_turns({"one": fail}, 2, chunk_seconds=1e-9)
    assert gc.isenabled()
