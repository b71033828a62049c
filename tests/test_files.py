import io
import json
import math
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ssm_metarl_gym.files import (
    check_checksums,
    check_zip,
    replacing,
    sweep,
    temporary_beside,
    write_checksums,
    write_json,
)


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


@pytest.mark.each_value
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


class TestTemporaryNames:
    def test_no_two_calls_share_one(self, path):
        with replacing(path) as first, replacing(path) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert contents(path.parent) == {path.name: "first"}

    def test_what_a_killed_process_left_is_deleted(self, tmp_path):
        path = tmp_path / "results.tar.json"
        code = (
            "import os, sys, pathlib; from ssm_metarl_gym.files import temporary_beside\n"
            "temporary = temporary_beside(pathlib.Path(sys.argv[1])); temporary.write_text('half')\n"
            "print(temporary.name, flush=True); os.kill(os.getpid(), 9)"
        )
        own = temporary_beside(path)
        own.write_text("of a process that lives")
        killed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)  # noqa: S603
        left = path.with_name(killed.stdout.strip())
        assert left.read_text() == "half"
        machine, process, token = left.suffixes[-2].removeprefix(".").split("-")
        elsewhere = f".{path.stem}.{int(machine, 16) ^ 1:08x}-{process}-{token}{path.suffix}"
        others = [f".{path.stem}{path.suffix}", f"x{left.name}", f".{path.stem}.{process}{path.suffix}"]
        for name in [elsewhere, *others]:
            (path.parent / name).write_text("mine")
        (path.parent / f".folder.{machine}-{process}-{token}").mkdir()
        with replacing(path) as temporary:
            temporary.write_text("new")
        assert contents(path.parent).keys() == {path.name, own.name, elsewhere, *others}
        sweep(path.parent, other_machines=True)
        assert contents(path.parent).keys() == {path.name, own.name, *others}

    def test_what_cannot_be_deleted_hinders_nobody(self, tmp_path, monkeypatch):
        machine, _, token = temporary_beside(tmp_path / "a").name.split("-")
        # More than there can be processes, and more than an integer of C can hold.
        theirs, odd = (tmp_path / f"{machine}-{process}-{token}" for process in (2**30, 10**30))
        theirs.write_text("of a process that is over")
        odd.write_text("of no process")
        unlink = os.unlink

        def refuse(path, **kwargs):
            if os.fspath(path) == str(theirs):
                raise PermissionError(path)
            unlink(path, **kwargs)

        monkeypatch.setattr(os, "unlink", refuse)
        write_json(tmp_path / "results.json", 1)
        assert contents(tmp_path).keys() == {theirs.name, odd.name, "results.json"}


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_its_name_after(path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.path.isdir(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("renamed"), replace(*names)))
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert order == []
    assert order == [False, "renamed", True]


class TestCheckZip:
    @pytest.fixture
    def archive(self):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("one", b"a" * 100)
            archive.writestr("two", os.urandom(300))
        return file.getvalue()

    def test_a_whole_one_passes(self, archive, tmp_path):
        (tmp_path / "a.zip").write_bytes(archive)
        check_zip(tmp_path / "a.zip", "it")
        check_zip(str(tmp_path / "a.zip"), "it")
        check_zip(io.BytesIO(archive), "it")

    def test_each_flipped_bit_in_what_it_holds_is_found(self, archive):
        start = archive.index(b"a" * 100)
        for bit in range(800):
            damaged = bytearray(archive)
            damaged[start + bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError, match="the model must be a whole archive; 'one' in it is damaged"):
                check_zip(io.BytesIO(damaged), "the model")

    def test_so_is_a_file_that_is_marked_as_a_folder(self, archive):
        damaged = bytearray(archive)
        damaged[archive.index(b"PK\x01\x02") + 38] |= 0x10
        with pytest.raises(ValueError, match="the model must be a whole archive; 'one' in it is damaged"):
            check_zip(io.BytesIO(damaged), "the model")

    @pytest.mark.parametrize("length", [0, 1, 50, 300, -1])
    def test_a_part_of_one_is_refused(self, archive, length):
        with pytest.raises(ValueError, match="the model must be a whole archive; it is damaged, or something else"):
            check_zip(io.BytesIO(archive[:length]), "the model")

    def test_a_part_of_one_that_holds_another_is_refused(self, archive):
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as file:
            file.writestr("inner.zip", archive)
            file.writestr("more", b"more" * 100)
        check_zip(outer, "the model")
        with pytest.raises(ValueError, match="the model must be a whole archive; a part of it is missing"):
            check_zip(io.BytesIO(outer.getvalue()[:-300]), "the model")

    def test_a_missing_one_is_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            check_zip(tmp_path / "nothing.zip", "it")


class TestChecksums:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "inner").mkdir()
        (tmp_path / "data").write_bytes(b"data")
        (tmp_path / "inner" / "empty").write_bytes(b"")
        write_checksums(tmp_path, ["data", "inner/empty"])
        return tmp_path

    def test_they_agree_with_what_was_written(self, folder):
        expected = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"  # of b"data"
        assert json.loads((folder / "checksums.json").read_text())["data"] == expected
        (folder / "another").write_text("nobody's")
        assert check_checksums(folder)

    def test_without_them_nobody_knows(self, folder):
        (folder / "checksums.json").unlink()
        assert not check_checksums(folder)
        assert not check_checksums(folder / "nothing")

    @pytest.mark.parametrize("bytes_", [b"", b"datb", b"dat", b"data\n"])
    def test_another_file_is_named(self, folder, bytes_):
        (folder / "data").write_bytes(bytes_)
        with pytest.raises(ValueError, match=r"data is damaged\."):
            check_checksums(folder)

    def test_a_missing_file_is_named(self, folder):
        (folder / "inner" / "empty").unlink()
        with pytest.raises(ValueError, match=r"empty is missing\."):
            check_checksums(folder)

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff"])
    def test_damaged_ones_are_named(self, folder, text):
        (folder / "checksums.json").write_bytes(text)
        with pytest.raises(ValueError, match=r"checksums\.json is damaged\."):
            check_checksums(folder)
