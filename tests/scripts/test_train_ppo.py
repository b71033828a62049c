import csv
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import SSMPPO, SSMFeaturesExtractor
from ssm_metarl_gym.experiments.command_line import parse_options
from ssm_metarl_gym.experiments.runs import find_checkpoints, lock_run, read_config, write_config
from ssm_metarl_gym.experiments.saved_agents import find_algorithm
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
TINY = ["--num-envs", "2", "--timesteps", "80", "--hyperparameters", '{"n_steps": 8, "n_epochs": 1}']


@pytest.fixture(scope="module")
def train_ppo(load_script):
    """The script as a module."""
    return load_script("train_ppo")


@pytest.fixture
def run(train_ppo, tmp_path):
    """A function that trains for a moment, and the folder that it trains in."""

    def start(*arguments, folder="run"):
        train_ppo.main([*TINY, "--output", str(tmp_path / folder), *arguments])
        return tmp_path / folder

    return start


def read_log(folder):
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder, algorithm=PPO):
    model = algorithm.load(folder / "model.zip", device="cpu")
    return torch.cat([parameter.flatten() for parameter in model.policy.parameters()]).detach().numpy()


def test_help_names_every_option(train_ppo, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train_ppo.main(["--help"])
    assert exit_info.value.code == 0
    options = {f"--{name.replace('_', '-')}" for name in train_ppo.Options.__dataclass_fields__}
    assert set(capsys.readouterr().out.split()) >= options


def test_every_option_arrives(train_ppo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_options(train_ppo.Options, [], description="") == train_ppo.Options()
    expected = train_ppo.Options(
        env="CartPole-v1",
        env_kwargs={"sutton_barto_reward": True},
        policy="mlp",
        seed=3,
        timesteps=5,
        output=tmp_path / "a" / "b",
        num_envs=2,
        checkpoint_interval=7,
        window=9,
        hyperparameters={"ent_coef": 0.5},
        defaults=True,
        device="cpu",
    )
    arguments = ["--defaults"]
    for name, value in vars(expected).items():
        if name != "defaults":
            arguments += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    assert parse_options(train_ppo.Options, arguments, description="") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed must be >= 0 and less than 2147483648; got -1."),
        (["--timesteps", "0"], "--timesteps must be >= 1; got 0."),
        (["--num-envs", "0"], "--num-envs must be >= 1 and less than 100000; got 0."),
        (["--policy", "gru"], "--policy must be one of ['mlp',"),
        (["--env-kwargs", "{"], "--env-kwargs must be an object in JSON, like '{\"name\": 8}'; got '{'."),
        (["--hyperparameters", "[1]"], "--hyperparameters must be an object in JSON"),
        (["--env", "ssm_metarl/CartPoleX-v0"], "--env ssm_metarl/CartPoleX-v0 with --env-kwargs {} cannot be made"),
        (["--env", "no_such_module:CartPole-v1"], "No module named 'no_such_module'"),
        (["--env-kwargs", '{"size": 1}'], "unexpected keyword argument 'size'"),
        (["--env-kwargs", '{"split": "extrapolation"}'], "must leave the split to be 'train'; got 'extrapolation'."),
        (["--hyperparameters", '{"n_step": 1}'], "unexpected keyword argument 'n_step'"),
        (["--policy", "ssm", "--hyperparameters", '{"batch_size": 5}'], "batch_size must be a multiple of n_steps"),
        (["--hyperparameters", '{"gamma": "a"}'], "gamma must be of float or int; got 'a'."),
        (["--hyperparameters", '{"learning_rate": [1e-3]}'], "cannot be made for"),
        (["--device", "abacus"], "--device must be a device that PyTorch can compute on; got 'abacus'"),
        (["--device", "meta"], "--device must be a device that PyTorch can compute on; got 'meta'"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(train_ppo, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train_ppo.main(["--output", str(tmp_path / "output"), "--num-envs", "1", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named(train_ppo, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit):
        train_ppo.main([*TINY, "--output", str(tmp_path / "file" / "folder")])
    assert f"--output must be a folder that can be written to; got {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "mine"}'])
def test_a_folder_of_something_else_is_left_alone(train_ppo, text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit):
        train_ppo.main([*TINY, "--output", str(tmp_path)])
    assert "config.json is of something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.fixture
def run_until(run, monkeypatch):
    """A function that trains until Ctrl-C comes, when the algorithm has learned from so many timesteps."""

    def start(num_timesteps, algorithm, *arguments):
        collect_rollouts = algorithm.collect_rollouts

        def collect(self, *args, **kwargs):
            if self.num_timesteps == num_timesteps:
                raise KeyboardInterrupt
            return collect_rollouts(self, *args, **kwargs)

        with monkeypatch.context() as context:
            context.setattr(algorithm, "collect_rollouts", collect)
            with pytest.raises(SystemExit) as exit_info:
                run(*arguments)
        assert exit_info.value.code == 130

    return start


def test_a_run_that_learned_nothing_may_begin_anew_with_other_options(run, run_until):
    run_until(0, PPO, "--policy", "mlp")
    folder = run("--policy", "ssm")
    assert json.loads((folder / "config.json").read_text())["policy"] == "ssm"


def test_without_sb3_contrib_it_says_how_to_install_it(train_ppo, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(SystemExit):
        train_ppo.main([*TINY, "--policy", "lstm", "--output", str(tmp_path / "run")])
    assert "python -m pip install sb3-contrib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("learning_rate", "reason"), [("1e30", "weights are not finite"), ("1e39", "without overflow")]
)
def test_a_run_that_diverges_ends_with_a_sentence(run, learning_rate, reason, capsys):
    hyperparameters = f'{{"n_steps": 8, "n_epochs": 1, "learning_rate": {learning_rate}}}'
    with pytest.raises(SystemExit) as exit_info:
        run("--policy", "mlp", "--hyperparameters", hyperparameters)
    assert exit_info.value.code == 2
    (sentence,) = capsys.readouterr().err.split("\n")[1:-1]
    assert "it cannot go on: the training diverged" in sentence
    assert reason in sentence


def test_a_second_run_in_the_same_folder_is_refused(run, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with lock_run(tmp_path / "run"), pytest.raises(SystemExit) as exit_info:
        run("--policy", "mlp")
    assert exit_info.value.code == 2
    assert f"run is in use by process {os.getpid()}" in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "policy",
    ["ssm", *(pytest.param(each, marks=pytest.mark.slow) for each in ("mlp", "transition", "window-ssm", "lstm"))],
)
def test_every_policy_trains_and_leaves_all_that_is_needed_to_use_it(train_ppo, run, policy):
    if policy == "lstm":
        pytest.importorskip("sb3_contrib")
    folder = run("--policy", policy, "--window", "3", "--checkpoint-interval", "32", "--seed", "5")
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"]
    assert (config["policy"], config["env"], config["seed"], config["window"]) == (policy, ENV_ID, 5, 3)
    assert config["cpu_seconds"] > 0
    assert config["wall_seconds"] > 0
    assert config["versions"]["torch"] == torch.__version__
    algorithm = find_algorithm(config["algorithm"])
    model = algorithm.load(folder / "model.zip", device="cpu")
    env = make_sb3_env(ENV_ID, 2, observation=config["observation"], window=3)
    env = VecNormalize.load(str(folder / "vecnormalize.pkl"), env)
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (2,)
    assert model.num_timesteps == 80
    assert [path.name for path in find_checkpoints(folder / "checkpoints")] == ["0000000032", "0000000064"]
    assert [float(row["time/total_timesteps"]) for row in read_log(folder)] == [16, 32, 48, 64, 80]
    assert isinstance(model, SSMPPO) == (policy == "ssm")
    assert isinstance(model.policy.features_extractor, SSMFeaturesExtractor) == (policy == "window-ssm")


def test_the_recipe_and_what_replaces_it(train_ppo):
    recipe = train_ppo.algorithm_arguments(train_ppo.Options())
    assert (recipe["n_steps"], recipe["batch_size"], recipe["gamma"]) == (128, 64 * 128 // 4, 0.98)
    pendulum = train_ppo.algorithm_arguments(train_ppo.Options(env="ssm_metarl/PendulumPolarity-v0"))
    assert (pendulum["gamma"], pendulum["learning_rate"][0], pendulum["ent_coef"]) == (0.95, 1e-3, 0.0)
    changed = train_ppo.Options(num_envs=8, hyperparameters={"n_steps": 10, "gamma": 0.5})
    assert train_ppo.algorithm_arguments(changed) == recipe | {"n_steps": 10, "batch_size": 20, "gamma": 0.5}
    assert train_ppo.algorithm_arguments(train_ppo.Options(defaults=True)) == {}
    assert train_ppo.make_env(changed).gamma == 0.5
    sizes = {"policy_kwargs": {"features_extractor_kwargs": {"hidden_dim": 8}}}
    window = train_ppo.algorithm_arguments(train_ppo.Options(policy="window-ssm", hyperparameters=sizes))
    assert window["policy_kwargs"] == {"net_arch": [], **sizes["policy_kwargs"]}


def test_neighbouring_seeds_share_no_tasks(train_ppo):
    tasks = []
    for seed in range(3):
        options = train_ppo.Options(policy="mlp", seed=seed)
        env = train_ppo.make_algorithm(options, train_ppo.make_env(options)).get_env()
        env.reset()
        tasks += [task.length for task in env.get_attr("task")]
    assert len(set(tasks)) == len(tasks) == 192


@pytest.mark.slow
def test_one_seed_gives_one_result(run):
    first, again, other = (
        weights(run("--policy", "mlp", "--seed", seed, folder=name))
        for seed, name in (("0", "a"), ("0", "b"), ("1", "c"))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


class TestResume:
    @pytest.fixture
    def interrupted(self, run_until, tmp_path, capsys):
        """The folder of a run that was interrupted at step 64, after its checkpoint at 48."""
        run_until(64, PPO, "--policy", "mlp", "--checkpoint-interval", "24")
        assert "interrupted; the same command again goes on from timestep 48" in capsys.readouterr().err
        return tmp_path / "run"

    def test_the_same_command_goes_on(self, train_ppo, interrupted, run, monkeypatch, capsys):
        write_config(interrupted, read_config(interrupted, "policy") | {"versions": {"torch": "0.1"}})
        seeds = []
        set_random_seed = PPO.set_random_seed
        monkeypatch.setattr(
            PPO, "set_random_seed", lambda self, seed: (seeds.append(seed), set_random_seed(self, seed))
        )
        folder = run("--policy", "mlp", "--checkpoint-interval", "24")
        assert "goes on from 48 of 80 timesteps" in capsys.readouterr().out
        # What comes after the checkpoint is drawn from other streams than what came before it.
        assert seeds[-1] == train_ppo.stream_seed(0, 48) != train_ppo.stream_seed(0, 0)
        log, expected = read_log(folder), read_log(run("--policy", "mlp", folder="uninterrupted"))
        steps = [row["time/total_timesteps"] for row in log]
        assert steps == [row["time/total_timesteps"] for row in expected]
        # The update before the checkpoint is in the row that follows it.
        assert [bool(row["train/loss"]) for row in log] == [bool(row["train/loss"]) for row in expected]
        assert log[3]["train/n_updates"] == expected[3]["train/n_updates"]
        assert log[-1]["train/learning_rate"] == expected[-1]["train/learning_rate"]
        assert PPO.load(folder / "model.zip", device="cpu").num_timesteps == 80
        # The configuration is still that of the beginning.
        config = read_config(interrupted, "policy")
        assert config["finished"]
        assert config["versions"] == {"torch": "0.1"}

    @pytest.mark.slow
    def test_seconds_add_up(self, train_ppo, interrupted, run, tmp_path):
        path = tmp_path / "run" / "checkpoints" / "0000000048" / "seconds.json"
        (path.parent / "checksums.json").unlink()
        path.write_text(json.dumps({"wall_seconds": 1000.0, "cpu_seconds": 500.0}))
        config = json.loads((run("--policy", "mlp") / "config.json").read_text())
        assert 1000 < config["wall_seconds"] < 1100
        assert 500 < config["cpu_seconds"] < 600

    @pytest.mark.slow
    def test_without_a_whole_checkpoint_it_is_refused(self, interrupted, run, tmp_path, capsys):
        for path in (tmp_path / "run" / "checkpoints").rglob("model.zip"):
            path.write_text("damaged")
        with pytest.raises(SystemExit) as exit_info:
            run("--policy", "mlp")
        assert exit_info.value.code == 2
        assert "a checkpoint must be whole to go on from" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_checkpoint_of_something_else_is_named(self, interrupted, run, tmp_path, capsys):
        checkpoint = tmp_path / "run" / "checkpoints" / "0000000048"
        (checkpoint / "checksums.json").unlink()  # as earlier versions wrote none
        (checkpoint / "vecnormalize.pkl").write_text("damaged")
        with pytest.raises(SystemExit) as exit_info:
            run("--policy", "mlp")
        assert exit_info.value.code == 2
        assert "0000000048 must be whole; to go on from the checkpoint before it, delete" in capsys.readouterr().err
        shutil.rmtree(checkpoint)
        run("--policy", "mlp")
        assert "goes on from 32 of 80" in capsys.readouterr().out

    @pytest.fixture
    def finished(self, train_ppo, tmp_path):
        """The folder of a run that is finished, according to its configuration."""
        options = parse_options(train_ppo.Options, [*TINY, "--policy", "ssm"], description="")
        (tmp_path / "run").mkdir()
        config = train_ppo.make_config(options) | {"finished": True}
        (tmp_path / "run" / "config.json").write_text(json.dumps(config))
        return tmp_path / "run"

    def test_other_options_are_refused(self, finished, run, capsys):
        with pytest.raises(SystemExit) as exit_info:
            run("--policy", "mlp", "--seed", "2")
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert '--policy ("ssm" there, "mlp" now), --seed (0 there, 2 now). Give another --output.' in message

    def test_a_finished_run_is_left_as_it_is(self, finished, run, capsys):
        before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
        run("--policy", "ssm")
        assert f"the run in {finished} is finished: 80 timesteps" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_a_killed_run_loses_no_more_than_an_interval(train_ppo, tmp_path):
    options = ["--policy", "ssm", "--num-envs", "4", "--timesteps", "9000", "--checkpoint-interval", "2000"]
    command = [sys.executable, "-W", "error", train_ppo.__file__, *options, "--output", str(tmp_path)]
    process = subprocess.Popen(command)  # noqa: S603
    deadline = time.monotonic() + 600
    while len(find_checkpoints(tmp_path / "checkpoints")) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    earlier = read_log(tmp_path)
    checkpoint = int(find_checkpoints(tmp_path / "checkpoints")[-1].name)
    assert 2 * 1536 <= checkpoint < 9000  # of 512 timesteps a rollout, three fit into the interval
    # The log has whole rollouts; the one that was going on is lost too.
    assert float(earlier[-1]["time/total_timesteps"]) - checkpoint <= 2000
    assert not (tmp_path / "model.zip").exists()

    again = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    assert f"goes on from {checkpoint} of 9000 timesteps" in again.stdout
    log = read_log(tmp_path)
    steps = [float(row["time/total_timesteps"]) for row in log]
    assert steps == [512.0 * (i + 1) for i in range(18)]
    kept = [row for row in earlier if float(row["time/total_timesteps"]) <= checkpoint]
    assert [{name: row[name] for name in kept[0]} for row in log[: len(kept)]] == kept
    assert json.loads((tmp_path / "config.json").read_text())["finished"]
