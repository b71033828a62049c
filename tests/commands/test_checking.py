import random
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import MountainCarEnv

from ssm_metarl_gym import Task, TaskDistribution, Uniform
from ssm_metarl_gym.commands.checking import check_family, find_maker
from ssm_metarl_gym.envs import HiddenActuators, HiddenTask, TaskParameter


@dataclass(frozen=True)
class CarTask(Task):
    gravity: float = 0.0025
    force: float = 0.001


class Car(HiddenTask, MountainCarEnv):
    task_type = CarTask
    gravity = TaskParameter()
    force = TaskParameter()

    def __init__(self, render_mode=None):
        ranges = {"gravity": Uniform((0.002, 0.003)), "force": Uniform((0.0005, 0.002))}
        super().__init__(TaskDistribution(CarTask, ranges), render_mode=render_mode)


class CarWithoutForce(Car):
    """Whose force is set and never used."""

    def step(self, action):
        return super().step(1)


class CarThatKeeps(Car):
    """Whose gravity of before is part of the gravity of now."""

    pull = 0.0

    def _apply_task(self):
        self.pull = 0.5 * self.pull + self.task.gravity

    def step(self, action):
        self.state = (self.state[0], self.state[1] - self.pull)
        return super().step(action)


class CarOutOfTheBlue(Car):
    """Whose episodes do not follow from the seed."""

    count = 0

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        CarOutOfTheBlue.count += 1
        return observation + 1e-4 * CarOutOfTheBlue.count, info


class OneCar(Car):
    """Whose task is always the same."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"task": {}})


class CarThatDrawsTooEarly(Car):
    """Whose task does not come from the seed."""

    signs = (0.001, 0.002)

    def reset(self, *, seed=None, options=None):
        task = {"force": float(self.np_random.choice(self.signs))}
        return super().reset(seed=seed, options={"task": task, **(options or {})})


class CarThatDrawsWhenSeeded(Car):
    """Whose task changes with a seed alone."""

    drawn = 0.001

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.drawn = 0.001 + 1e-5 * (seed % 50)
        return super().reset(seed=seed, options={"task": {"force": self.drawn}, **(options or {})})


def failed(printed):
    return [line.removeprefix("FAIL  ") for line in printed.splitlines() if line.startswith("FAIL")]


def test_a_family_passes(capsys):
    assert check_family(Car)
    assert [line[:6] for line in capsys.readouterr().out.splitlines()] == ["ok    "] * 8


def test_a_family_that_a_wrapper_makes_passes(capsys):
    assert check_family(lambda: HiddenActuators(gym.make("Pendulum-v1")))
    assert failed(capsys.readouterr().out) == []


class Doubling(gym.ObservationWrapper):
    """Whose observations are not of its space."""

    def observation(self, observation):
        return [2.0 * number for number in observation]


def test_what_is_wrong_with_a_wrapper_is_told(capsys):
    assert not check_family(lambda: Doubling(HiddenActuators(gym.make("Pendulum-v1"))))
    assert "Gymnasium's checker" in failed(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("env", "failures", "words"),
    [
        (MountainCarEnv, ["info tells the task"], "Subclass HiddenTask"),
        (
            CarThatKeeps,
            [
                "Gymnasium's checker",
                "a seed gives one task and one episode",
                "each parameter changes the physics, and back",
            ],
            "gravity must leave nothing behind",
        ),
        (OneCar, ["episodes differ in their tasks"], "16 of them gave one"),
        (CarThatDrawsTooEarly, ["a seed gives one task and one episode"], "one seed must give one task"),
        (CarThatDrawsWhenSeeded, ["episodes differ in their tasks"], "16 resets without a seed gave one"),
    ],
)
def test_what_is_wrong_is_told(env, failures, words, capsys):
    assert not check_family(env)
    printed = capsys.readouterr().out
    assert failed(printed) == failures
    assert words in printed


def test_what_does_not_follow_from_the_seed_is_told(capsys):
    assert not check_family(CarOutOfTheBlue)
    assert "a seed gives one task and one episode" in failed(capsys.readouterr().out)


@pytest.mark.parametrize(("module", "draw"), [("numpy.random", np.random.normal), ("random", random.random)])
def test_what_draws_from_a_global_generator_is_told_so_and_of_nothing_else(module, draw, capsys):
    class CarInTheWind(Car):
        def step(self, action):
            self.state = (self.state[0], self.state[1] + 1e-4 * draw())
            return super().step(action)

    assert not check_family(CarInTheWind)
    printed = capsys.readouterr().out
    assert f"it drew from the global generator of {module}." in printed
    assert set(failed(printed)) <= {"Gymnasium's checker", "a seed gives one task and one episode"}


class CarWithGears(Car):
    """Whose actions are others in each task."""

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        self.action_space.n = np.int64(3 + round(1e6 * self.task.gravity) % 2)  # in place
        return observation, info


def test_spaces_that_depend_on_the_task_are_told(capsys):
    assert not check_family(CarWithGears)
    printed = capsys.readouterr().out
    assert failed(printed)[-1] == "spaces do not depend on the task"
    assert "action_space must be the same in every task; got Discrete" in printed


class CarOfNothing(Car):
    """Whose parameters set nothing."""

    gravity, force = 0.0025, 0.001


def test_parameters_that_change_nothing_at_all_are_no_family(capsys):
    assert not check_family(CarOfNothing)
    printed = capsys.readouterr().out
    assert failed(printed) == ["each parameter changes the physics, and back"]
    assert "one parameter at least must change the physics; none did" in printed


@dataclass(frozen=True)
class GoalTask(Task):
    goal_position: float = 0.5


class CarWithAGoal(HiddenTask, MountainCarEnv):
    """Whose goal random actions do not reach."""

    task_type = GoalTask
    goal_position = TaskParameter()

    def __init__(self, render_mode=None):
        super().__init__(TaskDistribution(GoalTask, {"goal_position": Uniform((0.4, 0.5))}), render_mode=render_mode)


def test_what_nobody_saw_is_noted_where_something_brings_it_into_force(capsys):
    assert check_family(CarWithAGoal)
    assert "note  each parameter changes the physics, and back" in capsys.readouterr().out


class CarWithBasesInAnotherOrder(MountainCarEnv, HiddenTask):
    task_type = CarTask

    def __init__(self):
        HiddenTask.__init__(self, TaskDistribution(CarTask, {"gravity": Uniform((0.002, 0.003))}))


def test_bases_in_another_order_are_told(capsys):
    assert not check_family(CarWithBasesInAnotherOrder)
    printed = capsys.readouterr().out
    assert failed(printed) == ["it can be made"]
    assert "HiddenTask must be the first of its bases; before it there is MountainCarEnv." in printed


def test_what_takes_arguments_is_told_how_to_be_named(capsys):
    assert not check_family(lambda family: Car())
    printed = capsys.readouterr().out
    assert failed(printed) == ["it can be made"]
    assert "name its id (module:id)" in printed


def test_a_parameter_without_effect_is_noted(capsys):
    assert check_family(CarWithoutForce)
    printed = capsys.readouterr().out
    assert "note  each parameter changes the physics, and back" in printed
    assert "force changed nothing that random actions show" in printed


def test_what_an_environment_raises_is_told(capsys):
    def make():
        raise RuntimeError("no battery")

    assert not check_family(make)
    assert "RuntimeError: no battery" in capsys.readouterr().out


def test_an_environment_is_found_by_class_and_by_id():
    assert find_maker("gymnasium.envs.classic_control:CartPoleEnv") is gym.envs.classic_control.CartPoleEnv
    assert find_maker("CartPole-v1")().spec.id == "CartPole-v1"
    assert find_maker("ssm_metarl_gym:ssm_metarl/CartPole-v0")().spec.id == "ssm_metarl/CartPole-v0"


def test_a_module_without_what_is_named_is_named():
    with pytest.raises(ValueError, match=r"os must have a class or a function nothing"):
        find_maker("os:nothing")


@pytest.mark.parametrize("name", ["os:", "no_such_module:Env", "gymnasium:NoSuchEnv", "CartPoles-v1", ""])
def test_what_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=r"must (be|have)"):
        find_maker(name)


def test_a_module_that_raises_is_told(tmp_path, monkeypatch):
    (tmp_path / "module_on_fire.py").write_text("raise RuntimeError('on fire')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="module_on_fire must be a module that can be imported; it cannot: RuntimeErr"):
        find_maker("module_on_fire:Env")
