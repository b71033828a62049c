import pytest


@pytest.fixture(scope="module")
def teacher_student(load_script):
    """The script as a module."""
    return load_script("teacher_student")


def test_what_each_agent_is_shown(teacher_student):
    envs = [teacher_student.make_env(name, "PendulumPolarity-v0", 2) for name in teacher_student.SHOWN]
    assert [env.observation_space.shape for env in envs] == [(6,), (8, 10), (9,)]


@pytest.mark.slow
def test_the_table(teacher_student, monkeypatch, capsys):
    monkeypatch.setattr(teacher_student, "UPDATES_PER_ROUND", 2)
    teacher_student.main(["--seeds", "1", "--num-tasks", "2", "--steps", "64", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| CartPolePolarity-v0 | interpolation | extrapolation | switch | steps on the family |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == list(teacher_student.SHOWN)
    assert [line.split(" | ")[4] for line in lines[4:]] == ["2,048", "3,200", "2,048"]
