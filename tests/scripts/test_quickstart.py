import contextlib
import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image

from ssm_metarl_gym.agents import MetaTrainer
from ssm_metarl_gym.experiments.command_line import parse_options
from ssm_metarl_gym.experiments.report import Estimate

ENV_ID = "ssm_metarl/CartPolePolarity-v0"
# Plain, with four predicted changes for each of two actions, and with the four hidden parameters.
WIDTHS = {"mlp": 4, "frozen_predictions": 12, "adapted_predictions": 12, "oracle": 8}
SPLITS = ("interpolation", "extrapolation", "switch")
ROW_KEYS = ("name", "split", "mean_return", "ci_low", "ci_high", "num_tasks", "seed")
FILES = {"results.json", "switch.png", "comparison.gif", "dynamics.pt", *(f"{agent}.zip" for agent in WIDTHS)}

every_agent = pytest.mark.parametrize("agent", WIDTHS)
every_split = pytest.mark.parametrize("split", SPLITS)


@pytest.fixture(scope="module")
def script(checkout):
    return checkout / "scripts" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart(load_script):
    """The script as a module."""
    return load_script("quickstart")


@pytest.fixture(scope="module")
def trainer(quickstart):
    torch.manual_seed(0)
    return MetaTrainer(ENV_ID, quickstart.make_model("ssm"), num_streams=4, stream_length=32).learn(1)


def play(env, num_steps):
    """The first steps of an episode, as pairs of observation and info, under actions that are always the same."""
    yield env.reset(seed=5)
    for action in np.random.default_rng(0).integers(2, size=num_steps):
        observation, _, _, _, info = env.step(action)
        yield observation, info


def test_help_names_every_option(quickstart, capsys):
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--help"])
    assert exit_info.value.code == 0
    options = {f"--{name.replace('_', '-')}" for name in quickstart.Options.__dataclass_fields__}
    assert options >= {"--quick", "--seed", "--output", "--num-tasks"}
    words = set(capsys.readouterr().out.split())
    assert words >= options


def test_every_option_arrives(quickstart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_options(quickstart.Options, [], description="") == quickstart.Options()
    line = f"--quick --seed 3 --output {tmp_path / 'a' / 'b'} --num-tasks 2 --core tanh --ppo-steps 1"
    expected = quickstart.Options(True, 3, tmp_path / "a" / "b", 2, "tanh", 1)
    assert parse_options(quickstart.Options, line.split(), description="") == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seed", "-1"),
        ("--seed", "1000000"),
        ("--seed", "1.5"),
        ("--num-tasks", "1"),
        ("--ppo-steps", "0"),
        ("--core", "gru"),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(quickstart, option, value, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--output", str(tmp_path / "output"), option, value])
    assert exit_info.value.code == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert option in message
    assert value in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "folder", "folder/folder"])
def test_an_output_that_cannot_be_written_is_named_and_nothing_is_written(quickstart, below, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--output", str(file / below)])
    assert exit_info.value.code == 2
    (message,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert "--output" in message
    assert str(file / below) in message
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "mine"


def test_the_results_of_an_earlier_run_are_removed_and_nothing_else(quickstart, tmp_path, monkeypatch):
    class Interrupted:
        def __init__(self, *args, **kwargs):
            raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "MetaTrainer", Interrupted)
    for name in ("results.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--output", str(tmp_path)])
    assert exit_info.value.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_row_is_what_results_json_holds(quickstart):
    row = quickstart.make_row("mlp", "switch", Estimate(2.0, 1.0, 3.0), 5, 7)
    assert row == dict(zip(ROW_KEYS, ("mlp", "switch", 2.0, 1.0, 3.0, 5, 7), strict=True))


@pytest.mark.parametrize(("asked", "steps"), [(None, 24576), (1, 4096), (4096, 4096), (4097, 8192)])
def test_steps_are_rounded_up_to_whole_rollouts(quickstart, asked, steps):
    budget = quickstart.choose_budget(quickstart.Options(quick=True, ppo_steps=asked))
    assert (budget.ppo_steps, budget.num_tasks) == (steps, 20)
    assert quickstart.choose_budget(quickstart.Options(num_tasks=3)).num_tasks == 3


def test_the_rows_do_not_depend_on_which_job_ends_first(quickstart, monkeypatch, tmp_path):
    class Pool:
        """Runs each job at once."""

        def __init__(self):
            self.futures = []

        def submit(self, job, *args):
            future = quickstart.Future()
            future.number = len(self.futures)
            self.futures.append(future)
            future.set_result(job(*args))
            return future

    def rows(first):
        def wait(pending, **kwargs):
            done = first(pending, key=lambda future: future.number)
            return {done}, pending - {done}

        monkeypatch.setattr(quickstart, "wait", wait)
        return list(quickstart.run_jobs(options, budget).items())

    def evaluate_tasks(agent, split, tasks, options):
        return [[float(task) ** 2] for task in tasks]

    monkeypatch.setattr(quickstart, "worker_pool", lambda *args, **kwargs: contextlib.nullcontext(Pool()))
    monkeypatch.setattr(quickstart, "train", lambda agent, budget, options: agent)
    monkeypatch.setattr(quickstart, "evaluate_tasks", evaluate_tasks)
    options = quickstart.Options(output=tmp_path)
    budget = quickstart.replace(quickstart.QUICK_BUDGET, num_tasks=25)
    assert rows(first=min) == rows(first=max)


def test_the_table_tells_the_share_of_the_gap_that_is_closed(quickstart):
    means = {
        "mlp": (100.0, 0.0, 10.0),
        "frozen_predictions": (105.0, -5.0, 20.0),
        "adapted_predictions": (190.0, 60.0, 30.0),
        "oracle": (200.0, 50.0, 10.0),
    }
    returns = {
        (agent, split): Estimate(mean, mean - 1.25, mean + 2.0)
        for agent in means
        for split, mean in zip(SPLITS, means[agent], strict=True)
    }
    lines = quickstart.format_table(returns).splitlines()
    assert lines == [
        "| observation of PPO | interpolation | extrapolation | switch |",
        "| --- | --- | --- | --- |",
        "| plain PPO (`mlp`) | 100.0 [98.8, 102.0] | 0.0 [-1.2, 2.0] | 10.0 [8.8, 12.0] |",
        "| predictions, frozen (`frozen_predictions`) | 105.0 [103.8, 107.0] | -5.0 [-6.2, -3.0] | 20.0 [18.8, 22.0] |",
        "| predictions, adapted online (`adapted_predictions`) "
        "| 190.0 [188.8, 192.0] | 60.0 [58.8, 62.0] | 30.0 [28.8, 32.0] |",
        "| told the parameters (`oracle`) | 200.0 [198.8, 202.0] | 50.0 [48.8, 52.0] | 10.0 [8.8, 12.0] |",
        "| gap closed by `frozen_predictions` | 5 % | -10 % | no gap |",
        "| gap closed by `adapted_predictions` | 90 % | 120 % | no gap |",
    ]


@pytest.mark.each_value
@every_agent
@every_split
def test_every_agent_meets_the_same_task_and_sees_the_scaled_plain_observation_first(quickstart, trainer, agent, split):
    kwargs = quickstart.SPLITS[split]
    env = quickstart.make_env(agent, trainer, **kwargs)
    assert env.observation_space.shape == (WIDTHS[agent],)
    num_steps = 105 if split == "switch" else 12
    steps, plain_steps = play(env, num_steps), play(gym.make(ENV_ID, **kwargs), num_steps)
    signs = []
    for (observation, info), (plain, plain_info) in zip(steps, plain_steps, strict=True):
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(observation[:4], plain * quickstart.OBSERVATION_SCALE)
        assert info["task_params"] == plain_info["task_params"]
        signs.append(info["task_params"]["polarity"])
    # Of the next step: after 100 steps, the next one has the other sign.
    switches = np.flatnonzero(np.diff(signs)) + 1
    assert switches.tolist() == ([100] if split == "switch" else [])


@pytest.mark.parametrize(("agent", "changes"), [("frozen_predictions", False), ("adapted_predictions", True)])
def test_only_the_adapting_agent_changes_the_weights(quickstart, trainer, agent, changes):
    source = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def is_source(model):
        return all(torch.equal(value, source[name]) for name, value in model.state_dict().items())

    env = quickstart.make_env(agent, trainer, split="interpolation")
    adapter = env.get_wrapper_attr("adapter")
    stands_still = [is_source(adapter.model) for _ in play(env, 20)]
    assert len(stands_still) == 21
    if changes:
        assert stands_still[0]
        assert not stands_still[-1]
    else:
        assert all(stands_still)
    assert is_source(trainer.model)


def test_frozen_and_adapted_predictions_part_once_there_is_something_to_adapt_to(quickstart, trainer):
    agents = [quickstart.make_env(f"{kind}_predictions", trainer) for kind in ("frozen", "adapted")]
    (frozen, *frozen_later), (adapted, *adapted_later) = ([seen for seen, _ in play(env, 10)] for env in agents)
    np.testing.assert_array_equal(frozen, adapted)
    assert not np.allclose(frozen_later[-1], adapted_later[-1])


def test_the_picture_of_the_switch_is_a_png(quickstart, tmp_path):
    rewards = {(agent, "switch"): np.random.default_rng(0).random((3, 200)).tolist() for agent in WIDTHS}
    quickstart.draw_switch(rewards, tmp_path / "switch.png")
    assert [path.name for path in tmp_path.iterdir()] == ["switch.png"]
    with Image.open(tmp_path / "switch.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 2  # not blank


@pytest.mark.slow
def test_the_whole_script_writes_everything_it_promises(script, checkout, tmp_path):
    output = tmp_path / "output"
    arguments = f"--quick --num-tasks 2 --ppo-steps 1 --seed 3 --output {output}".split()
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(script), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert {path.name for path in output.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [output]

    rows = json.loads((output / "results.json").read_text())["rows"]
    assert sorted((row["name"], row["split"]) for row in rows) == sorted((a, s) for a in WIDTHS for s in SPLITS)
    for row in rows:
        assert tuple(row) == ROW_KEYS
        assert (row["num_tasks"], row["seed"]) == (2, 3)
        assert row["ci_low"] <= row["mean_return"] <= row["ci_high"] <= 200
    for name, least_frames in (("switch.png", 1), ("comparison.gif", 2)):
        with Image.open(output / name) as image:
            image.verify()
        with Image.open(output / name) as image:
            assert getattr(image, "n_frames", 1) >= least_frames
    for name in (*WIDTHS, *SPLITS):
        assert name in done.stdout
