import numpy as np

from ssm_metarl_gym.envs.row_starts import RowStarts

LOW, HIGH = np.array([-1.0, 2.0]), np.array([1.0, 2.5])


def draw(starts, rows, seed=0):
    return starts.draw(np.array(rows), np.random.default_rng(seed))


def test_draws_are_those_of_uniform():
    expected = np.random.default_rng(0).uniform(LOW, HIGH, (3, 2))
    assert draw(RowStarts(5, (LOW, HIGH)), [0, 2, 4]).tolist() == expected.tolist()
    square = np.full(2, -0.5), np.full(2, 0.5)  # arithmetic with one number
    assert draw(RowStarts(5, square), [1, 2]).tolist() == np.random.default_rng(0).uniform(*square, (2, 2)).tolist()


def test_bounds_hold_for_their_rows_until_the_next_episode():
    starts = RowStarts(3, (LOW, HIGH))
    plain = draw(starts, [0, 1, 2])
    points = np.array([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]])
    starts.begin(np.array([0, 2]), (points, points))
    for _ in range(2):
        drawn = draw(starts, [0, 1, 2])
        assert drawn[[0, 2]].tolist() == points[[0, 2]].tolist()
        assert drawn[1].tolist() == plain[1].tolist()
    starts.begin(np.array([2]))
    assert draw(starts, [0, 1, 2])[[0, 2]].tolist() == [points[0].tolist(), plain[2].tolist()]
