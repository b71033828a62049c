import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

from ssm_metarl_gym.experiments.signals import Terminated, stoppable, worker_pool

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals of Unix")
STATUS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_ends_the_block_with_a_sentence_and_its_status(number, capsys):
    handlers = [signal.getsignal(each) for each in STATUS]
    with pytest.raises(SystemExit) as exit_info, stoppable(lambda: "it goes on"):
        signal.raise_signal(number)
    status, word = STATUS[number]
    assert exit_info.value.code == status
    assert capsys.readouterr().err == f"\n{word}; it goes on\n"
    assert [signal.getsignal(each) for each in STATUS] == handlers


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_so_does_what_is_raised_in_its_place(error, status, capsys):
    with pytest.raises(SystemExit) as exit_info, stoppable():
        raise error
    assert exit_info.value.code == status
    assert capsys.readouterr().err in ("\ninterrupted\n", "\nterminated\n")


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (FloatingPointError("the loss is nan"), "the loss is nan", 2),
        (MemoryError(), "there is too little memory", 2),
        (RuntimeError("DefaultCPUAllocator: can't\n allocate"), "DefaultCPUAllocator: can't allocate", 2),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", 1),
        (BrokenProcessPool("A process in the process pool died"), "A process in the process pool died", 1),
    ],
)
def test_what_is_no_fault_of_the_program_is_told_in_a_sentence(error, reason, status, capsys):
    @stoppable()
    def work():
        raise error

    with pytest.raises(SystemExit) as exit_info:
        work()
    assert exit_info.value.code == status
    assert capsys.readouterr().err == f"\nit cannot go on: {reason}\n"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, RuntimeError("shapes differ"), NotImplementedError, SystemExit(2)]
)
def test_a_fault_of_the_program_is_left_alone(error):
    with pytest.raises(error if isinstance(error, type) else type(error)), stoppable():
        raise error


def test_a_pool_ends_at_once_when_its_block_fails():
    pids = []

    def use_and_fail(pool):
        pids.append(pool.submit(os.getpid).result())
        assert pool.submit(sys.getrecursionlimit).result() == 777
        pool.submit(time.sleep, 600)
        raise ZeroDivisionError

    started = time.monotonic()
    with (
        pytest.raises(ZeroDivisionError),
        worker_pool(1, initializer=sys.setrecursionlimit, initargs=(777,)) as pool,
    ):
        use_and_fail(pool)
    assert time.monotonic() - started < 300
    assert not is_running(*pids)


@pytest.mark.slow
def test_a_signal_waits_until_the_processes_are_started(monkeypatch, capsys):
    submit, stages = ProcessPoolExecutor.submit, []

    def submit_slowly(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        stages.append("interrupted")
        job = submit(self, *args)
        stages.append("started")
        return job

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit_slowly)
    before = multiprocessing.active_children()
    with pytest.raises(SystemExit) as exit_info, stoppable(), worker_pool(1) as pool:
        pool.submit(time.sleep, 600)
    assert exit_info.value.code == 143
    assert stages == ["interrupted", "started"]
    assert multiprocessing.active_children() == before
    assert capsys.readouterr().err == "\nterminated\n"


def test_a_pool_ends_when_its_work_is_done():
    with worker_pool(1) as pool:
        jobs = [pool.submit(time.sleep, 0.1) for _ in range(2)]
        pid = pool.submit(os.getpid)
    assert all(job.done() for job in jobs)
    assert not is_running(pid.result())


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


SCRIPT = r"""
import time
from ssm_metarl_gym.experiments.signals import end_on_signals, stoppable, worker_pool

def work():
    print("working\n", end="", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    end_on_signals()
    print("begun", flush=True)
    {before}
    with stoppable(lambda: "the same command again begins anew"), worker_pool(2) as pool:
        for job in [pool.submit(work) for _ in range(4)]:
            job.result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [*STATUS, signal.SIGKILL])
@pytest.mark.parametrize("begins_to_work", [False, True])
def test_a_process_ends_with_all_that_it_started(number, begins_to_work, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(before="" if begins_to_work else "time.sleep(600)"))
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in ["begun"] + ["working"] * (2 * begins_to_work):
        assert process.stdout.readline() == f"{line}\n"
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)  # ends when none of the processes holds the pipes any more
    assert time.monotonic() - started < 20  # two seconds on an idle machine
    if number == signal.SIGKILL:
        return
    status, word = STATUS[number]
    assert process.returncode == status
    assert err == f"\n{word}{'; the same command again begins anew' * begins_to_work}\n"


@pytest.mark.slow
@pytest.mark.parametrize(("module", "is_told"), [("no_such_package", True), ("ssm_metarl_gym.no_such_room", False)])
def test_a_package_that_is_missing_is_told_with_how_to_install_it(module, is_told, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"from ssm_metarl_gym.experiments import signals\nsignals.end_on_signals()\nimport {module}\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)  # noqa: S603
    assert run.returncode == 1
    told = f'{script} needs no_such_package, which is not installed. Install it: python -m pip install -e ".[train]"\n'
    assert (run.stderr == told) == is_told
    assert ("Traceback" in run.stderr) != is_told
