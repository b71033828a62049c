import subprocess
import sys

import pytest

from ssm_metarl_gym.commands.command_line import run


@pytest.mark.parametrize(("command", "words"), [("list", "ssm_metarl/CartPole-v0"), ("version", "stable-baselines3")])
def test_a_command_does_what_it_says(command, words, capsys):
    assert run([command]) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "status"), [("ssm_metarl/PointNavigation-v0", 0), ("CartPole-v1", 1), ("no_such_module:Env", 2)]
)
def test_a_check_ends_with_its_status(environment, status, capsys):
    assert run(["check", environment]) == status
    assert bool(capsys.readouterr().err) == (status == 2)


@pytest.mark.parametrize("words", [[], ["lists"], ["check"]])
def test_other_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as error:
        run(words)
    assert error.value.code == 2
    assert "usage: python -m ssm_metarl_gym" in capsys.readouterr().err


def test_the_package_can_be_run():
    done = subprocess.run([sys.executable, "-m", "ssm_metarl_gym", "version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("ssm-metarl-gym")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end in another way there")
def test_a_reader_may_have_seen_enough():
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "ssm_metarl_gym", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running.stdout.close()  # as head does after its ten lines
    assert running.stderr.read() == b""
    running.stderr.close()
    assert running.wait() == 1
