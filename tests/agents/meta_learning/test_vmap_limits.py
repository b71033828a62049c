import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents.meta_learning.vmap_limits import VmapLimits

TOGETHER, ONE_BY_ONE = torch.tensor([1.0]), torch.tensor([2.0])


def ask(limits, *, second_order=True, calls=lambda: None):
    """Whether tasks are computed together; doing so calls what the model would call."""

    def together():
        calls()
        return TOGETHER

    return limits.compute(together, lambda: ONE_BY_ONE, second_order=second_order) is TOGETHER


class TestModules:
    @pytest.mark.parametrize("second_order", [False, True])
    @pytest.mark.parametrize(
        ("module", "orders"),
        [
            (nn.Linear(2, 1), [False, True]),
            (nn.GRU(2, 2), []),
            (nn.LayerNorm(2), [False]),
            (nn.InstanceNorm1d(2), [False]),
            (nn.BatchNorm1d(2).eval(), [False]),
            (nn.BatchNorm1d(2).train(), []),
            (nn.BatchNorm1d(2, track_running_stats=False).eval(), []),
        ],
        ids=str,
    )
    def test_what_suits_vmap(self, caplog, module, orders, second_order):
        limits = VmapLimits(nn.Sequential(module), second_order=second_order)
        for _ in range(2):
            assert ask(limits, second_order=second_order) == (second_order in orders)
        assert len(caplog.records) == (second_order not in orders)
        if caplog.records:
            assert f"it contains {type(module).__name__}" in caplog.text or "it contains batch norm" in caplog.text

    def test_a_model_that_is_set_to_training_later(self, caplog):
        model = nn.BatchNorm1d(2).eval()
        limits = VmapLimits(model, second_order=False)
        assert ask(limits, second_order=False)
        model.train()
        assert not ask(limits, second_order=False)
        assert "whose statistics belong to one task" in caplog.text


NORMALISATIONS = {
    "layer": lambda x, scale: F.layer_norm(x, (4,), scale),
    "layer, by keyword": lambda x, scale: F.layer_norm(x, (4,), weight=scale),
    "layer, of torch": lambda x, scale: torch.layer_norm(x, (4,), scale),
    "batch": lambda x, scale: F.batch_norm(x, None, None, scale, training=True),
    "batch, of torch": lambda x, scale: torch.batch_norm(x, scale, *[None] * 3, True, 0.1, 1e-5, False),
    "instance": lambda x, scale: F.instance_norm(x[None], weight=scale),
    "instance, of torch": lambda x, scale: torch.instance_norm(x[None], scale, *[None] * 3, True, 0.1, 1e-5, False),
}


class TestFunctions:
    @pytest.mark.parametrize("scaled", [False, True])
    @pytest.mark.parametrize("name", NORMALISATIONS)
    def test_a_scaled_normalisation_is_wrong_in_second_order_alone(self, caplog, name, scaled):
        x, scale = torch.randn(4, 4), torch.ones(4) if scaled else None
        limits = VmapLimits(nn.Module(), second_order=True)
        assert ask(limits, second_order=False, calls=lambda: NORMALISATIONS[name](x, scale))
        for _ in range(2):
            assert ask(limits, calls=lambda: NORMALISATIONS[name](x, scale)) != scaled
        assert len(caplog.records) == scaled
        assert ("_norm with weight" in caplog.text) == scaled

    @pytest.mark.parametrize("second_order", [False, True])
    @pytest.mark.parametrize(
        ("options", "orders"),
        [({}, [False, True]), ({"padding_idx": 0}, []), ({"scale_grad_by_freq": True}, [False])],
        ids=str,
    )
    def test_embeddings(self, caplog, options, orders, second_order):
        model, suits = nn.Embedding(3, 2, **options), second_order in orders
        limits = VmapLimits(model, second_order=second_order)
        assert ask(limits, second_order=second_order, calls=lambda: model(torch.zeros(1, dtype=torch.int64))) == suits
        assert suits or f"it calls embedding with {next(iter(options))}" in caplog.text

    @pytest.mark.parametrize(("padding", "suits"), [(-1, True), (0, False)])
    def test_those_of_torch_whose_padding_of_minus_one_is_none(self, padding, suits):
        limits = VmapLimits(nn.Module(), second_order=False)
        weight, rows = torch.randn(3, 2), torch.zeros(1, dtype=torch.int64)
        assert ask(limits, second_order=False, calls=lambda: torch.embedding(weight, rows, padding)) == suits

    def test_what_is_called_in_another_mode_alone_is_found_there(self):
        model = nn.Linear(4, 4).eval()
        limits = VmapLimits(model, second_order=True)

        def calls():
            if model.training:
                F.layer_norm(torch.randn(2, 4), (4,), torch.ones(4))

        assert ask(limits, calls=calls)
        model.train()
        assert not ask(limits, calls=calls)


def fail(error):
    """A call that raises this error."""

    def call():
        raise error

    return call


class TestErrors:
    def test_what_vmap_refuses_is_logged_once_and_not_tried_again(self, caplog):
        limits, tries = VmapLimits(nn.Module(), second_order=False), []
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert not ask(
                    limits, calls=lambda: tries.append(fail(RuntimeError("vmap: no\nand many lines more"))())
                )
        assert len(caplog.records) == 1
        assert "one after the other" in caplog.text
        assert caplog.text.strip().endswith("vmap: no")

    def test_a_fault_of_the_tasks_is_raised_and_no_reason_to_give_up(self, caplog):
        limits, fault = VmapLimits(nn.Module(), second_order=False), fail(RuntimeError("shapes"))
        with pytest.raises(RuntimeError, match="shapes"):
            limits.compute(fault, fault, second_order=False)
        assert ask(limits)
        assert not caplog.records

    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: no"), KeyError()]
    )
    def test_other_errors_and_too_little_memory_are_no_reason_either(self, caplog, error):
        limits = VmapLimits(nn.Module(), second_order=True)
        with pytest.raises(type(error)):
            ask(limits, calls=fail(error))
        assert ask(limits)
        assert not caplog.records
