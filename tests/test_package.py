import doctest
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import ssm_metarl_gym
from ssm_metarl_gym import agents, envs, files, tasks, wrappers

PUBLIC = {
    "ssm_metarl_gym": [
        "CartPoleTask",
        "Choice",
        "LogUniform",
        "PendulumTask",
        "PointNavigationTask",
        "Task",
        "TaskBatch",
        "TaskDistribution",
        "TaskFamily",
        "TaskSet",
        "Uniform",
        "__version__",
        "agents",
        "wrappers",
    ],
    "ssm_metarl_gym.agents": [
        "SSM",
        "SSMPPO",
        "AdaptationConfig",
        "Adapter",
        "AdapterStats",
        "CnnSSMPolicy",
        "DynamicsModel",
        "KalmanAdapter",
        "MetaMAML",
        "MetaPolicy",
        "MetaTrainer",
        "MultiInputSSMPolicy",
        "RecursiveLeastSquares",
        "SSMFeaturesExtractor",
        "SSMPolicy",
        "distill",
        "export_onnx",
    ],
    "ssm_metarl_gym.wrappers": [
        "ActionCorrection",
        "HistoryWindow",
        "OnlineAdaptation",
        "SB3VecEnv",
        "TransitionObservation",
        "VectorActionCorrection",
        "VectorHistoryWindow",
        "VectorOnlineAdaptation",
        "VectorTransitionObservation",
        "make_sb3_env",
    ],
}
MODULES = [module.name for module in pkgutil.walk_packages(ssm_metarl_gym.__path__, "ssm_metarl_gym.")]
EXAMPLES = [
    # Training on a thousand streams takes seconds.
    pytest.param(test, marks=[pytest.mark.slow] if "learn(" in test.docstring else [], id=test.name)
    for name in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    if test.examples
]
# What the examples take as imported, beside the names of their own module.
NAMES = {"dataclass": dataclass, "gym": gym, "np": np, "spaces": gym.spaces, "torch": torch, "nn": torch.nn, "PPO": PPO}
for module in (tasks, envs, files, agents, wrappers):
    NAMES |= {name: getattr(module, name) for name in module.__all__}


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_these_and_all_documented(module):
    module = importlib.import_module(module)
    assert module.__all__ == PUBLIC[module.__name__]
    for name in module.__all__:
        documentation = getattr(module, name).__doc__
        assert documentation
        assert not documentation.startswith(f"{name}(")  # what a dataclass writes where nobody did


def test_the_citation_names_the_version(checkout):
    citation = (checkout / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {ssm_metarl_gym.__version__}\n" in citation


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'ssm_metarl_gym' has no attribute 'agent'"):
        _ = ssm_metarl_gym.agent


@pytest.mark.parametrize("test", EXAMPLES)
def test_the_examples_of_the_docstrings_run(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs |= NAMES
    for example in test.examples:
        example.source = example.source.replace("learn(800", "learn(2")
    report = []
    failed, attempted = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert attempted == len(test.examples)
    assert not failed, "".join(report)


def test_there_are_examples():
    assert {param.id.rpartition(".")[2] for param in EXAMPLES} >= {
        "SSM",
        "MetaMAML",
        "MetaPolicy",
        "Adapter",
        "HiddenTask",
        "OnlineAdaptation",
        "TaskBatch",
        "TaskDistribution",
    }


@pytest.mark.parametrize("name", ["agents", "agents.ssm.model", "wrappers", "wrappers.history_window"])
def test_the_folders_at_the_root_say_how_they_are_imported(name, checkout):
    run = run_python(f"import {name}", cwd=checkout)
    package = name.partition(".")[0]
    assert run.returncode == 1
    assert run.stderr.endswith(f"ImportError: import ssm_metarl_gym.{package} instead of {package}.\n")


def test_a_checkout_without_links_is_found_whole(checkout, tmp_path):
    package = tmp_path / "ssm_metarl_gym"
    links = ("agents", "wrappers")
    shutil.copytree(checkout / package.name, package, ignore=shutil.ignore_patterns("__pycache__", *links))
    for link in links:
        (package / link).write_text(f"../{link}")
        shutil.copytree(checkout / link, tmp_path / link, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "elsewhere").mkdir()
    # Without importing them, which takes seconds; tests/test_release.py does.
    script = """if True:
        import importlib.util, ssm_metarl_gym
        for name in "agents", "wrappers":
            print(importlib.util.find_spec(f"ssm_metarl_gym.{name}").origin)
    """
    run = run_python(script, cwd=tmp_path / "elsewhere", PYTHONPATH=str(tmp_path))
    assert run.stderr == ""
    assert run.stdout.split() == [str(tmp_path / link / "__init__.py") for link in links]


def run_python(script, cwd, **environment):
    command = [sys.executable, "-W", "error", "-c", script]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)  # noqa: S603
