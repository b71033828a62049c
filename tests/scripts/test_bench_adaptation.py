import json
import math

import pytest


@pytest.fixture(scope="module")
def bench_adaptation(load_script):
    """The script as a module, with models that have hardly learned anything and steps that begin at once."""
    module = load_script("bench_adaptation")
    module.META_UPDATES = 1
    module.META_STREAMS = 10
    module.SETTLING_STEPS = 2
    module.ROLLOUT_LENGTH = 4
    module.NUM_EPOCHS = 1
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("short_chunks")
def test_every_comparison_has_its_row(bench_adaptation, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_adaptation.main(["--rows", "2", "--ppo-rows", "2", "--pairs", "1", "--output", str(path)])
    results = json.loads(path.read_text())
    assert set(results) == {"rows", "versions", "seconds"}
    steps = [f"{adapts}, steps: {n}" for adapts in ("last_layer", "all") for n in (1, 3) for _ in range(2)]
    # Of all layers also the products alone, and of a Box a correction without the effect gate.
    of_rows = ["last_layer, 2 rows", *2 * ["all, 2 rows"]]
    corrected = ["CartPolePolarity-v0, 2 rows", *2 * ["PendulumPolarity-v0, 2 rows"]]
    rows = results["rows"]
    assert [row["case"] for row in rows] == [*of_rows, *steps, *corrected, "2 rows"]
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in rows)
    assert [row["target"] for row in rows] == [*3 * [None], *4 * [1 / 1.5, None], 0.5, 0.5, None, 0.4]
    assert capsys.readouterr().out.count("\n|") == 2 + len(rows)


def test_the_loop_by_hand_takes_the_steps_of_the_adapter(bench_adaptation):
    sides = bench_adaptation.make_sides("all", 3, is_lean=False, seed=0)
    lean = bench_adaptation.make_sides("all", 3, is_lean=True, seed=0)
    for _ in range(3):
        loss = sides["Adapter.adapt"]()
        assert sides["torch.optim.SGD"]() == pytest.approx(loss, rel=1e-5)
        assert lean["no optimizer"]() == pytest.approx(loss, rel=1e-5)


def test_many_calls_are_followed(bench_adaptation, tmp_path, capsys):
    path = tmp_path / "results.json"
    bench_adaptation.main(["--calls", "100", "--rows", "2", "--output", str(path)])
    adapter, rows = json.loads(path.read_text())["calls"]
    assert (adapter["what"], adapter["calls"]) == ("Adapter", 100)
    assert (rows["what"], rows["calls"]) == ("2 rows", 50)
    for row in (adapter, rows):
        assert 0.0 < row["farthest"] <= 0.1
        assert len(row["mib"]) == len(row["seconds"]) == 10
    assert "| Adapter | 100 | 0.1" in capsys.readouterr().out


def test_so_few_calls_are_refused(bench_adaptation, capsys):
    with pytest.raises(SystemExit):
        bench_adaptation.main(["--calls", "99"])
    assert "--calls must be >= 100, or 0 for none; got 99." in capsys.readouterr().err
