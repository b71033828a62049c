"""The examples of the first interface as users have them, and the exact signatures that they rely on."""

import inspect
from dataclasses import fields

import pytest
import torch
from torch import nn, randn

from ssm_metarl_gym.agents import SSM, AdaptationConfig, Adapter, MetaMAML

SIX_FIELDS = {
    "lr": 0.01,
    "grad_clip_norm": 1.0,
    "trust_region_eps": 0.01,
    "ema_decay": 0.99,
    "entropy_weight": 0.01,
    "max_steps_per_call": 5,
}


def test_ssm():
    model = SSM(state_dim=10, hidden_dim=128, output_dim=32, device="cpu")
    for features in (model(randn(32, 10)), model(randn(32, 10), hidden_state=None)):
        assert isinstance(features, torch.Tensor)
        assert features.shape == (32, 32)


def test_meta_maml():
    model = SSM(state_dim=4, hidden_dim=128, output_dim=1)
    maml = MetaMAML(model, inner_lr=0.01, outer_lr=0.001, first_order=False)
    support_x, support_y = randn(10, 4), randn(10, 1)
    adapted = maml.adapt(support_x, support_y, nn.MSELoss(), num_steps=5)
    assert isinstance(adapted, SSM)
    assert nn.MSELoss()(adapted(support_x), support_y) < nn.MSELoss()(model(support_x), support_y)

    tasks = [(randn(10, 4), randn(10, 1), randn(10, 4), randn(10, 1)) for _ in range(8)]
    assert isinstance(maml.meta_update(tasks, nn.MSELoss()), float)


def test_adapter():
    model = SSM(state_dim=4, hidden_dim=128, output_dim=1)
    config = AdaptationConfig(
        lr=0.01, grad_clip_norm=1.0, trust_region_eps=0.01, ema_decay=0.99, entropy_weight=0.01, max_steps_per_call=5
    )
    adapter = Adapter(model, config)
    assert isinstance(adapter.adapt(nn.MSELoss(), {"states": randn(16, 4), "targets": randn(16, 1)}), float)
    assert adapter.stats.steps == 5


REQUIRED = inspect.Parameter.empty


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (SSM, {"state_dim": REQUIRED, "hidden_dim": 128, "output_dim": 32, "device": "cpu"}),
        (SSM.forward, {"self": REQUIRED, "x": REQUIRED, "hidden_state": None}),
        (MetaMAML, {"model": REQUIRED, "inner_lr": REQUIRED, "outer_lr": REQUIRED, "first_order": False}),
        (MetaMAML.adapt, dict.fromkeys(["self", "support_x", "support_y", "loss_fn", "num_steps"], REQUIRED)),
        (MetaMAML.meta_update, dict.fromkeys(["self", "tasks", "loss_fn"], REQUIRED)),
        (AdaptationConfig, dict.fromkeys(SIX_FIELDS, REQUIRED)),
        (Adapter, dict.fromkeys(["model", "cfg"], REQUIRED)),
        (Adapter.adapt, dict.fromkeys(["self", "loss_fn", "batch_dict"], REQUIRED)),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(function, expected):
    parameters = inspect.signature(function).parameters.values()
    by_position = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(by_position.items()) == list(expected.items())
    later = [p for p in parameters if p.name not in by_position]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not REQUIRED for p in later)


def test_later_options():
    assert inspect.signature(SSM).parameters["num_layers"].default == 2
    assert inspect.signature(MetaMAML).parameters["inner_steps"].default == 1


def test_adaptation_config_has_exactly_six_fields():
    assert [field.name for field in fields(AdaptationConfig)] == list(SIX_FIELDS)
    assert AdaptationConfig(*SIX_FIELDS.values()) == AdaptationConfig(**SIX_FIELDS)
    with pytest.raises(TypeError):
        AdaptationConfig(**SIX_FIELDS, momentum=0.9)
    with pytest.raises(TypeError):
        AdaptationConfig(*SIX_FIELDS.values(), 0.9)
    for name in SIX_FIELDS:
        with pytest.raises(TypeError):
            AdaptationConfig(**{other: value for other, value in SIX_FIELDS.items() if other != name})
