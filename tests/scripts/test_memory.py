import numpy as np
import pytest
from torch import nn


@pytest.fixture(scope="module")
def memory(load_script):
    """The script as a module."""
    return load_script("memory")


@pytest.mark.parametrize(
    ("name", "hidden"), [("CartPoleNoVel", [1, 3]), ("PendulumNoVel", [2]), ("MountainCarContinuousNoVel", [1])]
)
def test_velocities_are_zero_and_the_rest_is_shown(memory, name, hidden):
    env = memory.make_env(memory.PROBLEMS[name], 2, seed=0)
    seen = [env.reset()]
    for _ in range(3):
        seen.append(env.step(np.stack([env.action_space.sample() for _ in range(2)]))[0])
    shown = np.stack(seen).reshape(8, -1)
    assert not shown[:, hidden].any()
    assert np.delete(shown, hidden, axis=1).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CartPoleNoVel", {"RecurrentPPO": (8, 32, 256), "SSMPPO": (8, 32, 256)}),
        # Whole rollouts in each minibatch, of which there are as many.
        ("PendulumNoVel", {"RecurrentPPO": (4, 1024, 128), "SSMPPO": (32, 128, 128)}),
        ("PendulumNoVel", {"RecurrentPPO-rollouts": (32, 128, 128)}),
        ("MountainCarContinuousNoVel", {"RecurrentPPO": (8, 1024, 256), "SSMPPO": (32, 256, 256)}),
    ],
)
def test_both_learn_from_minibatches_of_the_same_size(memory, name, expected):
    for algorithm, sizes in expected.items():
        model = memory.make_model(memory.PROBLEMS[name], algorithm, 0)
        assert (model.n_envs, model.n_steps, model.batch_size) == sizes


def test_settings_are_those_of_the_published_agents(memory):
    for name, width, activation in [
        ("CartPoleNoVel", 64, nn.ReLU),
        ("PendulumNoVel", 64, nn.ReLU),
        ("MountainCarContinuousNoVel", 32, nn.Tanh),
    ]:
        recurrent = memory.make_model(memory.PROBLEMS[name], "RecurrentPPO", 0)
        assert recurrent.policy.lstm_actor.hidden_size == recurrent.policy.lstm_critic.hidden_size == width
        assert isinstance(recurrent.policy.mlp_extractor.policy_net[1], activation)
        scaling = recurrent.get_vec_normalize_env()
        assert (scaling.norm_obs, scaling.norm_reward) == (True, False)
        widths = {}
        for algorithm in ("SSMPPO", "SSMPPO-heads"):
            policy = memory.make_model(memory.PROBLEMS[name], algorithm, 0).policy
            widths[algorithm] = [
                layer.out_features for layer in policy.mlp_extractor.value_net if isinstance(layer, nn.Linear)
            ]
            assert policy.ortho_init == (algorithm == "SSMPPO")
        assert widths["SSMPPO-heads"] == [64] == widths["SSMPPO"][:1]


def test_problems_of_popgym_need_it(memory, monkeypatch, capsys):
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        memory.main(["--problems", "CountRecallEasy"])
    assert "problems of POPGym need it; it is not installed. Install it: pip install popgym" in capsys.readouterr().err


def test_heads_of_an_lstm_are_those_of_the_zoo(memory, monkeypatch, capsys):
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(SystemExit):
        memory.main(["--problems", "CountRecallEasy", "--algorithms", "SSMPPO-heads"])
    assert "SSMPPO-heads must be on problems of the zoo" in capsys.readouterr().err


def test_rollouts_of_ssmppo_are_for_problems_that_have_them(memory, capsys):
    with pytest.raises(SystemExit):
        memory.main(["--problems", "CartPoleNoVel", "--algorithms", "RecurrentPPO-rollouts"])
    assert "has other rollouts, PendulumNoVel, MountainCarContinuousNoVel; got" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_that_goes_on_with_what_is_missing(memory, tmp_path, monkeypatch, capsys):
    def run_here(jobs, *_, on_result, **__):
        for job in jobs:
            on_result(job, job.work(*job.arguments))

    monkeypatch.setattr(memory, "run_jobs", run_here)
    monkeypatch.setattr(memory, "NUM_EPISODES", 10)
    arguments = ["--problems", "CartPoleNoVel", "--percent", "1", "--processes", "1", "--output", str(tmp_path)]
    memory.main([*arguments, "--algorithms", "SSMPPO", "--seeds", "1"])
    first = (tmp_path / "runs.jsonl").read_text()
    memory.main([*arguments, "--seeds", "1"])
    lines = (tmp_path / "runs.jsonl").read_text()
    assert lines.startswith(first)
    assert lines.count("\n") == 2
    header, _, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert header == "| problem | algorithm | return | each | published | steps | CPU seconds |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:2] + row[4:6] for row in cells] == [
        ["CartPoleNoVel", "RecurrentPPO", "500.0", "1,024"],
        ["CartPoleNoVel", "SSMPPO", "", "1,024"],
    ]
