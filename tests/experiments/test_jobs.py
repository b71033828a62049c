import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ssm_metarl_gym.experiments import engines
from ssm_metarl_gym.experiments.engines import LocalEngine, add_progress
from ssm_metarl_gym.experiments.jobs import Job, JobsFailedError, run_jobs


def note(folder, name, seconds=0.0):
    """Leave a file when the work is done; what lay there when it began, and who did it."""
    before = sorted(os.listdir(folder))
    time.sleep(seconds)
    (folder / name).touch()
    add_progress(3)
    return before, os.getpid()


def fail():
    raise ValueError("it cannot be done")


def fail_at_first(folder, name):
    """Fail as long as there is no file of the name."""
    if not (folder / name).exists():
        (folder / name).touch()
        raise ValueError(f"{name} is new")
    return name


@contextmanager
def threads(num_workers, **initialising):
    """In place of processes, which take seconds to import PyTorch."""
    with ThreadPoolExecutor(num_workers, **initialising) as pool:
        yield pool


@pytest.mark.parametrize("pool", [threads, pytest.param(engines.worker_pool, marks=pytest.mark.slow)])
def test_a_job_begins_when_those_before_it_have_ended(tmp_path, capsys, monkeypatch, pool):
    monkeypatch.setattr(engines, "worker_pool", pool)
    first = Job(note, (tmp_path, "first", 0.3))
    second = Job(note, (tmp_path, "second", 0.1))
    both = Job(note, (tmp_path, "both"), (first, second))
    results = run_jobs([both, second, first], LocalEngine(2), "working", total_steps=9)
    assert list(results) == [both, second, first]
    assert results[both][0] == ["first", "second"]
    assert all((process == os.getpid()) == (pool is threads) for _, process in results.values())
    assert "working: 100%" in capsys.readouterr().err


def test_a_job_that_would_wait_for_ever_is_refused(tmp_path):
    missing = Job(note, (tmp_path, "missing"))
    with pytest.raises(ValueError, match=r"must be among the jobs; .* not .*'missing'.*\. Add it to the jobs\."):
        run_jobs([Job(note, (tmp_path, "waiting"), (missing,))], LocalEngine(1), "working")
    assert not list(tmp_path.iterdir())


def test_no_jobs_give_nothing():
    assert run_jobs([], LocalEngine(), "working") == {}


@pytest.mark.slow
def test_what_a_job_raises_is_raised_here():
    with pytest.raises(ValueError, match="it cannot be done"):
        run_jobs([Job(fail, ())], LocalEngine(1), "working")


@pytest.fixture
def in_threads(monkeypatch):
    monkeypatch.setattr(engines, "worker_pool", threads)


@pytest.mark.usefixtures("in_threads")
def test_a_failed_job_is_begun_again_and_what_comes_after_it_waits(tmp_path, capsys):
    first = Job(fail_at_first, (tmp_path, "first"))
    last = Job(note, (tmp_path, "last"), (first,))
    told = []
    results = run_jobs([first, last], LocalEngine(1), "working", attempts=2, on_result=lambda *one: told.append(one))
    assert results[first] == "first"
    assert results[last][0] == ["first"]
    assert told == list(results.items())
    assert "again: fail_at_first(" in capsys.readouterr().err


@pytest.mark.usefixtures("in_threads")
def test_jobs_that_go_on_failing_are_named_when_all_others_are_done(tmp_path):
    bad = Job(fail, ())
    never, other = Job(note, (tmp_path, "never"), (bad,)), Job(note, (tmp_path, "other"))
    with pytest.raises(JobsFailedError, match=r"1 jobs failed; .*\nfail\(\): ValueError: it cannot be done") as error:
        run_jobs([bad, never, other], LocalEngine(1), "working", attempts=2)
    assert list(error.value.failed) == [bad]
    assert error.value.left == (never,)
    assert f"note({tmp_path}, never): not begun" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["other"]
