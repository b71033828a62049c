import json
from types import SimpleNamespace

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
                for timesteps, of_steps in ((300, result), (400, {"returns": [0.0, 0.0], "steps": 9, "reached": True})):
                    key = keep_sac.key_of(row, keep_sac.Options(timesteps=timesteps, num_episodes=2))
                    records.add(**key, column=column, seed=seed, **of_steps)
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


def test_what_was_corrected_by_another_rule_is_measured_again(keep_sac, tmp_path, monkeypatch):
    monkeypatch.setattr(keep_sac, "measure", lambda *_: [-1.0, -2.0])
    monkeypatch.setattr(keep_sac, "SAC", SimpleNamespace(load=lambda *_, **__: None))
    records, options = Records(tmp_path / "runs.jsonl"), keep_sac.Options(num_episodes=2)
    for rule in (3, 4):
        monkeypatch.setattr(keep_sac, "rule_of", lambda _, rule=rule: rule)
        for row in keep_sac.ROWS[:2]:
            keep_sac.run_row(row, "g = 7", SimpleNamespace(policy_path=None), 0, options, records)
    assert [line["row"] for line in records.find()] == ["as it is", "corrected", "corrected"]


class Learner:
    """A policy that tells how it learned."""

    num_timesteps, gradient_steps = 6000, 1

    def __init__(self):
        self.learned = []

    def set_random_seed(self, seed):
        pass

    def learn(self, steps, reset_num_timesteps):
        assert not reset_num_timesteps
        self.num_timesteps += steps
        self.learned.append((steps, self.gradient_steps))


def test_training_looks_at_other_starts_than_the_table_and_begins_with_some_transitions(keep_sac, monkeypatch):
    learner = Learner()
    looked = []

    def measure(model, task, seed, options, kept=None):
        looked.append((seed, kept))
        return [500.0 * (kept is not None) + model.num_timesteps - 6000] * 2

    monkeypatch.setattr(keep_sac, "measure", measure)
    monkeypatch.setattr(keep_sac, "SAC", SimpleNamespace(load=lambda *_, **__: learner))
    kept = SimpleNamespace(policy_path=None)
    result = keep_sac.train_further(kept, {}, 2, keep_sac.Options())
    assert result == {"returns": [500.0, 500.0], "steps": 500, "reached": True}
    assert learner.learned == [(100, 0), (400, 1)]
    # What it must reach is measured in the starts that tell when it has.
    assert looked == [(3_002_000, each) for each in (None, kept, None, None)] + [(1_002_000, None)]


@pytest.mark.slow
def test_training_ends_when_it_is_as_good_and_nothing_is_done_twice(keep_sac, tmp_path, capsys, monkeypatch):
    settings = {"META_UPDATES": 2, "NUM_STREAMS": 40, "INTERVAL": 20, "MOST_STEPS": 40, "FIRST_STEPS": 5}
    for name, value in settings.items():
        monkeypatch.setattr(keep_sac, name, value)
    columns = {name: keep_sac.COLUMNS[name] for name in ("g = 9.81", "reversed motor")}
    monkeypatch.setattr(keep_sac, "COLUMNS", columns)
    arguments = ["--seeds", "1", "--timesteps", "200", "--num-episodes", "3", "--output", str(tmp_path)]
    keep_sac.main(arguments)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    found = {(line["row"], line.get("column")): line for line in lines}
    for column in columns:
        further = found["trained further", column]
        assert further["reached"] or further["steps"] == 40
        assert further["steps"] in (0, 20, 40)
    assert found["SAC", None]["steps"] == 200
    assert (tmp_path / "sac-200-0.zip").exists()

    monkeypatch.setattr(keep_sac, "measure", lambda *_: pytest.fail("it was measured before"))
    capsys.readouterr()
    keep_sac.main(arguments)
    assert capsys.readouterr().out.strip().endswith("|")
