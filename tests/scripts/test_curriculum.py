import pytest

from ssm_metarl_gym.tasks.families import FAMILIES


@pytest.fixture(scope="module")
def curriculum(load_script):
    """The script as a module."""
    return load_script("curriculum")


def test_every_curriculum_ends_with_the_family(curriculum):
    for family_at in curriculum.FAMILIES.values():
        assert family_at(1.0) == FAMILIES["CartPolePolarity"].train
    assert curriculum.FAMILIES["sign last"](0.9).parameters["polarity"].values == (1.0,)


@pytest.mark.slow
def test_the_table(curriculum, capsys):
    curriculum.main(["--seeds", "1", "--num-tasks", "2", "--steps", "2048"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| 2,048 steps | interpolation | extrapolation | switch |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == list(curriculum.FAMILIES)
