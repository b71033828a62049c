"""Where jobs run: in processes of this machine, on a SLURM cluster by submitit, or on a Ray cluster."""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from typing_extensions import Self

from ssm_metarl_gym.checks import check_choice, check_integer
from ssm_metarl_gym.experiments.signals import worker_pool

__all__ = ["ENGINES", "Call", "Engine", "LocalEngine", "RayEngine", "SlurmEngine", "add_progress", "make_engine"]

ENGINES: Final = ("local", "slurm", "ray")

_counter: Any = None  # of the steps that all workers have taken, in each worker of a LocalEngine


class Call(Protocol):
    """What an engine runs: a function of a module, which another process can import, and its arguments."""

    @property
    def work(self) -> Any:
        """The function."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Its arguments, which can be sent to another process."""


class Engine(AbstractContextManager["Engine"]):
    """Runs calls in other processes. Used in a ``with`` block, which ends what still runs when it ends.

    Attributes:
        num_workers: The number of calls that run at once; more of them would wait.
    """

    num_workers: int

    def submit(self, calls: Sequence[Call]) -> list[Any]:
        """Start calls; a ticket for each."""
        raise NotImplementedError

    def collect(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """The tickets of calls that have ended, at least one or none after ``timeout`` seconds."""
        raise NotImplementedError

    def result(self, ticket: Any) -> Any:
        """What an ended call gave; raises what it raised, or an error that says how its process died."""
        raise NotImplementedError

    def steps_taken(self) -> int | None:
        """How many steps the calls have told of by :func:`add_progress`; None where nobody counts."""
        return None

    def __exit__(self, *_: object) -> None:
        return None


class LocalEngine(Engine):
    """Processes of this machine.

    A process that dies takes all that runs with it, as in every ``ProcessPoolExecutor``; new ones take their place.

    Args:
        num_workers: Number of processes; None for that of the processors.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        if num_workers is not None:
            check_integer("num_workers", num_workers)
        self.num_workers = num_workers or os.cpu_count() or 1

    def __enter__(self) -> Self:
        self._counter = multiprocessing.get_context("spawn").Value("Q", 0)
        self._pools = ExitStack()
        self._start_pool()
        return self

    def _start_pool(self) -> None:
        pool = worker_pool(self.num_workers, initializer=_start_worker, initargs=(self._counter,))
        self._pool = self._pools.enter_context(pool)

    def submit(self, calls: Sequence[Call]) -> list["Future[Any]"]:
        """Start calls; a future for each."""
        return [self._submit(call) for call in calls]

    def _submit(self, call: Call) -> "Future[Any]":
        try:
            return self._pool.submit(call.work, *call.arguments)
        except BrokenProcessPool:
            self._start_pool()
            return self._pool.submit(call.work, *call.arguments)

    def collect(self, tickets: Sequence["Future[Any]"], timeout: float) -> list["Future[Any]"]:
        """The futures that are done."""
        return list(wait(tickets, timeout, FIRST_COMPLETED).done)

    def result(self, ticket: "Future[Any]") -> Any:
        """What a future gives."""
        return ticket.result()

    def steps_taken(self) -> int:
        """How many steps the workers have told of."""
        return int(self._counter.value)

    def __exit__(self, *error: object) -> None:
        self._pools.__exit__(*error)  # type: ignore[arg-type]


class SlurmEngine(Engine):
    """Jobs of a SLURM cluster, by submitit: those that are ready at once are one job array.

    What the cluster preempts or stops at its time limit is queued again and called again with the same arguments. All
    nodes must see ``folder``, and the folders that the arguments name, and have this package installed.

    Args:
        folder: Where submitit keeps calls, results and logs.
        num_workers: The number of jobs of an array that may run at once.
        timeout_min: The time limit of a job in minutes.
        cluster: ``"slurm"``, or ``"local"`` for processes of this machine, as in tests.
        parameters: More of submitit's parameters, such as ``{"slurm_partition": "cpu", "mem_gb": 4}``.

    Raises:
        ImportError: submitit is not installed.
        RuntimeError: There is no SLURM.
    """

    def __init__(
        self,
        folder: str | Path,
        num_workers: int | None = None,
        *,
        timeout_min: int = 240,
        cluster: str = "slurm",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        submitit = _import("submitit", "slurm")
        check_choice("cluster", cluster, ("slurm", "local"))
        self.num_workers = 64 if num_workers is None else num_workers
        check_integer("num_workers", self.num_workers)
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        defaults = {"cpus_per_task": 1, "slurm_array_parallelism": self.num_workers}
        self._executor.update_parameters(timeout_min=timeout_min, **{**defaults, **(parameters or {})})
        self._running: list[Any] = []

    def submit(self, calls: Sequence[Call]) -> list[Any]:
        """Queue calls as one array; submitit's job for each."""
        with self._executor.batch():
            jobs = [self._executor.submit(_Resumable(call.work, call.arguments)) for call in calls]
        self._running += jobs
        return jobs

    def collect(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """The jobs that are done."""
        until = time.monotonic() + timeout
        while not (done := [job for job in tickets if job.done()]) and time.monotonic() < until:
            time.sleep(0.1)
        return done

    def result(self, ticket: Any) -> Any:
        """What a job gave."""
        self._running.remove(ticket)
        return ticket.result()

    def __exit__(self, *_: object) -> None:
        for job in self._running:
            job.cancel()


class RayEngine(Engine):
    """Tasks of a Ray cluster. All its nodes must see the folders that the arguments name.

    Args:
        address: The cluster, as ``ray.init`` takes it: ``"auto"`` for the one that this machine is part of; None for
            one that is started on this machine and ends with the block.
        num_workers: The number of tasks at once; None for as many as the cluster has processors.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no cluster.
    """

    def __init__(self, address: str | None = None, num_workers: int | None = None) -> None:
        self._ray = _import("ray", "ray")
        if num_workers is not None:
            check_integer("num_workers", num_workers)
        self._address = address
        self._limit = num_workers

    def __enter__(self) -> Self:
        self._ray.init(address=self._address, log_to_driver=False, include_dashboard=False, num_cpus=self._own_cpus())
        # A task that dies with its node comes back as an error, so that whoever submits it knows, and counts once.
        self._remote = self._ray.remote(num_cpus=1, max_retries=0)(_call)
        return self

    def _own_cpus(self) -> int | None:
        return self._limit if self._address is None else None

    @property
    def num_workers(self) -> int:  # type: ignore[override]
        """The number of tasks at once: nodes come and go."""
        return self._limit or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, calls: Sequence[Call]) -> list[Any]:
        """Start tasks; a reference for each."""
        return [self._remote.remote(call.work, call.arguments) for call in calls]

    def collect(self, tickets: Sequence[Any], timeout: float) -> list[Any]:
        """The references of tasks that have ended."""
        done, _ = self._ray.wait(list(tickets), num_returns=1, timeout=timeout)
        return list(done)

    def result(self, ticket: Any) -> Any:
        """What a task gave."""
        return self._ray.get(ticket)

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()


def make_engine(
    name: str, folder: Path, num_workers: int | None = None, options: Mapping[str, Any] | None = None
) -> Engine:
    """The engine that a command line names.

    Args:
        name: One of ``ENGINES``.
        folder: Where an engine keeps what it needs.
        num_workers: The number of calls that run at once; None for what the engine has.
        options: Of SLURM, submitit's parameters and ``cluster``; of Ray, ``address``.

    Raises:
        ValueError: There is no such engine or no such option.
    """
    check_choice("engine", name, ENGINES)
    options = dict(options or {})
    if name == "slurm":
        own = {key: options.pop(key) for key in ("cluster", "timeout_min") if key in options}
        return SlurmEngine(folder / "slurm", num_workers, parameters=options, **own)
    if unknown := options.keys() - ({"address"} if name == "ray" else set()):
        raise ValueError(f"the engine {name} has no options {sorted(unknown)}; leave them out.")
    return RayEngine(options.get("address"), num_workers) if name == "ray" else LocalEngine(num_workers)


def add_progress(steps: int) -> None:
    """Tell the engine of steps taken, from within a call; no engine but a ``LocalEngine`` counts them."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += steps


def _start_worker(counter: Any) -> None:
    """One thread for each process, and the counter of the progress bar."""
    global _counter
    _counter = counter
    torch.set_num_threads(1)


def _call(work: Any, arguments: tuple[Any, ...]) -> Any:
    """What a process of a cluster does."""
    torch.set_num_threads(1)
    return work(*arguments)


class _Resumable:
    """A call that submitit queues again where it was preempted or ran out of time."""

    def __init__(self, work: Any, arguments: tuple[Any, ...]) -> None:
        self._work = work
        self._arguments = arguments

    def __call__(self) -> Any:
        return _call(self._work, self._arguments)

    def checkpoint(self) -> Any:
        """What is to be queued, when submitit was told that its process ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _import(package: str, extra: str) -> Any:
    try:
        return __import__(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the engine needs {package}, which is not installed. Run pip install {package}, or install the extra "
            f"{extra}."
        ) from error
