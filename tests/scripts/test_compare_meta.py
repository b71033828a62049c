import json

import numpy as np
import pytest

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.experiments.statistics import interval_over_seeds


@pytest.fixture(scope="module")
def compare_meta(load_script):
    return load_script("compare_meta")


DYNAMICS = {"num_streams": 20, "meta_batch_size": 4, "window": 4, "stream_length": 8}
POLICY = {"meta_batch_size": 2, "trajectories_per_task": 2, "width": 4}


@pytest.mark.parametrize(
    ("objective", "env_id", "options"),
    [
        ("dynamics", "ssm_metarl/PendulumPolarity-v0", DYNAMICS),
        pytest.param("policy", "ssm_metarl/PointNavigation-v0", POLICY, marks=pytest.mark.slow),
    ],
)
def test_a_comparison_holds_what_the_trainers_give(
    compare_meta, tmp_path, capsys, monkeypatch, objective, env_id, options
):
    monkeypatch.setattr(compare_meta, "FACTORS", (0.1, 1.0))
    monkeypatch.setitem(compare_meta.NUM_STEPS, objective, (0, 1))
    arguments = ["--objective", objective, "--env", env_id, "--updates", "2", "--seeds", "1", "--num-tasks", "3"]
    arguments += ["--options", json.dumps(options), "--output", str(tmp_path)]
    arguments += ["--multi-task-options", json.dumps({"meta_batch_size": 5})]
    compare_meta.main(arguments)
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["rows"]) == 4
    assert len(results["seeds"]) == 1

    for seed, result in enumerate(results["seeds"]):
        trainer = MetaTrainer(env_id, objective=objective, seed=seed, **options).learn(2)
        expected = trainer.evaluate("extrapolation", (0, 1), num_tasks=3, seed=compare_meta.EVALUATION_SEED)
        for steps, values in expected.items():
            assert result["values"]["meta-learned"]["extrapolation"][str(steps)] == values.tolist()
        baseline = MetaTrainer.load(tmp_path / f"multi-task-{seed}.pt")
        assert (baseline.options.inner_steps, baseline.options.meta_batch_size) == (0, 5)
        assert set(result["rates"].values()) <= {0.1 * baseline.options.inner_lr, baseline.options.inner_lr}

    row = next(row for row in results["rows"] if (row["split"], row["method"]) == ("extrapolation", "meta-learned"))
    values = [result["values"]["meta-learned"]["extrapolation"]["1"] for result in results["seeds"]]
    assert row["after"]["1"] == pytest.approx([np.mean(values), *interval_over_seeds(values, 0)])
    assert f"| extrapolation | meta-learned | {row['after']['0'][0]:.3g} [" in printed

    monkeypatch.setattr(MetaTrainer, "learn", lambda *_: pytest.fail("it was trained before"))
    compare_meta.main(arguments)
    with pytest.raises(SystemExit):
        compare_meta.main([*arguments, "--multi-task-options", "{}"])
    assert "--output must be a new folder or one of the same options" in capsys.readouterr().err
    (tmp_path / "meta-learned-0.pt").write_bytes(b"damaged")
    with pytest.raises(SystemExit):
        compare_meta.main(arguments)
    assert "meta-learned-0.pt cannot be read; delete it, and it is trained again: " in capsys.readouterr().err


def test_fine_tuning_takes_the_step_size_that_is_best_on_training_tasks(compare_meta, monkeypatch):
    trainer = MetaTrainer("ssm_metarl/PendulumPolarity-v0", **DYNAMICS)
    asked = []

    def fine_tuned(_, factor, split, num_tasks, seed):
        asked.append((split, seed))
        errors = {0: 1.0, 1: abs(factor - 0.3), 3: abs(factor - 1.0), 5: np.nan if factor > 0.02 else 5.0, 10: 1.0}
        return {steps: [error] * num_tasks for steps, error in errors.items()}

    monkeypatch.setattr(compare_meta, "fine_tuned", fine_tuned)
    best = compare_meta.best_factors(trainer, 3)
    assert (best[1], best[3], best[5]) == (0.3, 1.0, 0.01)
    assert set(asked) == {("train", compare_meta.TUNING_SEED)}
    trainer.objective = "policy"
    monkeypatch.setitem(compare_meta.NUM_STEPS, "policy", (0, 1, 3))
    assert compare_meta.best_factors(trainer, 3)[1] == max(compare_meta.FACTORS)  # of returns the most


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--options", '{"windw": 3}', "Did you mean 'window'"),
        ("--options", '{"inner_steps": 0}', "must have inner steps"),
        ("--env", "ssm_metarl/Pendulums-v0", "Pendulums"),
    ],
)
def test_bad_options(compare_meta, capsys, flag, value, message):
    with pytest.raises(SystemExit):
        compare_meta.main([flag, value])
    assert message in capsys.readouterr().err
