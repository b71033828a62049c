import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records
from ssm_metarl_gym.experiments.statistics import interval_over_seeds


@pytest.fixture(scope="module")
def keep_your_policy(load_script):
    return load_script("keep_your_policy")


def test_constants_are_those_of_the_wrapper_and_each_is_halved_and_doubled(keep_your_policy):
    cases = [case for case in keep_your_policy.constant_cases() if case.family == "PendulumPolarity"]
    train = {case.row: case for case in cases if case.column == "train"}
    assert train["as chosen"].correction == {}
    assert train["half prior_steps"].correction == {"prior_steps": 8.0}
    assert train["twice error_floor"].adaptation == {"error_floor": 0.002}
    assert train["half decay"].correction == pytest.approx({"decay": 0.8})
    assert train["twice decay"].correction == pytest.approx({"decay": 0.95})
    # Constants are chosen on training tasks and on gravities that no other study measures.
    held_out = [*keep_your_policy.HELD_OUT, *(case.column for case in keep_your_policy.gravity_cases())]
    assert not {case.column for case in cases} & set(held_out)


def test_the_rule_is_chosen_on_training_tasks_among_all_orders_of_the_corrections(keep_your_policy):
    cases = list(keep_your_policy.rule_cases())
    assert {case.column.partition(",")[0] for case in cases} == {"train"}
    orders = {case.corrections for case in cases if case.correction is not None}
    assert orders == {("model",), ("filter",), ("filter", "model"), ("model", "filter")}
    assert len(cases) == 4 * (1 + len(orders))


def test_noise_is_met_with_and_without_a_reversed_motor_by_what_was_told_of_it_or_not(keep_your_policy):
    cases = list(keep_your_policy.noise_cases())
    of_filters = [case for case in cases if case.corrections == ("filter",)]
    assert {case.env_kwargs["task"].get("polarity", 1) for case in cases} == {1, -1}
    for noise in keep_your_policy.NOISES[1:]:
        told = [case.told_noise for case in of_filters if case.env_kwargs["observation_noise"] == noise]
        assert told == [0.0, noise, 3.0 * noise] * 2
        models = [case for case in cases if case.adapts and case.corrections == ("model",)]
        trained = [case.told_noise for case in models if case.env_kwargs["observation_noise"] == noise]
        assert trained == [0.0, noise] * 2


def test_the_table_is_of_the_seeds_of_the_command_line(keep_your_policy, tmp_path, capsys):
    records = Records(tmp_path / "runs.jsonl")
    key = {"study": "gravity", "family": "PendulumPolarity", "row": "as it is", "column": "g = 7", "num_tasks": 2}
    for seed in range(3):
        records.add(**key, seed=seed, returns=[10.0 * seed, 10.0 * seed], cpu_seconds=4.0 + 2.0 * seed)
    keep_your_policy.show("gravity", keep_your_policy.Options(seeds=2, num_tasks=2), records)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| as it is |"))
    assert row.startswith("| as it is | 5.0 [")
    assert row.endswith("| 5.0 |")


def test_what_is_kept_of_the_clean_gain_and_where_it_does_harm(keep_your_policy, tmp_path):
    records = Records(tmp_path / "runs.jsonl")
    key = {"study": "corruption", "family": "PendulumPolarity", "column": "switch", "num_tasks": 2}
    row = "corrected, 10% stuck"
    for seed in range(2):
        records.add(**key, row="as it is", seed=seed, returns=[-100.0, -300.0])
        rule = {"rule": keep_your_policy.RULE}
        records.add(**key, row="corrected", seed=seed, returns=[0.0, 0.0], rule=rule["rule"] - 1)  # of an earlier one
        records.add(**key, row="corrected", seed=seed, returns=[-100.0, -100.0], **rule)
        records.add(**key, row=row, seed=seed, returns=[-103.0, -117.0], **rule)
    options = keep_your_policy.Options(seeds=2, num_tasks=2)
    # 90 of 100, and the first task of both seeds lost more than 2 %.
    compared = [
        keep_your_policy.compare_with_frozen("PendulumPolarity", of, "switch", options, records)
        for of in (row, "corrected")
    ]
    assert compared == ["90.0 [90.0, 90.0], 2", "100.0 [100.0, 100.0], 0"]
    options = keep_your_policy.Options(seeds=3, num_tasks=2)
    assert keep_your_policy.compare_with_frozen("PendulumPolarity", row, "switch", options, records) == ""


def test_each_kind_and_share_of_corruption_meets_the_same_tasks_as_the_frozen_policies(keep_your_policy):
    cases = [case for case in keep_your_policy.corruption_cases() if case.family == "CartPolePolarity"]
    corrupted = [case for case in cases if case.corruption[1] > 0.0]
    assert len(corrupted) == 2 * 4 * 3 * 3
    assert len(cases) == len(corrupted) + 4 * 3
    assert {case.column for case in cases} == {"interpolation", "extrapolation", "switch"}


def test_what_was_only_partly_written_is_completed_and_another_rule_measured_again(
    keep_your_policy, tmp_path, monkeypatch
):
    monkeypatch.setattr(keep_your_policy, "FAMILIES", ("PendulumPolarity",))
    monkeypatch.setattr(keep_your_policy, "Prepared", lambda *_: SimpleNamespace(prepare=lambda _: None))
    monkeypatch.setattr(keep_your_policy, "run_cases", lambda cases, *_: [[1.0, 2.0]] * len(cases))
    options, path = keep_your_policy.Options(seeds=1, num_tasks=2), tmp_path / "runs.jsonl"
    keep_your_policy.run_study("corruption", options, Records(path))
    lines = path.read_text().splitlines(keepends=True)
    rows = [(line["row"], line["column"]) for line in map(json.loads, lines)]
    assert len(rows) == len(set(rows)) == 3 * (4 + 2 * 4 * 3)
    path.write_text("".join(lines[::2]))
    keep_your_policy.run_study("corruption", options, Records(path))
    assert sorted((line["row"], line["column"]) for line in Records(path).find()) == sorted(rows)
    monkeypatch.setattr(keep_your_policy, "RULE", keep_your_policy.RULE + 1)
    keep_your_policy.run_study("corruption", options, Records(path))
    again = [line["row"] for line in Records(path).find()[len(rows) :]]
    assert len(again) == len(rows) - 3
    assert "as it is" not in again


@pytest.mark.slow
def test_what_is_there_is_not_done_again(keep_your_policy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keep_your_policy, "FAMILIES", ("PendulumPolarity",))
    monkeypatch.setattr(keep_your_policy, "META_UPDATES", 2)
    monkeypatch.setattr(keep_your_policy, "NUM_STREAMS", 40)
    recipes = {name: replace(recipe, timesteps=100) for name, recipe in keep_your_policy.RECIPES.items()}
    monkeypatch.setattr(keep_your_policy, "RECIPES", recipes)
    short = {column: env_kwargs | {"max_episode_steps": 20} for column, env_kwargs in keep_your_policy.HELD_OUT.items()}
    monkeypatch.setattr(keep_your_policy, "HELD_OUT", short)
    arguments = ["--studies", "main", "--seeds", "2", "--num-tasks", "3", "--output", str(tmp_path)]
    keep_your_policy.main(arguments)
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    returns = [line["returns"] for line in lines if (line["row"], line.get("column")) == ("corrected", "switch")]
    low, high = interval_over_seeds(returns, 0)
    assert f"{np.mean(returns):.1f} [{low:.1f}, {high:.1f}]" in printed
    assert {line["steps"] for line in lines if line["row"] == "policy, masses"} == {128 * 64}

    monkeypatch.setattr(keep_your_policy, "run_cases", lambda *_: pytest.fail("it was measured before"))
    keep_your_policy.main(arguments)
    assert capsys.readouterr().out.strip().endswith("|")
