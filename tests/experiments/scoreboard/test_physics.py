from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.experiments.scoreboard.board import Board, make_env
from ssm_metarl_gym.experiments.scoreboard.physics import (
    AIB,
    PHYSICS,
    Physics,
    check_physics,
    columns_of,
    context_distances,
    distances_of,
    recipe_of,
)
from ssm_metarl_gym.tasks.aib import AIB_CONTEXTS
from ssm_metarl_gym.tasks.classic import PendulumTask
from ssm_metarl_gym.tasks.task import TaskBatch


def test_a_switch_comes_half_way():
    assert columns_of("PointActuators-4", 30)["switch"] == {"split": "interpolation", "switch": {"step": 50}}
    assert columns_of("PendulumPolarity", 30)["switch"]["switch"] == {"step": 100}


def test_what_cannot_change_has_no_switch_and_only_a_benchmark_has_no_nominal_column():
    for name in PHYSICS:
        columns = columns_of(name, 20)
        assert ("switch" in columns) == (name not in ("CartPole", "Pendulum"))
        assert ("nominal" in columns) == (name not in AIB)


def test_those_of_the_benchmark_hold_its_contexts_with_and_without_a_warm_up():
    columns = columns_of("ComplexODE", 50)
    assert list(columns)[3:] == [f"{name}, 24 before" for name in ("interpolation", "extrapolation", "switch")]
    env_kwargs = columns["switch, 24 before"]
    assert (env_kwargs["warm_up_steps"], env_kwargs["max_episode_steps"]) == (24, 224)
    assert env_kwargs["switch"] == {"step": 124}
    tasks = list(columns["extrapolation"]["task"])
    assert tasks[:20] == tasks[20:40] == list(AIB_CONTEXTS["ComplexODE"].extrapolation.tasks)


def test_a_policy_that_remembers_learns_from_whole_rollouts_of_an_environment():
    small, pendulum = Physics("CartPole", 0.9, 1, 1, rollout_length=256, batch_size=64), PHYSICS["PendulumPolarity"]
    assert (small.minibatch(remembers=False), small.minibatch(remembers=True)) == (64, 256)
    assert pendulum.minibatch(remembers=False) == pendulum.minibatch(remembers=True) == 32 * 64 // 4


def test_episodes_are_as_long_as_is_said():
    for physics in PHYSICS.values():
        assert gym.spec(physics.env_id).max_episode_steps == physics.length


def test_other_steps_are_no_other_settings(monkeypatch):
    before, physics = recipe_of("CartPole"), PHYSICS["CartPole"]
    monkeypatch.setitem(PHYSICS, "CartPole", replace(physics, steps=7))
    assert recipe_of("CartPole") == before  # a line tells its steps beside its settings
    monkeypatch.setitem(PHYSICS, "CartPole", replace(physics, num_epochs=7))
    assert recipe_of("CartPole") != before


@pytest.mark.parametrize("name", ["DoubleIntegratorFriction", "PendulumPolarity"])
def test_one_who_is_told_sees_as_much_in_training_as_in_every_column(name):
    board = Board(Path(), 20)
    columns = [{"split": "train"}, *columns_of(name, 20).values()]
    spaces = [make_env(board, name, "told", 0, 20, **env_kwargs).observation_space for env_kwargs in columns]
    assert len({space.shape for space in spaces}) == 1


# What cannot be a column of a family of one's own.
NAVIGATION = Physics("PointNavigation", 0.99, 1_000, 100)


def test_a_family_that_cannot_do_what_a_column_asks_for_is_refused(monkeypatch):
    monkeypatch.setitem(PHYSICS, "Navigation", NAVIGATION)
    with pytest.raises(ValueError, match="the column switch of the family Navigation cannot be made"):
        check_physics("Navigation")
    monkeypatch.setitem(PHYSICS, "Navigation", replace(NAVIGATION, changes=False))
    check_physics("Navigation", 5_000)


def test_single_environments_share_no_tasks_with_those_of_the_next_seed(monkeypatch):
    monkeypatch.setitem(PHYSICS, "Single", Physics("MountainCarContinuous-v0", 0.99, 1_000, 999))
    with pytest.raises(ValueError, match=r"at most 1000 for single environments.*got 1001"):
        check_physics("Single", 1_001)


@pytest.mark.parametrize("name", ["DoubleIntegrator", "ComplexODE"])
def test_distances_are_from_the_training_range(name):
    distances = context_distances(name)
    assert distances.shape == (20,)
    assert 0.0 < distances.min() < distances.max() == pytest.approx(0.5)


def test_the_distance_is_that_of_the_parameter_that_is_furthest():
    tasks = TaskBatch.from_tasks([PendulumTask(m=1.0, l=1.0), PendulumTask(m=1.0, l=1.4), PendulumTask(m=2.0, l=1.4)])
    inside, longer, heavier = distances_of("Pendulum", tasks)
    assert inside == 0.0
    assert 0.0 < longer < heavier
    assert np.isfinite(heavier)
