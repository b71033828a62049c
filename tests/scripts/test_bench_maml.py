import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def bench_maml(load_script):
    """The script as a module."""
    return load_script("bench_maml")


@pytest.fixture
def without_packages(bench_maml, monkeypatch):
    """Only PyTorch and this package, wherever the tests run."""
    monkeypatch.setattr(bench_maml.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("make", "shape"), [("make_mlp", (3, 4)), pytest.param("make_ssm", (1, 2, 4), marks=pytest.mark.slow)]
)
def test_all_sides_have_the_gradient_of_finite_differences(bench_maml, make, shape):
    torch.manual_seed(0)
    model, tasks = getattr(bench_maml, make)(4), bench_maml.make_tasks(2, shape)
    sides = bench_maml.find_sides()
    bench_maml.check_gradients(sides, model, tasks)

    model = model.double()
    tasks = [tuple(tensor.double() for tensor in task) for task in tasks]
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    direction = torch.randn_like(weights)

    def step(weights):
        """The loss at these weights, and how far plain gradient descent of rate 1 goes."""
        nn.utils.vector_to_parameters(weights.clone(), model.parameters())
        loss = bench_maml.loop(model, tasks, bench_maml.Outer(torch.optim.SGD, 1.0))()
        return loss, weights - nn.utils.parameters_to_vector(model.parameters()).detach()

    difference = (step(weights + 1e-5 * direction)[0] - step(weights - 1e-5 * direction)[0]) / 2e-5
    assert step(weights)[1] @ direction == pytest.approx(difference, rel=1e-6)


def test_a_side_with_another_gradient_ends_the_run(bench_maml):
    def wrong(model, tasks, outer):
        return bench_maml.loop(model, tasks, outer._replace(lr=1.001 * outer.lr))

    model, tasks = bench_maml.make_mlp(4), bench_maml.make_tasks(2, (3, 4))
    with pytest.raises(SystemExit, match="wrong and the loop must have the same gradient"):
        bench_maml.check_gradients({"loop": bench_maml.loop, "wrong": wrong}, model, tasks)


def test_the_low_rank_form_is_in_one_of_our_sides_alone(bench_maml, monkeypatch):
    calls = []
    network = sys.modules["ssm_metarl_gym.agents.meta_learning.task_losses"].LowRankNetwork
    call = network.__call__
    monkeypatch.setattr(network, "__call__", lambda self, x: calls.append(x) or call(self, x))
    tasks = bench_maml.make_tasks(2, (3, 4))
    sides = bench_maml.find_sides()
    for side, expected in ((sides["MetaMAML, written"], 0), (sides["MetaMAML"], 1)):
        side(bench_maml.make_mlp(128), tasks, bench_maml.Outer(torch.optim.SGD, 1.0))()
        assert len(calls) == expected


@pytest.mark.usefixtures("short_chunks", "without_packages")
def test_every_comparison_has_its_row(bench_maml, monkeypatch, tmp_path, capsys):
    path = tmp_path / "results.json"
    monkeypatch.delitem(bench_maml.NETWORKS, "SSM, sequence")
    single_step = bench_maml.NETWORKS["SSM, steps"]._replace(shape=(1, 4))
    monkeypatch.setitem(bench_maml.NETWORKS, "SSM, steps", single_step)
    small = ["--tasks", "8", "--ssm-tasks", "1", "--width", "4", "--pairs", "1"]
    bench_maml.main([*small, "--output", str(path)])
    rows = json.loads(path.read_text())
    expected = [("MLP", 8, "MetaMAML"), ("MLP", 8, "MetaMAML, written")]
    expected += [("SSM, steps", 1, "MetaMAML")]
    assert [(row["network"], row["tasks"], row["ours"]) for row in rows] == expected
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in rows)
    assert [row["target"] for row in rows] == [2.0, None, None]
    printed = capsys.readouterr().out
    assert "torchopt is not installed and left out: python -m pip install torchopt" in printed
    assert len([line for line in printed.splitlines() if line.startswith("|")]) == 2 + len(rows)


@pytest.mark.slow
def test_another_process_measures_the_peak(checkout):
    code = "import bench_maml; print(bench_maml.measure_memory('SSM, steps', False, 16, [1, 2], 128))"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    # A graph of 16 tasks takes tens of MiB at this width; a second update takes no second one.
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=checkout / "scripts")  # noqa: S603
    first, second = json.loads(output)
    assert 20.0 < first <= second < 1.5 * first


def test_memory_has_a_row_for_each_network(bench_maml, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        bench_maml, "measure_memory", lambda name, is_written, num_tasks, num_updates, width: num_updates
    )
    path = tmp_path / "results.json"
    bench_maml.main(["--memory", "--output", str(path)])
    rows = json.loads(path.read_text())
    assert [(row["first"], row["second"], row["target"]) for row in rows] == [(1, 1, 2.0)] * 4 + [(100, 2000, None)]
    assert "| 100.0 | 2000.0 | 20.00 |" in capsys.readouterr().out


def test_an_odd_width_is_refused(bench_maml, capsys):
    with pytest.raises(SystemExit):
        bench_maml.main(["--width", "5"])
    assert "--width must be even; got 5" in capsys.readouterr().err
