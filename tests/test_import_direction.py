"""Imports run one way: this table says which module of the package may import which others."""

import ast
import glob
import graphlib
import sys
from pathlib import Path

import pytest

import ssm_metarl_gym

PACKAGE = "ssm_metarl_gym"
AGENTS = {
    "adaptation",
    "dynamics",
    "features",
    "meta_maml",
    "meta_policy",
    "meta_trainer",
    "policies",
    "ssm",
    "ssm_ppo",
}
ALLOWED = {
    "": {"_version", "distributions", "envs", "families", "tasks"},
    "_version": set(),
    "checks": set(),
    "files": set(),
    "tasks": {"checks"},
    "distributions": {"checks", "tasks"},
    "families": {"checks", "distributions", "mujoco_tasks", "tasks"},
    "mujoco_tasks": {"tasks"},
    "command_line": set(),
    "runs": {"_version", "files"},
    "statistics": set(),
    "timing": set(),
    "envs": {
        f"envs.{module}"
        for module in (
            "cartpole",
            "cartpole_vector",
            "hidden_task",
            "hidden_task_vector",
            "pendulum",
            "pendulum_vector",
            "point_navigation",
            "point_navigation_vector",
            "repeat_observation",
            "repeat_observation_vector",
        )
    },
    "envs.hidden_task": {"checks", "distributions", "families", "tasks"},
    "envs.cartpole": {"checks", "envs.hidden_task", "tasks"},
    "envs.hidden_task_vector": {"checks", "distributions", "envs.hidden_task", "families", "tasks"},
    "envs.cartpole_vector": {"envs.cartpole", "envs.hidden_task", "envs.hidden_task_vector"},
    "envs.pendulum_vector": {"envs.hidden_task", "envs.hidden_task_vector", "envs.pendulum"},
    "envs.mujoco": {"checks", "envs.hidden_task", "mujoco_tasks", "tasks"},
    "envs.pendulum": {"checks", "envs.hidden_task", "tasks"},
    "envs.point_navigation": {"checks", "envs.hidden_task", "tasks"},
    "envs.point_navigation_vector": {"envs.hidden_task_vector", "envs.point_navigation"},
    "envs.repeat_observation": {"checks", "envs.hidden_task"},
    "envs.repeat_observation_vector": {
        "checks",
        "envs.hidden_task",
        "envs.hidden_task_vector",
        "envs.repeat_observation",
    },
    "agents": {f"agents.{module}" for module in AGENTS},
    "agents.scan": set(),
    "agents.losses": set(),
    "agents.stepper": set(),
    "agents.ssm": {"agents.scan", "agents.stepper", "checks"},
    "agents.features": {"agents.ssm"},
    "agents.dynamics": {"agents.ssm"},
    "agents.sequence_buffer": set(),
    "agents.policies": {"agents.sequence_buffer", "agents.ssm", "agents.stepper"},
    "agents.ssm_ppo": {"agents.policies", "agents.sequence_buffer", "checks"},
    "agents.distributed": set(),
    "agents.inner_loop": {"checks"},
    "agents.outer_loop": {"agents.distributed", "checks"},
    "agents.low_rank": {"agents.inner_loop"},
    "agents.meta_tasks": {"agents.losses"},
    "agents.query_losses": {f"agents.{module}" for module in ("inner_loop", "low_rank", "meta_tasks")},
    "agents.meta_maml": {
        f"agents.{module}" for module in ("distributed", "inner_loop", "meta_tasks", "outer_loop", "query_losses")
    }
    | {"checks"},
    "agents.adaptation": {"agents.losses", "checks"},
    "agents.streams": set(),
    "agents.dynamics_objective": {f"agents.{module}" for module in ("distributed", "dynamics", "meta_maml", "streams")}
    | {"checks"},
    "agents.action_distributions": set(),
    "agents.meta_policy": {"agents.action_distributions", "agents.policies", "agents.ssm", "checks"},
    "agents.trajectories": {"agents.inner_loop", "agents.meta_policy", "tasks"},
    "agents.policy_gradient": {"agents.action_distributions", "agents.trajectories"},
    "agents.policy_objective": {
        f"agents.{module}"
        for module in (
            "distributed",
            "inner_loop",
            "meta_policy",
            "outer_loop",
            "policy_gradient",
            "trajectories",
        )
    }
    | {"checks", "tasks"},
    "agents.logs": {"files"},
    "agents.meta_trainer": {
        f"agents.{module}"
        for module in ("adaptation", "distributed", "dynamics", "dynamics_objective", "meta_policy", "policy_objective")
    }
    | {"checks", "files", "tasks"},
    "wrappers": {
        f"wrappers.{module}"
        for module in ("history_window", "online_adaptation", "sb3_env", "sb3_vec_env", "transition_observation")
    },
    "wrappers._observations": set(),
    "wrappers.history_window": {"checks", "wrappers._observations"},
    "wrappers.online_adaptation": {"agents.adaptation", "agents.dynamics", "checks"},
    "wrappers.sb3_vec_env": set(),
    "wrappers.sb3_env": {"checks"}
    | {f"wrappers.{module}" for module in ("history_window", "sb3_vec_env", "transition_observation")},
    "wrappers.transition_observation": {"wrappers._observations"},
}
# What is not of agents or wrappers must not pull in torch: the environments are usable without it.
LIGHT = {"gymnasium", "mujoco", "numpy", "pygame", "typing_extensions"}

ROOT = Path(ssm_metarl_gym.__file__).parent
SOURCES = {
    ".".join(Path(path).with_suffix("").parts).removesuffix("__init__").removesuffix("."): ROOT / path
    for path in glob.glob("**/*.py", root_dir=ROOT, recursive=True)  # follows links, which Path.glob does not
}


def imported_by(source, known):
    """The modules that a source imports: those of the package without its name, others by their first name."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports of the package are absolute"
            # `from package import name` may name a module or something in one.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix(f"{PACKAGE}.") in known else node.module for name in inner]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            (own if first == PACKAGE else others).add(rest if first == PACKAGE else first)
    return own, others - set(sys.stdlib_module_names)


def test_every_module_has_a_row():
    assert sorted(SOURCES) == sorted(ALLOWED)


def test_the_table_has_no_circle():
    graphlib.TopologicalSorter(ALLOWED).prepare()


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_no_more_than_the_table_says(module):
    own, others = imported_by(SOURCES[module].read_text(), SOURCES)
    assert own <= ALLOWED[module]
    assert not others & {"agents", "scripts", "tests", "wrappers"}
    if module.partition(".")[0] not in ("agents", "wrappers"):
        assert others <= LIGHT


@pytest.mark.parametrize(
    ("source", "own", "others"),
    [
        ("import ssm_metarl_gym.tasks", {"tasks"}, set()),
        ("import ssm_metarl_gym", {""}, set()),
        ("from ssm_metarl_gym import tasks, CartPoleTask", {"tasks", ""}, set()),
        ("from ssm_metarl_gym.agents import SSM, scan", {"agents", "agents.scan"}, set()),
        ("from ssm_metarl_gym.agents.ssm import SSM", {"agents.ssm"}, set()),
        (
            "def f():\n    import os, torch.nn as nn\n    from scripts.quickstart import main",
            set(),
            {"torch", "scripts"},
        ),
    ],
)
def test_all_forms_of_imports_are_seen(source, own, others):
    assert imported_by(source, SOURCES) == (own, others)
