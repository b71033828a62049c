import os
import sys
from pathlib import Path

import pytest

from ssm_metarl_gym.experiments.checks import (
    check_device,
    check_env,
    check_output_file,
    check_output_folder,
    explaining,
)


class TestExplaining:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (ValueError("a must be b"), "a must be b"),
            (ImportError("no a"), "ImportError: no a"),
            (MemoryError(), "MemoryError"),
            (SystemExit("bye"), "SystemExit: bye"),
            (RuntimeError("one\n  two"), "RuntimeError: one two"),
        ],
    )
    def test_all_that_is_raised_is_told_in_one_line(self, error, text):
        with pytest.raises(ValueError, match=rf"^it cannot be: {text}$") as info, explaining("it cannot be"):
            raise error
        assert info.value.__cause__ is error

    def test_but_not_that_it_was_interrupted(self):
        with pytest.raises(KeyboardInterrupt), explaining("it cannot be"):
            raise KeyboardInterrupt


class TestEnv:
    def test_one_that_can_be_made(self):
        check_env("ssm_metarl/CartPole-v0", {"context": "visible"})
        check_env("ssm_metarl_gym:ssm_metarl/PendulumSwitch-v0", {})

    @pytest.mark.parametrize(
        ("env_id", "env_kwargs", "message"),
        [
            ("ssm_metarl/CartPoles-v0", {}, "Environment `CartPoles` doesn't exist in namespace ssm_metarl"),
            ("ssm_metarl/CartPole-v0", {"splt": "train"}, "TypeError: .*splt"),
            ("ssm_metarl/CartPole-v0", {"split": "test"}, "split must be one of"),
            ("no_such_module:CartPole-v1", {}, "ModuleNotFoundError: "),
            ("", {}, "Malformed environment ID"),
        ],
    )
    def test_one_that_cannot(self, env_id, env_kwargs, message):
        with pytest.raises(ValueError, match=rf"^--env {env_id} with --env-kwargs .* cannot be made: .*{message}"):
            check_env(env_id, env_kwargs)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("def f(:", "SyntaxError: invalid syntax"),
            ("1 / 0", "ZeroDivisionError: division by zero"),
            ("import sys; sys.exit('no')", "SystemExit: no"),
            ("", "NameNotFound|doesn't exist"),
        ],
    )
    def test_a_module_may_raise_anything(self, tmp_path, monkeypatch, code, message):
        (tmp_path / "broken_module.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ValueError, match=rf"broken_module:Mine-v0 .* cannot be made: .*({message})"):
            check_env("broken_module:Mine-v0", {})
        monkeypatch.delitem(sys.modules, "broken_module", raising=False)

    def test_nobody_watches(self):
        with pytest.raises(ValueError, match="--env-kwargs must leave out render_mode, as nobody watches; got 'human'"):
            check_env("ssm_metarl/CartPole-v0", {"render_mode": "human"})


class TestDevice:
    def test_one_that_there_is(self):
        check_device("cpu")

    @pytest.mark.parametrize("device", ["meta", "cpu:x", "", "gpu", "cuda:77", "vulkan"])
    def test_one_that_cannot_compute(self, device):
        with pytest.raises(
            ValueError, match=f"^--device must be a device that PyTorch can compute on; got '{device}': "
        ):
            check_device(device)


class TestOutputFile:
    def test_a_new_file_or_one_to_replace_or_none(self, tmp_path):
        (tmp_path / "old").write_text("mine")
        for path in (None, tmp_path / "new", tmp_path / "old"):
            check_output_file(path)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert (tmp_path / "old").read_text() == "mine"

    def test_a_folder_in_its_place_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"^--plot must be a file, or nothing yet; .* is neither\. Give another"):
            check_output_file(tmp_path, "--plot")
        with pytest.raises(ValueError, match=r"^--output must be a file, or nothing yet; /dev/null is neither"):
            check_output_file(Path(os.devnull))

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"must be a file that can be written; got .*nowhere/a \(No such file"):
            check_output_file(tmp_path / "nowhere" / "a")


class TestOutputFolder:
    def test_it_may_be_missing_and_stays_so(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder in (tmp_path, tmp_path / "a" / "b", Path("c/d"), Path()):
            check_output_folder(folder, file_names=["results.json"])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["file", "file/folder/deeper"])
    def test_what_is_no_folder_is_named(self, tmp_path, name):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ValueError, match=rf"^--to must be a folder that can be written to; got .*{name} \("):
            check_output_folder(tmp_path / name, "--to")

    def test_a_folder_in_the_place_of_a_file_is_named(self, tmp_path):
        (tmp_path / "results.json").mkdir()
        check_output_folder(tmp_path, file_names=["model.pt"])
        with pytest.raises(
            ValueError, match=r"folder for results\.json; .*results\.json is no file\. Give another folder"
        ):
            check_output_folder(tmp_path, file_names=["model.pt", "results.json"])
