import json
import math
import os

import pytest

TINY = ["--rows", "2", "3", "--sb3-rows", "2", "--pairs", "3"]
SB3_ROWS = [(f"{family}-v0", "SB3VecEnv", "DummyVecEnv", 2) for family in ("CartPole", "CartPolePolarity")]
# Those of a batched environment, in the order in which they are measured.
GYMNASIUM_ROWS = [("CartPole-v0", kind, "CartPoleVectorEnv", n) for n in (2, 3) for kind in ("float64", "float32")]
SYNC_ROWS = [
    (f"{family}-v0", kind, "SyncVectorEnv", n)
    for n in (2, 3)
    for family in ("CartPole", "Pendulum")
    for kind in ("float64", "float32")
]
CELLS = ["family", "ours", "against", "tasks", "ratio", "10 to 90 %", "target"]


@pytest.fixture(scope="module")
def script(checkout):
    return checkout / "scripts" / "bench_envs.py"


@pytest.fixture(scope="module")
def bench_envs(load_script):
    """The script as a module, with chunks of a few steps."""
    module = load_script("bench_envs")
    module.CHUNK_SECONDS, module.SETTLING_STEPS = 0.0005, 2
    return module


def read_table(text):
    """The cells of the Markdown table, line by line."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def key_of(row):
    return row["family"], row["ours"], row["against"], row["num_tasks"]


@pytest.fixture(scope="module")
def run(bench_envs, tmp_path_factory):
    """What a run of every comparison prints and writes."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *values, sep=" ", flush=False: lines.append(sep.join(values)))
        bench_envs.main([*TINY, "--output", str(path)])
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    return "\n".join(lines), json.loads(path.read_text())


def test_every_comparison_has_its_row(run):
    text, results = run
    assert [key_of(row) for row in results["rows"]] == SB3_ROWS + GYMNASIUM_ROWS + SYNC_ROWS
    header, line, *table = read_table(text)
    assert header == CELLS
    assert {cell.strip("-") for cell in line} == {""}
    assert [(*cells[:3], int(cells[3])) for cells in table] == [key_of(row) for row in results["rows"]]


def test_ratios_are_positive_and_lie_in_their_spread(run):
    text, results = run
    for row, cells in zip(results["rows"], read_table(text)[2:], strict=True):
        assert 0.0 < row["low"] <= row["ratio"] <= row["high"] < math.inf
        assert row["pairs"] == 3
        numbers = [cells[4], *cells[5].split(" to ")]
        expected = [row[key] for key in ("ratio", "low", "high")]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=0.01, abs=0.006)


def test_results_name_versions_and_cpus_but_no_path(run, checkout):
    text, results = run
    assert set(results) == {"rows", "versions", "cpus", "seconds"}
    assert set(results["versions"]) == {"python", "gymnasium", "numpy", "stable-baselines3"}
    assert results["cpus"] == os.cpu_count()
    for name, version in results["versions"].items():
        assert f"{name} {version}" in text
    for place in (str(checkout), os.path.expanduser("~")):
        assert place not in text + json.dumps(results)


def test_targets_stand_beside_the_rows_that_have_one(bench_envs):
    sides = {"SyncVectorEnv": lambda _: sum(range(100)), "float64": lambda _: None, "float32": lambda _: None}
    rows = {(row.ours, n): row for n in (64, 16384) for row in bench_envs.compare("Pendulum-v0", n, sides, [0], 1)}
    targets = {key: row.target for key, row in rows.items()}
    assert targets == {
        ("float64", 64): 15.0,
        ("float32", 64): None,
        ("float64", 16384): 160.0,
        ("float32", 16384): 300.0,
    }
    assert read_table(bench_envs.format_row(rows["float32", 16384]))[0][-1] == "300"
    assert read_table(bench_envs.format_row(rows["float32", 64]))[0][-1] == ""


@pytest.mark.parametrize(("ratio", "text"), [(0.8372, "0.84"), (15.04, "15.0"), (166.7, "167"), (1234.5, "1234")])
def test_ratios_have_three_digits(bench_envs, ratio, text):
    assert bench_envs.format_ratio(ratio) == text


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
    rows = read_table(capsys.readouterr().out)[2:]
    assert [row[:4] for row in rows] == [["PendulumSwitch-v0", "SB3VecEnv", "DummyVecEnv", "2"]]


def test_memory_is_shown_instead(bench_envs, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_envs.main(["--memory-steps", "100", "--output", str(path)])
    memory = json.loads(path.read_text())["memory"]
    assert [entry["steps"] for entry in memory] == [1, 50, 100]
    assert all(1.0 < entry["resident_mib"] < 1e6 for entry in memory)
    text = capsys.readouterr().out
    assert all(f"after {entry['steps']} steps of 1024 tasks" in text for entry in memory)
    assert "|" not in text


def test_memory_where_the_system_has_no_proc(bench_envs, monkeypatch):
    present = bench_envs.resident_memory()
    monkeypatch.setattr(bench_envs.Path, "exists", lambda _: False)
    assert bench_envs.resident_memory() >= 0.5 * present


def test_help_names_every_option(bench_envs, capsys):
    with pytest.raises(SystemExit) as exit_info:
        bench_envs.main(["--help"])
    assert exit_info.value.code == 0
    words = set(capsys.readouterr().out.replace("[", " ").split())
    assert words >= {f"--{name.replace('_', '-')}" for name in bench_envs.Options.__dataclass_fields__}


def test_every_option_arrives(bench_envs, tmp_path):
    assert bench_envs.parse_options([]) == bench_envs.Options()
    path = tmp_path / "results.json"
    line = f"--rows 1 2 --families Pendulum-v0 --sb3-rows 3 --sb3-families --pairs 9 --seed 4 --output {path}"
    expected = bench_envs.Options((1, 2), ("Pendulum-v0",), (3,), (), 9, 4, path, 500)
    assert bench_envs.parse_options([*line.split(), "--memory-steps", "500"]) == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rows", "0"),
        ("--rows", "many"),
        ("--sb3-rows", "-1"),
        ("--families", "CartPole-v1"),
        ("--sb3-families", "HopperParams-v0"),  # has no batched environment
        ("--pairs", "0"),
        ("--seed", "-1"),
        ("--memory-steps", "99"),
        ("--memory-steps", "-1"),
        ("--output", "nowhere/results.json"),
        ("--output", "."),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(bench_envs, option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        bench_envs.main([option, value])
    assert exit_info.value.code == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert option in message
    assert value in message
    assert not list(tmp_path.iterdir())
