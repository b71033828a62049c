"""Work for many processes, some of which waits for other work, with one progress bar over all of it."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ssm_metarl_gym.experiments.signals import worker_pool

__all__ = ["Job", "add_progress", "run_jobs"]

_counter: Any = None  # of the steps that all workers have taken, in each of them


@dataclass(frozen=True)
class Job:
    """Work for one process.

    Attributes:
        work: A function of a module, which another process can import.
        arguments: Its arguments, which can be hashed and sent there.
        after: The jobs that must have ended before.
    """

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple["Job", ...] = ()


def run_jobs(
    jobs: Sequence[Job], total_steps: int, description: str, *, num_workers: int | None = None
) -> dict[Job, Any]:
    """Do all jobs, on all cores or in so many processes.

    Args:
        jobs: The most urgent ones first. Those that others come after are among them.
        total_steps: The steps that the jobs report by :func:`add_progress`, all together.
        description: What the progress bar says.
        num_workers: The most processes; None for as many as there are cores.

    Returns:
        What each job gives, in the order of the jobs, whichever ended first: one seed gives one result.

    Raises:
        ValueError: A job that others come after is not among the jobs.
    """
    for job in jobs:
        for before in job.after:
            if before not in jobs:
                raise ValueError(
                    f"what a job comes after must be among the jobs; got {job}, but not {before}. Add it to the jobs."
                )
    if not jobs:
        return {}
    counter = multiprocessing.get_context("spawn").Value("Q", 0)
    num_workers = min(len(jobs), num_workers or os.cpu_count() or 1)
    results: dict[Job, Any] = {}
    with (
        tqdm(total=total_steps, desc=description, unit="step", unit_scale=True, mininterval=2.0) as bar,
        worker_pool(num_workers, initializer=_start_worker, initargs=(counter,)) as pool,
    ):
        waiting = list(jobs)
        running: dict[Future[Any], Job] = {}
        while waiting or running:
            # No more than there are workers: what is submitted could not be overtaken by what becomes ready later.
            ready = [job for job in waiting if results.keys() >= set(job.after)]
            for job in ready[: num_workers - len(running)]:
                waiting.remove(job)
                running[pool.submit(job.work, *job.arguments)] = job
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(counter.value - bar.n)
            for future in done:
                results[running.pop(future)] = future.result()  # raises what the job raised
    return {job: results[job] for job in jobs}


def add_progress(steps: int) -> None:
    """Tell the progress bar of steps taken, from within a job."""
    with _counter.get_lock():
        _counter.value += steps


def _start_worker(counter: Any) -> None:
    """One thread for each process, and the counter of the progress bar."""
    global _counter
    _counter = counter
    torch.set_num_threads(1)
