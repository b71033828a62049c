"""``meta_update`` against a plain loop over tasks and steps, for all kinds of layers, functions and losses."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssm_metarl_gym.agents import SSM, MetaMAML

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning"),
]


class Between(nn.Module):
    """Something between two linear layers: ``Float[N 6]`` -> ``Float[N 4]``."""

    def __init__(self, inside, width, shape=(8,)):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(6, math.prod(shape)), inside, nn.Linear(width, 4)
        self.shape = shape

    def forward(self, x):
        y = self.inside(self.first(x).tanh().unflatten(-1, self.shape))
        return self.last((y[0] if isinstance(y, tuple) else y).flatten(1))


class Tokens(nn.Module):
    """A layer that takes indices, of which some are the padding's."""

    def __init__(self, inside):
        super().__init__()
        self.inside, self.last = inside, nn.Linear(8, 4)

    def forward(self, x):
        tokens = (10.0 * x[:, :4]).long().abs() % 5
        return self.last(self.inside(tokens).reshape(len(x), -1).repeat(1, 8)[:, :8].tanh())


class Twice(nn.Module):
    """Calls a layer with its input given twice or three times, as attention and bilinear layers want it."""

    def __init__(self, inside, times=2, **kwargs):
        super().__init__()
        self.inside, self.times, self.kwargs = inside, times, kwargs

    def forward(self, x):
        return self.inside(*[x] * self.times, **self.kwargs)


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **options)


LAYERS = {
    "Linear": lambda: Between(nn.Linear(8, 5), 5),
    "Bilinear": lambda: Between(Twice(nn.Bilinear(8, 8, 5)), 5),
    "Conv1d": lambda: Between(nn.Conv1d(2, 3, 3), 6, (2, 4)),
    "Conv1d, grouped": lambda: Between(nn.Conv1d(2, 4, 3, groups=2, padding=1), 16, (2, 4)),
    "Conv2d": lambda: Between(nn.Conv2d(1, 2, 2), 6, (1, 2, 4)),
    "ConvTranspose1d": lambda: Between(nn.ConvTranspose1d(2, 3, 2), 15, (2, 4)),
    "MaxPool1d": lambda: Between(nn.MaxPool1d(2), 4, (2, 4)),
    "AvgPool1d": lambda: Between(nn.AvgPool1d(2), 4, (2, 4)),
    "AdaptiveAvgPool1d": lambda: Between(nn.AdaptiveAvgPool1d(3), 6, (2, 4)),
    "AdaptiveMaxPool1d": lambda: Between(nn.AdaptiveMaxPool1d(3), 6, (2, 4)),
    "Upsample": lambda: Between(nn.Upsample(scale_factor=2, mode="linear"), 16, (2, 4)),
    "LayerNorm": lambda: Between(nn.LayerNorm(8), 8),
    "RMSNorm": lambda: Between(nn.RMSNorm(8), 8),
    "GroupNorm": lambda: Between(nn.GroupNorm(2, 4), 8, (4, 2)),
    "InstanceNorm1d": lambda: Between(nn.InstanceNorm1d(2, affine=True), 8, (2, 4)),
    "BatchNorm1d in training": lambda: Between(nn.BatchNorm1d(8), 8),
    "BatchNorm1d in evaluation": lambda: Between(nn.BatchNorm1d(8), 8).eval(),
    "LocalResponseNorm": lambda: Between(nn.LocalResponseNorm(2), 8, (4, 2)),
    "PReLU": lambda: Between(nn.PReLU(8), 8),
    "Softmax": lambda: Between(nn.Softmax(-1), 8),
    "GLU": lambda: Between(nn.GLU(), 4),
    "PixelShuffle": lambda: Between(nn.PixelShuffle(2), 8, (4, 1, 2)),
    "Embedding": lambda: Tokens(nn.Embedding(5, 2)),
    "Embedding with padding": lambda: Tokens(nn.Embedding(5, 2, padding_idx=0)),
    "Embedding by frequency": lambda: Tokens(nn.Embedding(5, 2, scale_grad_by_freq=True)),
    "EmbeddingBag": lambda: Tokens(nn.EmbeddingBag(5, 2)),
    "EmbeddingBag with padding": lambda: Tokens(nn.EmbeddingBag(5, 2, padding_idx=0, mode="sum")),
    "EmbeddingBag of maxima": lambda: Tokens(nn.EmbeddingBag(5, 2, mode="max")),
    "MultiheadAttention": lambda: Between(Twice(nn.MultiheadAttention(4, 2, batch_first=True), 3), 8, (2, 4)),
    "MultiheadAttention in evaluation": lambda: Between(
        Twice(nn.MultiheadAttention(4, 2, batch_first=True), 3), 8, (2, 4)
    ).eval(),
    "MultiheadAttention, fused": lambda: Between(
        Twice(nn.MultiheadAttention(4, 2, batch_first=True), 3, need_weights=False), 8, (2, 4)
    ),
    "TransformerEncoderLayer": lambda: Between(encoder_layer(), 8, (2, 4)),
    "TransformerEncoderLayer in evaluation": lambda: Between(encoder_layer(norm_first=True), 8, (2, 4)).eval(),
    "RNN": lambda: Between(nn.RNN(4, 3, batch_first=True), 6, (2, 4)),
    "GRU": lambda: Between(nn.GRU(4, 3, batch_first=True), 6, (2, 4)),
    "LSTM": lambda: Between(nn.LSTM(4, 3, batch_first=True), 6, (2, 4)),
    "GRUCell": lambda: Between(nn.GRUCell(8, 3), 3),
    "LSTMCell": lambda: Between(nn.LSTMCell(8, 3), 3),
    "weight norm": lambda: Between(nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)), 5),
    "spectral norm": lambda: Between(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 5)), 5).eval(),
    "SSM": lambda: Between(SSM(4, 6, 3), 6, (2, 4)),
}

SIGNS = torch.tensor([1.0, -1.0]).repeat(4).double()
PLACES = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
# Of ``Float[N 8]``, to as many numbers or fewer.
FUNCTIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x.unflatten(-1, (4, 2)), 2).flatten(1),
    "rms_norm": lambda x: F.rms_norm(x, (8,)),
    "cosine_similarity": lambda x: F.cosine_similarity(x[:, None, :4], x[:, 4:].unflatten(-1, (1, 4)), dim=-1),
    "cdist": lambda x: torch.cdist(x, x[:2]),
    "pad": lambda x: F.pad(x, (1, 1)),
    "unfold": lambda x: x.unfold(-1, 3, 2).flatten(1),
    "interpolate": lambda x: F.interpolate(x[:, None], 5, mode="linear")[:, 0],
    "attention": lambda x: F.scaled_dot_product_attention(*[x.unflatten(-1, (1, 2, 4))] * 3).flatten(1),
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "logsumexp": lambda x: x.logsumexp(-1, keepdim=True),
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "sort": lambda x: x.sort(-1).values,
    "topk": lambda x: x.topk(3).values,
    "max": lambda x: x.amax(-1, keepdim=True),
    "max of a place": lambda x: x.max(-1, keepdim=True).values,
    "median": lambda x: x.median(-1, keepdim=True).values,
    "prod": lambda x: x.prod(-1, keepdim=True),
    "std": lambda x: x.std(-1, keepdim=True),
    "norm": lambda x: x.norm(dim=-1, keepdim=True),
    "einsum": lambda x: torch.einsum("ni,mi->nm", x, x[:3]),
    "matmul": lambda x: x @ x.mT[:, :3],
    "outer": lambda x: (x[:, :3, None] * x[:, None, :3]).flatten(1),
    "roll": lambda x: x.roll(1, -1) * SIGNS,
    "flip": lambda x: x.flip(-1),
    "gather": lambda x: x.gather(-1, PLACES.expand(len(x), -1)),
    "index_select": lambda x: x.index_select(-1, PLACES[:3]),
    "scatter": lambda x: torch.zeros_like(x).scatter(-1, PLACES.expand(len(x), -1), x),
    "index_add": lambda x: torch.zeros_like(x).index_add(-1, PLACES // 2, x),
    "where": lambda x: torch.where(x > 0.0, x.exp(), x.square()),
    "masked_fill": lambda x: x.masked_fill(SIGNS > 0.0, 2.0) * x,
    "clamp": lambda x: x.clamp(-0.1, 0.1) + x,
    "fft": lambda x: torch.fft.rfft(x).abs(),
    "solve": lambda x: torch.linalg.solve(x[:, :4].unflatten(-1, (2, 2)) + 3.0 * torch.eye(2).to(x), x[:, 4:6]),
    "det": lambda x: torch.linalg.det(x[:, :4].unflatten(-1, (2, 2)))[:, None],
    "atan2": lambda x: torch.atan2(x[:, :4], 1.0 + x[:, 4:].square()),
    "trapezoid": lambda x: torch.trapezoid(x, dim=-1)[:, None],
}


class OfFunction(nn.Module):
    """A function between two layers, the second of which takes eight numbers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function

    def forward(self, x):
        y = self.function(self.first(x).tanh())
        return self.last(F.pad(y, (0, max(0, 8 - y.shape[-1])))[..., :8])


# With the kind of its targets.
LOSSES = {
    "MSELoss": (nn.MSELoss(), "real"),
    "sum of squares": (nn.MSELoss(reduction="sum"), "real"),
    "L1Loss": (nn.L1Loss(), "real"),
    "SmoothL1Loss": (nn.SmoothL1Loss(beta=0.5), "real"),
    "HuberLoss": (nn.HuberLoss(delta=0.5), "real"),
    "PoissonNLLLoss": (nn.PoissonNLLLoss(), "binary"),
    "KLDivLoss": (lambda y, t: nn.KLDivLoss(reduction="batchmean")(y.log_softmax(-1), t.softmax(-1)), "real"),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss(), "binary"),
    "BCELoss": (lambda y, t: nn.BCELoss()(y.sigmoid(), t), "binary"),
    "SoftMarginLoss": (lambda y, t: nn.SoftMarginLoss()(y, 2.0 * t - 1.0), "binary"),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss(), "binary"),
    "HingeEmbeddingLoss": (lambda y, t: nn.HingeEmbeddingLoss()(y, 2.0 * t - 1.0), "binary"),
    "CrossEntropyLoss": (nn.CrossEntropyLoss(), "class"),
    "CrossEntropyLoss, smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), "class"),
    "CrossEntropyLoss, weighted": (nn.CrossEntropyLoss(weight=torch.tensor([0.1, 0.4, 1.0, 2.0]).double()), "class"),
    "CrossEntropyLoss, ignoring": (nn.CrossEntropyLoss(ignore_index=1), "class"),
    "CrossEntropyLoss of probabilities": (lambda y, t: nn.CrossEntropyLoss()(y, t.softmax(-1)), "real"),
    "NLLLoss": (lambda y, t: nn.NLLLoss()(y.log_softmax(-1), t), "class"),
    "MultiMarginLoss": (nn.MultiMarginLoss(), "class"),
    "CosineEmbeddingLoss": (lambda y, t: nn.CosineEmbeddingLoss()(y, t, torch.ones(len(y)).to(y)), "real"),
    "GaussianNLLLoss": (lambda y, t: nn.GaussianNLLLoss()(y[:, :2], t[:, :2], F.softplus(y[:, 2:])), "real"),
}


def make_tasks(sizes=((5, 4),) * 3, kind="real"):
    def target(rows):
        if kind == "class":
            return torch.arange(rows) % 4
        numbers = torch.randn(rows, 4, dtype=torch.float64)
        return (numbers > 0.0).double() if kind == "binary" else numbers

    return [
        tuple(part for rows in size for part in (torch.randn(rows, 6, dtype=torch.float64), target(rows)))
        for size in sizes
    ]


# What PyTorch can differentiate but once.
ONCE = {"EmbeddingBag", "EmbeddingBag with padding", "EmbeddingBag of maxima", "cdist", "MultiMarginLoss"}


def cases(table):
    """All names in first order, and in second order those that have one."""
    return [(name, order) for name in table for order in (True, False) if order or name not in ONCE]


@pytest.mark.parametrize(("name", "first_order"), cases(LAYERS))
def test_layers(assert_same_gradient, name, first_order):
    assert_same_gradient(LAYERS[name]().double(), make_tasks(), nn.MSELoss(), first_order)


@pytest.mark.parametrize(("name", "first_order"), cases(FUNCTIONS))
def test_functions(assert_same_gradient, name, first_order):
    assert_same_gradient(OfFunction(FUNCTIONS[name]).double(), make_tasks(), nn.MSELoss(), first_order)


@pytest.mark.parametrize(("name", "first_order"), cases(LOSSES))
def test_losses_on_tasks_of_different_lengths(assert_same_gradient, name, first_order):
    loss_fn, kind = LOSSES[name]
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    assert_same_gradient(model, make_tasks([(5, 4), (3, 6), (5, 4), (4, 4)], kind), loss_fn, first_order)


@pytest.mark.parametrize("name", sorted(ONCE))
def test_what_can_be_differentiated_once_needs_first_order(name):
    model = LAYERS[name]() if name in LAYERS else OfFunction(FUNCTIONS.get(name, torch.tanh))
    loss_fn, kind = LOSSES.get(name, (nn.MSELoss(), "real"))
    with pytest.raises(ValueError, match=r"must be differentiable twice; .* Use first_order=True"):
        MetaMAML(model.double(), 0.1, 1.0).meta_update(make_tasks(kind=kind), loss_fn)
