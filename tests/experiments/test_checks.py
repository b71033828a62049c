import os
from pathlib import Path

import pytest

from ssm_metarl_gym.experiments.checks import check_output_file, check_output_folder


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
