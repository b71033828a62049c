import gymnasium as gym
import pytest

from ssm_metarl_gym.commands.listing import show_environments


def test_each_environment_is_listed_with_what_it_hides(capsys):
    show_environments()
    printed = capsys.readouterr().out
    ids = {env_id for env_id in gym.registry if env_id.startswith("ssm_metarl/")}
    assert {line.split()[0] for line in printed.splitlines() if line.startswith("ssm_metarl/")} == ids
    polarity = printed.partition("ssm_metarl/CartPolePolarity-v0 (batched)\n")[2].splitlines()[:4]
    assert polarity[0] == "    force_mag: [5, 15]; extrapolation [1, 5] and [15, 20]"
    assert polarity[3] == "    polarity: -1 or 1"
    motors = printed.partition("ssm_metarl/ReacherActuators-v0\n")[2].splitlines()[:2]
    assert motors == [
        "    motors: 2 with gains of [0.6, 1.4], reversed or not, in any order",
        "    extrapolation: 2 with gains of 0.4 or 1.7, reversed or not, in any order",
    ]
    assert "ssm_metarl/RepeatObservation-v0 (batched)\n    hides nothing" in printed


def test_what_cannot_be_made_says_why(capsys, monkeypatch):
    def refuse(spec):
        raise gym.error.DependencyNotInstalled("install the extra mujoco")

    monkeypatch.setattr(gym, "make", refuse)
    show_environments()
    assert "RepeatObservation-v0 (batched)\n    cannot be made here: install the extra" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["CartPoleSwitch", "PendulumSwitch"])
def test_a_switch_is_told(name, capsys):
    show_environments()
    assert "the sign switches" in capsys.readouterr().out.partition(f"{name}-v0")[2].partition("ssm_metarl/")[0]
