import json

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from ssm_metarl_gym.agents import SSMPPO
from ssm_metarl_gym.experiments.report import estimate
from ssm_metarl_gym.experiments.runs import lock_run
from ssm_metarl_gym.experiments.saved_agents import SavedAgent
from ssm_metarl_gym.wrappers import make_sb3_env

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
SPLITS = ["interpolation", "extrapolation", "switch"]


@pytest.fixture(scope="module")
def evaluate(load_script):
    """The script as a module."""
    return load_script("evaluate")


@pytest.fixture(scope="module")
def runs(make_run, tmp_path_factory):
    """Two seeds of mlp, one of ssm."""
    folder = tmp_path_factory.mktemp("runs")
    for policy, seed in (("mlp", 0), ("mlp", 1), ("ssm", 0)):
        make_run(folder / f"{policy}-{seed}", policy, seed)
    return folder


@pytest.fixture(scope="module")
def output(evaluate, runs, tmp_path_factory):
    """The results of all runs."""
    folder = tmp_path_factory.mktemp("results")
    agents = [str(runs / name) for name in ("mlp-0", "ssm-0", "mlp-1")]
    evaluate.main([*agents, "--num-tasks", "3", "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def results(output):
    return json.loads((output / "results.json").read_text())


@pytest.fixture
def refused(evaluate, tmp_path, capsys):
    """A function that gives what is said about wrong arguments."""

    def refuse(*arguments):
        with pytest.raises(SystemExit) as exit_info:
            evaluate.main([*map(str, arguments), "--output", str(tmp_path / "output")])
        assert exit_info.value.code == 2
        assert not (tmp_path / "output").exists()
        return capsys.readouterr().err

    return refuse


def test_help_names_every_option_and_warns_of_pickles(evaluate, capsys):
    with pytest.raises(SystemExit) as exit_info:
        evaluate.main(["--help"])
    assert exit_info.value.code == 0
    printed = capsys.readouterr().out
    names = set(evaluate.Options.__dataclass_fields__) - {"agents"}
    assert all(f"--{name.replace('_', '-')}" in printed for name in names)
    assert "evaluate only agents that you trust" in " ".join(printed.split())


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
        assert all(group["cpu_seconds"] == 1.5 and group["timesteps"] == 0 for group in results["groups"])
        assert [agent["seed"] for agent in results["agents"]] == [0, 0, 1]

    def test_every_agent_has_a_return_in_every_task_of_every_split(self, results):
        assert list(results["splits"]) == SPLITS
        assert results["splits"]["switch"] == {"split": "interpolation", "switch": {"step": 30}}
        for agent in results["agents"]:
            assert list(agent["returns"]) == SPLITS
            assert all(len(returns) == 3 and max(returns) <= 60 for returns in agent["returns"].values())

    def test_the_returns_are_those_that_sb3_finds(self, results, runs):
        env = make_sb3_env(ENV_ID, 3, observation="transition", split="extrapolation", max_episode_steps=60)
        env = VecNormalize.load(str(runs / "ssm-0" / "vecnormalize.pkl"), env)
        env.training = env.norm_reward = False
        env.seed(1_000_000)
        model = SSMPPO.load(runs / "ssm-0" / "model.zip", device="cpu")
        returns, _ = evaluate_policy(model, env, 3, return_episode_rewards=True)
        # All trials are equally long, so that SB3 has them in the order of the rows too.
        assert results["agents"][1]["returns"]["extrapolation"] == pytest.approx(returns)

    def test_means_and_intervals_are_those_of_the_returns(self, results):
        by_path = {agent["path"]: agent["returns"] for agent in results["agents"]}
        for group in results["groups"]:
            for split in SPLITS:
                values = [by_path[path][split] for path in group["agents"]]
                assert group["splits"][split] == estimate(values, 0).to_dict("mean_return")

    def test_the_table_says_what_the_intervals_are(self, output, results):
        table = (output / "results.md").read_text()
        assert "over the means of the seeds (Student's t)" in table
        assert "over tasks (bootstrap) where there is one seed" in table
        lines = table.splitlines()
        assert lines[0] == "| agent | interpolation | extrapolation | switch | seeds | timesteps | CPU seconds |"
        row = results["groups"][1]["splits"]["interpolation"]
        assert lines[3].startswith(f"| ssm | {row['mean_return']:.1f} [{row['ci_low']:.1f}, {row['ci_high']:.1f}] | ")

    @pytest.mark.slow
    def test_one_seed_gives_one_result_and_another_one_other_tasks(self, evaluate, runs, results, tmp_path, capsys):
        returns = []
        for seed in ("0", "1"):
            options = ["--splits", "interpolation", "--num-tasks", "3", "--output", str(tmp_path / seed)]
            evaluate.main([str(runs / "ssm-0"), "--seed", seed, *options])
            returns.append(json.loads((tmp_path / seed / "results.json").read_text())["agents"][0]["returns"])
        assert returns[0]["interpolation"] == results["agents"][1]["returns"]["interpolation"]
        assert returns[0] != returns[1]
        table = (tmp_path / "1" / "results.md").read_text()
        assert table in capsys.readouterr().out
        assert "Student's t" not in table


@pytest.mark.slow
def test_the_film_shows_the_first_agent_of_each_row(evaluate, runs, tmp_path):
    options = ["--splits", "switch", "--num-tasks", "2", "--video", "--output", str(tmp_path)]
    evaluate.main([str(runs / "ssm-0"), *options, "--env-kwargs", '{"max_episode_steps": 7}'])
    (path,) = tmp_path.glob("*.gif")
    assert path.name == "ssm-switch.gif"
    with Image.open(path) as film:
        assert (film.size, film.n_frames) == ((400, 266), 4)  # every second one


def test_a_folder_that_another_process_writes_to_is_refused(evaluate, runs, tmp_path, capsys):
    with lock_run(tmp_path), pytest.raises(SystemExit) as exit_info:
        evaluate.main([str(runs / "mlp-0"), "--num-tasks", "2", "--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert f"{tmp_path} is in use by process " in capsys.readouterr().err
    assert not any(tmp_path.glob("results.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tasks", "1"], "--num-tasks must be >= 2 and less than 100000; got 1."),
        (["--seed", "-1"], "--seed must be >= 0 and less than 2000; got -1."),
        (
            ["--splits", "default"],
            f"must be among train, interpolation, extrapolation, switch for {ENV_ID}; got default.",
        ),
        (["--splits", "test"], "--splits must be one of ['train',"),
        (["--env-kwargs", "3"], "--env-kwargs must be an object in JSON"),
        (["--env-kwargs", '{"size": 1}'], "unexpected keyword argument 'size'"),
        (["--env-kwargs", '{"split": "train"}'], "--env-kwargs must leave the split to --splits; got 'train' there."),
        (["--algorithm", "PPO"], "--algorithm is for archives; got it with folders of runs only."),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(refused, runs, arguments, message):
    assert message in refused(runs / "mlp-0", *arguments)


class TestAgents:
    def test_what_is_none(self, refused, runs, tmp_path):
        assert "AGENTS must be one or more folders" in refused()
        assert "a folder must be one of train_ppo.py, with its config.json" in refused(tmp_path)
        archive = runs / "mlp-0" / "model.zip"
        assert "needs --algorithm and --env" in refused(archive)
        of_archives = ["--algorithm", "PPO", "--env", ENV_ID]
        assert "or an archive of SB3; got" in refused(tmp_path / "missing.zip", *of_archives)
        assert "--vecnormalize must be a file" in refused(archive, *of_archives, "--vecnormalize", tmp_path / "a.pkl")

    def test_an_archive_is_evaluated_as_a_run_is(self, evaluate, runs, results, tmp_path):
        options = ["--algorithm", "PPO", "--env", ENV_ID, "--vecnormalize", str(runs / "mlp-0" / "vecnormalize.pkl")]
        options += ["--splits", "switch", "--env-kwargs", '{"max_episode_steps": 60}', "--num-tasks", "3"]
        evaluate.main([str(runs / "mlp-0" / "model.zip"), *options, "--output", str(tmp_path)])
        found = json.loads((tmp_path / "results.json").read_text())
        assert found["agents"][0]["returns"]["switch"] == results["agents"][0]["returns"]["switch"]
        assert (found["groups"][0]["label"], found["groups"][0]["cpu_seconds"]) == ("model", None)
        assert "| 1 | 0 | ? |" in (tmp_path / "results.md").read_text()

    def test_other_observations_than_in_training_are_refused(self, refused, runs):
        options = ["--algorithm", "PPO", "--env", ENV_ID, "--observation", "transition"]
        message = refused(runs / "mlp-0" / "model.zip", *options)
        assert "shape (4,); got (12,) from the environment. Try --observation" in message

    def test_another_environment_is_refused(self, refused, runs):
        options = ["--algorithm", "PPO", "--env", "CartPole-v1"]
        message = refused(runs / "ssm-0", runs / "mlp-0" / "model.zip", *options)
        assert f"must be of one environment; got CartPole-v1, {ENV_ID}." in message


def test_a_switch_that_draws_is_not_for_rows_of_both_kinds(evaluate, tmp_path):
    def make(env_id, **more):
        return SavedAgent(tmp_path, "agent", {"env": env_id, "env_kwargs": {}, **more}, tmp_path, None)

    points, poles = "ssm_metarl/PointActuators-v0", "ssm_metarl/CartPolePolarity-v0"
    splits = {"train": {}, "switch": {"switch": {"step": 50}}}
    with pytest.raises(
        ValueError, match=r"--splits must leave out switch of .*PointActuators-v0 where only some agents"
    ):
        evaluate.check_switches([make(points), make(points, wrapper="os:path")], splits)
    evaluate.check_switches([make(points), make(points)], splits)
    for without in ({}, {"switch": None}):
        evaluate.check_switches([make(points), make(points, wrapper="os:path")], {"train": without})
    evaluate.check_switches([make(poles), make(poles, wrapper="os:path")], splits)
