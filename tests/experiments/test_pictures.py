import sys

import numpy as np
import pytest
from PIL import Image

from ssm_metarl_gym.experiments.pictures import draw_curves, draw_lines, draw_returns, film, save_film
from ssm_metarl_gym.experiments.report import Estimate
from ssm_metarl_gym.wrappers import make_sb3_env


class Still:
    """Always pushes to the left."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(len(observation), dtype=int), None


def is_drawn(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("L")).std() > 5


def test_returns_are_drawn(tmp_path):
    path = tmp_path / "returns.png"
    estimates = {agent: {"switch": Estimate(1.0, 0.5, np.nan), "default": Estimate(2, 2, 2)} for agent in "ab"}
    draw_returns(estimates, {agent: {"switch": [1.0, 2.0], "default": [2.0]} for agent in "ab"}, path)
    assert is_drawn(path)
    assert list(tmp_path.iterdir()) == [path]


def test_lines_and_levels_are_drawn(tmp_path):
    told = {1.0: Estimate(3.0, 2.0, 4.0), 2.0: Estimate(4.0, 3.0, 5.0)}
    for name, level in (("low", 1.0), ("high", 4.5)):
        corrected = {0: Estimate(level, level, level)}
        draw_lines(
            {"switch": {"told": told, "corrected": corrected}, "nominal": {"told": told}}, "d", tmp_path / f"{name}.png"
        )
        assert is_drawn(tmp_path / f"{name}.png")
    assert (tmp_path / "low.png").read_bytes() != (tmp_path / "high.png").read_bytes()


def test_curves_are_drawn_with_the_step_of_the_change(tmp_path):
    curves = {"mlp": {"switch": np.arange(30.0), "default": np.arange(3.0)}}
    for name, changes in (("changing", {"switch": 15}), ("still", {})):
        draw_curves(curves, changes, tmp_path / f"{name}.png")
        assert is_drawn(tmp_path / f"{name}.png")
    assert (tmp_path / "changing.png").read_bytes() != (tmp_path / "still.png").read_bytes()


@pytest.mark.parametrize(
    ("env_id", "what"), [("CartPole-v1", "no trials"), ("ssm_metarl/CartPolePolarity-v0", "falls")]
)
def test_a_film_shows_every_second_frame_of_one_episode(env_id, what, tmp_path):
    env = make_sb3_env(env_id, render_mode="rgb_array", max_episode_steps=7)
    frames = film(Still(), env, "still", seed=3)
    assert [frame.shape for frame in frames] == [(266, 400, 3)] * 4
    save_film(tmp_path / "film.gif", frames, frames[:3])
    with Image.open(tmp_path / "film.gif") as saved:
        assert (saved.size, saved.n_frames) == ((800, 266), 3)


def test_without_the_extra_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'matplotlib. Install it: python -m pip install "ssm-metarl-gym\[demo\]"'):
        draw_curves({"mlp": {"switch": np.arange(3.0)}}, {}, tmp_path / "curves.png")
    with pytest.raises(ImportError, match="pictures and films need pillow"):
        save_film(tmp_path / "film.gif", [np.zeros((2, 2, 3), dtype=np.uint8)])
    assert not list(tmp_path.iterdir())
