"""What a robot expects of a map is what the wrappers expect."""

import numpy as np
import pytest
import torch

from ssm_metarl_gym.bundle.single_sources import densities_of_others, expected_rows
from ssm_metarl_gym.wrappers import single_sources


@pytest.mark.parametrize("num_actions", [1, 2, 3, 6])
def test_one_inverse_for_a_row_gives_what_one_for_each_entry_gives(num_actions):
    rng = np.random.default_rng(num_actions)
    means = rng.normal(size=(num_actions, num_actions))
    root = rng.normal(size=(num_actions**2, num_actions**2))
    covariance = 0.1 * root @ root.T / num_actions**2
    prior = rng.uniform(0.2, 1.0, size=(num_actions, num_actions))
    source = np.eye(num_actions)
    expected = single_sources.expected_rows(
        *(torch.from_numpy(part)[None] for part in (means, covariance)), *map(torch.from_numpy, (prior, source))
    )
    ours = expected_rows(means, covariance, densities_of_others(prior, source))
    np.testing.assert_allclose(ours, expected[0], rtol=1e-10, atol=1e-12)
