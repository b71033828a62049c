"""How a script ends early: with a sentence, the right status, and the processes that it started.

A script handles SIGTERM and Ctrl-C from its first line on, while its imports take seconds, and then around its work::

    import signal

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it without a traceback from here on
        from ssm_metarl_gym.experiments.signals import end_on_signals

        end_on_signals()

    import torch

    from ssm_metarl_gym.experiments.signals import stoppable, worker_pool

    @stoppable()
    def main():
        with worker_pool(2) as pool:
            ...
"""

import atexit
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn

__all__ = ["Terminated", "end_on_signals", "stoppable", "worker_pool"]

_WORDS: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_is_script = False  # which ends when its work does, as opposed to a module that another program uses


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as Ctrl-C does by SIGINT."""


def end_on_signals() -> None:
    """From now on both signals end this process at once, which has nothing to put in order yet.

    And a package that cannot be imported ends it with how to install it. Once its work has been stopped, it does not
    wait, for a second or more, until Python has taken all modules apart.
    """
    global _is_script
    _is_script = True
    for number in _WORDS:
        signal.signal(number, _end)
    sys.excepthook = _tell_missing_package


@contextmanager
def stoppable(hint: Callable[[], str] | None = None) -> Iterator[None]:
    """End a block, or as a decorator a function, with a sentence where it is stopped or cannot go on.

    Both signals raise in it, and a second one ends the process at once, whatever the first has yet to put in order.
    What is no fault of the program is told in a sentence, too: too little memory or disk, a training that diverges.

    Args:
        hint: How to go on: the sentence ends with what it gives.

    Raises:
        SystemExit: With the status 130 after Ctrl-C, 143 after SIGTERM, 2 where other options would help, and 1 where
            the system failed.
    """
    is_main = threading.current_thread() is threading.main_thread()  # where alone handlers can be set
    earlier = {number: signal.signal(number, _interrupt) for number in _WORDS} if is_main else {}
    try:
        yield
    except KeyboardInterrupt as interruption:
        number = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
        _say(number, "" if hint is None else f"; {hint()}")
        if _is_script:
            atexit.register(_leave, 128 + number)
        raise SystemExit(128 + number) from None
    except (FloatingPointError, MemoryError, OSError, RuntimeError) as error:
        # PyTorch has no type of its own for too little memory.
        if isinstance(error, RuntimeError) and not re.search("allocate|out of memory|process pool", str(error)):
            raise
        reason = " ".join(str(error).split()) or "there is too little memory"
        print(f"\nit cannot go on: {reason}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, OSError | BrokenExecutor) else 2) from error
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


@contextmanager
def worker_pool(
    num_workers: int | None = None,
    *,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes to submit work to, which end with the block, at once where an exception ends it.

    Ctrl-C is left to this process, and none of them outlives it, even where it is killed.

    Args:
        num_workers: Their number; by default that of the processors.
        initializer: Called in each of them before any work.
        initargs: Its arguments.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = _Pool(num_workers, context, initializer=_start_worker, initargs=(initializer, initargs))
    try:
        yield pool
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


class _Pool(ProcessPoolExecutor):
    """A pool whose processes know nothing of Ctrl-C: they inherit that it is blocked.

    And a signal waits until they are started: one of which the half is started, nobody could end.
    """

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().submit(*args, **kwargs)
        with _deferring():
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                return super().submit(*args, **kwargs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def _deferring() -> Iterator[None]:
    """The first signal in the block is handled after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    earlier = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in _WORDS}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _start_worker(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _tell_missing_package(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("ssm_metarl_gym"):
        install = 'python -m pip install -e ".[train]"'
        print(f"{sys.argv[0]} needs {error.name}, which is not installed. Install it: {install}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for each in _WORDS:
        signal.signal(each, _end)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _say(number)
    os._exit(128 + number)


def _leave(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _say(number: int, hint: str = "") -> None:
    print(f"\n{_WORDS[signal.Signals(number)]}{hint}", file=sys.stderr, flush=True)
