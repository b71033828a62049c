import logging
import math

import pytest
import torch

from ssm_metarl_gym.agents.meta_learning.outer_loop import OuterLoop


def make_weights(*values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def make_outer(parameters, lr=0.5, optimizer_class=torch.optim.SGD, optimizer_kwargs=None, **options):
    return OuterLoop(parameters, optimizer_class(parameters, lr=lr, **(optimizer_kwargs or {})), **options)


def squares(weight, targets):
    """The losses ``(w - target)^2 / 2``, one for each task."""
    return lambda indices: torch.stack([(weight - targets[index]) ** 2 / 2.0 for index in indices])


class TestStep:
    @pytest.mark.parametrize("task_chunk_size", [None, 1, 2, 7])
    def test_hand_computed(self, task_chunk_size):
        # Slopes w - target of 1, 2 and 3: from 4 by half their mean to 3, of losses 0.5, 2 and 4.5.
        (w,) = weights = make_weights(4.0)
        outer = make_outer(weights, task_chunk_size=task_chunk_size)
        assert outer.step(squares(w, [3.0, 2.0, 1.0]), 3) == pytest.approx(7.0 / 3.0)
        assert w.item() == pytest.approx(3.0)
        assert w.grad is None
        assert outer.num_dropped == 0

    def test_chunks_are_no_larger_than_allowed(self):
        (w,) = weights = make_weights(4.0)
        chunks = []

        def losses_of(indices):
            chunks.append(list(indices))
            return squares(w, range(5))(indices)

        make_outer(weights, task_chunk_size=2).step(losses_of, 5)
        assert chunks == [[0, 1], [2, 3], [4]]

    @pytest.mark.parametrize(
        ("optimizer_class", "kwargs"),
        [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"weight_decay": 0.1}), (torch.optim.RMSprop, {})],
    )
    def test_it_is_a_step_of_the_optimizer(self, optimizer_class, kwargs):
        (w,) = weights = make_weights(4.0)
        (expected,) = make_weights(4.0)
        outer, optimizer = make_outer(weights, 0.1, optimizer_class, kwargs), optimizer_class([expected], 0.1, **kwargs)
        for _ in range(5):
            outer.step(squares(w, [1.0, 2.0]), 2)
            optimizer.zero_grad()
            squares(expected, [1.0, 2.0])([0, 1]).mean().backward()
            optimizer.step()
        assert w.item() == pytest.approx(expected.item(), abs=1e-12)

    def test_a_schedule_of_the_step_size(self):
        (w,) = weights = make_weights(4.0)
        outer = make_outer(weights, 1.0)
        schedule = torch.optim.lr_scheduler.StepLR(outer.optimizer, step_size=1, gamma=0.1)
        seen = []
        for _ in range(3):
            outer.step(lambda indices: w.repeat(len(indices)), 2)  # of slope 1
            schedule.step()
            seen.append(w.item())
        assert seen == pytest.approx([3.0, 2.9, 2.89])

    def test_a_weight_that_no_loss_depends_on_is_left_alone(self):
        w, unused = weights = make_weights(4.0, 7.0)
        outer = make_outer(weights, optimizer_class=torch.optim.AdamW, optimizer_kwargs={"weight_decay": 0.5})
        outer.step(squares(w, [1.0]), 1)
        assert w.item() != 4.0
        assert unused.item() == 7.0
        assert unused not in outer.optimizer.state

    @pytest.mark.parametrize(("norm", "after"), [(1.0, (2.7, 3.6)), (5.0, (1.5, 2.0)), (math.inf, (1.5, 2.0))])
    def test_clipping_is_hand_computed(self, norm, after):
        # The mean gradient is (3, 4), of length 5; clipped to 1, half of (0.6, 0.8) is what the weights move by.
        a, b = weights = make_weights(3.0, 4.0)
        outer = make_outer(weights, grad_clip_norm=norm)
        outer.step(lambda indices: ((a**2 + b**2) / 2.0).repeat(len(indices)), 3)
        assert (a.item(), b.item()) == pytest.approx(after, rel=1e-5)  # torch divides by the norm plus a millionth

    def test_clipping_nothing(self):
        (w,) = weights = make_weights(1.0)
        make_outer(weights, grad_clip_norm=1.0).step(squares(w, [1.0]), 1)
        assert w.item() == 1.0


def bad_loss(w):
    return w * math.nan


def bad_gradient(w):
    return (0.0 * w).sqrt()  # zero, infinitely steep


class TestDropping:
    @pytest.mark.each_value
    @pytest.mark.parametrize("task_chunk_size", [None, 1, 2])
    @pytest.mark.parametrize("bad", [bad_loss, bad_gradient])
    def test_a_task_that_is_not_finite_is_left_out(self, caplog, bad, task_chunk_size):
        (w,) = weights = make_weights(4.0)
        outer = make_outer(weights, task_chunk_size=task_chunk_size)

        def losses_of(indices):
            return torch.stack([bad(w) if index == 1 else (w - index) ** 2 / 2.0 for index in indices])

        with caplog.at_level(logging.WARNING):
            assert outer.step(losses_of, 3) == pytest.approx((8.0 + 2.0) / 2.0)
        assert w.item() == pytest.approx(4.0 - 0.5 * (4.0 + 2.0) / 2.0)
        assert outer.num_dropped == 1
        assert outer.last_dropped == [1]
        assert "1 of 3 tasks were left out" in caplog.text
        assert outer.step(squares(w, [1.0, 1.0]), 2) > 0.0
        assert outer.num_dropped == 1
        assert outer.last_dropped == []

    def test_a_task_that_is_not_finite_is_found_by_halves(self):
        (w,) = weights = make_weights(4.0)
        chunks = []

        def losses_of(indices):
            chunks.append(list(indices))
            return torch.stack([bad_gradient(w) if index == 2 else w for index in indices])

        outer = make_outer(weights)
        assert outer.step(losses_of, 8) == 4.0
        assert chunks == [list(range(8)), [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]
        assert outer.last_dropped == [2]

    @pytest.mark.parametrize("bad", [bad_loss, bad_gradient])
    def test_where_none_is_left_nothing_changes(self, bad):
        (w,) = weights = make_weights(4.0)
        outer = make_outer(weights, optimizer_class=torch.optim.Adam)
        outer.step(squares(w, [1.0]), 1)
        before, state = w.item(), str(outer.optimizer.state_dict())
        with pytest.raises(FloatingPointError, match=r"in none of 2 tasks, and the weights were left as they were"):
            outer.step(lambda indices: torch.stack([bad(w) for _ in indices]), 2)
        assert w.item() == before
        assert w.grad is None
        assert str(outer.optimizer.state_dict()) == state
        assert outer.num_dropped == 2

    def test_a_sum_that_overflows(self):
        w = torch.tensor(1.0, requires_grad=True)
        with pytest.raises(FloatingPointError, match="their sum over the tasks, or its square, overflows"):
            make_outer([w], task_chunk_size=1).step(lambda indices: (3e38 * w).repeat(len(indices)), 2)
        assert w.item() == 1.0

    @pytest.mark.each_value
    @pytest.mark.parametrize("slope", [2e19, -2e19, 3e37])
    @pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD])
    @pytest.mark.parametrize("grad_clip_norm", [1.0, math.inf])
    def test_a_square_that_overflows(self, slope, optimizer_class, grad_clip_norm):
        """Adam would never take a step again, and a gradient of infinite norm would be clipped to zero."""
        w = torch.tensor([1.0, 1.0], requires_grad=True)
        outer = make_outer([w], 0.1, optimizer_class, grad_clip_norm=grad_clip_norm)
        outer.step(lambda indices: w.sum().repeat(len(indices)), 2)
        before, state = w.tolist(), str(outer.optimizer.state_dict())
        with pytest.raises(FloatingPointError, match="overflows, and the weights were left as they were"):
            outer.step(lambda indices: (slope * w[0]).repeat(len(indices)), 2)
        assert w.tolist() == before
        assert str(outer.optimizer.state_dict()) == state
        outer.step(lambda indices: w.sum().repeat(len(indices)), 2)
        assert w.tolist() != before


class TestState:
    def train(self, outer, num_steps):
        weight, rate = outer.parameters
        for _ in range(num_steps):
            outer.step(lambda indices: torch.stack([(weight * rate - index) ** 2 for index in indices]), 2)

    def make(self, **options):
        weights = make_weights(4.0, 0.5)
        return make_outer(weights, 0.1, torch.optim.Adam, rates={"w": weights[1]}, **options)

    def test_training_goes_on_bit_for_bit(self):
        first, second = self.make(), self.make()
        self.train(first, 2)
        state = first.state_dict()
        before = str(state)
        second.load_state_dict(state)
        assert second.parameters[1].item() == first.parameters[1].item() != 0.5
        with torch.no_grad():
            second.parameters[0].copy_(first.parameters[0])  # the weights are the model's to save
        for outer in (first, second):
            self.train(outer, 2)
        assert str(first.state_dict()) == str(second.state_dict())
        assert first.parameters[0].item() == second.parameters[0].item()
        assert str(state) == before

    def test_older_states_do_not_name_the_optimizer(self):
        state = self.make().state_dict()
        del state["optimizer_class"]
        self.make().load_state_dict(state)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"optimizer_class": "SGD"}, r"must be one of Adam; got one of SGD\. Use the same optimizer_class"),
            ({"rates": {}}, r"must be of {'w': \(\)}; got {}\. Use the same learned_rates"),
            ({"optimizer": {"state": {}, "param_groups": []}}, "different number of parameter groups"),
        ],
    )
    def test_a_state_of_something_else_changes_nothing(self, change, message):
        outer, other = self.make(), self.make()
        self.train(other, 1)
        before = str(outer.state_dict())
        with pytest.raises(ValueError, match=message):
            outer.load_state_dict({**other.state_dict(), **change})
        assert str(outer.state_dict()) == before

    def test_no_state_at_all(self):
        with pytest.raises(ValueError, match="got one without num_dropped, optimizer, rates"):
            self.make().load_state_dict({})


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task_chunk_size": 0}, "task_chunk_size must be an int >= 1; got 0"),
            ({"grad_clip_norm": 0.0}, r"grad_clip_norm must be > 0 \(inf for no bound\); got 0.0"),
            ({"grad_clip_norm": math.nan}, r"must be > 0 \(inf for no bound\); got nan"),
            ({"grad_clip_norm": None}, r"must be > 0 \(inf for no bound\); got None"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            make_outer(make_weights(1.0), **options)
