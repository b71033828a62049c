import torch
from torch import nn

from ssm_metarl_gym.agents.meta_learning.buffers import average_buffers, changed_buffers, copy_buffers


def make_model(**buffers):
    model = nn.Linear(1, 1)
    for name, value in buffers.items():
        model.register_buffer(name, torch.as_tensor(value))
    return model


class TestChanges:
    def test_copies_share_no_memory(self):
        model = make_model(mean=[1.0])
        copies = copy_buffers(model)
        copies["mean"] += 1.0
        assert model.mean.item() == 1.0

    def test_what_was_replaced_or_changed_in_place(self):
        model = make_model(same=[1.0], replaced=[1.0], moved=[1.0])
        copies = copy_buffers(model)
        buffers = {**copies, "replaced": torch.tensor([1.0])}
        buffers["moved"].add_(1.0)
        assert changed_buffers(model, copies, buffers).keys() == {"replaced", "moved"}


class TestMeans:
    def test_hand_computed(self):
        model = make_model(mean=[1.0, 5.0], calls=7, other=[3.0])
        changed = [{"mean": torch.tensor([2.0, 5.0]), "calls": torch.tensor(9)}, {"mean": torch.tensor([6.0, 5.0])}]
        average_buffers(model, changed, distributed=False)
        assert model.mean.tolist() == [4.0, 5.0]
        assert model.calls.item() == 8
        assert model.other.tolist() == [3.0]

    def test_numbers_that_are_not_finite_do_not_count(self):
        model = make_model(mean=[1.0, 1.0])
        changed = [{"mean": torch.tensor([3.0, torch.nan])}, {"mean": torch.tensor([3.0, 3.0])}]
        average_buffers(model, changed, distributed=False)
        assert model.mean.tolist() == [3.0, 2.0]

    def test_what_has_grown_stays_as_it_was(self):
        model = make_model(cache=[[1.0]], mean=[1.0])
        average_buffers(model, [{"cache": torch.ones(2, 1), "mean": torch.tensor([2.0])}], distributed=False)
        assert model.cache.tolist() == [[1.0]]
        assert model.mean.tolist() == [2.0]
