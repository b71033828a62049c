import pytest
import torch

from ssm_metarl_gym.agents import SSM

B, T, D, OUT = 3, 8, 4, 2


def model_of(width=8, num_layers=2, dtype=torch.float32):
    """A model none of whose parameters is at a value that hides something."""
    model = SSM(D, width, OUT, num_layers=num_layers).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.normal_()
    return model


def rollout(step, model, *, starts=True):
    """Outputs and states of a few steps with starts among them, of the same inputs for every ``step``."""
    generator, state, results = torch.Generator().manual_seed(0), model.initial_state(B), []
    for _ in range(T):
        x = torch.randn(B, D, generator=generator).to(state.dtype)
        start = torch.rand(B, generator=generator) < 0.2
        y, state = step(x, state, start) if starts else step(x, state)
        results.append(torch.cat([y.flatten(), state.flatten()]))
    return torch.stack(results)


@pytest.mark.each_value
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize(("width", "num_layers"), [(2, 1), (8, 3), (64, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_gives_what_the_model_gives(width, num_layers, dtype, tolerance, starts):
    model = model_of(width, num_layers, dtype)
    ours, models = (rollout(step, model, starts=starts) for step in (model.stepper().step, model.step))
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, models.detach(), rtol=tolerance, atol=tolerance)


def test_it_gives_what_a_scan_gives():
    model = model_of()
    stepper, state = model.stepper(), torch.randn(B, 2, 2, 4)
    x, start = torch.randn(B, T, D), torch.rand(B, T) < 0.2
    y, last = model.scan(x, state, start)
    for t in range(T):
        y_t, state = stepper.step(x[:, t], state, start[:, t])
        torch.testing.assert_close(y_t, y[:, t].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last.detach(), rtol=1e-5, atol=1e-5)


def test_the_same_call_gives_the_same_bits():
    model = model_of()
    assert torch.equal(rollout(model.stepper().step, model), rollout(model.stepper().step, model))


@pytest.mark.parametrize("state_dim", [1, D])
def test_it_is_a_snapshot(state_dim):
    model = SSM(state_dim, 8, 1)
    stepper, x, state = model.stepper(), torch.randn(B, state_dim), torch.randn(B, 2, 2, 4)
    before = stepper.step(x, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    for then, now in zip(before, stepper.step(x, state), strict=True):
        assert torch.equal(then, now)
    assert not torch.allclose(model.stepper().step(x, state)[0], before[0])


def test_it_changes_neither_its_arguments_nor_earlier_results():
    stepper, x, state = model_of().stepper(), torch.randn(B, D), torch.randn(B, 2, 2, 4)
    x_before, state_before = x.clone(), state.clone()
    y, after = stepper.step(x, state, torch.tensor([True, False, True]))
    y_before, after_before = y.clone(), after.clone()
    stepper.step(x, after)
    torch.testing.assert_close((x, state, y, after), (x_before, state_before, y_before, after_before), rtol=0, atol=0)


def test_it_has_no_gradient():
    x, state = torch.randn(B, D, requires_grad=True), torch.randn(B, 2, 2, 4, requires_grad=True)
    stepper = model_of().stepper()
    assert not any(result.requires_grad for result in stepper.step(x, state))


def test_a_start_is_a_fresh_state_even_after_a_nan():
    model = model_of()
    stepper, x, state = model.stepper(), torch.randn(B, D), model.initial_state(B)
    fresh = stepper.step(x, state)
    dirty = torch.full_like(state, torch.nan)
    torch.testing.assert_close(stepper.step(x, dirty, torch.ones(B)), fresh, rtol=0, atol=0)
    y, _ = stepper.step(x, dirty, torch.tensor([True, False, True]))
    assert y.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("x", "state", "start"),
    [
        ((D,), (B, 2, 2, 4), None),
        ((), (B, 2, 2, 4), None),
        ((B, D + 1), (B, 2, 2, 4), None),
        ((B, 1, D), (B, 2, 2, 4), None),
        ((B, D), (B, 1, 2, 4), None),
        ((B, D), (1, 2, 2, 4), None),
        ((B, D), (B, 2, 8), None),
        ((B, D), (B, 2, 2, 4), (B, 1)),
        ((B, D), (B, 2, 2, 4), (1,)),
    ],
)
def test_other_shapes_are_refused(x, state, start):
    stepper = model_of().stepper()
    with pytest.raises(ValueError, match=r"\(batch, 4\), a state of shape \(batch, 2, 2, 4\) .* got") as error:
        stepper.step(torch.zeros(x), torch.zeros(state), None if start is None else torch.zeros(start))
    assert f"got {x}, {state} and {start}." in str(error.value)


def test_a_batch_of_no_rows():
    y, state = model_of().stepper().step(torch.zeros(0, D), torch.zeros(0, 2, 2, 4))
    assert y.shape == (0, OUT)
    assert state.shape == (0, 2, 2, 4)
