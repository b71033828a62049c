import torch

from ssm_metarl_gym.agents.adaptation.row_layout import RowLayout

PARAMETERS = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


def test_matrices_lie_turned_round():
    layout = RowLayout(PARAMETERS, {"weight"})
    vectors = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    weights = layout.weights(vectors)
    assert weights.tolist() == [[1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 8.0]]
    named = layout.named(weights)
    assert named["weight"].tolist() == [[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]
    assert named["bias"].tolist() == [[7.0, 8.0]]


def test_where_none_is_turned_round_the_weights_are_the_vectors():
    layout, vectors = RowLayout(PARAMETERS), torch.arange(8.0)
    assert layout.weights(vectors) is vectors
    assert layout.named(vectors)["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
