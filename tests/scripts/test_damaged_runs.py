"""An attack on the folders of runs: whatever is damaged in one, it goes on, or ends in a sentence that names it."""

import json
import shutil

import numpy as np
import pytest
from stable_baselines3 import PPO

from ssm_metarl_gym.agents.meta_training.dynamics_objective import DynamicsObjective
from ssm_metarl_gym.experiments.runs import find_checkpoints
from ssm_metarl_gym.experiments.saved_agents import read_run

DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flip_bit(path.read_bytes())),
    "foreign": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
every_damage = pytest.mark.parametrize("damage", DAMAGES)
pytestmark = pytest.mark.slow


def flip_bit(data):
    """The data with another bit in its middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.fixture
def attack(tmp_path, capsys):
    """A function that damages a file in a copy of a folder, runs a script on it, and checks how that ends."""

    def start(folder, name, damage, main):
        copy = tmp_path / "run"
        shutil.copytree(folder, copy)
        DAMAGES[damage](copy / name)
        status = 0
        try:
            main(copy)
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        assert status in (0, 2)
        if status == 2:
            assert err.count("\n") == 1
            assert str(copy) in err
        return status, out + err

    return start


@pytest.fixture(scope="module")
def unfinished(load_script, tmp_path_factory):
    """A function that gives the folder of a run which Ctrl-C ended, and goes on with a copy of it."""

    def start(name, options, progress):
        script, folder = load_script(name), tmp_path_factory.mktemp(name)
        with pytest.MonkeyPatch.context() as context:
            context.setattr(*progress)
            with pytest.raises(SystemExit):
                script.main([*options, "--output", str(folder)])
        assert len(find_checkpoints(folder / "checkpoints")) == 2
        return folder, lambda copy: script.main([*options, "--output", str(copy)])

    return start


@pytest.fixture(scope="module")
def evaluate(load_script):
    """The script as a module."""
    return load_script("evaluate")


@pytest.fixture(scope="module")
def finished(load_script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    tiny = ["--policy", "mlp", "--num-envs", "2", "--timesteps", "16", "--env-kwargs", '{"max_episode_steps": 9}']
    tiny += ["--hyperparameters", '{"n_steps": 8, "n_epochs": 1}', "--output", str(folder)]
    load_script("train_ppo").main(tiny)
    return folder


@pytest.fixture(scope="module")
def ppo_run(unfinished):
    collect_rollouts = PPO.collect_rollouts

    def collect(self, *args, **kwargs):
        if self.num_timesteps == 48:
            collect_rollouts(self, *args, **kwargs)
            raise KeyboardInterrupt
        return collect_rollouts(self, *args, **kwargs)

    options = ["--policy", "mlp", "--num-envs", "2", "--timesteps", "64", "--checkpoint-interval", "1"]
    options += ["--hyperparameters", '{"n_steps": 8, "n_epochs": 1}']
    return unfinished("train_ppo", options, (PPO, "collect_rollouts", collect))


@pytest.fixture(scope="module")
def meta_run(unfinished):
    update = DynamicsObjective.update

    def interrupt(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return update(self, number)

    sizes = {"window": 4, "meta_batch_size": 4, "num_streams": 8, "stream_length": 16}
    options = ["--updates", "4", "--num-eval-tasks", "2", "--log-interval", "1", "--checkpoint-interval", "1"]
    options += ["--options", json.dumps(sizes)]
    return unfinished("meta_train", options, (DynamicsObjective, "update", interrupt))


class TestEvaluate:
    @every_damage
    @pytest.mark.parametrize("name", ["config.json", "model.zip", "vecnormalize.pkl", "checksums.json"])
    def test_a_finished_run(self, evaluate, finished, attack, name, damage, tmp_path):
        def main(copy):
            evaluate.main([str(copy), "--num-tasks", "2", "--output", str(tmp_path / "results")])

        status, _ = attack(finished, name, damage, main)
        assert status == (0 if (name, damage) == ("checksums.json", "missing") else 2)  # as in earlier versions
        assert (tmp_path / "results").exists() == (status == 0)

    def test_no_flipped_bit_of_a_configuration_has_a_consequence(self, finished, tmp_path):
        shutil.copytree(finished, folder := tmp_path / "run")
        whole, (path, config) = read_run(folder), (folder / "config.json", (folder / "config.json").read_bytes())
        rng, num_refused = np.random.default_rng(0), 0
        for position in rng.choice(8 * len(config), 200, replace=False):
            damaged = bytearray(config)
            damaged[position // 8] ^= 1 << position % 8
            path.write_bytes(damaged)
            try:
                assert read_run(folder) == whole
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017
                num_refused += 1
        assert num_refused > 190


class TestTrainPPO:
    @every_damage
    @pytest.mark.parametrize("name", ["config.json", "progress.csv"])
    def test_what_the_folder_holds(self, ppo_run, attack, name, damage):
        folder, main = ppo_run
        status, _ = attack(folder, name, damage, main)
        assert status == 2 or (name, damage) != ("config.json", "flipped")

    @every_damage
    @pytest.mark.parametrize("name", ["model.zip", "vecnormalize.pkl", "seconds.json", "log.json", "checksums.json"])
    def test_the_last_checkpoint(self, ppo_run, attack, name, damage):
        folder, main = ppo_run
        status, said = attack(folder, f"checkpoints/0000000048/{name}", damage, main)
        is_unknown = (name, damage) == ("checksums.json", "missing")  # as in those of earlier versions
        assert status == 0
        assert (f"goes on from {48 if is_unknown else 32} of 64" in said) == (status == 0)


class TestMetaTrain:
    @every_damage
    @pytest.mark.parametrize("name", ["config.json", "progress.csv"])
    def test_what_the_folder_holds(self, meta_run, attack, name, damage):
        folder, main = meta_run
        status, _ = attack(folder, name, damage, main)
        assert status == 2 or (name, damage) != ("config.json", "flipped")

    @every_damage
    @pytest.mark.parametrize("name", ["trainer.pt", "seconds.json", "checksums.json"])
    def test_the_last_checkpoint(self, meta_run, attack, name, damage):
        folder, main = meta_run
        status, said = attack(folder, f"checkpoints/0000000003/{name}", damage, main)
        is_unknown = (name, damage) == ("checksums.json", "missing")
        assert status == 0
        assert f"goes on from {3 if is_unknown else 2} of 4" in said
