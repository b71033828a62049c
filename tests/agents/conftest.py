import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def look():
    """A function that gives all that an untouched module must keep, comparable bit for bit."""

    def bits(tensor):
        return None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes())

    def look(module):
        parameters = {
            name: (bits(tensor), bits(tensor.grad), tensor.requires_grad) for name, tensor in module.named_parameters()
        }
        buffers = {name: bits(tensor) for name, tensor in module.named_buffers()}
        return parameters, buffers, [part.training for part in module.modules()]

    return look


@pytest.fixture(scope="session")
def untouched_rng():
    """A context that fails where the code in it draws from, or seeds, a global random stream."""

    def states():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002

    @contextmanager
    def untouched():
        before = states()
        yield
        assert states() == before

    return untouched


@pytest.fixture(params=["dense", "low rank"])
def way(request, monkeypatch):
    """Computes plain networks in one of two ways, whatever is faster."""
    monkeypatch.setattr(LowRankNetwork, "pays", staticmethod(lambda *_: request.param == "low rank"))
    return request.param
