"""Ctrl-C and SIGTERM end a script in the midst of its work, with a sentence, its status and all of its processes."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = sorted(path.name for path in (Path(__file__).parents[2] / "scripts").glob("*.py"))
# What is imported after the first line and before the work, the last one among the imports of the script itself.
STAGES = ("ssm_metarl_gym._version", "numpy", "gymnasium", "ssm_metarl_gym.experiments.signals", "tyro")
TINY_META = '{"meta_batch_size": 2, "num_streams": 8, "stream_length": 32}'
# What is begun, how it is known to be at work, and what is said of how to go on.
CASES = {
    "workers": (["quickstart.py", "--quick"], "training and evaluating:   0%", ""),
    "train_ppo": (["train_ppo.py", "--num-envs", "4", "--checkpoint-interval", "1"], " timesteps, ", "timestep "),
    "meta_train": (["meta_train.py", "--options", TINY_META, "--log-interval", "1"], "updates_per_second", "update 0"),
    "evaluate": (["evaluate.py", "run", "--num-tasks", "5000"], "evaluating:   0%", ""),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_lines_of_a_script_end_it_at_ctrl_c(checkout, script):
    """There is a traceback before them alone, while Python itself starts."""
    _, *statements = ast.parse((checkout / "scripts" / script).read_text()).body
    imported, block = (ast.unparse(statement).splitlines() for statement in statements[:2])
    assert imported == ["import signal"]
    assert block[:2] == ["if __name__ == '__main__':", "    signal.signal(signal.SIGINT, signal.SIG_DFL)"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals of Unix")
@pytest.mark.parametrize(("script", "stage"), [(script, STAGES[i % len(STAGES)]) for i, script in enumerate(SCRIPTS)])
def test_a_script_that_is_being_imported(checkout, script, stage, tmp_path):
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-X", "importtime", str(checkout / "scripts" / script), "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert any(line.partition("| ")[2].split("|")[-1].strip() == stage for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    # A shell knows both as 130; handlers are set when the package is there.
    assert process.returncode in (-signal.SIGINT, 130)
    assert "Traceback" not in said


def descendants(process):
    """The processes that a process has started, and those that they have started."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("case", "number"),
    # Handlers are those of `experiments.signals`: both signals where there are processes to end.
    [
        ("workers", signal.SIGINT),
        ("workers", signal.SIGTERM),
        ("train_ppo", signal.SIGINT),
        ("meta_train", signal.SIGTERM),
        ("evaluate", signal.SIGINT),
    ],
)
def test_a_script_that_is_at_work(checkout, make_run, case, number, tmp_path):
    (script, *options), sign, hint = CASES[case]
    if script == "evaluate.py":
        make_run(tmp_path / "run")
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-u", str(checkout / "scripts" / script), *options, "--output", str(tmp_path / "output")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said = b""
        while sign.encode() not in said:
            said += (chunk := os.read(process.stdout.fileno(), 65536))
            assert chunk, said.decode()
        while case == "workers" and len(descendants(process.pid)) < 2:
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        rest, _ = process.communicate(timeout=60)  # ends when none of the processes holds the pipe any more
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert process.returncode == 128 + number
    last = rest.decode().replace("\r", "\n").rstrip("\n").split("\n")[-1]
    assert last.startswith(f"{word}; the same command again goes on from {hint}" if hint else word)
    assert "Traceback" not in rest.decode()
