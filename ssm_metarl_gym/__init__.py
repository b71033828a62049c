"""Gymnasium environments with hidden physics, and agents that cope with them.

Importing this package registers the environments of the ``ssm_metarl`` namespace with Gymnasium::

    import gymnasium as gym
    import ssm_metarl_gym

    env = gym.make("ssm_metarl/CartPolePolarity-v0")

What learns lives in ``ssm_metarl_gym.agents``, what stands between an environment and an agent in
``ssm_metarl_gym.wrappers``. Both need torch, so they are imported on first use only.
"""

import importlib
from pathlib import Path
from typing import Any

from ssm_metarl_gym._version import __version__
from ssm_metarl_gym.envs import register_environments
from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask, PointNavigationTask
from ssm_metarl_gym.tasks.distributions import TaskDistribution, TaskSet
from ssm_metarl_gym.tasks.families import TaskFamily
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Uniform
from ssm_metarl_gym.tasks.task import Task, TaskBatch

__all__ = [
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
]

_LAZY_SUBPACKAGES = ("agents", "wrappers")

# A checkout without symbolic links (the default on Windows) has plain files where the links to ../agents and
# ../wrappers belong: there, look for the two folders beside this one.
if not all((Path(__file__).parent / name).is_dir() for name in _LAZY_SUBPACKAGES):
    __path__.append(str(Path(__file__).parents[1]))

register_environments()


def __getattr__(name: str) -> Any:
    if name in _LAZY_SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
