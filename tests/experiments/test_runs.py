import json
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ssm_metarl_gym import __version__
from ssm_metarl_gym.experiments.runs import (
    Stopwatch,
    check_checkpoint,
    check_output,
    find_checkpoints,
    find_versions,
    find_whole_checkpoint,
    lock_run,
    read_config,
    save_checkpoint,
    write_config,
)


def test_seconds_add_up():
    seconds = Stopwatch(wall_seconds=100.0, cpu_seconds=50.0).read()
    assert 100.0 <= seconds["wall_seconds"] < 101.0
    assert 50.0 <= seconds["cpu_seconds"] < 51.0


def test_versions_are_of_what_is_installed():
    versions = find_versions(["numpy", "ssm-metarl-gym", "no-such-package"])
    assert versions.keys() == {"python", "numpy", "ssm-metarl-gym"}
    assert versions["ssm-metarl-gym"] == __version__


class TestCheckpoints:
    @staticmethod
    def save(folder, number):
        save_checkpoint(folder, number, lambda checkpoint: (checkpoint / "data").write_text(str(number)))

    def test_the_last_two_are_kept(self, tmp_path):
        for number in (5, 20, 100):
            self.save(tmp_path / "checkpoints", number)
        checkpoints = find_checkpoints(tmp_path / "checkpoints")
        assert [int(path.name) for path in checkpoints] == [20, 100]
        assert [(path / "data").read_text() for path in checkpoints] == ["20", "100"]

    def test_one_that_cannot_be_written_is_none(self, tmp_path):
        def fail(checkpoint):
            (checkpoint / "data").write_text("half")
            raise OSError("disk full")

        self.save(tmp_path, 1)
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(tmp_path, 2, fail)
        assert [int(path.name) for path in find_checkpoints(tmp_path)] == [1]
        self.save(tmp_path, 2)  # what was left of it is in nobody's way
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000001", "0000000002"]

    def test_what_a_killed_process_left_of_one_is_deleted(self, tmp_path):
        code = """if True:
            import os, pathlib, sys
            from ssm_metarl_gym.experiments.runs import save_checkpoint
            save_checkpoint(pathlib.Path(sys.argv[1]), 1, lambda checkpoint: os.kill(os.getpid(), 9))
        """
        subprocess.run([sys.executable, "-c", code, str(tmp_path)])  # noqa: S603
        assert len(list(tmp_path.iterdir())) == 1
        assert find_whole_checkpoint(tmp_path, pytest.fail) is None
        self.save(tmp_path, 2)
        assert [path.name for path in tmp_path.iterdir()] == ["0000000002"]

    def test_there_may_be_none(self, tmp_path):
        assert find_checkpoints(tmp_path / "nothing") == []
        assert find_whole_checkpoint(tmp_path / "nothing", pytest.fail) is None

    def test_all_of_it_is_on_the_disk_before_it_appears(self, tmp_path, monkeypatch):
        flushed, fsync = [], os.fsync

        def spy(file):
            path = os.readlink(f"/proc/self/fd/{file}")
            flushed.append((os.path.basename(path), [path.name for path in find_checkpoints(tmp_path)]))
            fsync(file)

        monkeypatch.setattr(os, "fsync", spy)
        self.save(tmp_path, 7)
        early = [name.split(".")[1] if name.startswith(".") else name for name, there in flushed if not there]
        assert {"data", "checksums", "unfinished"} <= set(early)
        assert flushed[-1] == (tmp_path.name, ["0000000007"])

    def test_those_that_are_further_make_way(self, tmp_path):
        for step in (5, 10, 15):
            self.save(tmp_path, step)
        self.save(tmp_path, 10)
        assert [int(path.name) for path in find_checkpoints(tmp_path)] == [10]


def empty(checkpoint):
    (checkpoint / "data").write_bytes(b"")


def flip(checkpoint):
    (checkpoint / "data").write_bytes(b"\x01" + (checkpoint / "data").read_bytes()[1:])


def lose(checkpoint):
    (checkpoint / "data").unlink()


def lose_all(checkpoint):
    for path in checkpoint.iterdir():
        path.unlink()


def halve_archive_of_an_earlier_version(checkpoint):
    with zipfile.ZipFile(checkpoint / "model.zip", "w") as archive:
        archive.writestr("data", "text")
    (checkpoint / "model.zip").write_bytes((checkpoint / "model.zip").read_bytes()[:50])
    (checkpoint / "checksums.json").unlink()


def empty_file_of_an_earlier_version(checkpoint):
    empty(checkpoint)
    (checkpoint / "checksums.json").unlink()


class TestDamagedCheckpoints:
    damages = pytest.mark.parametrize(
        "damage",
        [empty, flip, lose, lose_all, halve_archive_of_an_earlier_version, empty_file_of_an_earlier_version],
    )

    @damages
    def test_the_one_before_is_taken_and_it_is_said_so(self, tmp_path, damage):
        for step in (1, 2):
            TestCheckpoints.save(tmp_path, step)
        first, second = find_checkpoints(tmp_path)
        assert find_whole_checkpoint(tmp_path, pytest.fail) == second
        damage(second)
        said = []
        assert find_whole_checkpoint(tmp_path, said.append) == first
        (sentence,) = said
        assert sentence.startswith(str(second))
        assert "The run goes on from 0000000001, and 0000000002 is now 0000000002.damaged." in sentence
        # From now on it is none, and the run may reach it again.
        assert find_checkpoints(tmp_path) == [first]
        assert (tmp_path / "0000000002.damaged").is_dir()
        assert find_whole_checkpoint(tmp_path, pytest.fail) == first
        TestCheckpoints.save(tmp_path, 2)
        assert find_whole_checkpoint(tmp_path, pytest.fail) == second

    @damages
    def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(self, tmp_path, damage):
        for step in (1, 2):
            TestCheckpoints.save(tmp_path, step)
            damage(find_checkpoints(tmp_path)[-1])
        with pytest.raises(ValueError, match=rf"of those in {tmp_path} none is: .* or delete {tmp_path} to begin anew"):
            find_whole_checkpoint(tmp_path, pytest.fail)
        assert len(find_checkpoints(tmp_path)) == 2

    def test_any_flipped_bit_is_found(self, tmp_path):
        rng = np.random.default_rng(0)
        names = ("model.zip", "seconds.json", "vecnormalize.pkl")

        def write(checkpoint):
            for name in names:
                (checkpoint / name).write_bytes(rng.bytes(1000))

        save_checkpoint(tmp_path, 1, write)
        (checkpoint,) = find_checkpoints(tmp_path)
        for flip_index in range(200):
            path = checkpoint / (*names, "checksums.json")[flip_index % 4]
            whole = path.read_bytes()
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"(is damaged|is missing)\."):
                check_checkpoint(checkpoint)
            path.write_bytes(whole)
        check_checkpoint(checkpoint)

    def test_one_of_an_earlier_version_is_whole_as_far_as_can_be_told(self, tmp_path):
        TestCheckpoints.save(tmp_path, 1)
        (checkpoint,) = find_checkpoints(tmp_path)
        (checkpoint / "checksums.json").unlink()
        assert find_whole_checkpoint(tmp_path, pytest.fail) == checkpoint


class TestLock:
    @staticmethod
    def start(folder, *, then):
        """A process that holds the folder; what it prints when it does."""
        code = f"""if True:
            import os, pathlib, sys, time
            from ssm_metarl_gym.experiments.runs import lock_run
            with lock_run(pathlib.Path(sys.argv[1])):
                print("held", flush=True)
                {then}
        """
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
        )

    def test_one_at_a_time(self, tmp_path):
        with lock_run(tmp_path):
            message = rf"{tmp_path} is in use by process {os.getpid()} on .* give another --output"
            with pytest.raises(ValueError, match=message), lock_run(tmp_path):
                pytest.fail("not held")
        with lock_run(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_an_error_lets_go(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), lock_run(tmp_path):
            raise KeyboardInterrupt
        with lock_run(tmp_path):
            pass

    def test_that_of_a_process_that_lives_is_respected_and_that_of_a_killed_one_is_taken_over(self, tmp_path):
        with self.start(tmp_path, then="time.sleep(60)") as process:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(ValueError, match=f"in use by process {process.pid} on "), lock_run(tmp_path):
                pytest.fail("not held")
            process.send_signal(signal.SIGKILL)
        assert (tmp_path / ".lock").exists()
        with lock_run(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
        assert not (tmp_path / ".lock").exists()

    def test_what_killed_runs_left_unfinished_anywhere_is_deleted(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        for name in (".model.0123abcd-7-89abcdef.pt", "checkpoints/.unfinished.0123abcd-7-89abcdef", ".notes.txt"):
            (tmp_path / name).write_text("half")
        with lock_run(tmp_path):
            assert {path.name for path in tmp_path.rglob("*")} == {".lock", ".notes.txt", "checkpoints"}

    def test_a_missing_folder_is_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError), lock_run(tmp_path / "nothing"):
            pytest.fail("not held")


class TestOutput:
    def test_a_configuration_is_read_as_it_was_written(self, tmp_path):
        assert read_config(tmp_path, "policy") is None
        write_config(tmp_path, {"policy": "mlp", "seed": 3})
        assert read_config(tmp_path, "policy") == {"policy": "mlp", "seed": 3}
        with pytest.raises(ValueError, match=r"config\.json is of something else"):
            read_config(tmp_path, "objective")

    def test_what_json_does_not_hold_comes_back_as_it_is_written(self, tmp_path):
        write_config(tmp_path, {"policy": "mlp", "sizes": (1, np.int64(2)), "loss": float("nan")})
        assert read_config(tmp_path, "policy") == {"policy": "mlp", "sizes": [1, 2], "loss": None}

    def test_no_flipped_bit_of_a_configuration_has_a_consequence(self, tmp_path):
        """Those in the name of the checksum alone pass, since nothing else has changed."""
        config = {"policy": "mlp", "seed": 10, "gamma": 0.98, "env_kwargs": {"é": [None, True]}}
        write_config(tmp_path, config)
        path = tmp_path / "config.json"
        whole, num_passed = path.read_bytes(), 0
        for position in range(0, 8 * len(whole), 3):
            damaged = bytearray(whole)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                assert read_config(tmp_path, "policy") == config
            except ValueError:
                continue
            num_passed += 1
        assert 0 < num_passed <= 8 * len("checksum")

    def test_what_was_edited_is_refused_with_the_way_out(self, tmp_path):
        write_config(tmp_path, {"policy": "mlp", "seed": 3})
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace("3", "4", 1))
        with pytest.raises(
            ValueError, match=r"config\.json must be as .* delete its last entry, .checksum., to use it"
        ):
            read_config(tmp_path, "policy")
        config = json.loads(path.read_text())
        del config["checksum"]
        path.write_text(json.dumps(config))
        assert read_config(tmp_path, "policy") == {"policy": "mlp", "seed": 4}

    def test_a_missing_folder_is_none_of_another_run(self, tmp_path):
        check_output(tmp_path / "a" / "b", {"seed": 3}, "policy")
        assert not list(tmp_path.iterdir())

    def test_other_options_are_refused_once_something_was_learned(self, tmp_path):
        write_config(tmp_path, {"policy": "mlp", "seed": 3, "num_envs": 4})
        check_output(tmp_path, {"seed": 5, "num_envs": 2}, "policy")
        (tmp_path / "checkpoints" / "0000000001").mkdir(parents=True)
        check_output(tmp_path, {"seed": 3}, "policy")
        with pytest.raises(ValueError, match=r"--seed \(3 there, 5 now\), --num-envs \(4 there, 2 now\)\. Give"):
            check_output(tmp_path, {"seed": 5, "num_envs": 2}, "policy")

    def test_so_are_those_of_a_finished_run(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"policy": "mlp", "finished": True}))
        with pytest.raises(ValueError, match=r'--policy \("mlp" there, "ssm" now\)'):
            check_output(tmp_path, {"policy": "ssm"}, "policy")

    def test_a_configuration_that_cannot_be_read_is_named(self, tmp_path):
        (tmp_path / "config.json").mkdir()
        with pytest.raises(ValueError, match=r"config\.json cannot be read \(Is a directory\)"):
            check_output(tmp_path, {}, "policy")
