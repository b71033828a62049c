import platform
from importlib import metadata

import gymnasium as gym

import ssm_metarl_gym
from ssm_metarl_gym.commands.versions import show_versions


def test_it_tells_the_versions_that_matter(capsys, monkeypatch):
    def version(package, find=metadata.version):
        if package == "onnxruntime":
            raise metadata.PackageNotFoundError(package)
        return find(package)

    monkeypatch.setattr(metadata, "version", version)
    show_versions()
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["ssm-metarl-gym"] == ssm_metarl_gym.__version__
    assert told["Python"] == platform.python_version()
    assert told["gymnasium"] == gym.__version__
    assert told["onnxruntime"] == "not installed"
