from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from ssm_metarl_gym.experiments.records import Records


@pytest.fixture(scope="module")
def late(load_script):
    return load_script("late_motors")


class Policy:
    """The same small action always."""

    def predict(self, observations, *, deterministic):
        return np.tile(np.array([0.03, -0.02], np.float32), (len(observations), 1)), None


def test_tasks_are_late_and_may_have_a_map(late):
    nothing, mapped, _ = (late.draw_tasks(hidden, 2, 2, 3, seed=0) for hidden in late.HIDDEN)
    assert [task.to_dict()["delay"] for task in (*nothing, *mapped)] == [2.0] * 6
    for one, other in zip(nothing, mapped, strict=True):
        np.testing.assert_array_equal(one.matrix, np.eye(2))
        assert (np.abs(other.matrix - np.eye(2)) > 0.01).any()


def test_who_is_told_the_map_does_as_where_there_is_none(late):
    nominal = late.Nominal(Policy(), SimpleNamespace(normalize_obs=lambda observations: observations), {})
    nothing, mapped, lagging = (late.draw_tasks(hidden, 1, 2, 3, seed=0) for hidden in late.HIDDEN)
    expected = late.run("as_is", nominal, "nothing", nothing, 0)
    np.testing.assert_allclose(late.run("told", nominal, "a map", mapped, 0), expected, atol=0.02)
    assert (np.abs(late.run("as_is", nominal, "a map", mapped, 0) - expected) > 0.1).all()
    assert (late.run("as_is", nominal, "a lag", lagging, 0) != expected).all()


def test_lagging_motors_go_half_of_the_way(late):
    done = []
    envs = late.Lagging(gym.make_vec(late.ENV_ID, 2, dimension=2))
    envs.reset(seed=0)
    for asked in (0.4, 0.4, -0.2):
        done.append(envs.actions(np.full((2, 2), asked))[0, 0])
    assert done == pytest.approx([0.2, 0.3, 0.05])
    envs.reset(seed=0)
    assert envs.actions(np.full((2, 2), 0.4))[0, 0] == pytest.approx(0.2)


def test_the_table_is_of_the_lines_of_these_options(late, tmp_path):
    options = late.Options(seeds=2, delays=(1,), num_tasks=2)
    records = Records(tmp_path / "late.jsonl")
    for seed in range(2):
        for hidden in late.HIDDEN:
            for mean, row in enumerate(late.ROWS):
                key = late.key_of(options, row, hidden, 1, seed)
                records.add(**key, returns=[mean - 1.0, mean + 1.0])
    records.add(**late.key_of(options, "as_is", "nothing", 2, 0), returns=[70.0, 70.0])
    lines = late.format_table(options, records).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| nothing", "1"], ["| a map", "1"], ["| a lag", "1"]]
    assert lines[2].split(" | ")[5].startswith("3.0 [")
    other = late.format_table(late.Options(seeds=2, delays=(1,), num_tasks=2, largest_delay=3), records).splitlines()
    assert other[2].endswith("| 2.0 [2.0, 2.0] |  |")
