import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssm_metarl_gym.experiments.command_line import parse_options
from ssm_metarl_gym.experiments.jobs import Job

CARTPOLE, PENDULUM = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PendulumPolarity-v0"
AGENTS = ("nominal", "corrected", "adapted_predictions", "oracle")
SPLITS = ("interpolation", "extrapolation", "switch", "nominal")
ROW_KEYS = ("name", "env", "split", "mean_return", "ci_low", "ci_high", "num_tasks", "seed", "returns")
FILES = {"results.json", "switch.png", "comparison.gif", "CartPolePolarity", "PendulumPolarity"}
# Three predicted changes of three numbers or two of four, and the hidden parameters.
WIDTHS = {
    CARTPOLE: {"nominal": 4, "corrected": 4, "adapted_predictions": 12, "oracle": 8},
    PENDULUM: {"nominal": 3, "corrected": 3, "adapted_predictions": 12, "oracle": 6},
}


@pytest.fixture(scope="module")
def quickstart(load_script):
    """The script as a module."""
    return load_script("quickstart")


@pytest.fixture(scope="module")
def options(quickstart, tmp_path_factory):
    """Options whose folder holds models that have hardly learned anything."""
    output = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "add_progress", lambda steps: None)
        patch.setattr(quickstart, "META_UPDATES", 1)
        patch.setattr(quickstart, "REFERENCE_UPDATES", 1)
        patch.setattr(quickstart, "NUM_STREAMS", 4)
        options = quickstart.Options(output=output, num_tasks=3)
        for env_id in quickstart.RECIPES:
            quickstart.folder_of(env_id, options).mkdir()
            assert quickstart.meta_train(env_id, options) > 0.0
    return options


def test_help_names_every_option(quickstart, capsys):
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--help"])
    assert exit_info.value.code == 0
    options = {f"--{name.replace('_', '-')}" for name in quickstart.Options.__dataclass_fields__}
    assert options == {"--quick", "--seed", "--output", "--num-tasks", "--percent", "--seeds"}
    assert set(capsys.readouterr().out.split()) >= options


def test_every_option_arrives(quickstart, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_options(quickstart.Options, [], description="") == quickstart.Options()
    line = f"--quick --seed 3 --seeds 2 --output {tmp_path / 'a' / 'b'} --num-tasks 2 --percent 1"
    expected = quickstart.Options(True, 3, 2, tmp_path / "a" / "b", 2, 1)
    assert parse_options(quickstart.Options, line.split(), description="") == expected


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "-1"), ("--seed", "1000000"), ("--seed", "1.5"), ("--num-tasks", "1"), ("--percent", "0")],
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


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_results_of_an_earlier_run_are_removed_and_nothing_else(quickstart, seeds, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "run_jobs", interrupt)
    folder = tmp_path / "seed-0" if seeds > 1 else tmp_path
    folder.mkdir(exist_ok=True)
    for name in ("results.json", "notes.txt"):
        (folder / name).write_text("[]")
    with pytest.raises(SystemExit) as exit_info:
        quickstart.main(["--seeds", str(seeds), "--output", str(tmp_path)])
    assert exit_info.value.code == 130
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["notes.txt"]


def test_steps_are_rounded_up_to_whole_rollouts(quickstart):
    rollout = 64 * 32
    full, quick, least = (
        quickstart.choose_budget(quickstart.Options(**chosen)) for chosen in ({}, {"quick": True}, {"percent": 1})
    )
    assert (full.num_tasks, quick.num_tasks) == (100, 20)
    for env_id, recipe in quickstart.RECIPES.items():
        for policy, steps in recipe.steps.items():
            assert steps <= full.steps[env_id][policy] < steps + rollout
            assert quick.steps[env_id][policy] % rollout == 0
            assert quick.steps[env_id][policy] < full.steps[env_id][policy]
            assert least.steps[env_id][policy] < steps / 100 + rollout
    assert 1 <= least.meta_updates < quick.meta_updates < full.meta_updates


def test_what_is_needed_comes_first(quickstart):
    jobs = quickstart.plan_jobs(quickstart.Options())
    for job in jobs:
        assert all(jobs.index(before) < jobs.index(job) for before in job.after)
    acted_by = {
        (job.arguments[0], job.arguments[1]): {(before.work, before.arguments[0]) for before in job.after}
        for job in jobs
        if job.work is quickstart.evaluate_agent
    }
    assert set(acted_by) == {(agent, env_id) for agent in AGENTS for env_id in WIDTHS}
    # One policy, as it is and corrected.
    for agent in ("nominal", "corrected"):
        assert acted_by[agent, PENDULUM] == {(quickstart.meta_train, PENDULUM), (quickstart.train, "nominal")}


def make_results(quickstart, options):
    """Results of an agent that gets its number and the seed in one task of each split, and 1 in the other."""
    rows = [
        quickstart.make_row(agent, env_id, split, [[float(i)], [options.seed, 1.0]], options)
        for i, agent in enumerate(AGENTS)
        for env_id in WIDTHS
        for split in SPLITS
    ]
    outcomes = {Job(quickstart.meta_train, (env_id, options)): 2.0 for env_id in WIDTHS}
    outcomes |= {
        Job(quickstart.train, (policy, env_id, options)): 3.0
        for env_id, recipe in quickstart.RECIPES.items()
        for policy in recipe.steps
    }
    budget = quickstart.choose_budget(options)
    return {
        "rows": rows,
        "costs": quickstart.make_costs(outcomes, budget),
        "budget": quickstart.asdict(budget),
        "settings": quickstart.settings_of(options),
        "seconds": 5.0,
    }


def test_results_hold_returns_and_what_they_cost(quickstart):
    results = make_results(quickstart, quickstart.Options(seed=7))
    row = results["rows"][0]
    assert tuple(row) == ROW_KEYS
    assert [row[key] for key in ("name", "env", "split", "mean_return", "num_tasks", "seed")] == [
        *("nominal", CARTPOLE, "interpolation"),
        *(4.0, 2, 7),
    ]
    assert row["returns"] == [0.0, 8.0]
    costs = [cost for cost in results["costs"] if cost["env"] == CARTPOLE]
    assert [cost["cpu_seconds_of_the_model"] for cost in costs] == [0.0, 2.0, 2.0, 0.0]
    assert [cost["steps_on_the_family"] > 0 for cost in costs] == [False, False, True, True]
    assert [cost["steps_of_the_model_on_the_family"] for cost in costs] == [0, 64_000, 64_000, 0]


def test_a_run_of_several_seeds_goes_on_where_it_was_and_shows_their_means(quickstart, tmp_path, monkeypatch, capsys):
    begun = []

    def run(options):
        begun.append(options.seed)
        if options.seed == 4 and begun.count(4) == 1:
            raise KeyboardInterrupt
        results = make_results(quickstart, options)
        options.output.mkdir(exist_ok=True)
        quickstart.write_json(options.output / "results.json", results)
        return results

    monkeypatch.setattr(quickstart, "run", run)
    command = ["--seed", "3", "--seeds", "3", "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        quickstart.main(command)
    quickstart.main(command)
    assert begun == [3, 4, 4, 5]
    lines = capsys.readouterr().out.splitlines()
    assert "Mean return over 2 held-out tasks, with 95 % intervals over 3 seeds:" in lines
    assert lines[-1].endswith(f" are in {tmp_path / 'seed-*'}")
    start = lines.index(
        f"| PendulumPolarity-v0 | {' | '.join(SPLITS)} | steps of the policy on the family | of the model |"
    )
    for i, (line, agent) in enumerate(zip(lines[start + 2 :], AGENTS, strict=False)):
        cells = line.split(" | ")
        assert f"(`{agent}`)" in cells[0]
        # The mean of the seeds 3, 4 and 5, and Student's interval.
        assert cells[1] == f"{(i + 5) / 2:.1f} [{(i + 5) / 2 - 1.242:.1f}, {(i + 5) / 2 + 1.242:.1f}]"
    quickstart.main([*command, "--percent", "1"])  # another budget
    assert begun[4:] == [3, 4, 5]
    monkeypatch.setattr(quickstart, "rule_of", lambda row: -1)  # another rule of adaptation
    quickstart.main([*command, "--percent", "1"])
    assert begun[7:] == [3, 4, 5]


@pytest.mark.parametrize("env_id", WIDTHS)
@pytest.mark.parametrize("split", SPLITS)
def test_every_agent_meets_the_same_tasks(quickstart, options, env_id, split):
    tasks = []
    for agent, width in WIDTHS[env_id].items():
        env = quickstart.make_env(agent, env_id, 3, options, **quickstart.SPLITS[split])
        assert env.observation_space.shape == (width,)
        env.seed(5)
        env.reset()
        tasks.append(env.reset_infos)
        env.close()
    hidden = [[info["task_params"] for info in infos] for infos in tasks]
    assert hidden.count(hidden[0]) == len(AGENTS)
    differ = hidden[0][0] != hidden[0][1]
    assert differ == (split != "nominal")


def test_only_what_is_corrected_takes_other_actions(quickstart, options):
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 3, 1)).astype(np.float32)
    env = quickstart.make_env("corrected", PENDULUM, 3, options, split="extrapolation")
    env.reset()
    asked = []
    for action in actions:
        _, _, _, infos = env.step(action)
        asked.append([info["correction"]["asked"] for info in infos])
    np.testing.assert_array_equal(asked, actions)


def test_the_picture_of_the_switch_is_a_png(quickstart, tmp_path):
    rng = np.random.default_rng(0)
    rewards = {(agent, env_id, "switch"): rng.random((3, 200)).tolist() for agent in AGENTS for env_id in WIDTHS}
    quickstart.draw_switch(rewards, tmp_path / "switch.png")
    assert [path.name for path in tmp_path.iterdir()] == ["switch.png"]
    with Image.open(tmp_path / "switch.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("L").getcolors()) > 2  # not blank


@pytest.mark.slow
def test_the_whole_script_writes_everything_it_promises(quickstart, tmp_path, monkeypatch, capsys):
    # One job after the other in this process: in many, the gate runs it.
    monkeypatch.setattr(quickstart, "run_jobs", lambda jobs, *_, **__: {job: job.work(*job.arguments) for job in jobs})
    monkeypatch.setattr(quickstart, "add_progress", lambda steps: None)
    monkeypatch.setattr(quickstart, "REFERENCE_UPDATES", 1)
    short = {split: env_kwargs | {"max_episode_steps": 20} for split, env_kwargs in quickstart.SPLITS.items()}
    monkeypatch.setattr(quickstart, "SPLITS", short)
    output = tmp_path / "output"
    quickstart.main(f"--num-tasks 2 --percent 1 --seed 3 --output {output}".split())
    printed = capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [output]

    results = json.loads((output / "results.json").read_text())
    assert sorted((row["name"], row["env"], row["split"]) for row in results["rows"]) == sorted(
        (agent, env_id, split) for agent in AGENTS for env_id in WIDTHS for split in SPLITS
    )
    for row in results["rows"]:
        assert tuple(row) == ROW_KEYS
        assert (row["num_tasks"], row["seed"]) == (2, 3)
        assert row["ci_low"] <= row["mean_return"] <= row["ci_high"] <= 200
    for name, least_frames in (("switch.png", 1), ("comparison.gif", 2)):
        with Image.open(output / name) as image:
            image.verify()
        with Image.open(output / name) as image:
            assert getattr(image, "n_frames", 1) >= least_frames
    for folder in ("CartPolePolarity", "PendulumPolarity"):
        found = {path.relative_to(output / folder).parts[0] for path in Path(output / folder).rglob("*")}
        assert found == {"dynamics.pt", "reference.pt", "nominal", "adapted_predictions", "oracle"}
    for name in (*AGENTS, *SPLITS):
        assert name in printed
