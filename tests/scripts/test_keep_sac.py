import json
from types import SimpleNamespace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records


@pytest.fixture(scope="module")
def keep_sac(load_script):
    return load_script("keep_sac")


def test_the_table_says_which_training_did_not_get_there(keep_sac, tmp_path, capsys):
    records = Records(tmp_path / "runs.jsonl")
    for seed in range(2):
        for row in keep_sac.ROWS:
            for column in keep_sac.COLUMNS:
                result = {"returns": [-100.0 - 20.0 * seed] * 2, "steps": 500, "reached": seed == 0}
                key = {"row": row, "column": column, "seed": seed, "num_episodes": 2}
                records.add(**key, timesteps=300, **result)
                records.add(**key, timesteps=400, returns=[0.0, 0.0], steps=1000, reached=True)
    keep_sac.show(keep_sac.Options(seeds=2, timesteps=300, num_episodes=2), records)
    printed = capsys.readouterr().out
    assert "| corrected | -110.0 [" in printed
    assert "| its steps, by seed | 500, > 500 |" in printed


def test_what_was_measured_after_other_steps_of_training_is_measured_again(keep_sac, tmp_path, monkeypatch):
    monkeypatch.setattr(keep_sac, "measure", lambda *_: [-1.0, -2.0])
    monkeypatch.setattr(keep_sac, "SAC", SimpleNamespace(load=lambda *_, **__: None))
    records = Records(tmp_path / "runs.jsonl")
    for timesteps in (300, 400, 300):
        options = keep_sac.Options(timesteps=timesteps, num_episodes=2)
        keep_sac.run_row("as it is", "g = 7", SimpleNamespace(policy_path=None), 0, options, records)
    assert [line["timesteps"] for line in records.find()] == [300, 400]


@pytest.mark.slow
def test_training_ends_when_it_is_as_good_and_nothing_is_done_twice(keep_sac, tmp_path, capsys, monkeypatch):
    for name, value in {"META_UPDATES": 2, "NUM_STREAMS": 40, "INTERVAL": 20, "MOST_STEPS": 40}.items():
        monkeypatch.setattr(keep_sac, name, value)
    columns = {name: keep_sac.COLUMNS[name] for name in ("g = 9.81", "reversed motor")}
    monkeypatch.setattr(keep_sac, "COLUMNS", columns)
    arguments = ["--seeds", "1", "--timesteps", "200", "--num-episodes", "3", "--output", str(tmp_path)]
    keep_sac.main(arguments)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    found = {(line["row"], line.get("column")): line for line in lines}
    for column in columns:
        means = [np.mean(found[row, column]["returns"]) for row in keep_sac.ROWS]
        further = found["trained further", column]
        assert further["reached"] == (means[2] >= max(means[:2]) - 0.01 * abs(max(means[:2])))
        assert further["steps"] <= 40
    assert found["SAC", None]["steps"] == 200
    assert (tmp_path / "sac-200-0.zip").exists()

    monkeypatch.setattr(keep_sac, "measure", lambda *_: pytest.fail("it was measured before"))
    capsys.readouterr()
    keep_sac.main(arguments)
    assert capsys.readouterr().out.strip().endswith("|")
