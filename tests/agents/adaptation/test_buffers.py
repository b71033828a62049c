import copy

import torch

from ssm_metarl_gym.agents.adaptation.buffers import Buffers, LastSeen


def test_memory_is_used_again():
    buffers, like = Buffers(), torch.zeros(1)
    first = buffers.take("weights", (2, 3), like)
    assert first.shape == (2, 3)
    assert buffers.take("weights", (2, 3), like) is first
    smaller = buffers.take("weights", (4,), like)
    assert smaller.data_ptr() == first.data_ptr()
    assert buffers.take("gradient", (2, 3), like).data_ptr() != first.data_ptr()


def test_other_types_and_larger_shapes_have_memory_of_their_own():
    buffers = Buffers()
    first = buffers.take("weights", (2,), torch.zeros(1)).fill_(1.0)
    assert buffers.take("weights", (2,), torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    buffers.take("weights", (9, 9), torch.zeros(1)).fill_(2.0)
    assert first.tolist() == [1.0, 1.0]


def test_copies_share_no_memory():
    buffers, like = Buffers(), torch.zeros(1)
    first = buffers.take("weights", (2,), like)
    assert copy.deepcopy(buffers).take("weights", (2,), like).data_ptr() != first.data_ptr()


def test_the_last_tensors_are_known_by_what_they_are_and_not_by_what_is_in_them():
    seen, made = LastSeen(), []

    def make(tensor):
        made.append(tensor)
        return len(made)

    a, b, c, d = (torch.zeros(1) for _ in range(4))
    assert [seen.get(tensor, make) for tensor in (a, b, a, c, a, d)] == [1, 2, 1, 3, 1, 4]
    assert seen.get(c, make) == 3
    assert seen.get(b, make) == 5  # too long ago
    assert copy.deepcopy(seen).get(c, make) == 6
