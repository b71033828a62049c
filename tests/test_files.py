import json
import math
import os

import numpy as np
import pytest

from ssm_metarl_gym.files import replacing, write_json


@pytest.fixture(params=[None, "old"], ids=["new", "existing"])
def path(request, tmp_path):
    """A path to write to, with and without a file there."""
    path = tmp_path / "results.tar.json"
    if request.param is not None:
        path.write_text(request.param)
    return path


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_the_new_file_takes_the_place_when_all_is_written(path, as_type):
    before = contents(path.parent)
    with replacing(as_type(path)) as temporary:
        temporary.write_text("new")
        assert temporary != path
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        assert {name: text for name, text in contents(path.parent).items() if name != temporary.name} == before
    assert contents(path.parent) == {path.name: "new"}


def fail(path, half, error):
    with replacing(path) as temporary:
        if half is not None:
            temporary.write_text(half)
        raise error("disk full")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("half", [None, "half"])
def test_a_failure_leaves_everything_as_it_was(path, error, half):
    before = contents(path.parent)
    with pytest.raises(error, match="disk full"):
        fail(path, half, error)
    assert contents(path.parent) == before


def test_nothing_written_is_a_failure(path):
    before = contents(path.parent)
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert contents(path.parent) == before


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder" / "kept").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"), replacing(tmp_path / "folder") as temporary:
        temporary.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    folder, fifo = tmp_path / "folder", tmp_path / "fifo"
    folder.mkdir()
    os.mkfifo(fifo)
    for path in (folder, fifo):
        with pytest.raises(OSError, match=rf"{path.name} must be a file, or nothing yet"), replacing(path):
            pytest.fail("nothing is written")
    assert sorted(tmp_path.iterdir()) == [fifo, folder]
    assert fifo.is_fifo()


class TestWriteJSON:
    def test_what_was_written_is_read_again(self, path):
        value = {"name": "x", "values": [1, 2.5, None, True], "inner": {"empty": {}}}
        write_json(path, value)
        assert json.loads(path.read_text()) == value
        assert path.read_text().endswith("{}\n  }\n}\n")
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_numbers_of_numpy_are_those_of_python(self, path):
        write_json(str(path), {"one": np.float32(0.5), "two": np.int64(2), "three": (np.arange(2), np.bool_(True))})
        assert json.loads(path.read_text()) == {"one": 0.5, "two": 2, "three": [[0, 1], True]}

    def test_what_is_not_finite_is_null(self, path):
        write_json(path, [math.nan, {"a": -math.inf}, np.array([1.0, np.nan]), np.float64("inf")])
        assert json.loads(path.read_text(), parse_constant=pytest.fail) == [None, {"a": None}, [1.0, None], None]

    def test_what_json_cannot_hold_leaves_everything_as_it_was(self, path):
        before = contents(path.parent)
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_json(path, {"good": 1, "bad": object()})
        assert contents(path.parent) == before
