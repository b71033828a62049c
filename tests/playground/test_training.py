"""Bundles are made anew by one command, the same ones by the same seed."""

import json
from dataclasses import replace

import pytest

from ssm_metarl_gym.playground.server import SITE
from ssm_metarl_gym.playground.training import FILES, RECIPES, train_bundles


def test_what_is_made_is_what_the_page_loads():
    assert set(FILES) == {path.name for path in SITE.iterdir() if path.suffix in (".json", ".safetensors")}


@pytest.mark.slow
def test_one_seed_makes_one_bundle(tmp_path):
    said: list[str] = []
    tiny = {"timesteps": 2_048, "num_epochs": 1, "meta_updates": 2, "num_streams": 40, "reference_updates": 20}
    recipes = {"point": replace(RECIPES["point"], **tiny, num_tasks=2)}
    for folder in ("one", "other"):
        train_bundles(tmp_path / folder, recipes, say=said.append)
    names = {"point.safetensors", "bundles.json"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    listed = json.loads((tmp_path / "one" / "bundles.json").read_text())
    assert list(listed) == list(recipes)
    assert len(said) == 4
    assert str(listed["point"]["returns"]["flip, corrected"]) in said[1]
