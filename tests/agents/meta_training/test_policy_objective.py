import copy
import io
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.func import functional_call

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents.meta_training import policy_objective
from ssm_metarl_gym.agents.meta_training.policy_objective import PolicyObjective, PolicyOptions
from ssm_metarl_gym.agents.meta_training.trajectories import TaskRows
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

TRIALS, POINT = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PointNavigation-v0"
SMALL = {"meta_batch_size": 4, "trajectories_per_task": 3, "width": 8, "num_epochs": 2, "inner_lr": 0.5}


def make(env_id=POINT, seed=0, model=None, **options):
    """An objective on short episodes."""
    env_kwargs = {"max_episode_steps": 20}
    return PolicyObjective(env_id, model, env_kwargs=env_kwargs, seed=seed, options=PolicyOptions(**SMALL | options))


def weights_of(objective):
    return {name: tensor.detach().clone() for name, tensor in objective.model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def moved(objective):
    """With weights whose policy does look at the observation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return objective


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inner_lr", 0.0),
        ("outer_lr", math.inf),
        ("inner_steps", -1),
        ("meta_batch_size", 0),
        ("trajectories_per_task", 1.5),
        ("gamma", 1.01),
        ("gae_lambda", math.nan),
        ("clip_range", 0.0),
        ("num_epochs", 0),
        ("kl_penalty", -1.0),
        ("surrogate", "dyce"),
        ("learned_rates", "layer"),
        ("network", "lstm"),
        ("width", True),
        ("grad_clip_norm", 0.0),
        ("task_chunk_size", 0),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        PolicyOptions(**{name: value})


@pytest.mark.parametrize("network", ["mlp", "ssm"])
@pytest.mark.parametrize("inner_steps", [0, 1, 2])
@pytest.mark.parametrize("env_id", [TRIALS, POINT])
def test_before_the_first_epoch_the_policies_are_those_that_acted_and_all_ratios_are_one(env_id, inner_steps, network):
    objective = moved(make(env_id, network=network, inner_steps=inner_steps, learned_rates="step"))
    samples, returns = objective._sample(0)
    assert len(samples) == len(returns) == inner_steps + 1
    initial, moves = objective._inner.weights(), []
    for k in range(4):
        weights = initial
        for index, sample in enumerate(s.select(slice(k, k + 1)) for s in samples):
            task = type(sample)(*(part[0] for part in sample))
            parameters, _ = functional_call(objective.model, weights, (task.observations,))
            torch.testing.assert_close(parameters, task.parameters, rtol=1e-3, atol=1e-4)
            if index < inner_steps:
                adapted = objective._inner.step(lambda w, t=task: objective._inner_loss(w, t), weights, index)
                moves.append(max((adapted[name] - weights[name]).abs().max().item() for name in weights))
                weights = adapted
    assert max(moves, default=1.0) > 1e-3  # not in every task: some see no fall
    # So the loss is minus the mean advantage, clipped or not.
    expected = -(samples[-1].weights * samples[-1].advantages).sum((1, 2))
    torch.testing.assert_close(objective._losses(samples, range(4)).detach(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"network": "ssm"}, {"surrogate": "dice"}, {"learned_rates": "tensor"}])
def test_the_meta_gradient_is_that_of_finite_differences(options):
    objective = moved(make(TRIALS, inner_steps=2, kl_penalty=0.5, clip_range=1e6, **options))
    samples = [
        type(s)(*(part.double() if part.is_floating_point() else part for part in s)) for s in objective._sample(0)[0]
    ]
    objective.model.double()
    for rate in objective._inner.rates.values():
        rate.data = rate.data.double()
    parameters = [*objective._inner.weights().values(), *objective._inner.rates.values()]
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]

    def loss(distance):
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter += distance * part
        value = objective._losses(samples, range(4)).sum()
        with torch.no_grad():
            for parameter, part in zip(parameters, direction, strict=True):
                parameter -= distance * part
        return value

    gradients = torch.autograd.grad(objective._losses(samples, range(4)).sum(), parameters)
    slope = sum((g * part).sum() for g, part in zip(gradients, direction, strict=True)).item()
    step = 1e-5
    assert slope == pytest.approx((loss(step) - loss(-step)).item() / (2 * step), rel=1e-4)
    assert abs(slope) > 1e-4


def test_first_order_takes_another_gradient():
    results = []
    for first_order in (False, True):
        objective = moved(make(first_order=first_order))
        samples, _ = objective._sample(0)
        parameters = list(objective._inner.weights().values())
        results.append(torch.autograd.grad(objective._losses(samples, range(4)).sum(), parameters))
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(*results, strict=True))


def test_without_inner_steps_it_is_ppo_over_all_tasks():
    objective = moved(make(TRIALS, inner_steps=0, num_epochs=1))
    (sample,), _ = objective._sample(0)
    parameters, _ = objective.model(sample.observations.flatten(0, 1))
    log_probs = parameters.gather(-1, sample.actions.flatten(0, 1)[..., None])[..., 0]
    expected = -(log_probs * sample.advantages.flatten(0, 1)).mean()  # all steps of all tasks alike
    expected = torch.autograd.grad(expected, list(objective.model.parameters()))
    found = torch.autograd.grad(objective._losses([sample], range(4)).mean(), list(objective.model.parameters()))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_the_size_of_a_chunk_changes_nothing_but_rounding():
    results = []
    for size in (None, 1, 3):
        objective = make(task_chunk_size=size, num_epochs=1)
        samples, _ = objective._sample(0)
        results.append([part.detach() for part in objective._losses(samples, range(4))])
        objective.update(0)
        results[-1] += list(weights_of(objective).values())
    for other in results[1:]:
        for own, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned_rates", [None, "element"])
def test_an_update_depends_on_nothing_but_the_state_the_seed_and_its_number(learned_rates, untouched_rng):
    with untouched_rng():
        straight = make(TRIALS, learned_rates=learned_rates)
        for number in range(3):
            last = straight.update(number)
    halted = make(TRIALS, learned_rates=learned_rates)
    halted.update(0)
    halted.evaluate("interpolation", (0, 1), num_tasks=3, seed=0)
    file = io.BytesIO()
    torch.save({"model": halted.model.state_dict(), "objective": halted.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = make(TRIALS, learned_rates=learned_rates)
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["objective"])
    resumed.update(1)
    assert resumed.update(2) == last
    assert_equal(weights_of(straight), weights_of(resumed))
    assert_equal(straight._inner.rates, resumed._inner.rates)


def test_what_an_update_reports():
    report = make(inner_steps=2).update(0)
    assert list(report) == [
        "loss", "return_after_0_steps", "return_after_1_steps", "return_after_2_steps", "dropped_tasks",
    ]  # fmt: skip
    assert all(math.isfinite(value) for value in report.values())


def test_seeds_differ_and_rates_are_learned():
    objective, other = make(learned_rates="tensor"), make(learned_rates="tensor", seed=1)
    before = {name: rate.detach().clone() for name, rate in objective._inner.rates.items()}
    assert objective.update(0) != other.update(0)
    assert any(not torch.equal(rate, before[name]) for name, rate in objective._inner.rates.items())
    for others in (None, "step", "element"):
        with pytest.raises(ValueError, match=r"the learned rates must be of .* Use the same learned_rates"):
            make(learned_rates=others).load_state_dict(objective.state_dict())


def test_a_state_stays_as_it_was_saved_and_loaded():
    objective, other = make(learned_rates="tensor"), make(learned_rates="tensor")
    objective.update(0)
    state = objective.state_dict()
    saved = copy.deepcopy(state)
    objective.update(1)
    other.load_state_dict(state)
    other.update(1)
    for moments, expected in zip(
        state["optimizer"]["state"].values(), saved["optimizer"]["state"].values(), strict=True
    ):
        assert_equal(moments, expected)
    assert_equal(state["rates"], saved["rates"])


def test_a_policy_that_has_diverged_still_acts():
    objective = moved(make(inner_steps=1))
    with torch.no_grad():
        for parameter in objective.model.core.parameters():
            parameter *= 1e30  # infinite features, of which the head makes infinity minus infinity
    returns = objective.evaluate("interpolation", (0, 1), num_tasks=3, seed=0)
    assert all(np.isfinite(values).all() for values in returns.values())
    with pytest.raises(FloatingPointError, match="none of 4 tasks"):
        objective.update(0)


@pytest.mark.parametrize("frozen", ["log_std", "core."])
def test_frozen_parameters_stay_as_they_are(frozen):
    rows = TaskRows(POINT)
    policy = MetaPolicy(rows.observation_space, rows.action_space, width=8)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    objective = make(model=policy)
    before = weights_of(objective)
    objective.update(0)
    same = [name for name, parameter in policy.named_parameters() if torch.equal(parameter, before[name])]
    assert same == [name for name, _ in policy.named_parameters() if name.startswith(frozen)]


def test_evaluation_is_on_the_same_tasks_after_any_number_of_steps():
    objective = moved(make())
    every = objective.evaluate("interpolation", (0, 1, 2, 3), num_tasks=5, seed=3)
    some = objective.evaluate("interpolation", (3, 0), num_tasks=5, seed=3)
    assert list(every) == [0, 1, 2, 3]
    assert list(some) == [3, 0]
    assert all(returns.shape == (5,) and returns.dtype == np.float64 for returns in every.values())
    np.testing.assert_array_equal(every[3], some[3])
    np.testing.assert_array_equal(every[0], some[0])
    for split, seed in (("extrapolation", 3), ("interpolation", 4)):
        assert not np.array_equal(objective.evaluate(split, (0,), num_tasks=5, seed=seed)[0], every[0])
    with pytest.raises(ValueError, match="num_steps must be"):
        objective.evaluate("train", (-1,), num_tasks=5, seed=0)


def test_adaptation_gives_a_policy_of_its_own():
    objective = moved(make())
    before = weights_of(objective)
    same, one = (objective.adapt({"goal_x": 0.4}, steps, seed=0) for steps in (0, 1))
    assert_equal({name: t.detach() for name, t in same.state_dict().items()}, before)
    assert_equal(weights_of(objective), before)
    task = TaskRows(POINT).task_type(goal_x=0.4)
    again = objective.adapt(task, 1, seed=0)
    assert_equal(one.state_dict(), again.state_dict())
    assert not torch.equal(one.head.bias, same.head.bias)
    with torch.no_grad():
        one.head.bias.zero_()
    assert_equal(weights_of(objective), before)
    with pytest.raises(ValueError, match="num_steps"):
        objective.adapt(task, -1, seed=0)


def test_a_policy_of_ones_own():
    rows = TaskRows(POINT)
    policy = MetaPolicy(rows.observation_space, rows.action_space, network="ssm", width=4)
    objective = make(model=policy)
    assert objective.model is policy
    before = weights_of(objective)
    objective.update(0)
    assert policy.is_normalised
    assert not torch.equal(policy.head.bias, before["head.bias"])
    with pytest.raises(ValueError, match="the policy must be for the spaces"):
        make(TRIALS, model=policy)


def test_the_normalisation_is_fixed_by_the_first_update():
    objective = make()
    objective.update(0)
    fixed = {name: tensor.clone() for name, tensor in objective.model.named_buffers()}
    objective.update(1)
    assert_equal(dict(objective.model.named_buffers()), fixed)


def test_a_share_of_the_tasks_has_their_part_of_the_gradient(monkeypatch):
    """Two processes that add their gradients up take the step of one."""
    whole = make(num_epochs=1)
    samples, _ = whole._sample(0)
    parts = []
    for share in (range(2), range(2, 4)):
        monkeypatch.setattr(policy_objective, "own_share", lambda num, share=share: share)
        objective = make(num_epochs=1)
        objective._distributed, taken = True, []
        monkeypatch.setattr(objective._outer, "step", lambda losses, num, taken=taken: taken.append(losses(range(num))))
        with pytest.raises(TypeError):  # nothing came back as the loss
            float(objective.update(0)["loss"])
        parts.append(taken[0])
    torch.testing.assert_close(torch.cat(parts), whole._losses(samples, range(4)), rtol=1e-4, atol=1e-5)


def test_a_task_whose_step_is_not_finite_does_not_count(monkeypatch):
    objective = make(inner_steps=1)
    objective.update(0)  # sets the units
    prepare, calls = objective._prepare, []

    def poisoned(trajectories):
        sample = prepare(trajectories)
        calls.append(None)
        if len(calls) == 1:
            sample.advantages[1] = math.nan
        return sample

    monkeypatch.setattr(objective, "_prepare", poisoned)
    before = weights_of(objective)
    metrics = objective.update(1)
    assert metrics["dropped_tasks"] == 1  # in each epoch
    assert all(math.isfinite(value) for value in metrics.values())
    after = weights_of(objective)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(after[name], before[name]) for name, _ in objective.model.named_parameters())


def test_an_update_that_is_interrupted_was_none(monkeypatch):
    objective, twin = make(learned_rates="tensor"), make(learned_rates="tensor")
    for each in (objective, twin):
        each.update(0)
    step, calls = objective._outer.step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as context:
        context.setattr(objective._outer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            objective.update(1)
    assert_equal(weights_of(objective), weights_of(twin))
    assert objective.update(1) == twin.update(1)
    assert_equal(weights_of(objective), weights_of(twin))


def test_options_are_plain_values():
    assert PolicyOptions(**asdict(PolicyOptions())) == PolicyOptions()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_one_step_finds_the_goal(seed):
    options = PolicyOptions(inner_lr=0.3, outer_lr=3e-3, gamma=0.99)
    objective = PolicyObjective(POINT, env_kwargs={}, seed=seed, options=options)
    for number in range(30):
        objective.update(number)
    returns = objective.evaluate("interpolation", (0, 1, 3), num_tasks=40, seed=0)
    before, after, later = (returns[steps].mean() for steps in (0, 1, 3))
    assert before < -12.0
    assert after > 0.6 * before
    assert later > 0.6 * before
