import os
import signal
import time
from pathlib import Path

import pytest

from ssm_metarl_gym.experiments.engines import LocalEngine, RayEngine, SlurmEngine, make_engine
from ssm_metarl_gym.experiments.jobs import Job, run_jobs


def square(number, seconds=0.0):
    time.sleep(seconds)
    return number * number


def die_at_first(folder):
    """End the process as a machine that is switched off does, the first time."""
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def wait_for(ready, seconds=600.0):
    """Until something is so, which must not take for ever (on a busy machine a worker of Ray starts in minutes)."""
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


def is_at_work(process):
    """Whether a process is there, and not one that has ended and that nobody has asked for its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "XZ"
    except (FileNotFoundError, ProcessLookupError):
        return False


def note_and_wait(folder, number):
    """Leave a line in a file for each time that this is called, and wait until somebody says go."""
    with (folder / f"{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    wait_for((folder / "go").exists)
    return number


JOBS = [Job(square, (number,)) for number in range(4)]
SQUARES = {job: job.arguments[0] ** 2 for job in JOBS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_all_engines_give_the_same(name, tmp_path):
    if name == "ray":
        pytest.importorskip("ray")
    options = {"slurm": {"cluster": "local", "timeout_min": 5}}.get(name)
    results = run_jobs(JOBS, make_engine(name, tmp_path, 2, options), "squaring")
    assert results == SQUARES
    assert list(results) == JOBS


@pytest.mark.slow
def test_a_process_that_dies_loses_nothing(tmp_path):
    jobs = [Job(die_at_first, (tmp_path,)), *JOBS]
    results = run_jobs(jobs, LocalEngine(2), "working", attempts=2)
    assert results == {jobs[0]: "alive", **SQUARES}


@pytest.mark.slow
def test_what_slurm_preempts_is_queued_again(tmp_path):
    with SlurmEngine(tmp_path, 1, cluster="local", timeout_min=5) as engine:
        (ticket,) = engine.submit([Job(note_and_wait, (tmp_path, 7))])
        path = tmp_path / "7"
        wait_for(lambda: path.exists() and path.read_text())
        os.kill(int(path.read_text()), signal.SIGUSR2)  # as SLURM does to what it preempts
        wait_for(lambda: path.read_text().count("\n") == 2)
        (tmp_path / "go").touch()
        wait_for(lambda: engine.collect([ticket], 1.0))
        assert engine.result(ticket) == 7


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_node_of_a_ray_cluster_that_is_killed_loses_nothing_and_counts_nothing_twice(tmp_path):
    ray_cluster = pytest.importorskip("ray.cluster_utils")

    cluster = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        jobs = [Job(note_and_wait, (tmp_path, number)) for number in range(2)]
        told, killed, paths = [], [], [tmp_path / str(number) for number in range(2)]

        class Watching(RayEngine):
            """Kills a node as soon as both jobs run, and lets them go on once its process has ended."""

            def collect(self, tickets, timeout):
                noted = [path.read_text() for path in paths if path.exists()]
                if not killed and len(noted) == 2 and all(noted):
                    killed.append(cluster.remove_node(second, allow_graceful=False))
                    wait_for(lambda: not all(map(is_at_work, map(int, noted))))
                    (tmp_path / "go").touch()
                return super().collect(tickets, timeout)

        engine = Watching(cluster.address)
        results = run_jobs(jobs, engine, "working", attempts=3, on_result=lambda *one: told.append(one))
    finally:
        cluster.shutdown()
    assert results == {jobs[0]: 0, jobs[1]: 1}
    assert sorted(number for _, number in told) == [0, 1]
    assert sum(path.read_text().count("\n") for path in paths) == 3


def test_an_unknown_engine_and_unknown_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="engine must be one of"):
        make_engine("cloud", tmp_path)
    with pytest.raises(ValueError, match=r"the engine local has no options \['address'\]"):
        make_engine("local", tmp_path, options={"address": "auto"})


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make_engine(name, tmp_path)
