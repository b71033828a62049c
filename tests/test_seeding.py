import zlib

import numpy as np
import pytest

from ssm_metarl_gym.seeding import row_seeds, seed_sequence

KEYS = [(0,), (1,), (0, 0), (0, 1), ("train",), ("train", 0), (0, "train"), ("extrapolation",), ()]


def draws(sequence):
    return np.random.default_rng(sequence).integers(2**32, size=4).tolist()


def test_the_key_is_spawned_from_the_seed():
    assert draws(seed_sequence(7, 2, "train")) == draws(np.random.SeedSequence(7, spawn_key=(2, zlib.crc32(b"train"))))


@pytest.mark.parametrize("key", KEYS)
def test_equal_keys_give_equal_streams_and_others_other_ones(key):
    assert draws(seed_sequence(3, *key)) == draws(seed_sequence(3, *key))
    others = [draws(seed_sequence(3, *other)) for other in KEYS if other != key]
    assert draws(seed_sequence(3, *key)) not in [*others, draws(seed_sequence(4, *key))]


@pytest.mark.parametrize(
    ("seed", "rows", "expected"),
    [
        (5, [True, True, True], [(0, 5), (1, 6), (2, 7)]),
        (5, [False, False, True], [(2, 7)]),
        ([5, None, 3], [True, True, False], [(0, 5)]),
        (None, [True, True, True], []),
    ],
)
def test_a_reset_seeds_its_own_rows_alone(seed, rows, expected):
    assert list(row_seeds(seed, np.array(rows))) == expected
