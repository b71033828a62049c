import json
import math

import pytest


@pytest.fixture(scope="module")
def bench_export(load_script):
    """The script as a module."""
    return load_script("bench_export")


@pytest.mark.slow
@pytest.mark.usefixtures("short_chunks")
def test_every_comparison_has_its_row(bench_export, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_export.main(["--width", "4", "--window", "2", "--pairs", "2", "--steps", "10", "--output", str(path)])
    results = json.loads(path.read_text())
    assert [(row["policy"], row["ours"], row["against"]) for row in results["rows"]] == [
        ("SSMPPO", "torch", "predict"),
        ("SSMPPO", "onnxruntime", "predict"),
        ("SSMPPO", "onnxruntime", "stepper"),
        ("window", "onnxruntime", "predict"),
    ]
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in results["rows"])
    assert results["bytes"].keys() == {"SSMPPO", "window"}
    assert [row["bundle"] for row in results["bundles"]] == ["CartPole", "Pendulum", "HalfCheetah"]
    assert all(0 < row["fastest"] <= row["median"] <= row["99 %"] < math.inf for row in results["bundles"])
    assert capsys.readouterr().out.count("\n|") == 2 + 4 + 2 + 3


def test_an_odd_width_is_refused(bench_export, capsys):
    with pytest.raises(SystemExit):
        bench_export.main(["--width", "5"])
    assert "--width must be even; got 5" in capsys.readouterr().err
