import gc
import time

import pytest

from ssm_metarl_gym.experiments import measuring
from ssm_metarl_gym.experiments.measuring import (
    Comparison,
    compare_in_turns,
    peak_memory,
    resident_memory,
    show_comparisons,
)


@pytest.fixture
def clock(monkeypatch):
    """The CPU clock, which stands still unless it is moved."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    monkeypatch.setattr(gc, "collect", lambda: 0)  # which takes its time
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

    case, targets = {"tasks": 8}, {"ours": 2.0, "theirs": 1.0}
    (comparison,) = compare_in_turns({name: make(name) for name in seconds}, 3, case=case, targets=targets)
    # 4 / 2, 100 / 10 and 6 / 2
    assert comparison == Comparison("ours", "theirs", 3.0, pytest.approx(2.2), pytest.approx(8.6), 2.0, case)
    assert order == ["theirs", "ours"] * 4


def test_chunks_last_as_long_as_they_are_told(clock, monkeypatch):
    monkeypatch.setattr(measuring, "CHUNK_SECONDS", 0.5)
    calls = {"slow": 0, "fast": 0}

    def make(name, seconds):
        def call():
            clock.now += seconds
            calls[name] += 1

        return call

    (comparison,) = compare_in_turns({"slow": make("slow", 0.25), "fast": make("fast", 0.0625)}, 2)
    assert comparison.median == 4.0
    assert calls == {"slow": 3 * 2, "fast": 3 * 8}


def test_another_clock_may_count(monkeypatch):
    monkeypatch.setattr(measuring, "CHUNK_SECONDS", 0.5)
    now = [0.0]
    sides = {name: lambda seconds=seconds: now.append(now[-1] + seconds) for name, seconds in (("a", 3.0), ("b", 1.5))}
    assert compare_in_turns(sides, 2, clock=lambda: now[-1])[0].median == 2.0


def test_the_garbage_collector_rests_meanwhile_and_is_back_whatever_happens(monkeypatch):
    monkeypatch.setattr(measuring, "CHUNK_SECONDS", 0.0)

    def fail():
        assert gc.isenabled() == (len(seen) == 0)
        seen.append(None)
        if len(seen) > 1:
            raise RuntimeError

    seen = []
    with pytest.raises(RuntimeError):
        compare_in_turns({"one": fail}, 2)
    assert gc.isenabled()


def test_a_table_shows_three_digits_and_its_rows_as_they_come(capsys):
    def comparisons():
        yield Comparison("ours", "theirs", 0.8372, 0.5, 15.04, 2.5, {"tasks": 8, "network": "MLP"})
        assert "0.84" in capsys.readouterr().out
        yield Comparison("ours", "theirs", 166.7, 12.34, 1234.5, None, {"tasks": 64, "network": "SSM"})

    rows = show_comparisons(comparisons(), ["network", "tasks"])
    assert capsys.readouterr().out == "| SSM | 64 | ours | theirs | 167 | 12.3 to 1234 |  |\n"
    assert rows[0] == {
        "tasks": 8,
        "network": "MLP",
        "ours": "ours",
        "against": "theirs",
        "median": 0.8372,
        "low": 0.5,
        "high": 15.04,
        "target": 2.5,
    }
    assert [row["target"] for row in rows] == [2.5, None]


def test_a_table_names_its_columns_and_shows_targets(capsys):
    show_comparisons([Comparison("a", "b", 1.0, 1.0, 1.0, 1 / 0.6, {"steps": 1})], ["steps"])
    assert capsys.readouterr().out.splitlines() == [
        "| steps | ours | against | times as fast | 10 to 90 % | target |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 1 | a | b | 1.00 | 1.00 to 1.00 | 1.67 |",
    ]


class TestMemory:
    def test_what_is_held_is_counted(self):
        before = resident_memory()
        held = bytearray(64 * 2**20)
        held[:: 2**12] = b"x" * len(held[:: 2**12])  # the system gives a page when it is written to
        assert 60 < resident_memory() - before < 80
        assert peak_memory() >= resident_memory() - 1
        del held

    def test_without_proc_the_peak_is_all_there_is(self, monkeypatch):
        present = peak_memory()
        monkeypatch.setattr(measuring.Path, "exists", lambda _: False)
        # It may be more: what the parent held when it started this process counts too.
        assert 0.9 * present < peak_memory() < 100 * present
        assert resident_memory() == peak_memory()
