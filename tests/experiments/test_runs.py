import json

import pytest

from ssm_metarl_gym import __version__
from ssm_metarl_gym.experiments.runs import (
    Stopwatch,
    check_output,
    find_checkpoints,
    find_versions,
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

    def test_there_may_be_none(self, tmp_path):
        assert find_checkpoints(tmp_path / "nothing") == []


class TestOutput:
    def test_a_configuration_is_read_as_it_was_written(self, tmp_path):
        assert read_config(tmp_path, "policy") is None
        write_config(tmp_path, {"policy": "mlp", "seed": 3})
        assert read_config(tmp_path, "policy") == {"policy": "mlp", "seed": 3}
        with pytest.raises(ValueError, match=r"config\.json is of something else"):
            read_config(tmp_path, "objective")

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
