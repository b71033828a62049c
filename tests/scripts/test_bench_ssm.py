import json
import math

import pytest
import torch

from ssm_metarl_gym.agents.ssm.scan import linear_recurrence


@pytest.fixture(scope="module")
def bench_ssm(load_script):
    """The script as a module."""
    return load_script("bench_ssm")


@pytest.mark.parametrize("form", ["loop", "log_depth"])
def test_all_forms_compute_the_same(bench_ssm, form):
    shapes = ((3,), (2, 9, 3), (2, 3))
    arguments = [torch.randn(shape, dtype=torch.complex128, requires_grad=True) for shape in shapes]
    results = [
        (states := function(*arguments), *torch.autograd.grad(states.abs().sum(), arguments))
        for function in (linear_recurrence, getattr(bench_ssm, form))
    ]
    torch.testing.assert_close(*results)


@pytest.mark.usefixtures("short_chunks")
def test_every_comparison_has_its_row(bench_ssm, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_ssm.main(["--steps", "3", "--batch", "2", "--width", "4", "--pairs", "2", "--output", str(path)])
    rows = json.loads(path.read_text())
    forms = ["scan", "loop", "log-depth", "block"]
    expected = [(form, against, 3) for against in ("LSTM", "GRU") for form in forms]
    expected += [(form, "LSTMCell", 1) for form in ("block", "stepper", "step")] + [("stepper", "step", 1)]
    assert [(row["ours"], row["against"], row["steps"]) for row in rows] == expected
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in rows)
    assert rows[3]["target"] is None
    assert rows[8]["target"] == pytest.approx(1 / 0.6)
    assert capsys.readouterr().out.count("\n|") == 2 + len(rows)


def test_an_odd_width_is_refused(bench_ssm, capsys):
    with pytest.raises(SystemExit):
        bench_ssm.main(["--width", "5"])
    assert "--width must be even; got 5" in capsys.readouterr().err
