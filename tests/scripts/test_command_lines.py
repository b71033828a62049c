"""An attack on the command lines of all scripts: each ends in one sentence and status 2, and nothing is written."""

import functools
import json
import shlex

import pytest

HUGE = 100_000_000_000
# Wherever a file goes, and wherever a folder goes.
BAD_FILES = [
    "--output folder",
    "--output nowhere/results.json",
    "--output file/results.json",
    "--output ''",
    "--output",
]
BAD_FOLDERS = ["--output file", "--output file/deeper", "--output ''", "--output"]
# What an environment can be asked for.
BAD_ENVS = [
    "--env ssm_metarl/CartPoles-v0",
    "--env nonsense",
    "--env ''",
    "--env no_such_module:CartPole-v1",
    "--env with_wrong_syntax:CartPole-v1",
    "--env that_raises:CartPole-v1",
    "--env that_exits:CartPole-v1",
]
BAD_ENV_KWARGS = [
    """--env-kwargs '{"render_mode": "human"}'""",
    """--env-kwargs '{"splt": "train"}'""",
    """--env-kwargs '{"split": "extrapolation"}'""",
    """--env-kwargs '{"context": 3}'""",
    """--env-kwargs '{"switch": {"step": "late"}}'""",
    """--env-kwargs '[1]'""",
    """--env-kwargs '{'""",
    """--env ssm_metarl/HalfCheetahDir-v0 --env-kwargs '{"xml_file": "nowhere.xml"}'""",
]
LINES = {
    "actuators": [
        *BAD_FOLDERS,
        "--output taken",
        "--dimensions 0",
        "--dimensions 17",
        "--aib Pendulum",
        "--rows corected_filter",
        "--steps 0",
        "--seeds 0",
        f"--num-tasks {HUGE}",
        "--num-tasks 19",
        "--processes -1",
    ],
    "bench_adaptation": [*BAD_FILES, "--rows 0", f"--rows {HUGE}", "--calls 99", "--pairs 0", "--seed -1"],
    "bench_envs": [
        *BAD_FILES,
        "--rows",
        "--rows many",
        f"--rows {HUGE}",
        "--sb3-rows 0",
        "--families HopperParams-v0",
        "--mujoco-families CartPole-v0",
        "--mujoco-rows 0",
        "--memory-steps 7",
        "--seed -1",
        "positional",
    ],
    "bench_export": [*BAD_FILES, "--width 5", f"--width {HUGE}", "--window 0", "--pairs 0", "--steps 1"],
    "bench_maml": [*BAD_FILES, "--width 5", f"--width {HUGE}", f"--tasks 8 {HUGE}", "--pairs 0", "--peak MLP"],
    "bench_ppo": [*BAD_FILES, "--minibatches 3", "--width 5", f"--num-envs {HUGE}", f"--steps {HUGE}", "--epochs 1.5"],
    "bench_ssm": [*BAD_FILES, "--steps 0", f"--steps {HUGE}", f"--batch {HUGE}", "--width 2.0"],
    "benchmark": [
        *BAD_FOLDERS,
        "--output taken",
        "--families CartPoleCarefully",
        "--agents as_was",
        "--agent nonsense",
        "--agent no_such_module:make",
        "--agent with_wrong_syntax:make",
        "--steps 0",
        "--seeds 0",
        "--num-tasks 19",
        f"--num-tasks {HUGE}",
        "--percent 0",
        "--engine cloud",
        """--engine-options '{"address": "auto"}'""",
        "--engine-options 3",
        "--processes -1",
    ],
    "compare_meta": [
        *BAD_FOLDERS,
        "--output taken",
        *BAD_ENVS,
        "--objective policies",
        "--options '{\"windw\": 3}'",
        "--options '{\"gamma\": 0.9}'",
        "--options '{\"inner_steps\": 0}'",
        '--options \'{"inner_lr": "a"}\'',
        "--options '{\"meta_batch_size\": 0}'",
        '--objective policy --options \'{"gamma": "a"}\'',
        "--multi-task-options '{\"inner_steps\": 2}'",
        f"--seeds {HUGE}",
        f"--num-tasks {HUGE}",
        "--updates 0",
    ],
    "curriculum": ["--seeds 0", "--num-tasks 1", "--steps 1", f"--steps {HUGE}", "--seed -1", "--stages 3"],
    "evaluate": [
        "",
        "nowhere",
        "file",
        "folder",
        "damaged.zip --algorithm PPO",
        "damaged.zip --algorithm PPO --env CartPole-v1",
        "half_a_run",
        "run_without_model",
        "run_without_model --algorithm PPO",
        "file --num-tasks 1",
        f"file --num-tasks {HUGE}",
        "file --seed 2000",
        "file --splits test",
        "file --algorithm PP0",
        "file --window 0",
        "file --env-kwargs 3",
    ],
    "headroom": [
        *BAD_FOLDERS,
        "--output taken",
        "--families Cartpole",
        "--families",
        "--seed -1",
        f"--seed {HUGE}",
        "--fast",
    ],
    "hidden_motors": [
        *BAD_FOLDERS,
        "",
        "--output taken",
        "--envs Pendulum-v1",
        "--conditions broken",
        "--seeds 0",
        f"--tasks {HUGE}",
        "--transitions 99",
        "--policy-folders nowhere",
        "--policy-folders half_a_run",
        "--policy-folders run_without_model",
        "--delay -1",
        "--largest-delay 100",
    ],
    "keep_sac": [*BAD_FOLDERS, "--timesteps 0", f"--timesteps {HUGE}", "--num-episodes 1", "--seeds 0"],
    "keep_your_policy": [*BAD_FOLDERS, "--studies mian", "--seeds 0", f"--num-tasks {HUGE}", "--num-tasks 1"],
    "quick_benchmark": ["--output file", "--seeds 0", "--engine cloud"],
    "report": ["nowhere", "file", "folder", "taken"],
    "late_motors": [
        *BAD_FOLDERS,
        "--dimension 17",
        "--delays",
        "--delays -1",
        "--largest-delay 0",
        "--seeds 0",
        "--num-tasks 1",
    ],
    "lost_adapter": [
        "--percent-left-out 101",
        "--percent-left-out .5",
        "--num-tasks 1",
        f"--steps {HUGE}",
        "--seed -1",
    ],
    "memory": [
        *BAD_FOLDERS,
        "--output taken",
        "--problems CartPole-v1",
        "--algorithms PPO",
        "--seeds 0",
        "--percent 0",
        "--processes -1",
    ],
    "meta_train": [
        *BAD_FOLDERS,
        "--output taken",
        "--output not_of_a_run",
        *BAD_ENVS,
        *BAD_ENV_KWARGS,
        "--device meta",
        "--device nonsense",
        "--device cuda:77",
        "--objective policies",
        '--objective policy --options \'{"gamma": "a"}\'',
        "--options '{\"inner_lr\": -1}'",
        "--seed -1",
        f"--seed {HUGE}",
        "--updates 0",
        "--checkpoint-interval 0",
    ],
    "playground": [
        *(f"--train {line}" for line in BAD_FOLDERS),
        "--output folder",
        "--port -1",
        "--port 65536",
        "--port http",
        "--no-open maybe",
    ],
    "quickstart": [
        *BAD_FOLDERS,
        "--output taken",
        "--core tanh",
        "--num-tasks 1",
        f"--num-tasks {HUGE}",
        "--percent 0",
        f"--percent {HUGE}",
        "--seed -1",
        "--quick maybe",
    ],
    "sinusoid": [
        *BAD_FILES,
        "--plot folder",
        "--plot nowhere/picture.png",
        "--algorithm mamI",
        "--inner-lr nan",
        "--inner-lr -1",
        "--seeds 0",
        f"--updates {HUGE}",
    ],
    "teacher_student": [
        "--env CartPole-v1",
        "--seeds 0",
        "--num-tasks 1",
        "--steps 0",
        f"--steps {HUGE}",
        "--rounds 0",
        "--seed -1",
    ],
    "tune": [
        *BAD_FOLDERS,
        "--output taken",
        "--family CartPoleCarefully",
        "--family no_such_module:MINE",
        "--family with_wrong_syntax:MINE",
        "--agent as_is",
        "--agent student",
        "--steps 0",
        "--trials 0",
        f"--trials {HUGE}",
        "--seeds 0",
        "--num-tasks 0",
        "--seed -1",
        "--best",
    ],
    "train_ppo": [
        *BAD_FOLDERS,
        "--output taken",
        "--output not_of_a_run",
        *BAD_ENVS,
        *BAD_ENV_KWARGS,
        "--device meta",
        "--device nonsense",
        "--policy gru",
        '--hyperparameters \'{"gamma": "a"}\'',
        "--hyperparameters '{\"gama\": 0.9}'",
        "--hyperparameters '{\"n_steps\": 0}'",
        "--hyperparameters '{\"learning_rate\": [1]}'",
        f"--num-envs {HUGE}",
        f"--window {HUGE}",
        "--timesteps 0",
        "--seed -1",
    ],
}
# What only shows itself once work has begun.
LATE_LINES = [
    ("compare_meta", f"--updates 1 --seeds 1 --options '{{\"num_streams\": {HUGE}}}'"),
    ("compare_meta", """--updates 2 --seeds 1 --options '{"num_streams": 40, "outer_lr": 1e30}'"""),
    ("sinusoid", "--updates 2 --inner-lr 1e30"),
    ("meta_train", f"--updates 1 --options '{{\"num_streams\": {HUGE}}}'"),
    ("meta_train", """--updates 2 --options '{"num_streams": 40, "outer_lr": 1e30}'"""),
    ("train_ppo", """--timesteps 4096 --num-envs 4 --hyperparameters '{"n_steps": 32, "learning_rate": 1e30}'"""),
    ("train_ppo", f"--timesteps 4096 --num-envs 4 --hyperparameters '{{\"n_steps\": {HUGE}}}'"),
]
CASES = [(script, line) for script, lines in LINES.items() for line in lines]


@pytest.fixture(scope="module")
def script_of(load_script):
    """A function that gives each script as a module, the same one for all its command lines."""
    return functools.cache(load_script)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of what may go wrong, from which the scripts run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "damaged.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    for name, code in {
        "with_wrong_syntax": "def f(:",
        "that_raises": "1 / 0",
        "that_exits": "raise SystemExit",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "folder").mkdir()
    files = (
        "config.json",
        "model.zip",
        "model.pt",
        "progress.csv",
        "results.json",
        "results.jsonl",
        "runs.jsonl",
        "journal.log",
        "best.json",
        "headroom.json",
    )
    for name in (*files, "switch.png"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    configs = {
        "not_of_a_run": {"name": "something else"},
        "half_a_run": {"policy": "mlp"},
        "run_without_model": {"policy": "mlp", "finished": True},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_there_are_enough():
    assert len(CASES) >= 100


@pytest.mark.slow
@pytest.mark.parametrize(("script", "line"), CASES)
def test_a_wrong_command_line_is_refused(script_of, folder, capfd, script, line):
    before = sorted(folder.rglob("*"))
    module = script_of(script)
    with pytest.raises(SystemExit) as exit_info:
        module.main(shlex.split(line))
    assert exit_info.value.code == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert ": error: " in err
    assert "Traceback" not in out + err
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.slow
@pytest.mark.parametrize(("script", "line"), LATE_LINES)
def test_what_cannot_go_on_says_so(script_of, folder, capfd, script, line):
    with pytest.raises(SystemExit) as exit_info:
        script_of(script).main([*shlex.split(line), *([] if script == "sinusoid" else ["--output", "new"])])
    assert exit_info.value.code in (1, 2)
    out, err = capfd.readouterr()
    assert err.strip()
    assert "Traceback" not in out + err
