import json
import re
import shutil
import sys

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.experiments.evaluation import draw_tasks, evaluate
from ssm_metarl_gym.experiments.saved_agents import read_archive, read_run
from ssm_metarl_gym.files import write_checksums
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """The folder of a run of a recurrent agent."""
    return make_run(tmp_path_factory.mktemp("runs") / "ssm-3", "ssm", 3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What an algorithm of SB3 saved after no training at all."""
    path = tmp_path_factory.mktemp("archive") / "agent.zip"
    A2C("MlpPolicy", make_sb3_env("CartPole-v1"), seed=0, device="cpu").save(path)
    return path


class TestRuns:
    def test_the_agent_acts_and_sees_what_it_saw_in_training(self, run):
        agent = read_run(run)
        assert (agent.label, agent.seed, agent.cpu_seconds) == ("ssm", 3, 1.5)
        model = agent.load()
        assert isinstance(model, SSMPPO)
        env = agent.make_env(3, split="extrapolation")
        assert env.observation_space.shape == model.observation_space.shape
        actions, _ = model.predict(env.reset())
        assert actions.shape == (3,)

    def test_observations_are_normalised_as_in_training_and_rewards_are_not(self, run):
        env = read_run(run).make_env(3)
        statistics = VecNormalize.load(str(run / "vecnormalize.pkl"), make_sb3_env(ENV_ID, 3, observation="transition"))
        env.seed(0)
        observations = env.reset()
        np.testing.assert_array_equal(observations, statistics.normalize_obs(env.get_original_obs()))
        assert set(env.step(np.zeros(3, dtype=int))[1]) == {1.0}

    def test_arguments_of_the_environment_replace_those_of_the_training(self, run):
        agent = read_run(run)
        for kwargs, steps in (({}, 60), ({"max_episode_steps": 3}, 3)):
            env = agent.make_env(1, **kwargs)
            env.reset()
            dones = [env.step(np.zeros(1, dtype=int))[2][0] for _ in range(steps)]
            assert dones == [False] * (steps - 1) + [True]

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(ValueError, match=r"a folder must be one of train_ppo.py, with its config.json; got"):
            read_run(tmp_path)

    def test_an_unfinished_run(self, run, tmp_path):
        config = json.loads((run / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"finished": False}))
        with pytest.raises(ValueError, match=f"a run must be finished; {tmp_path} is not"):
            read_run(tmp_path)

    @pytest.mark.parametrize("name", ["model.zip", "vecnormalize.pkl"])
    def test_a_run_without_one_of_its_files(self, run, name, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=f"a run must hold .*; {tmp_path} lacks {name}"):
            read_run(tmp_path)

    @pytest.mark.parametrize("text", ["", "no archive"])
    def test_damaged_files_are_named(self, run, text, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        for name in ("model.zip", "vecnormalize.pkl"):
            (tmp_path / name).write_text(text)
        agent = read_run(tmp_path)
        with pytest.raises(ValueError, match=r"model.zip must be a whole archive"):
            agent.load()
        with pytest.raises(ValueError, match=r"vecnormalize.pkl cannot be loaded as what VecNormalize.save wrote"):
            agent.make_env(1)

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "it is no object in JSON"),
            ("[]", "it is no object in JSON"),
            ("[" * 100_000, "it is no object in JSON"),
            ({"env": None}, "got env=None"),
            ({"window": True}, "got window=True"),
            ({"env_kwargs": "{}"}, "got env_kwargs='{}'"),
        ],
    )
    def test_a_damaged_configuration_is_named(self, run, text, what, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        if isinstance(text, dict):
            text = json.dumps(json.loads((run / "config.json").read_text()) | text)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json is damaged.*[:,] .*{re.escape(what)}\. Copy the folder"):
            read_run(tmp_path)

    def test_files_that_differ_from_their_checksums_are_named(self, run, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        write_checksums(tmp_path, ["model.zip", "vecnormalize.pkl"])
        read_run(tmp_path)
        statistics = bytearray((tmp_path / "vecnormalize.pkl").read_bytes())
        statistics[-100] ^= 1
        (tmp_path / "vecnormalize.pkl").write_bytes(statistics)
        with pytest.raises(ValueError, match=r"vecnormalize\.pkl is damaged\. Copy the folder of the run again"):
            read_run(tmp_path)

    def test_an_unknown_algorithm_is_named(self, run, tmp_path):
        shutil.copytree(run, tmp_path, dirs_exist_ok=True)
        config = json.loads((run / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"algorithm": "PP0"}))
        with pytest.raises(ValueError, match=r"the algorithm must be one of .*; got 'PP0'\. Did you mean 'PPO'"):
            read_run(tmp_path).load()


class TestArchives:
    def test_an_agent_of_any_algorithm(self, archive):
        agent = read_archive(archive, algorithm="A2C", env_id="CartPole-v1")
        assert (agent.label, agent.seed, agent.cpu_seconds) == ("agent", None, None)
        assert isinstance(agent.load(), A2C)
        assert agent.make_env(2).reset().shape == (2, 4)

    def test_an_off_policy_agent_that_sees_a_normalised_window(self, tmp_path):
        env = VecNormalize(make_sb3_env(ENV_ID, 1, observation="window", window=2))
        DQN("MlpPolicy", env, device="cpu", buffer_size=100).save(tmp_path / "dqn.zip")
        env.save(str(tmp_path / "statistics.pkl"))
        agent = read_archive(
            tmp_path / "dqn.zip",
            algorithm="DQN",
            env_id=ENV_ID,
            observation="window",
            window=2,
            vecnormalize=tmp_path / "statistics.pkl",
        )
        rows = agent.make_env(2)
        assert isinstance(rows, VecNormalize)
        actions, _ = agent.load().predict(rows.reset())
        assert actions.shape == (2,)

    def test_another_algorithm_than_in_training_is_named(self, archive):
        agent = read_archive(archive, algorithm="DQN", env_id="CartPole-v1")
        with pytest.raises(ValueError, match=r"agent.zip cannot be loaded as a DQN of this version"):
            agent.load()

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match=r"a folder of train_ppo.py or an archive of SB3; got .*agent\.zip"):
            read_archive(tmp_path / "agent.zip", algorithm="A2C", env_id="CartPole-v1")

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_half_copied_ones_are_named(self, archive, share, tmp_path):
        data = archive.read_bytes()
        (tmp_path / "agent.zip").write_bytes(data[: int(share * len(data))])
        with pytest.raises(
            ValueError, match=r"agent\.zip must be a whole archive; (it is damaged|a part of it is missing)"
        ):
            read_archive(tmp_path / "agent.zip", algorithm="A2C", env_id="CartPole-v1").load()

    def test_one_flipped_bit_is_noticed(self, archive, tmp_path):
        data = bytearray(archive.read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "agent.zip").write_bytes(data)
        with pytest.raises(ValueError, match=r"agent\.zip must be a whole archive"):
            read_archive(tmp_path / "agent.zip", algorithm="A2C", env_id="CartPole-v1").load()

    def test_without_sb3_contrib_it_says_how_to_install_it(self, archive, monkeypatch):
        monkeypatch.setitem(sys.modules, "sb3_contrib", None)
        with pytest.raises(ValueError, match=r"TRPO needs sb3-contrib, which cannot be imported. Install it"):
            read_archive(archive, algorithm="TRPO", env_id="CartPole-v1").load()


def test_an_agent_behind_a_wrapper_sees_what_the_wrapper_shows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wrappers_of_mine.py").write_text(
        "from ssm_metarl_gym.wrappers import TransitionObservation\n"
        "def wrap(env):\n"
        "    return TransitionObservation(env)\n"
    )
    env = make_sb3_env(ENV_ID, observation="transition")
    PPO("MlpPolicy", env, device="cpu").save(tmp_path / "agent.zip")
    agent = read_archive(tmp_path / "agent.zip", algorithm="PPO", env_id=ENV_ID, wrapper="wrappers_of_mine:wrap")
    assert agent.is_stepped_row_by_row
    rows = agent.make_env(2, max_episode_steps=4)
    assert rows.observation_space == env.observation_space
    tasks = draw_tasks(ENV_ID, 2, 5)
    assert [len(row) for row in evaluate(agent.load(), rows, seed=5, tasks=tasks)] == [4, 4]
    agent = read_archive(tmp_path / "agent.zip", algorithm="PPO", env_id=ENV_ID, wrapper="wrappers_of_mine:wrp")
    with pytest.raises(ValueError, match=r"cannot be made as .*agent\.zip sees it: AttributeError: .*'wrp'"):
        agent.make_env(1)
