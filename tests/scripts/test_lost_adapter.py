import numpy as np
import pytest

from ssm_metarl_gym.agents import MetaTrainer

AGENTS = [
    "plain",
    "predictions",
    "predictions; adapter lost",
    "predictions, some left out",
    "predictions, some left out; adapter lost",
]


@pytest.fixture(scope="module")
def lost_adapter(load_script):
    """The script as a module."""
    return load_script("lost_adapter")


def test_what_each_agent_is_shown(lost_adapter):
    trainer = MetaTrainer(lost_adapter.ENV_ID, num_streams=2)
    plain, shown, lost = (lost_adapter.make_env(trainer, share, 3, split="interpolation") for share in (None, 0.0, 1.0))
    for env in (plain, shown, lost):
        env.seed(0)
    observations = plain.reset()
    assert plain.observation_space.shape == (4,)
    for env, is_zero in ((shown, False), (lost, True)):
        own = env.reset()
        np.testing.assert_array_equal(own[:, :4], observations)
        assert env.observation_space.shape == (12,)
        assert np.all((own[:, 4:] == 0.0) == is_zero)


@pytest.mark.slow
def test_the_table(lost_adapter, capsys, monkeypatch):
    short = {split: env_kwargs | {"max_episode_steps": 20} for split, env_kwargs in lost_adapter.SPLITS.items()}
    monkeypatch.setattr(lost_adapter, "SPLITS", short)
    lost_adapter.main(["--seeds", "2", "--num-tasks", "2", "--meta-updates", "1", "--steps", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| PPO on | interpolation | extrapolation | switch |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[4:]] == AGENTS
