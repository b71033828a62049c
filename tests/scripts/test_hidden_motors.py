import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("mujoco")

CHEETAH, REACHER = "HalfCheetah-v5", "Reacher-v5"


@pytest.fixture(scope="module")
def motors(load_script):
    """The script as a module."""
    return load_script("hidden_motors")


@pytest.mark.parametrize("env_id", [CHEETAH, REACHER])
@pytest.mark.parametrize(
    ("condition", "num_matrices", "gains"),
    [
        ("hidden", 1, (0.6, 1.4)),
        ("extrapolation", 1, (0.4, 1.7)),
        ("swapped", 1, (0.6, 1.4)),
        ("change", 2, (0.6, 1.4)),
        ("nominal", 1, (1, 1)),
    ],
)
def test_matrices_reverse_weaken_and_swap_motors(motors, env_id, condition, num_matrices, gains):
    matrices = motors.draw_matrices(env_id, condition, 40, seed=1)
    num_actions = 6 if env_id == CHEETAH else 2
    assert matrices.shape == (40, num_matrices, num_actions, num_actions)
    driven = matrices != 0.0
    assert (driven.sum(axis=-1) == 1).all()
    assert (driven.sum(axis=-2) == 1).all()
    sizes = np.abs(matrices[driven])
    assert sizes.min() >= gains[0]
    assert sizes.max() <= gains[1]
    assert (matrices < 0.0).any() == (condition != "nominal")
    is_swapped = ~driven[..., 0, 0]
    assert is_swapped.any() == (condition == "swapped" or (env_id == REACHER and condition != "nominal"))


@pytest.mark.parametrize(("condition", "gain"), [("reversed", -1.0), ("dead", 0.0), ("weak", 0.5)])
def test_one_motor_fails_half_way(motors, condition, gain):
    matrices = motors.draw_matrices(CHEETAH, condition, 40, seed=1)
    np.testing.assert_array_equal(matrices[:, 0], np.broadcast_to(np.eye(6), (40, 6, 6)))
    failed = np.sort(matrices[:, 1].reshape(40, 36), axis=1)
    expected = np.sort(np.append(np.eye(6)[1:].ravel(), [gain, *np.zeros(5)]))
    np.testing.assert_array_equal(failed, np.broadcast_to(expected, (40, 36)))
    assert len({int(np.diag(one).argmin()) for one in matrices[:, 1]}) == 6
    # Who undoes it leaves a dead motor alone.
    undone = np.diagonal(motors.invert(matrices[:, 1]) @ matrices[:, 1], axis1=1, axis2=2)
    np.testing.assert_allclose(undone.min(axis=1), float(gain != 0.0), atol=1e-12)


def test_another_matrix_from_half_way_on(motors):
    matrices = motors.draw_matrices(REACHER, "change", 3, seed=0)
    for t, which in ((0, 0), (24, 0), (25, 1), (49, 1)):
        np.testing.assert_array_equal(motors.matrix_at(matrices, t, 50), matrices[:, which])


@pytest.fixture
def play(motors):
    """A function that gives the returns in each 50 steps of an agent, whose policy takes the same actions always."""

    class Policy:
        def predict(self, observations, *, deterministic):
            action = np.full((len(observations), num_actions), 0.3, np.float32)
            action[:, 0] = -0.2
            return action, None

    def run(agent, env_id, matrices):
        nonlocal num_actions
        num_actions = matrices.shape[-1]
        env = SimpleNamespace(normalize_obs=lambda observations: observations)
        return motors.run(agent, env_id, lambda: motors.Nominal(Policy(), env, None), matrices, 0)

    num_actions = 0
    return run


def test_who_undoes_the_matrix_does_as_where_there_is_none(motors, play):
    hidden, none = (motors.draw_matrices(REACHER, condition, 3, seed=0) for condition in ("change", "nominal"))
    expected = play("as_is", REACHER, none)
    assert expected.shape == (3, 1)
    np.testing.assert_allclose(play("told", REACHER, hidden), expected, rtol=1e-4)
    assert (np.abs(play("as_is", REACHER, hidden) - expected) > 0.1).any()


def test_motors_fail_half_way_and_nothing_is_earned_after_the_end(motors, play):
    hopper = play("as_is", "Hopper-v5", motors.draw_matrices("Hopper-v5", "nominal", 2, seed=0))
    assert hopper.shape == (2, 8)
    assert (hopper[:, 0] > 0.0).all()
    assert (hopper[:, 4:] == 0.0).all()  # they have fallen
    sound, dead = (motors.draw_matrices(CHEETAH, condition, 1, seed=0) for condition in ("nominal", "dead"))
    expected, as_is, told = play("as_is", CHEETAH, sound), play("as_is", CHEETAH, dead), play("told", CHEETAH, dead)
    np.testing.assert_array_equal(as_is[:, :4], expected[:, :4])
    assert (as_is[:, 4:] != expected[:, 4:]).all()
    np.testing.assert_allclose(told, as_is)  # nothing undoes it


def test_the_table_of_failures_says_what_was_earned_before_and_after(motors):
    scales = {"as_is": 0.25, "told": 1.0, "told_late": 1.0, "corrected": 0.5}
    rows = [
        {"env": CHEETAH, "seed": seed, "condition": "weak", "agent": agent, "each_50_steps": windows}
        for agent, scale in scales.items()
        for seed, windows in enumerate([[[100.0] * 4 + [scale * 40.0] * 4], [[100.0] * 4 + [scale * 80.0] * 4]])
    ]
    lines = motors.format_failures(rows).splitlines()
    assert len(lines) == 2 + 4
    assert lines[5].startswith("| HalfCheetah-v5 | weak | corrected | 100 [100, 100] | 30 [")
    assert lines[5].endswith("| 50.0 [50.0, 50.0] % kept (50.0, 50.0) |")


def test_the_table_says_what_was_gained_in_each_seed(motors):
    returns = {"as_is": (0.0, 10.0), "told": (100.0, 110.0), "told_late": (100.0, 10.0), "corrected": (90.0, 90.0)}
    rows = [
        {"env": CHEETAH, "seed": seed, "condition": condition, "agent": agent, "returns": [mean - 1.0, mean + 1.0]}
        for condition, scale in (("hidden", 1.0), ("nominal", -1.0))
        for agent, means in returns.items()
        for seed, mean in enumerate(scale * np.array(means) - 100.0 * (condition == "nominal"))
    ]
    lines = motors.format_table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith(
        "| 50.0 [-585.3, 685.3] % of the gap (100.0, 0.0) | 85.0 [21.5, 148.5] % of the gap (90.0, 80.0) |"
    )
    # -190 in place of -100, and in place of -110.
    assert lines[3].endswith("| 18.6 [-91.1, 128.4] % kept (10.0, 27.3) |")


@pytest.fixture
def run_main(motors, tmp_path, monkeypatch, capsys):
    """A function that runs the script with agents that get their place among the agents plus the number of tasks.

    It takes options and gives what was measured and the table.
    """
    archive = tmp_path / "model.zip"
    archive.write_bytes(b"a policy")
    agents = [SimpleNamespace(config={"env": REACHER}, seed=seed, archive=archive) for seed in (0, 1)]
    monkeypatch.setattr(motors, "find_policies", lambda _: agents)
    monkeypatch.setattr(
        motors,
        "run",
        lambda name, env_id, fit, matrices, seed, **late: np.full(
            (len(matrices), 1), len(matrices) + motors.AGENTS.index(name)
        ),
    )

    def run(*options):
        motors.main(["--output", str(tmp_path), *(options or ["--tasks", "2"])])
        lines = capsys.readouterr().out.splitlines()
        return lines[:-9], lines[-9:]

    return run


def test_half_a_line_that_was_left_by_a_kill_is_measured_again(run_main, tmp_path):
    measured, table = run_main()
    assert len(measured) == 2 * 7 * 4
    path = tmp_path / "results.jsonl"
    path.write_text(path.read_text()[:-20])
    assert run_main() == (measured[-1:], table)
    assert run_main() == ([], table)


def test_the_table_is_of_runs_with_the_options_of_the_command_line(run_main):
    measured, table = run_main()
    others, other_table = run_main("--tasks", "3")
    assert len(others) == len(measured)
    assert other_table != table
    assert run_main("--tasks", "3", "--updates", "7") == (others, other_table)
    assert run_main() == ([], table)


def test_what_is_corrected_is_run_again_by_another_rule(run_main, motors, monkeypatch):
    measured, _ = run_main()
    monkeypatch.setattr(motors, "RULE", motors.RULE + 1)
    again, _ = run_main()
    assert again == [line for line in measured if "corrected" in line]
    assert len(again) == 2 * 7


def test_late_motors_are_runs_of_their_own(run_main):
    measured, table = run_main()
    assert len(run_main("--tasks", "2", "--delay", "1")[0]) == len(measured)
    again, _ = run_main("--tasks", "2", "--delay", "1", "--largest-delay", "2")
    assert again == [line for line in measured if "corrected" in line]
    assert run_main() == ([], table)


def test_a_filter_that_is_told_of_mixes_has_runs_of_its_own(run_main, motors, monkeypatch):
    measured, _ = run_main()
    told, plain = [], motors.run

    def run(name, *arguments, **own):
        told.append((name, own.get("mixed")))
        return plain(name, *arguments, **own)

    monkeypatch.setattr(motors, "run", run)
    again, _ = run_main("--tasks", "2", "--mixed")
    assert again == [line for line in measured if "corrected" in line]
    assert told == [("corrected", True)] * 14
    assert run_main()[0] == []


def test_another_policy_is_run_anew(run_main, tmp_path):
    measured, table = run_main()
    (tmp_path / "model.zip").write_bytes(b"another policy")
    assert run_main() == (measured, table)


def test_a_damaged_line_is_refused(run_main, tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text("{\n")
    with pytest.raises(SystemExit) as exit_info:
        run_main()
    assert exit_info.value.code == 2
    assert "results.jsonl must be an object in JSON; line 1" in capsys.readouterr().err


def test_two_policies_of_one_environment_and_seed_are_refused(motors, tmp_path, monkeypatch, capsys):
    seeds = {"a": 0, "b": 1, "c": 0}
    monkeypatch.setattr(
        motors, "read_run", lambda path: SimpleNamespace(path=path, config={"env": REACHER}, seed=seeds[path.name])
    )
    output = tmp_path / "output"
    assert len(motors.find_policies(motors.Options(policy_folders=(tmp_path / "a", tmp_path / "b")))) == 2
    folders = [str(tmp_path / name) for name in seeds]
    with pytest.raises(SystemExit) as exit_info:
        motors.main(["--policy-folders", *folders, "--output", str(output)])
    assert exit_info.value.code == 2
    assert f"got {folders[0]} and {folders[2]}, both of Reacher-v5 with seed 0" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(motors, load_script, tmp_path, capsys):
    train, policy, output = load_script("train_ppo"), tmp_path / "policy", tmp_path / "output"
    command = ["--env", REACHER, "--policy", "mlp", "--timesteps", "64", "--num-envs", "2", "--seed", "3"]
    train.main([*command, "--hyperparameters", '{"n_steps": 32, "batch_size": 32}', "--output", str(policy)])
    command = ["--policy-folders", str(policy), "--transitions", "300", "--updates", "5", "--tasks", "2"]
    command += ["--output", str(output)]
    motors.main(command)
    path = output / "results.jsonl"
    lines = path.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["seed"], row["condition"], row["agent"]) for row in rows] == [
        (3, condition, agent) for condition in motors.CONDITIONS for agent in motors.AGENTS
    ]
    table = capsys.readouterr().out.splitlines()[-6:]
    path.write_text("\n".join(lines[:3]) + "\n")  # as if it had been stopped
    motors.main(command)
    again = [json.loads(line) for line in path.read_text().splitlines()]
    for row in (*rows, *again):
        del row["cpu_seconds"]
    assert again == rows
    assert capsys.readouterr().out.splitlines()[-6:] == table
