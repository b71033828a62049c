import pytest

from ssm_metarl_gym.experiments.comparison import Row, check_comparable, format_table, group_seeds, summarise
from ssm_metarl_gym.experiments.report import Estimate, estimate
from ssm_metarl_gym.experiments.saved_agents import SavedAgent


@pytest.fixture
def make_agent(tmp_path):
    """A function that makes an agent that nobody can load."""

    def make(seed=0, name="ssm", env="CartPole-v1", env_kwargs=None, **changes):
        config = {"policy": name, "env": env, "env_kwargs": env_kwargs or {}, "timesteps": 10, **changes}
        return SavedAgent(tmp_path / f"{name}-{seed}", name, config, tmp_path, None, seed)

    return make


class TestComparable:
    def test_of_one_environment(self, make_agent):
        with pytest.raises(ValueError, match=r"must be of one environment; got Acrobot-v1, CartPole-v1."):
            check_comparable([make_agent(), make_agent(env="Acrobot-v1")], {})

    def test_in_the_same_tasks(self, make_agent):
        agents = [make_agent(0, env_kwargs={"size": 1}), make_agent(1, env_kwargs={"size": 2})]
        with pytest.raises(ValueError, match=r"size is 1 for .*ssm-0 and 2 for .*ssm-1. Give one for all in --env-kw"):
            check_comparable(agents, {})
        check_comparable(agents, {"size": 3})
        check_comparable([make_agent(0), make_agent(1, env_kwargs={"context": "visible", "split": "train"})], {})

    def test_each_once(self, make_agent):
        check_comparable([make_agent(0), make_agent(1)], {})
        with pytest.raises(ValueError, match="are the same run twice"):
            check_comparable([make_agent(0), make_agent(1), make_agent(0)], {})


def test_namesakes_are_told_apart_by_what_differs(make_agent):
    agents = [make_agent(0), make_agent(1), make_agent(0, timesteps=20), make_agent(1), make_agent(0, name="mlp")]
    assert group_seeds(agents) == {"ssm (timesteps=10)": [0, 1, 3], "ssm (timesteps=20)": [2], "mlp": [4]}
    assert group_seeds(agents[:2]) == {"ssm": [0, 1]}


def test_namesakes_of_other_versions_are_told_apart_by_what_the_algorithm_was_called_with(make_agent):
    agents = [make_agent(seed, algorithm_arguments={"gamma": 0.9, "clip": clip}) for seed, clip in enumerate((1, 2, 2))]
    assert group_seeds(agents) == {"ssm (clip=1)": [0], "ssm (clip=2)": [1, 2]}
    others = [make_agent(0, timesteps=20, algorithm_arguments={"gamma": 0.5})]
    assert group_seeds(agents[:1] + others) == {"ssm (timesteps=10)": [0], "ssm (timesteps=20)": [1]}


def test_rows_are_of_the_agents_that_differ_in_the_seed_only(make_agent):
    agents = [make_agent(0, name="mlp"), make_agent(0), make_agent(1, name="mlp")]
    returns = [{"switch": [1.0, 3.0]}, {"switch": [5.0, 6.0]}, {"switch": [2.0, 4.0]}]
    mlp, ssm = summarise(agents, [10, 20, 10], returns, seed=0)
    assert mlp == Row("mlp", (0, 2), {"switch": estimate([[1.0, 3.0], [2.0, 4.0]], 0)}, 10, None)
    assert ssm == Row("ssm", (1,), {"switch": estimate([[5.0, 6.0]], 0)}, 20, None)
    assert mlp.to_dict(agents) == {
        "label": "mlp",
        "agents": [str(agents[0].path), str(agents[2].path)],
        "num_seeds": 2,
        "splits": {"switch": mlp.splits["switch"].to_dict("mean_return")},
        "timesteps": 10,
        "cpu_seconds": None,
    }


@pytest.mark.parametrize(("mean", "cell"), [(12.3456, "12.3 [12.3, 13.3]"), (0.9876, "0.988 [0.988, 1.988]")])
def test_small_returns_are_shown_to_more_places(mean, cell):
    row = Row("ssm", (0, 1), {"default": Estimate(mean, mean, mean + 1.0)}, 1, 1.0)
    assert f"| ssm | {cell} | 2 | 1 | 1 |" in format_table([row], num_tasks=3)
