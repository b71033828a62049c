import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest

from ssm_metarl_gym.experiments.scoreboard import board as board_module
from ssm_metarl_gym.experiments.scoreboard import plan
from ssm_metarl_gym.experiments.scoreboard.agents import AGENTS, CORRECTED, TRAINED, adapts
from ssm_metarl_gym.experiments.scoreboard.board import (
    Board,
    correct_by_filter,
    fit_map_model,
    learn_policy,
    make_env,
    meta_train,
)
from ssm_metarl_gym.experiments.scoreboard.physics import PHYSICS, columns_of
from ssm_metarl_gym.experiments.scoreboard.plan import Run, key_of, run_row

NAMES = ("PointActuators-2", "DoubleIntegrator", "ReacherActuators")


def shorten(patch):
    """Let hardly anything be learned."""
    for name, value in (
        ("NUM_ROUNDS", 1),
        ("STEPS_PER_ROUND", 5),
        ("META_UPDATES", 2),
        ("NUM_STREAMS", 40),
    ):
        patch.setattr(board_module, name, value)
    for name in NAMES:
        kwargs = {**PHYSICS[name].env_kwargs, "max_episode_steps": 20}
        fit = replace(PHYSICS[name].map_model, transitions=300, updates=2)
        less = {"nominal_steps": 100, "length": 20, "env_kwargs": kwargs, "map_model": fit}
        less |= {"num_envs": 8, "rollout_length": 16, "batch_size": None, "num_epochs": 1}
        patch.setitem(PHYSICS, name, replace(PHYSICS[name], **less))


@pytest.fixture
def board(tmp_path, monkeypatch):
    shorten(monkeypatch)
    return Board(tmp_path, 20)


def test_what_adapts():
    assert {row for row in AGENTS if adapts(row)} == {
        *("corrected_filter", "corrected_gradients", "corrected_rls", "adapted_predictions", "adapted_predictions_all"),
    }
    assert set(AGENTS) == {*CORRECTED, *TRAINED}


def test_an_agent_sees_what_it_is_said_to_see(board):
    widths = {
        row: make_env(board, "CartPolePolarity", row, 0, 2).observation_space.shape
        for row in TRAINED
        if not TRAINED[row].sees_predictions
    }
    assert widths["domain_randomisation"] == (4,)
    assert widths["told"] == (8,)
    assert widths["one_transition"] == widths["ssm_ppo"] == widths["recurrent_ppo"]
    assert len(widths["window_ssm"]) == 2


@pytest.mark.parametrize(
    ("name", "says"), [(NAMES[0], {"exploration": 0.2}), (NAMES[1], {}), (NAMES[2], {"exploration": 0.0})]
)
def test_a_filter_that_knows_of_mixes_explores_as_its_physics_say(monkeypatch, name, says):
    options = []
    monkeypatch.setattr(board_module, "VectorOnlineAdaptation", lambda envs, adapter: envs)
    monkeypatch.setattr(board_module, "VectorActionCorrection", lambda envs, **kwargs: options.append(kwargs))
    correct_by_filter(name, None, types.SimpleNamespace(mixed=PHYSICS[name].mixes_actions))
    assert options == [says]


def test_what_was_learned_with_less_is_not_taken_for_all(board):
    less = replace(board, percent=40)
    for what in ("map", "dynamics", "nominal 100"):
        assert less.stem("Pendulum", 0, what) != board.stem("Pendulum", 0, what)


@pytest.mark.slow
def test_what_is_there_is_not_learned_again_and_says_what_it_took(board, monkeypatch):
    (costs,) = learn_policy(board, "PointActuators-2", "nominal", 0, 100)
    assert costs["row"] == "policy, nominal"
    assert costs["steps"] == 8 * 16
    monkeypatch.setattr(board_module, "find_algorithm", lambda name: pytest.fail("it was learned before"))
    assert learn_policy(board, "PointActuators-2", "nominal", 0, 100) == [costs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What rows stand on, in episodes of twenty steps."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        for name in NAMES:
            board = Board(folder, 20)
            learn_policy(board, name, "nominal", 0, 100)
            fit_map_model(board, name, 0)
        for name in NAMES[:2]:
            meta_train(board, name, 0)
        meta_train(board, NAMES[0], 0, "all")
        learn_policy(board, NAMES[0], "told", 0, 100)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [
        *((NAMES[0], row) for row in AGENTS),
        *((NAMES[1], row) for row in ("as_is", "corrected_gradients")),
        *((NAMES[2], row) for row in ("corrected_filter", "ssm_ppo")),
    ],
)
def test_a_row_is_trained_and_evaluated(folder, monkeypatch, name, row):
    shorten(monkeypatch)
    monkeypatch.setattr(plan, "add_progress", lambda steps: None)
    board, run = Board(folder, 20), Run(name, row, 0, 0 if row in CORRECTED else 100)
    columns = tuple(columns_of(name, 20))[1:3]
    costs, *lines = run_row(board, run, columns)
    assert costs["study"] == "prepared"
    assert [line["column"] for line in lines] == list(columns) == ["extrapolation", "switch"]
    for line in lines:
        assert line.items() >= key_of(board, run, line["column"]).items()
        assert np.isfinite(line["returns"]).all()
        assert len(line["returns"]) == 20
        assert ("around" in line) == (line["column"] == "switch")
        assert line["versions"]["torch"]
        json.dumps(line)


def test_an_agent_of_ones_own_learns_and_is_evaluated_like_all_others(board, monkeypatch):
    class Still:
        def __init__(self, env, seed):
            self.env, self.steps = env, 0

        def learn(self, total_timesteps):
            self.steps += total_timesteps

        def predict(self, observations, state=None, episode_start=None, deterministic=False):
            assert self.steps == 77
            return np.zeros((len(observations), 2), dtype=np.float32), state

    module = types.ModuleType("own_agents")
    module.make_still = Still
    monkeypatch.setitem(sys.modules, "own_agents", module)
    monkeypatch.setattr(plan, "add_progress", lambda steps: None)
    run = Run("PointActuators-2", "own_agents:make_still", 0, 77)
    costs, line = run_row(board, run, ["interpolation"])
    assert (costs["row"], costs["steps"]) == ("policy, own_agents:make_still", 77)
    assert len(line["returns"]) == 20
    assert "rule" not in line
