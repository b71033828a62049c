import pytest
import torch
from torch import nn

from ssm_metarl_gym.agents import SSM
from ssm_metarl_gym.agents.ssm.real import RealSSM, real_copy

B, T, D, OUT = 3, 8, 4, 2


def random_model(num_layers=2):
    model = SSM(D, 8, OUT, num_layers=num_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.normal_()
    return model


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("only_last", [False, True])
def test_sequences_with_starts_in_them_give_what_the_model_gives(num_layers, only_last):
    model, x, start = random_model(num_layers), torch.randn(B, T, D), torch.rand(B, T) < 0.3
    state = torch.randn_like(model.initial_state(B))
    for ours, models in zip(
        RealSSM(model).scan(x, state, start, only_last=only_last),
        model.scan(x, state, start, only_last=only_last),
        strict=True,
    ):
        torch.testing.assert_close(ours, models, rtol=1e-5, atol=1e-5)


def test_a_sequence_is_its_steps():
    real, x, start = RealSSM(random_model()), torch.randn(B, T, D), torch.rand(B, T) < 0.3
    outputs, last = real.scan(x, start=start)
    state = real.initial_state(B)
    for t in range(T):
        output, state = real.step(x[:, t], state, start[:, t])
        torch.testing.assert_close(outputs[:, t], output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(B, D), (B, T, D)])
def test_called_it_starts_from_the_zero_state(shape):
    model, x = random_model(), torch.randn(shape)
    torch.testing.assert_close(RealSSM(model)(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_copy_has_real_models_wherever_the_module_has_others_and_leaves_it_alone():
    module = nn.Sequential(nn.Linear(3, D), SSM(D, 8, OUT), nn.Sequential(SSM(OUT, 8, 1))).train()
    copied, x = real_copy(module), torch.randn(B, 3)
    assert not any(isinstance(part, SSM) or part.training for part in copied.modules())
    assert sum(isinstance(part, SSM) for part in module.modules()) == 2
    assert all(part.training for part in module.modules())
    torch.testing.assert_close(copied(x), module(x), rtol=1e-5, atol=1e-5)
