import pytest

from ssm_metarl_gym.commands.demo import show_demo


@pytest.mark.slow
def test_the_corrected_policy_outlives_the_policy_as_it_is(capsys):
    as_it_is, corrected = show_demo()
    assert as_it_is < 60.0
    assert corrected > 190.0
    assert f"corrected  {corrected:.0f}\n" in capsys.readouterr().out
