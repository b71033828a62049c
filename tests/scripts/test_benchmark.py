import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssm_metarl_gym.experiments.jobs import JobsFailedError
from ssm_metarl_gym.experiments.scoreboard import board, plan

ROOT = Path(__file__).parents[2]
# What takes a second or two: an agent that is corrected, and one that learns.
TINY = ["--quick", "--families", "PointActuators-2", "--agents", "as_is", "told", "--seeds", "1"]
TINY += ["--steps", "2048", "--percent", "1", "--num-tasks", "20", "--processes", "1"]


@pytest.fixture(scope="module")
def benchmark(load_script):
    return load_script("benchmark")


def test_quick_is_few_of_everything(benchmark, tmp_path):
    quick, full = (benchmark.Options(quick=quick, output=tmp_path).scoreboard() for quick in (True, False))
    assert set(quick.names) < set(full.names)
    assert set(quick.rows) < set(full.rows)
    assert (quick.num_seeds, full.num_seeds) == (2, 10)
    assert quick.board.percent < full.board.percent
    chosen = benchmark.Options(quick=True, families=("Pendulum",), seeds=7, agent=("mine:make",), output=tmp_path)
    assert (chosen.scoreboard().names, chosen.scoreboard().num_seeds) == (("Pendulum",), 7)
    assert chosen.scoreboard().rows[-1] == "mine:make"
    few = [benchmark.Options(output=tmp_path).dear_seeds, benchmark.Options(seeds=7, output=tmp_path).dear_seeds]
    assert few == [3, None]
    assert (quick.steps, full.steps) == ((100_000,), ())


def test_what_takes_long_learns_for_long_only_where_it_is_asked_for(benchmark, tmp_path):
    asked = [{}, {"agents": ("window_ssm",)}, {"steps": (10**6,)}, {"seeds": 7}]
    assert [benchmark.Options(**each, output=tmp_path).dear_steps for each in asked] == [100_000, None, None, 100_000]


def test_an_agent_of_ones_own_is_asked_for_by_another_option(benchmark, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--agents", "mine:make", "--output", str(tmp_path)])
    assert "--agents must be agents of the table; got 'mine:make'. Ask for one of your own by --agent." in (
        capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        benchmark.main(["--agents", "tolt", "--output", str(tmp_path)])
    assert "Did you mean 'told'?" in capsys.readouterr().err


def test_a_full_run_is_of_all_seeds_but_those_that_take_long(benchmark, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "run_all", lambda runs, *_: asked.extend(runs))
    benchmark.main(["--families", "CartPole", "ComplexODE", "--processes", "1", "--output", str(tmp_path)])
    seeds = {
        (name, row): sum((run.physics, run.row) == (name, row) for run in asked)
        for name in ("CartPole", "ComplexODE")
        for row in ("told", "window_ssm")
    }
    assert list(seeds.values()) == [10, 3, 10, 0]
    assert {(run.physics, run.steps) for run in asked if run.row == "told"} == {
        *(("CartPole", 100_000), ("ComplexODE", 600_000)),
    }


def test_agents_that_cannot_be_in_a_family_are_named(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run_all", lambda *_: None)
    asked = ["--agents", "corrected_filter", "ssm_ppo", "--processes", "1", "--output", str(tmp_path)]
    benchmark.main(["--families", "CartPole", "PointActuators-2", *asked])
    assert capsys.readouterr().err.count("not in CartPole, which they cannot be in: corrected_filter\n") == 1
    asked.remove("ssm_ppo")
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main(["--families", "CartPole", *asked])
    assert exit_info.value.code == 2
    assert "must leave a run to do; none of these agents can be in these families" in capsys.readouterr().err


def known(folder):
    """What was measured, without what it took and when."""
    lines = map(json.loads, (folder / "runs.jsonl").read_text().splitlines())
    lines = [{name: line[name] for name in line if name not in ("cpu_seconds", "versions")} for line in lines]
    return sorted(json.dumps(line, sort_keys=True) for line in lines)


def run(folder, *more):
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", *TINY, "--output", folder, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603


@pytest.mark.slow
def test_a_benchmark_that_is_killed_goes_on_and_comes_to_the_same_lines(tmp_path):
    undisturbed, killed = run(tmp_path / "undisturbed"), run(tmp_path / "killed")
    while not (tmp_path / "killed" / "runs.jsonl").exists():
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    lines = known(tmp_path / "killed")
    output, _ = run(tmp_path / "killed").communicate()
    assert undisturbed.communicate()[0]
    assert set(lines) < set(known(tmp_path / "killed"))
    assert known(tmp_path / "killed") == known(tmp_path / "undisturbed")
    assert "PointActuators-2: mean return in 20 tasks" in output
    assert (tmp_path / "killed" / "report.html").exists()


def test_a_damaged_line_is_named_and_nothing_is_lost(benchmark, tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"study": "prepared"}\n{"study": \n{"study": "prepared"}\n')
    before = path.read_bytes()
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main([*TINY, "--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert f"each line of {path} must be an object in JSON; line 2 is damaged" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_runs_that_fail_are_named_and_all_others_are_done(benchmark, tmp_path, monkeypatch, capsys):
    def evaluate(_, run, columns):
        if run.seed:
            raise RuntimeError("the machine is on fire")
        return [{**plan.key_of(board.Board(tmp_path, 20, 1), run, column), "returns": [1.0] * 20} for column in columns]

    monkeypatch.setattr(plan, "run_jobs", run_here)
    monkeypatch.setattr(plan, "learn_policy", lambda *_: [])
    monkeypatch.setattr(plan, "run_row", evaluate)
    with pytest.raises(SystemExit) as exit_info:
        benchmark.main([*TINY, "--agents", "as_is", "--seeds", "2", "--output", str(tmp_path)])
    assert "the machine is on fire" in str(exit_info.value.code)
    assert "| as_is | 1.0 [1.0, 1.0] |" in capsys.readouterr().out


def test_the_page_is_of_all_that_the_folder_holds(benchmark, tmp_path, monkeypatch, capsys):
    def evaluate(_, run, columns):
        return [{**plan.key_of(board.Board(tmp_path, 20, 1), run, column), "returns": [1.0] * 20} for column in columns]

    monkeypatch.setattr(plan, "run_jobs", run_here)
    monkeypatch.setattr(plan, "learn_policy", lambda *_: [])
    monkeypatch.setattr(plan, "run_row", evaluate)
    folder = ["--output", str(tmp_path)]
    benchmark.main([*TINY, "--agents", "as_is", "--seeds", "2", *folder])
    benchmark.main([*TINY, "--families", "CartPole", "--agents", "told", *folder])
    assert "as_is" not in capsys.readouterr().out.rpartition("CartPole: mean return")[2]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert {"PointActuators-2", "CartPole"} <= {line[3:] for line in page.splitlines() if line.startswith("## ")}
    assert "| as_is | 1.0 [1.0, 1.0] |" in page
    # What is of a family that cannot be made any more is left out, with a word.
    line = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0]) | {"physics": "gone:FAMILY"}
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    benchmark.main([*TINY, "--families", "CartPole", "--agents", "told", *folder])
    assert "the report is of this command alone: the family gone:FAMILY cannot" in capsys.readouterr().err
    assert "as_is" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def run_here(jobs, engine, description, *, on_result, **_):
    """All jobs in this process."""
    failed = {}
    for job in jobs:
        try:
            on_result(job, job.work(*job.arguments))
        except RuntimeError as error:
            failed[job] = error
    if failed:
        raise JobsFailedError(failed)
