import json
import shutil

import numpy as np
import pytest
from PIL import Image
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.experiments.statistics import bootstrap_interval
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SHORT = {"max_episode_steps": 60}
SPLITS = ["interpolation", "extrapolation", "switch"]


@pytest.fixture(scope="module")
def evaluate(load_script):
    """The script as a module."""
    return load_script("evaluate")


@pytest.fixture(scope="module")
def runs(load_script, tmp_path_factory):
    """Tiny runs: two seeds of mlp, one of ssm."""
    folder, train_ppo = tmp_path_factory.mktemp("runs"), load_script("train_ppo")
    tiny = ["--num-envs", "2", "--timesteps", "64", "--hyperparameters", '{"n_steps": 16, "n_epochs": 1}']
    tiny += ["--env-kwargs", json.dumps(SHORT)]
    for policy, seed in (("mlp", 0), ("mlp", 1), ("ssm", 0)):
        options = ["--policy", policy, "--seed", str(seed), "--output", str(folder / f"{policy}-{seed}")]
        train_ppo.main([*tiny, *options])
    return folder


@pytest.fixture(scope="module")
def output(evaluate, runs, tmp_path_factory):
    """The results of all runs."""
    folder = tmp_path_factory.mktemp("results")
    agents = [str(runs / name) for name in ("mlp-0", "ssm-0", "mlp-1")]
    evaluate.main([*agents, "--num-tasks", "5", "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(output):
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What an algorithm of SB3 saved after no training at all."""
    path = tmp_path_factory.mktemp("archive") / "agent.zip"
    A2C("MlpPolicy", make_sb3_env("CartPole-v1"), seed=0, device="cpu").save(path)
    return path


def test_help_names_every_option_and_warns_of_pickles(evaluate, capsys):
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    names = set(evaluate.Options.__dataclass_fields__) - {"agents"}
    assert set(printed.split()) >= {f"--{name.replace('_', '-')}" for name in names}
    assert "evaluate only agents that you trust" in printed


class TestResults:
    def test_all_files_are_there_and_no_others(self, output):
        names = {path.name for path in output.iterdir()}
        assert names == {"results.md", "results.json", "returns.png", "curves.png"}
        for name in ("returns.png", "curves.png"):
            with Image.open(output / name) as image:
                assert np.asarray(image.convert("L")).std() > 5

    def test_runs_that_differ_in_the_seed_only_are_one_row(self, results, runs):
        assert [(group["label"], group["num_seeds"]) for group in results["groups"]] == [("mlp", 2), ("ssm", 1)]
        assert results["groups"][0]["agents"] == [str(runs / "mlp-0"), str(runs / "mlp-1")]
        assert results["groups"][0]["timesteps"] == 64
        seconds = [json.loads((runs / name / "config.json").read_text())["cpu_seconds"] for name in ("mlp-0", "mlp-1")]
        assert results["groups"][0]["cpu_seconds"] == pytest.approx(np.mean(seconds))

    def test_every_agent_has_a_return_for_each_task_of_each_split(self, results):
        assert list(results["splits"]) == SPLITS
        assert results["splits"]["switch"] == {"split": "interpolation", "switch": {"step": 30}}
        for agent in results["agents"]:
            assert list(agent["returns"]) == SPLITS
            assert all(len(returns) == 5 and max(returns) <= 60 for returns in agent["returns"].values())

    def test_the_returns_are_those_that_sb3_finds(self, results, runs):
        env = make_sb3_env(ENV_ID, 5, observation="transition", split="extrapolation", **SHORT)
        env = VecNormalize.load(str(runs / "ssm-0" / "vecnormalize.pkl"), env)
        env.training = env.norm_reward = False
        env.seed(1_000_000)
        model = SSMPPO.load(runs / "ssm-0" / "model.zip", device="cpu")
        returns, _ = evaluate_policy(model, env, 5, return_episode_rewards=True)
        # All trials are equally long, so that SB3 has them in the order of the rows too.
        assert results["agents"][1]["returns"]["extrapolation"] == pytest.approx(returns)

    def test_means_and_intervals_are_those_of_the_returns(self, results):
        by_path = {agent["path"]: agent["returns"] for agent in results["agents"]}
        mlp, ssm = results["groups"]
        for split in SPLITS:
            first, second = (np.mean(by_path[path][split]) for path in mlp["agents"])
            row = mlp["splits"][split]
            assert row["mean_return"] == pytest.approx((first + second) / 2)
            # Of two values: the standard deviation is their distance over the root of two.
            half_width = 12.706 * abs(first - second) / 2
            assert row["ci_high"] - row["mean_return"] == pytest.approx(half_width)
            assert row["mean_return"] - row["ci_low"] == pytest.approx(half_width)
            row, returns = ssm["splits"][split], by_path[ssm["agents"][0]][split]
            assert row["mean_return"] == pytest.approx(np.mean(returns))
            assert (row["ci_low"], row["ci_high"]) == bootstrap_interval(returns, 0)

    def test_the_table_is_written_as_printed_and_says_what_the_intervals_are(
        self, evaluate, runs, output, results, tmp_path, capsys
    ):
        evaluate.main([str(runs / "ssm-0"), "--splits", "switch", "--num-tasks", "5", "--output", str(tmp_path)])
        table = (tmp_path / "results.md").read_text()
        assert table in capsys.readouterr().out
        assert "over tasks (bootstrap) where there is one seed" in table
        assert "Student's t" not in table
        table = (output / "results.md").read_text()
        assert "over the means of the seeds (Student's t)" in table
        lines = table.splitlines()
        assert lines[0] == "| agent | interpolation | extrapolation | switch | seeds | timesteps | CPU seconds |"
        row = results["groups"][1]["splits"]["interpolation"]
        assert lines[3].startswith(f"| ssm | {row['mean_return']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}] | ")

    def test_one_seed_gives_one_result_and_another_one_other_tasks(self, evaluate, runs, results, tmp_path):
        returns = []
        for seed in ("0", "1"):
            options = ["--splits", "interpolation", "--num-tasks", "5", "--output", str(tmp_path / seed)]
            evaluate.main([str(runs / "ssm-0"), "--seed", seed, *options])
            returns.append(json.loads((tmp_path / seed / "results.json").read_text())["agents"][0]["returns"])
        assert returns[0]["interpolation"] == results["agents"][1]["returns"]["interpolation"]
        assert returns[0] != returns[1]


class TestArchives:
    def test_an_archive_of_any_algorithm_is_evaluated(self, evaluate, archive, tmp_path, capsys):
        options = ["--algorithm", "A2C", "--env", "CartPole-v1", "--num-tasks", "3", "--output", str(tmp_path)]
        evaluate.main([str(archive), *options])
        assert "\n| agent | " in capsys.readouterr().out
        results = json.loads((tmp_path / "results.json").read_text())
        assert list(results["splits"]) == ["default"]
        (group,) = results["groups"]
        assert (group["num_seeds"], group["timesteps"], group["cpu_seconds"]) == (1, 0, None)
        env = make_sb3_env("CartPole-v1", 3)
        env.seed(1_000_000)
        mean, _ = evaluate_policy(A2C.load(archive, device="cpu"), env, 3)
        assert group["splits"]["default"]["mean_return"] == pytest.approx(mean)

    def test_an_off_policy_agent_that_sees_a_normalised_window(self, evaluate, tmp_path):
        env = VecNormalize(make_sb3_env(ENV_ID, 1, observation="window", window=2))
        DQN("MlpPolicy", env, device="cpu", buffer_size=100).save(tmp_path / "dqn.zip")
        env.save(tmp_path / "statistics.pkl")
        options = ["--algorithm", "DQN", "--env", ENV_ID, "--observation", "window", "--window", "2"]
        options += ["--vecnormalize", str(tmp_path / "statistics.pkl"), "--output", str(tmp_path), "--num-tasks", "2"]
        evaluate.main([str(tmp_path / "dqn.zip"), *options])
        assert (tmp_path / "results.json").exists()

    def test_another_algorithm_than_in_training_is_named(self, evaluate, archive, tmp_path):
        options = ["--algorithm", "DQN", "--env", "CartPole-v1", "--num-tasks", "2", "--output", str(tmp_path)]
        with pytest.raises(SystemExit, match=r"agent.zip cannot be loaded as a DQN of this version"):
            evaluate.main([str(archive), *options])

    def test_another_observation_than_in_training_is_refused(self, evaluate, archive, tmp_path):
        options = ["--algorithm", "A2C", "--env", "CartPole-v1", "--observation", "transition"]
        with pytest.raises(SystemExit, match=r"shape \(4,\); got \(12,\) .* Try --observation"):
            evaluate.main([str(archive), *options, "--num-tasks", "2", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tasks", "1"], "--num-tasks must be >= 2; got 1."),
        (["--seed", "-1"], "--seed must be >= 0 and less than 2000; got -1."),
        (
            ["--splits", "default"],
            f"must be among train, interpolation, extrapolation, switch for {ENV_ID}; got default.",
        ),
        (["--splits", "test"], "invalid choice: 'test'"),
        (["--env-kwargs", "3"], "--env-kwargs: must be an object in JSON"),
        (["--env-kwargs", '{"size": 1}'], "unexpected keyword argument 'size'"),
        (["--env-kwargs", '{"split": "train"}'], "--env-kwargs must leave the split to --splits; got 'train' there."),
        (["--algorithm", "PPO"], "--algorithm is for archives; got it with folders of runs only."),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(evaluate, runs, arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main([str(runs / "mlp-0"), "--output", str(tmp_path / "output"), *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class TestBadAgents:
    @pytest.fixture
    def message(self, evaluate, tmp_path, capsys):
        """A function that gives what is said about these agents."""

        def refuse(*arguments):
            with pytest.raises(SystemExit) as exit_info:
                evaluate.main([*map(str, arguments), "--output", str(tmp_path / "output")])
            assert exit_info.value.code == 2
            return capsys.readouterr().err

        return refuse

    def test_what_is_no_agent(self, message, runs, archive, tmp_path):
        assert "a folder must be one of train_ppo.py, with its config.json" in message(tmp_path)
        assert "must be a folder of train_ppo.py or an archive of SB3" in message(tmp_path / "missing.zip")
        assert "needs --algorithm and --env" in message(archive)
        assert "--vecnormalize must be a file" in message(
            archive, "--algorithm", "A2C", "--env", "CartPole-v1", "--vecnormalize", tmp_path / "missing.pkl"
        )

    def test_a_run_without_its_files(self, message, runs, tmp_path):
        (tmp_path / "config.json").write_text((runs / "mlp-0" / "config.json").read_text())
        assert f"model.zip and vecnormalize.pkl; {tmp_path} lacks model.zip" in message(tmp_path)

    def test_an_unfinished_run(self, message, runs, tmp_path):
        config = json.loads((runs / "mlp-0" / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"finished": False}))
        assert f"a run must be finished; {tmp_path} is not" in message(tmp_path)

    def test_the_same_run_twice(self, message, runs):
        assert "are the same run twice" in message(runs / "mlp-0", runs / "ssm-0", runs / "mlp-0")

    def test_different_environments(self, message, runs, archive):
        agents = [runs / "mlp-0", archive, "--algorithm", "A2C", "--env", "CartPole-v1"]
        assert f"must be of one environment; got CartPole-v1, {ENV_ID}." in message(*agents)

    def test_different_tasks(self, evaluate, message, runs, tmp_path):
        def copy_with(**changes):
            folder = tmp_path / "copy"
            shutil.copytree(runs / "ssm-0", folder, dirs_exist_ok=True)
            config = json.loads((runs / "ssm-0" / "config.json").read_text())
            config["env_kwargs"] |= changes
            (folder / "config.json").write_text(json.dumps(config))
            return folder

        found = message(runs / "mlp-0", copy_with(max_episode_steps=30))
        assert f"max_episode_steps is 60 for {runs / 'mlp-0'} and 30 for {tmp_path / 'copy'}. Give one" in found
        for changes, options in (({"context": "visible"}, []), ({"task": {}}, ["--env-kwargs", '{"task": null}'])):
            agents = [str(runs / "mlp-0"), str(copy_with(**changes))]
            arguments = [*agents, *options, "--output", str(tmp_path / "output")]
            assert len(evaluate.parse_options(arguments)[1]) == 2


class TestGroups:
    @pytest.fixture
    def make_agent(self, evaluate, tmp_path):
        def make(seed, **changes):
            config = {"policy": "ssm", "timesteps": 10, "algorithm_arguments": dict(changes), **changes}
            return evaluate.Agent(tmp_path, "ssm", config, tmp_path, None, seed)

        return make

    def test_namesakes_are_told_apart_by_what_differs(self, evaluate, make_agent):
        agents = [make_agent(0), make_agent(1), make_agent(0, timesteps=20), make_agent(1)]
        assert evaluate.group(agents) == {"ssm (timesteps=10)": [0, 1, 3], "ssm (timesteps=20)": [2]}
        assert evaluate.group(agents[:2]) == {"ssm": [0, 1]}

    def test_a_curve_sums_up_to_the_mean_return(self, evaluate):
        assert evaluate.mean_curve([[1.0, 1.0, 1.0], [3.0]]).tolist() == [2.0, 0.5, 0.5]


def test_splits_are_those_that_the_environment_has(evaluate):
    assert list(evaluate.find_splits("ssm_metarl/PendulumPolarity-v0", {})) == ["train", *SPLITS]
    assert evaluate.find_splits("CartPole-v1", {}) == {"default": {}}
    assert evaluate.find_splits("ssm_metarl/CartPole-v0", {})["switch"]["switch"] == {"step": 250}


def test_splits_of_mujoco(evaluate):
    pytest.importorskip("mujoco", reason="the MuJoCo families need the extra mujoco")
    assert list(evaluate.find_splits("ssm_metarl/HalfCheetahDir-v0", {})) == ["train", "interpolation", "switch"]
    assert list(evaluate.find_splits("ssm_metarl/HopperParams-v0", {})) == ["train", "interpolation", "extrapolation"]


def test_the_film_shows_the_first_agent_of_each_group(evaluate, archive, tmp_path):
    options = ["--algorithm", "A2C", "--env", "CartPole-v1", "--num-tasks", "2", "--video", "--output", str(tmp_path)]
    options += ["--env-kwargs", '{"max_episode_steps": 7}']
    evaluate.main([str(archive), *options])
    (path,) = tmp_path.glob("*.gif")
    with Image.open(path) as film:
        assert film.size == (400, 266)
        assert film.n_frames == 4  # every second one


@pytest.mark.parametrize(("mean", "cell"), [(12.3456, "12.3 [12.3, 13.3]"), (0.9876, "0.988 [0.988, 1.988]")])
def test_small_returns_are_shown_to_more_places(evaluate, mean, cell):
    numbers = {"mean_return": mean, "ci_low": mean, "ci_high": mean + 1.0}
    row = {"label": "ssm", "splits": {"default": numbers}, "num_seeds": 2, "timesteps": 1, "cpu_seconds": 1.0}
    assert f"| ssm | {cell} | 2 | 1 | 1 |" in evaluate.format_table([row], num_tasks=3)
