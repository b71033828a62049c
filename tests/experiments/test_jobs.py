import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ssm_metarl_gym.experiments import jobs
from ssm_metarl_gym.experiments.jobs import Job, add_progress, run_jobs


def note(folder, name, seconds=0.0):
    """Leave a file when the work is done; what lay there when it began, and who did it."""
    before = sorted(os.listdir(folder))
    time.sleep(seconds)
    (folder / name).touch()
    add_progress(3)
    return before, os.getpid()


def fail():
    raise ValueError("it cannot be done")


@contextmanager
def threads(num_workers, **initialising):
    """In place of processes, which take seconds to import PyTorch."""
    with ThreadPoolExecutor(num_workers, **initialising) as pool:
        yield pool


@pytest.mark.parametrize("pool", [threads, pytest.param(jobs.worker_pool, marks=pytest.mark.slow)])
def test_a_job_begins_when_those_before_it_have_ended(tmp_path, capsys, monkeypatch, pool):
    monkeypatch.setattr(jobs, "worker_pool", pool)
    first = Job(note, (tmp_path, "first", 0.3))
    second = Job(note, (tmp_path, "second", 0.1))
    both = Job(note, (tmp_path, "both"), (first, second))
    results = run_jobs([both, second, first], 9, "working")
    assert list(results) == [both, second, first]
    assert results[both][0] == ["first", "second"]
    assert all((process == os.getpid()) == (pool is threads) for _, process in results.values())
    assert "working: 100%" in capsys.readouterr().err


def test_a_job_that_would_wait_for_ever_is_refused(tmp_path):
    missing = Job(note, (tmp_path, "missing"))
    with pytest.raises(ValueError, match=r"must be among the jobs; .* not .*'missing'.*\. Add it to the jobs\."):
        run_jobs([Job(note, (tmp_path, "waiting"), (missing,))], 3, "working")
    assert not list(tmp_path.iterdir())


def test_no_jobs_give_nothing():
    assert run_jobs([], 0, "working") == {}


@pytest.mark.slow
def test_what_a_job_raises_is_raised_here():
    with pytest.raises(ValueError, match="it cannot be done"):
        run_jobs([Job(fail, ())], 1, "working")


def test_no_more_processes_are_taken_than_there_may_be(tmp_path, monkeypatch):
    taken = []

    def counted(num_workers, **initialising):
        taken.append(num_workers)
        return threads(num_workers, **initialising)

    monkeypatch.setattr(jobs, "worker_pool", counted)
    work = [Job(note, (tmp_path, name)) for name in "abc"]
    run_jobs(work, 9, "working", num_workers=1)
    run_jobs(work[:2], 6, "working", num_workers=5)
    assert taken == [1, 2]
