import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssm_metarl_gym.agents import MetaMAML
from ssm_metarl_gym.agents.meta_learning.low_rank import LowRankNetwork
from ssm_metarl_gym.agents.stateless import copy_module


@pytest.fixture(autouse=True)
def _seed():
    torch.default_generator.manual_seed(0)  # torch.manual_seed remembers each call, for devices that are to come


@pytest.fixture(scope="session")
def look():
    """A function that gives all that an untouched module must keep, comparable bit for bit."""

    def bits(tensor):
        if tensor is None:
            return None
        return tensor.dtype, tensor.shape, tensor.detach().flatten().view(torch.uint8).numpy().tobytes()

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


INNER_LR = 0.05


def plain_gradient(model, tasks, loss_fn, first_order):
    """The mean gradient of the query losses after two steps, task by task, each with a copy of the model.

    In first order it is the gradient by the adapted weights (Finn et al. 2017, section 5.2).
    """
    total = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for support_x, support_y, query_x, query_y in tasks:
        own = copy_module(model)
        weights = initial = dict(own.named_parameters())
        for _ in range(2):
            loss = loss_fn(functional_call(own, weights, (support_x,)), support_y)
            slopes = torch.autograd.grad(loss, weights.values(), create_graph=not first_order, materialize_grads=True)
            weights = {name: w - INNER_LR * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
            if first_order:
                weights = initial = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        loss = loss_fn(functional_call(own, weights, (query_x,)), query_y)
        slopes = torch.autograd.grad(loss, initial.values(), materialize_grads=True)
        total = [one + slope / len(tasks) for one, slope in zip(total, slopes, strict=True)]
    return total


@pytest.fixture(scope="session")
def assert_same_gradient():
    """A function that asserts that ``meta_update`` descends the gradient of a plain loop: of a model without a past."""

    def assert_same_gradient(model, tasks, loss_fn, first_order):
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            expected = plain_gradient(model, tasks, loss_fn, first_order)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        maml = MetaMAML(model, INNER_LR, 1.0, first_order, inner_steps=2, optimizer_class=torch.optim.SGD)
        maml.meta_update(tasks, loss_fn)
        for old, (name, new), slope in zip(before, model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(old - new.detach(), slope, msg=lambda text, name=name: f"{name}: {text}")
        return maml

    return assert_same_gradient
