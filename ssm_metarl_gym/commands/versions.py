"""What a report of a fault needs to say."""

import platform
from importlib import metadata
from typing import Final

from ssm_metarl_gym._version import __version__

__all__ = ["show_versions"]

_PACKAGES: Final = ("gymnasium", "numpy", "torch", "stable-baselines3", "sb3-contrib", "mujoco", "onnx", "onnxruntime")


def show_versions() -> None:
    """Print the versions of this package, of Python, of the system and of all that matters here."""
    versions = {"ssm-metarl-gym": __version__, "Python": platform.python_version(), "system": platform.platform()}
    versions |= {name: _version_of(name) for name in _PACKAGES}
    width = max(map(len, versions))
    for name, version in versions.items():
        print(f"{name:<{width}}  {version}")


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
