"""Imports run one way: this table says which room of the package imports which others, no more and no less."""

import ast
import functools
import glob
import graphlib
import sys
from pathlib import Path

import pytest

import ssm_metarl_gym

PACKAGE = "ssm_metarl_gym"
# Rooms are folders, and the modules that other rooms may import alone.
ALLOWED = {
    "checks": set(),
    "files": set(),
    "seeding": set(),
    "_version": set(),
    "budget": {"checks"},
    "bundle": {"budget", "checks", "files", "seeding"},
    "tasks": {"checks", "seeding"},
    "envs": {"checks", "seeding", "tasks"},
    "envs.making": set(),
    "": {"_version", "envs", "tasks"},
    "__main__": {"commands"},
    "commands": {"_version", "agents", "envs", "tasks", "wrappers"},
    "agents.archive": {"files"},
    "agents.layers": set(),
    "agents.losses": set(),
    "agents.onnx_file": {"files"},
    "agents.stateless": set(),
    "agents.ssm": {"agents.onnx_file", "agents.stateless", "checks"},
    "agents.meta_learning": {"agents.layers", "agents.losses", "agents.stateless", "checks"},
    "agents.adaptation.config": {"checks"},
    "agents.adaptation": {
        "agents.adaptation.config",
        "agents.layers",
        "agents.losses",
        "agents.stateless",
        "budget",
        "checks",
    },
    "agents.models": {"agents.layers", "agents.onnx_file", "agents.ssm", "agents.stateless", "checks", "seeding"},
    "agents.meta_training": {
        "agents.adaptation.config",
        "agents.archive",
        "agents.meta_learning",
        "agents.models",
        "agents.stateless",
        "checks",
        "envs.making",
        "seeding",
        "tasks",
    },
    "agents": {
        "agents.adaptation",
        "agents.adaptation.config",
        "agents.meta_learning",
        "agents.meta_training",
        "agents.models",
        "agents.ssm",
    },
    "wrappers": {
        "agents.adaptation",
        "agents.adaptation.config",
        "agents.archive",
        "agents.losses",
        "agents.models",
        "agents.stateless",
        "bundle",
        "checks",
        "envs",
        "envs.making",
        "seeding",
        "agents.layers",
        "agents.ssm",
    },
    "playground": {"agents", "envs.making", "experiments", "files", "wrappers"},
    "experiments": {
        "_version",
        "agents",
        "agents.models",
        "checks",
        "envs",
        "envs.making",
        "files",
        "seeding",
        "tasks",
        "wrappers",
    },
}
# What is not of agents or wrappers must not pull in torch: the environments are usable without it.
LIGHT = {"gymnasium", "mujoco", "numpy", "pygame", "typing_extensions"}

ROOT = Path(ssm_metarl_gym.__file__).parent
SOURCES = {
    ".".join(Path(path).with_suffix("").parts).removesuffix("__init__").removesuffix("."): ROOT / path
    for path in glob.glob("**/*.py", root_dir=ROOT, recursive=True)  # follows links, which Path.glob does not
}


def room_of(module, rooms=ALLOWED):
    """The innermost room that a module lies in."""
    parts = module.split(".")
    return next(room for length in range(len(parts), -1, -1) if (room := ".".join(parts[:length])) in rooms)


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


@functools.cache
def imported_by_module(module):
    return imported_by(SOURCES[module].read_text(), SOURCES)


def test_the_table_has_no_circle():
    graphlib.TopologicalSorter(ALLOWED).prepare()


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_what_the_table_says(room):
    imported = set()
    for module in SOURCES:
        if room_of(module) == room:
            imported |= imported_by_module(module)[0]
    assert {room_of(module) for module in imported} - {room} == ALLOWED[room]


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_imports_no_script_and_nothing_heavy(module):
    _, others = imported_by_module(module)
    assert not others & {"agents", "scripts", "tests", "wrappers"}
    if module.partition(".")[0] not in ("agents", "commands", "experiments", "playground", "wrappers"):
        assert others <= LIGHT


@pytest.mark.parametrize(
    ("source", "own", "others"),
    [
        ("import ssm_metarl_gym.tasks", {"tasks"}, set()),
        ("import ssm_metarl_gym", {""}, set()),
        ("from ssm_metarl_gym import tasks, CartPoleTask", {"tasks", ""}, set()),
        ("from ssm_metarl_gym.agents import SSM, losses", {"agents", "agents.losses"}, set()),
        ("from ssm_metarl_gym.agents.ssm.model import SSM", {"agents.ssm.model"}, set()),
        (
            "def f():\n    import os, torch.nn as nn\n    from scripts.quickstart import main",
            set(),
            {"torch", "scripts"},
        ),
    ],
)
def test_all_forms_of_imports_are_seen(source, own, others):
    assert imported_by(source, SOURCES) == (own, others)
