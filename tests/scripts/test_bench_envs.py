import json
import math
import os

import gymnasium as gym
import numpy as np
import pytest

TINY = ["--rows", "2", "--sb3-rows", "2", "--pairs", "1"]
SB3_ROWS = [(f"{family}-v0", "SB3VecEnv", "DummyVecEnv", 2) for family in ("CartPole", "CartPolePolarity")]
# Those of a batched environment, in the order in which they are measured.
GYMNASIUM_ROWS = [("CartPole-v0", kind, "CartPoleVectorEnv", 2) for kind in ("float64", "float32")]
SYNC_ROWS = [
    (f"{family}-v0", kind, "SyncVectorEnv", 2) for family in ("CartPole", "Pendulum") for kind in ("float64", "float32")
]


pytestmark = pytest.mark.usefixtures("short_chunks")


@pytest.fixture(scope="module")
def bench_envs(load_script):
    """The script as a module, which settles at once."""
    module = load_script("bench_envs")
    module.SETTLING_STEPS = 2
    return module


def key_of(row):
    return row["family"], row["ours"], row["against"], row["tasks"]


def test_every_comparison_has_its_row(bench_envs, checkout, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_envs.main([*TINY, "--output", str(path)])
    results, text = json.loads(path.read_text()), capsys.readouterr().out
    assert [key_of(row) for row in results["rows"]] == SB3_ROWS + GYMNASIUM_ROWS + SYNC_ROWS
    assert all(0.0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in results["rows"])
    assert text.count("\n|") == 2 + len(results["rows"])
    # What the ratios depend on is named, but no path.
    assert set(results) == {"rows", "versions", "cpus", "seconds"}
    assert set(results["versions"]) == {"python", "gymnasium", "numpy", "stable-baselines3"}
    assert results["cpus"] == os.cpu_count()
    assert all(f"{name} {version}" in text for name, version in results["versions"].items())
    assert all(place not in text + path.read_text() for place in (str(checkout), os.path.expanduser("~")))


def test_targets_stand_beside_the_rows_that_have_one(bench_envs):
    sides = {"SyncVectorEnv": lambda _: None, "float64": lambda _: None, "float32": lambda _: None}
    rows = [(n, row) for n in (64, 16384) for row in bench_envs.compare("Pendulum-v0", n, sides, [0], 1)]
    targets = {(row.ours, n): row.target for n, row in rows}
    assert targets == {
        ("float64", 64): 15.0,
        ("float32", 64): None,
        ("float64", 16384): 160.0,
        ("float32", 16384): 300.0,
    }


def test_both_sides_begin_alike(bench_envs):
    envs, actions = bench_envs.make_batched("CartPolePolarity-v0", 4, seed=0, autoreset_mode="SameStep")
    singles = [make() for make in bench_envs.single_makers("CartPolePolarity-v0", envs)]
    for single in singles:
        single.reset(seed=1)
    bench_envs.place(singles, envs)
    assert [single.unwrapped.task for single in singles] == list(envs.unwrapped.tasks)
    assert len({single.unwrapped.task for single in singles}) == 4
    observations = envs.step(actions[0])[0]
    for single, action, observation in zip(singles, actions[0], observations, strict=True):
        assert (single.step(action)[0] == observation).all()


def test_no_family_leaves_a_comparison_out(bench_envs, capsys):
    bench_envs.main([*TINY, "--families", "--sb3-families", "PendulumSwitch-v0"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| PendulumSwitch-v0")]
    assert row.startswith("| PendulumSwitch-v0 | 2 | SB3VecEnv | DummyVecEnv | ")


@pytest.mark.slow
def test_rows_of_mujoco_are_compared_with_processes_and_with_their_physics(bench_envs, capsys):
    pytest.importorskip("mujoco")
    none = ["--families", "--sb3-families", "--mujoco-families", "ReacherActuators-v0", "--mujoco-rows", "2"]
    bench_envs.main([*TINY, *none])
    rows = [line.split(" | ")[:4] for line in capsys.readouterr().out.splitlines() if line.startswith("| Reacher")]
    sides = ("AsyncVectorEnv", "mj_step", "mujoco.rollout")
    assert rows == [["| ReacherActuators-v0", "2", side, "SyncVectorEnv"] for side in sides]


@pytest.mark.parametrize("family", ["HalfCheetahVel", "HopperParams"])
def test_the_physics_alone_move_as_the_environments_do(bench_envs, family):
    pytest.importorskip("mujoco")
    singles = [gym.make(f"ssm_metarl/{family}-v0", task={}) for _ in range(3)]
    others = [gym.make(f"ssm_metarl/{family}-v0", task={}) for _ in range(3)]
    steps = bench_envs.physics_alone(singles, seed=4)
    for i, other in enumerate(others):
        other.reset(seed=4 + i)
    for action in np.random.default_rng(0).uniform(-1, 1, (3, 3, *singles[0].action_space.shape)):
        steps["mj_step"](action)
        steps["mujoco.rollout"](action)
        for other, row in zip(others, action, strict=True):
            other.step(row)
    for single, other in zip(singles, others, strict=True):
        assert single.unwrapped.state_vector().tolist() == other.unwrapped.state_vector().tolist()


def test_memory_is_shown_instead(bench_envs, monkeypatch, tmp_path, capsys):
    path = tmp_path / "results.json"
    monkeypatch.setattr(bench_envs, "MEMORY_ROWS", 8)
    bench_envs.main(["--memory-steps", "100", "--output", str(path)])
    memory = json.loads(path.read_text())["memory"]
    assert [entry["steps"] for entry in memory] == [1, 50, 100]
    assert all(1.0 < entry["resident_mib"] < 1e6 for entry in memory)
    text = capsys.readouterr().out
    assert all(f"after {entry['steps']} steps of 8 tasks" in text for entry in memory)
    assert "|" not in text


def test_so_few_steps_show_no_memory(bench_envs, capsys):
    with pytest.raises(SystemExit):
        bench_envs.main(["--memory-steps", "99"])
    assert "--memory-steps must be >= 100, or 0 for none; got 99." in capsys.readouterr().err


def test_a_family_that_is_not_batched_is_refused(bench_envs, capsys):
    with pytest.raises(SystemExit):
        bench_envs.main(["--sb3-families", "HopperParams-v0"])
    assert "--sb3-families must be one of ['CartPole-v0'" in capsys.readouterr().err
