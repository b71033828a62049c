"""Gymnasium environments with hidden physics, and agents that cope with them.

Importing this package registers the environments of the ``ssm_metarl`` namespace with Gymnasium::

    import gymnasium as gym
    import ssm_metarl_gym

    env = gym.make("ssm_metarl/CartPolePolarity-v0")

The names below are tasks and distributions over them, from ``ssm_metarl_gym.tasks``; the environments lie in
``ssm_metarl_gym.envs``. What learns lies in ``ssm_metarl_gym.agents``, what stands between an environment and an agent
in ``ssm_metarl_gym.wrappers``: both need torch, so they are imported on first use only. What scripts share lies in
``ssm_metarl_gym.experiments``. What a robot runs lies in ``ssm_metarl_gym.bundle``, which needs numpy alone: where
Gymnasium is not installed, nothing is registered and the names below are missing.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ssm_metarl_gym._version import __version__

_HAS_GYMNASIUM = find_spec("gymnasium") is not None  # not on a robot that runs a bundle
if _HAS_GYMNASIUM:
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


class _FoldersBeside(MetaPathFinder):
    """Finds ``agents`` and ``wrappers`` beside this package.

    There they are in a checkout without symbolic links (the default on Windows), which has plain files where the links
    to them belong. What is installed holds both, see setup.py.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        folder = Path(__file__).parents[1] / name
        if package != __name__ or name not in _LAZY_SUBPACKAGES or not folder.is_dir():
            return None
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


if not all((Path(__file__).parent / name / "__init__.py").is_file() for name in _LAZY_SUBPACKAGES):
    sys.meta_path.append(_FoldersBeside())

if _HAS_GYMNASIUM:
    register_environments()


def __getattr__(name: str) -> Any:
    if name in _LAZY_SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        raise ImportError(f"{__name__}.{name} needs Gymnasium, which is not installed. Run pip install ssm-metarl-gym.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
