import json
import math

import pytest


@pytest.fixture(scope="module")
def bench_ppo(load_script):
    """The script as a module."""
    return load_script("bench_ppo")


@pytest.mark.usefixtures("short_chunks")
def test_every_comparison_has_its_row(bench_ppo, tmp_path, capsys):
    path = tmp_path / "results.json"
    sizes = ["--num-envs", "2", "--minibatches", "1", "--steps", "8", "--epochs", "1", "--width", "4", "--pairs", "1"]
    bench_ppo.main([*sizes, "--output", str(path)])
    rows = json.loads(path.read_text())
    assert [row["against"] for row in rows] == list(bench_ppo.TARGETS)
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in rows)
    assert [row["target"] for row in rows] == list(bench_ppo.TARGETS.values())
    assert capsys.readouterr().out.count("\n|") == 2 + len(rows)


def test_all_agents_have_the_same_heads_and_settings(bench_ppo):
    agents = bench_ppo.make_agents(bench_ppo.Options(num_envs=2, steps=8, minibatches=1, width=6))
    for agent in agents.values():
        assert (agent.n_steps, agent.batch_size, agent.n_epochs, agent.n_envs) == (8, 16, 10, 2)
        assert [layer.out_features for layer in agent.policy.mlp_extractor.policy_net[::2]] == [6, 6]
        assert agent.policy.mlp_extractor.latent_dim_vf == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minibatches", "3"], "--minibatches must divide --num-envs, 8, because a sequence stays whole; got 3"),
        (["--width", "5"], "--width must be even; got 5"),
    ],
)
def test_bad_options_are_refused(bench_ppo, arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench_ppo.main(arguments)
    assert message in capsys.readouterr().err
