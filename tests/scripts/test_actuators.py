import json

import numpy as np
import pytest

from ssm_metarl_gym.experiments.jobs import Job
from ssm_metarl_gym.experiments.records import Records


@pytest.fixture(scope="module")
def actuators(load_script):
    return load_script("actuators")


@pytest.fixture
def options(actuators, tmp_path):
    return actuators.Options(
        dimensions=(1, 2), rows=("as_is", "corrected_filter", "told"), steps=(100, 200), seeds=2, output=tmp_path
    )


def fill(actuators, options, value=lambda name, row, seed, steps, column: 10.0 * seed):
    """Records of all runs."""
    records = options.records()
    for name, row, seed, steps in actuators.all_runs(options):
        for column in actuators.columns_of(name, options.num_tasks):
            key = actuators.key_of(name, row, seed, steps, column, options)
            returns = [value(name, row, seed, steps, column)] * options.num_tasks
            records.add(**key, returns=returns, cpu_seconds=1.0)
    return records


class TestPlan:
    def test_cheap_rows_come_first_and_of_each_stage_the_first_seeds(self, actuators, options):
        runs = list(actuators.all_runs(options))
        assert runs[:4] == [(f"d = {d}", row, 0, 0) for d in (1, 2) for row in ("as_is", "corrected_filter")]
        assert [run[2:] for run in runs if run[:2] == ("d = 1", "told")] == [(0, 100), (1, 100), (0, 200), (1, 200)]
        assert len(runs) == len(set(runs)) == 2 * 2 * (2 + 2)

    def test_what_a_row_stands_on_is_done_before_it(self, actuators, options):
        jobs = actuators.plan_jobs(options, options.records())
        for index, job in enumerate(jobs):
            assert set(job.after) <= set(jobs[:index])
        works = [job.work.__name__ for job in jobs]
        assert [works.count(name) for name in ("learn_policy", "fit_map_model", "meta_train")] == [4, 4, 0]
        assert works.count("run_row") == 16

    def test_what_is_known_is_not_done_again(self, actuators, options):
        records = fill(actuators, options)
        assert actuators.plan_jobs(options, records) == []
        more = actuators.Options(**{**vars(options), "rows": (*options.rows, "corrected_rls")})
        assert {job.arguments[1] for job in actuators.plan_jobs(more, records) if job.work is actuators.run_row} == {
            "corrected_rls"
        }

    def test_only_the_columns_that_are_missing_are_evaluated(self, actuators, options):
        fill(actuators, options)
        path = options.output / "runs.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        (job,) = [job for job in actuators.plan_jobs(options, options.records()) if job.work is actuators.run_row]
        assert job.arguments[4] == ("nominal",)

    def test_what_adapts_is_done_again_by_another_rule_and_not_mixed_with_it(self, actuators, options, monkeypatch):
        records = fill(actuators, options)
        key = {"physics": "d = 1", "steps": 0, "column": "switch"}
        monkeypatch.setattr(actuators, "RULE", actuators.RULE + 1)
        jobs = actuators.plan_jobs(options, records)
        assert {job.arguments[1] for job in jobs if job.work is actuators.run_row} == {"corrected_filter"}
        assert actuators.returns_in(records, options, row="corrected_filter", **key) == []
        assert len(actuators.returns_in(records, options, row="as_is", **key)) == 2

    def test_every_job_can_be_sent_and_told_apart(self, actuators, options):
        jobs = actuators.plan_jobs(options, options.records())
        assert all(isinstance(job, Job) for job in jobs)
        assert len(set(jobs)) == len(jobs)


class TestColumns:
    def test_a_switch_comes_half_way(self, actuators):
        assert actuators.columns_of("d = 4", 30)["switch"] == {"split": "interpolation", "switch": {"step": 50}}

    def test_of_the_benchmark_hold_its_contexts_with_and_without_a_warm_up(self, actuators):
        columns = actuators.columns_of("ComplexODE", 50)
        assert list(columns)[3:] == [f"{name}, 24 before" for name in ("interpolation", "extrapolation", "switch")]
        env_kwargs = columns["switch, 24 before"]
        assert (env_kwargs["warm_up_steps"], env_kwargs["max_episode_steps"]) == (24, 224)
        assert env_kwargs["switch"] == {"step": 124}
        tasks = list(columns["extrapolation"]["task"])
        assert tasks[:20] == tasks[20:40] == list(actuators.AIB_CONTEXTS["ComplexODE"].extrapolation.tasks)

    @pytest.mark.parametrize(("name", "most"), [("DoubleIntegrator", 0.5), ("ComplexODE", 0.5)])
    def test_distances_are_from_the_training_range(self, actuators, name, most):
        distances = actuators.context_distances(name)
        assert distances.shape == (20,)
        assert 0.0 < distances.min() < distances.max() == pytest.approx(most)

    def test_returns_of_one_context_are_averaged(self, actuators):
        returns = np.arange(40.0)
        assert actuators.context_means([returns]).tolist() == [(np.arange(20) + 10.0).tolist()]
        assert actuators.context_means([]).shape == (0, 20)


def test_tables_and_pictures_are_of_what_is_known(actuators, options, capsys):
    records = fill(actuators, options, lambda name, row, seed, steps, column: 10.0 * seed + steps)
    for seconds in (1.0, 2.0):
        records.add(study="prepared", physics="d = 1", row="policy", steps=5000, cpu_seconds=seconds)
    actuators.show_returns("d = 1", options, records)
    printed = capsys.readouterr().out
    assert "| told, 0.0002M | 205.0 [" in printed
    actuators.show_costs(options, records)
    assert "| d = 1 | policy | 5,000 | 1.5 |" in capsys.readouterr().out
    actuators.draw(options, records)
    assert (options.output / "return_by_dimension.png").exists()
    assert not (options.output / "return_by_steps.png").exists()  # of a dimension that was not asked for


def test_returns_of_the_benchmark_are_scaled(actuators, tmp_path, capsys):
    options = actuators.Options(
        dimensions=(1,), aib=("ComplexODE",), rows=("as_is",), seeds=2, num_tasks=40, output=tmp_path
    )
    records = fill(actuators, options, lambda *key: 50.0)
    actuators.show_scaled("ComplexODE", options, records)
    printed = capsys.readouterr().out
    assert "| as_is | 0.25 [0.25, 0.25] |" in printed
    assert "| as_is | 50.0 [50.0, 50.0] |" in printed


def test_a_report_runs_nothing(actuators, options, capsys):
    fill(actuators, actuators.Options(**{**vars(options), "seeds": 1}))
    arguments = ["--report", "--dimensions", "1", "2", "--rows", "as_is", "told", "--steps", "100", "--seeds", "3"]
    actuators.main([*arguments, "--output", str(options.output)])
    assert "d = 2, 300 tasks" in capsys.readouterr().out
    assert (options.output / "return_by_dimension.png").exists() is False  # no row of those that it compares


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d = 2", "DoubleIntegrator"])
@pytest.mark.parametrize(
    "row",
    ["as_is", "corrected_filter", "corrected_gradients", "corrected_rls", "told", "ssm_ppo", "adapted_predictions"],
)
def test_a_row_is_trained_and_evaluated(actuators, tmp_path, monkeypatch, name, row):
    for constant, value in (("META_UPDATES", 2), ("NUM_STREAMS", 40), ("FIT_TRANSITIONS", 300), ("FIT_UPDATES", 2)):
        monkeypatch.setattr(actuators, constant, value)
    monkeypatch.setattr(actuators, "add_progress", lambda steps: None)
    options = actuators.Options(rows=(row,), seeds=1, num_tasks=20, output=tmp_path, dimensions=(2,), aib=(name,))
    physics = actuators.PHYSICS[name]
    monkeypatch.setitem(actuators.PHYSICS, name, type(physics)(**{**vars(physics), "nominal_steps": 100}))
    steps = 0 if row in actuators.CORRECTED else 100
    actuators.learn_policy(name, "nominal", 0, 100, options)
    actuators.fit_map_model(name, 0, options)
    actuators.meta_train(name, 0, options)
    columns = tuple(actuators.columns_of(name, 20))
    actuators.run_row(name, row, 0, steps, columns, options)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    found = {line["column"]: line for line in lines if line["study"] == "returns"}
    assert tuple(found) == columns
    assert all(np.isfinite(line["returns"]).all() and len(line["returns"]) == 20 for line in found.values())
    assert {line["row"] for line in found.values()} == {row}
    records = Records(tmp_path / "runs.jsonl")
    assert records.find(study="prepared")
    assert all(records.find(**actuators.key_of(name, row, 0, steps, column, options)) for column in columns)
