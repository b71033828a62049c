import numpy as np
import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import AdaptationConfig, Adapter, RecursiveLeastSquares
from ssm_metarl_gym.agents.adaptation.recursive_rows import make_adapter_rows
from ssm_metarl_gym.agents.adaptation.twins import TwinRows

N, K = 4, 5
BOUNDS = AdaptationConfig(
    lr=0.3, grad_clip_norm=1.0, trust_region_eps=0.5, ema_decay=0.9, entropy_weight=0.0, max_steps_per_call=3
)
LOSS = nn.MSELoss()


def make_adapter(kind):
    model = nn.Linear(3, 2)
    return RecursiveLeastSquares(model) if kind == "least squares" else Adapter(model, BOUNDS)


@pytest.mark.parametrize("kind", ["gradient steps", "least squares"])
def test_rows_and_twins_adapt_as_two_sets_of_rows_do(kind):
    adapter = make_adapter(kind)
    both, rows, twins = TwinRows(adapter, N), make_adapter_rows(adapter, N), make_adapter_rows(adapter, N)
    states, targets, others = torch.randn(N, K, 3), torch.randn(N, K, 2), torch.randn(N, K, 2)
    mask, chosen = torch.rand(N, K) < 0.8, torch.tensor([True, True, False, True])
    mask[0] = True
    for call in range(2):
        batch = {"states": states, "targets": torch.cat([targets, others], dim=2)}
        losses = both.adapt(LOSS, batch, mask=mask, rows=chosen)
        expected = rows.adapt(LOSS, {"states": states, "targets": targets}, mask=mask, rows=chosen)
        twins.adapt(LOSS, {"states": states, "targets": others}, mask=mask, rows=chosen)
        torch.testing.assert_close(losses, expected, equal_nan=True)
        if call == 0:
            back = torch.tensor([False, True, False, False])
            for each in (both, rows, twins):
                each.reset(back)
    some = np.array([0, 3])
    torch.testing.assert_close(both.predict(states), rows.predict(states))
    torch.testing.assert_close(both.predict_twins(states), twins.predict(states))
    torch.testing.assert_close(both.predict(states[some], some), rows.predict(states)[some])
    torch.testing.assert_close(both.predict_twins(states[some], some), twins.predict(states)[some])
    torch.testing.assert_close(both.weights()["weight"], rows.weights()["weight"])
    for name, value in vars(rows.stats).items():
        torch.testing.assert_close(getattr(both.stats, name), value, equal_nan=True)
    both.reset()
    torch.testing.assert_close(both.predict_twins(states), both.predict(states))
    assert both.stats.calls.tolist() == [0] * N
