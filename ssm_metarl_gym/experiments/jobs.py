"""Work for many processes, some of which waits for other work, with one progress bar over all of it."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ssm_metarl_gym.experiments.engines import Engine

__all__ = ["Job", "JobsFailedError", "run_jobs"]


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


class JobsFailedError(RuntimeError):
    """Jobs that failed as often as they may.

    Attributes:
        failed: Them, with what each raised last.
        left: The jobs that were to come after them, and were not begun.
    """

    def __init__(self, failed: dict[Job, Exception], left: Sequence[Job] = ()) -> None:
        self.failed, self.left = failed, tuple(left)
        told = [f"{_name(job)}: {type(error).__name__}: {error}" for job, error in failed.items()]
        told += [f"{_name(job)}: not begun, as it comes after what failed" for job in self.left]
        super().__init__("\n".join([f"{len(failed)} jobs failed; all others that could be done are done.", *told]))


def run_jobs(
    jobs: Sequence[Job],
    engine: Engine,
    description: str,
    *,
    total_steps: int | None = None,
    attempts: int = 1,
    on_result: Callable[[Job, Any], None] | None = None,
) -> dict[Job, Any]:
    """Do all jobs.

    Args:
        jobs: The most urgent ones first. Those that others come after are among them.
        engine: Where they run; its ``with`` block is entered here.
        description: What the progress bar says.
        total_steps: The steps that the jobs report by ``add_progress``, all together, where the engine counts them;
            None to count jobs.
        attempts: How often a job is begun before it has failed. At 1 its error is raised at once. Otherwise all that
            does not come after it is done first.
        on_result: Called, in this process, with each job and what it gave as soon as it has ended.

    Returns:
        What each job gives, in the order of the jobs, whichever ended first: one seed gives one result.

    Raises:
        ValueError: A job that others come after is not among the jobs.
        JobsFailedError: Jobs failed ``attempts`` times, of more than one.
    """
    for job in jobs:
        for before in job.after:
            if before not in jobs:
                raise ValueError(
                    f"what a job comes after must be among the jobs; got {job}, but not {before}. Add it to the jobs."
                )
    if not jobs:
        return {}
    results: dict[Job, Any] = {}
    failed: dict[Job, Exception] = {}
    begun: Counter[Job] = Counter()
    with engine, tqdm(desc=description, unit_scale=True, mininterval=2.0) as bar:
        if total_steps is None or engine.steps_taken() is None:
            total_steps, bar.total, bar.unit = None, len(jobs), "job"
        else:
            bar.total, bar.unit = total_steps, "step"
        waiting = list(jobs)
        running: dict[Any, Job] = {}
        while running or any(_is_ready(job, results) for job in waiting):
            # No more than there are workers: what is submitted could not be overtaken by what becomes ready later.
            ready = [job for job in waiting if _is_ready(job, results)][: max(0, engine.num_workers - len(running))]
            waiting = [job for job in waiting if job not in ready]
            begun.update(ready)
            running |= zip(engine.submit(ready) if ready else [], ready, strict=True)
            for ticket in engine.collect(list(running), timeout=0.5):
                job = running.pop(ticket)
                try:
                    results[job] = engine.result(ticket)
                except Exception as error:
                    if attempts == 1:
                        raise
                    if begun[job] < attempts:
                        tqdm.write(f"again: {_name(job)} ({type(error).__name__}: {error})", file=sys.stderr)
                        waiting.insert(0, job)
                    else:
                        failed[job] = error
                else:
                    if on_result is not None:
                        on_result(job, results[job])
            done = len(results) if total_steps is None else (engine.steps_taken() or 0)
            bar.update(done - bar.n)
    if failed:
        raise JobsFailedError(failed, waiting)
    return {job: results[job] for job in jobs}


def _is_ready(job: Job, results: dict[Job, Any]) -> bool:
    return results.keys() >= set(job.after)


def _name(job: Job) -> str:
    return f"{job.work.__name__}({', '.join(map(str, job.arguments))})"
