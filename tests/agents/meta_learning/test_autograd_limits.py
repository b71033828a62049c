import threading

import pytest
import torch
from torch.nn import functional as F

from ssm_metarl_gym.agents.meta_learning.autograd_limits import differentiable


def switches():
    """Whether the fast path of modules is on, and which kinds of attention are."""
    cuda = torch.backends.cuda
    return torch.backends.mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()


@pytest.fixture(autouse=True)
def _same_switches_afterwards():
    before = switches()
    yield
    assert switches() == before


@pytest.mark.parametrize("second_order", [False, True])
class TestModes:
    @pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_gradients_are_recorded(self, around, second_order):
        x = torch.ones(2, requires_grad=True)
        with around():
            with differentiable(second_order=second_order):
                (slope,) = torch.autograd.grad(x.square().sum(), x)
                assert not slope.is_inference()
            assert torch.is_grad_enabled() == (around is torch.enable_grad)
        assert slope.tolist() == [2.0, 2.0]

    def test_attention(self, second_order):
        x = torch.randn(1, 1, 4, 8, requires_grad=True)
        with differentiable(second_order=second_order):
            (slope,) = torch.autograd.grad(
                F.scaled_dot_product_attention(x, x, x).square().sum(), x, create_graph=second_order
            )
            assert slope.requires_grad == second_order
            if second_order:
                torch.autograd.grad(slope.square().sum(), x)

    def test_switches(self, second_order):
        before = switches()
        with differentiable(second_order=second_order), differentiable(second_order=second_order):
            assert switches() == (False, before[1] and not second_order, before[2] and not second_order)

    def test_errors_turn_them_back(self, second_order):
        with pytest.raises(KeyError), differentiable(second_order=second_order):
            raise KeyError

    def test_what_has_one_derivative_alone(self, second_order):
        error = RuntimeError("derivative for aten::something_backward is not implemented")
        message = "Use first_order=True" if second_order else "^derivative for aten::something_backward"
        kind = ValueError if second_order else RuntimeError
        with pytest.raises(kind, match=message), differentiable(second_order=second_order):
            raise error


def test_threads_that_overlap_leave_the_switches_as_they_were():
    before, entered, left = switches(), threading.Event(), threading.Event()

    def other():
        with differentiable(second_order=True):
            entered.set()
            left.wait(60.0)

    thread = threading.Thread(target=other)
    with differentiable(second_order=True):
        thread.start()
        assert entered.wait(60.0)
    assert switches()[0] is False  # the other thread still needs it
    left.set()
    thread.join(60.0)
    assert switches() == before
