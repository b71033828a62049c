import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssm_metarl_gym.experiments.records import Records, append_line

ROWS = [{"env": "Reacher-v5", "seed": seed, "returns": [-3.25, seed]} for seed in range(3)]


@pytest.fixture
def path(tmp_path):
    """A file of three lines."""
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_lines_are_found_by_their_values_and_are_there_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    records = Records(path)
    assert records.find() == []
    for row in ROWS:
        records.add(**row)
    for each in (records, Records(path)):
        assert each.find() == ROWS
        assert each.find(env="Reacher-v5", seed=1) == [ROWS[1]]
        assert each.find(seed=3) == each.find(other=1) == []
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS


@pytest.mark.parametrize("half", ['{"env": "Rea', '{"env": "Reacher-v5"', "3"])
def test_half_a_last_line_is_removed_and_the_next_one_stands_by_itself(path, half):
    whole = path.read_bytes()
    with path.open("a") as file:
        file.write(half)
    records = Records(path)
    assert records.find() == ROWS
    assert path.read_bytes() == whole
    records.add(seed=3)
    assert Records(path).find() == [*ROWS, {"seed": 3}]


def test_a_last_line_without_its_end_counts_and_gets_it(path):
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    records = Records(path)
    assert records.find() == ROWS
    records.add(seed=3)
    assert Records(path).find() == [*ROWS, {"seed": 3}]


def test_who_only_reads_leaves_half_a_line(path):
    with path.open("a") as file:
        file.write('{"env')
    before = path.read_bytes()
    records = Records(path, is_read_only=True)
    assert records.find() == ROWS
    with pytest.raises(ValueError, match="was opened to be read only"):
        records.add(seed=3)
    assert path.read_bytes() == before


def test_what_is_added_is_found_by_what_was_asked_for_before(path):
    records = Records(path)
    assert records.find(env="Reacher-v5", seed=3) == []
    records.add(env="Reacher-v5", seed=3)
    records.add(env="Reacher-v5", seed=[3])
    assert records.find(env="Reacher-v5", seed=3) == [{"env": "Reacher-v5", "seed": 3}]
    assert len(records.find(env="Reacher-v5")) == 5


def test_a_kill_while_half_a_line_is_removed_loses_nothing(path, monkeypatch):
    with path.open("a") as file:
        file.write('{"env')
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Records(path)
    assert path.read_bytes() == before
    assert Records(path).find() == ROWS


@pytest.mark.parametrize("damaged", ['{"env": "Rea', "[]", "", "\0\0"])
def test_a_damaged_line_is_named(path, damaged):
    lines = path.read_text().splitlines()
    text = "\n".join([lines[0], damaged, lines[2], ""])
    path.write_text(text)
    with pytest.raises(ValueError, match=r"runs\.jsonl must be an object in JSON; line 2 is damaged"):
        Records(path)
    assert path.read_text() == text


def test_who_appends_leaves_the_half_line_of_another_process_alone(path):
    before = path.read_bytes() + b'{"seed": '
    path.write_bytes(before)
    append_line(path, path=3)
    assert path.read_bytes() == before + b'{"path": 3}\n'


def test_lines_of_many_processes_do_not_mix(path):
    lines = [{"seed": seed, "returns": [float(seed)] * 5_000} for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:  # each opens the file for itself, as processes do
        list(pool.map(lambda line: append_line(path, **line), lines * 20))
    found = Records(path).find()
    assert found[:3] == ROWS
    assert sorted(found[3:], key=lambda line: line["seed"]) == [line for line in lines for _ in range(20)]


def test_what_json_cannot_hold_is_not_written(path):
    before, records = path.read_bytes(), Records(path)
    with pytest.raises(TypeError):
        records.add(seed={1})
    assert records.find() == ROWS
    assert path.read_bytes() == before
