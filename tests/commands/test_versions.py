import platform

import gymnasium as gym

import ssm_metarl_gym
from ssm_metarl_gym.commands import versions


def test_it_tells_the_versions_that_matter(capsys, monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGES", (*versions._PACKAGES, "no-such-package"))
    versions.show_versions()
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["ssm-metarl-gym"] == ssm_metarl_gym.__version__
    assert told["Python"] == platform.python_version()
    assert told["gymnasium"] == gym.__version__
    assert told["no-such-package"] == "not installed"
