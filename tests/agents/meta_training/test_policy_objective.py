import copy
import io
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

import ssm_metarl_gym  # noqa: F401 - registers the environments
from ssm_metarl_gym.agents.meta_learning.outer_loop import OuterLoop
from ssm_metarl_gym.agents.meta_training import policy_objective
from ssm_metarl_gym.agents.meta_training.policy_objective import PolicyObjective, PolicyOptions
from ssm_metarl_gym.agents.meta_training.surrogates import make_sample
from ssm_metarl_gym.agents.meta_training.trajectories import BatchedEnvs, collect_trajectories
from ssm_metarl_gym.agents.models.meta_policy import MetaPolicy

TRIALS, POINT = "ssm_metarl/CartPolePolarity-v0", "ssm_metarl/PointNavigation-v0"
SMALL = {"meta_batch_size": 4, "trajectories_per_task": 3, "num_epochs": 2, "inner_lr": 0.5}


def make_policy(env_id=POINT, seed=0, **options):
    envs = BatchedEnvs(env_id, {"max_episode_steps": 6})
    torch.manual_seed(seed)
    return MetaPolicy(envs.observation_space, envs.action_space, **{"width": 8, **options})


def make(env_id=POINT, seed=0, model=None, **options):
    """An objective on short episodes."""
    return PolicyObjective(
        env_id,
        make_policy(env_id, seed) if model is None else model,
        env_kwargs={"max_episode_steps": 6},
        seed=seed,
        options=PolicyOptions(**SMALL | options),
    )


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
        ("outer_lr", 3e38),
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


def test_options_reach_the_losses_and_the_loops():
    """Each of them changes what is learned."""
    plain = {"inner_steps": 1, "num_epochs": 2, "outer_lr": 0.03}
    changes = (
        {},
        {"inner_lr": 0.1},
        {"outer_lr": 0.02},
        {"inner_steps": 0},
        {"inner_steps": 2},
        {"trajectories_per_task": 2},
        {"gamma": 0.5},
        {"gae_lambda": 0.5},
        {"clip_range": 0.01},
        {"num_epochs": 3},
        {"kl_penalty": 5.0},
        {"surrogate": "dice"},
        {"first_order": True},
        {"learned_rates": "tensor"},
        {"grad_clip_norm": 1e-8},
    )
    learned = []
    for change in changes:
        objective = make(**plain | change)
        objective.update(0)
        learned.append([tensor.tolist() for tensor in weights_of(objective).values()])
    assert all(one != other for i, one in enumerate(learned) for other in learned[:i])


def test_the_size_of_a_chunk_changes_nothing_but_rounding():
    objectives = [make(task_chunk_size=size, num_epochs=1) for size in (None, 1, 3)]
    first, *others = [objective.update(0)["loss"] for objective in objectives]
    assert others == [pytest.approx(first, rel=1e-3, abs=1e-4)] * 2
    for objective in objectives[1:]:
        for own, theirs in zip(objectives[0].model.parameters(), objective.model.parameters(), strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learned_rates", [None, "element"])
def test_an_update_depends_on_nothing_but_the_state_the_seed_and_its_number(learned_rates, untouched_rng):
    straight = make(TRIALS, learned_rates=learned_rates)
    with untouched_rng():
        for index in range(3):
            last = straight.update(index)
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
    assert_equal(straight.state_dict()["rates"], resumed.state_dict()["rates"])


def test_what_an_update_reports():
    report = make(inner_steps=2).update(0)
    assert list(report) == [
        "loss", "return_after_0_steps", "return_after_1_steps", "return_after_2_steps", "dropped_tasks", "steps",
    ]  # fmt: skip
    assert all(math.isfinite(value) for value in report.values())


def test_seeds_differ_and_rates_are_learned():
    objective, other = make(learned_rates="tensor"), make(learned_rates="tensor", seed=1)
    before = objective.state_dict()["rates"]
    assert objective.update(0) != other.update(0)
    assert any(not torch.equal(rate, before[name]) for name, rate in objective.state_dict()["rates"].items())
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
    policy = make_policy()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    objective = make(model=policy)
    before = weights_of(objective)
    objective.update(0)
    same = [name for name, parameter in policy.named_parameters() if torch.equal(parameter, before[name])]
    assert same == [name for name, _ in policy.named_parameters() if name.startswith(frozen)]


def test_parameters_replaced_after_construction_are_noticed():
    objective = make()
    objective.model.head = torch.nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"\['head.weight', 'head.bias'\]\. Make a new MetaMAML, or trainer"):
        objective.update(0)


def test_a_policy_with_an_attribute_that_has_a_graph_can_be_adapted():
    objective = make()
    objective.model.seen = objective.model(torch.zeros(1, 1, 2))[0]
    adapted = objective.adapt([{"goal_x": 0.4}], 1, seed=0)[0]
    assert torch.equal(adapted.seen, objective.model.seen)
    assert not adapted.seen.requires_grad


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


def test_where_a_switch_draws_tasks_they_are_of_the_split_that_is_evaluated(monkeypatch):
    drawn = []

    def watched(envs, policy, weights, tasks, num_trajectories, *, split, **kwargs):
        trajectories = collect_trajectories(envs, policy, weights, tasks, num_trajectories, split=split, **kwargs)
        env = envs.get(len(tasks) * num_trajectories, split).unwrapped
        drawn.append([env.family.distribution(split).contains(task) for task in env.tasks])
        return trajectories

    monkeypatch.setattr(policy_objective, "collect_trajectories", watched)
    env_id, env_kwargs = "ssm_metarl/PointActuators-v0", {"max_episode_steps": 6, "switch": {"step": 2}}
    objective = PolicyObjective(
        env_id, make_policy(env_id), env_kwargs=env_kwargs, seed=0, options=PolicyOptions(**SMALL)
    )
    for split in ("train", "interpolation", "extrapolation"):
        objective.evaluate(split, (0, 1), num_tasks=3, seed=0)
    assert len(drawn) == 6
    assert np.all(drawn)


def test_adaptation_gives_a_policy_of_its_own():
    objective = moved(make())
    before = weights_of(objective)
    same, one = (objective.adapt([{"goal_x": 0.4}], steps, seed=0)[0] for steps in (0, 1))
    assert_equal({name: t.detach() for name, t in same.state_dict().items()}, before)
    assert_equal(weights_of(objective), before)
    task = BatchedEnvs(POINT).task_type(goal_x=0.4)
    (again,) = objective.adapt([task], 1, seed=0)
    assert_equal(one.state_dict(), again.state_dict())
    assert not torch.equal(one.head.bias, same.head.bias)
    with torch.no_grad():
        one.head.bias.zero_()
    assert_equal(weights_of(objective), before)
    with pytest.raises(ValueError, match="num_steps"):
        objective.adapt([task], -1, seed=0)


def test_a_policy_of_ones_own():
    policy = make_policy(network="ssm", width=4)
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


def test_the_processes_share_the_tasks_of_an_update(monkeypatch):
    """Together, the losses of the shares are those of one process."""
    taken, step = [], OuterLoop.step

    def spy(outer, losses_of, num_tasks):
        taken.append(losses_of(range(num_tasks)).detach())
        return step(outer, losses_of, num_tasks)

    monkeypatch.setattr(OuterLoop, "step", spy)
    for share in (None, range(1), range(1, 4)):
        monkeypatch.setattr(policy_objective, "own_share", lambda num, share=share: share)
        options = PolicyOptions(**SMALL | {"num_epochs": 1})
        objective = PolicyObjective(
            POINT,
            make_policy(),
            env_kwargs={"max_episode_steps": 6},
            seed=0,
            options=options,
            distributed=share is not None,
        )
        objective.update(0)
    whole, *parts = taken
    assert [len(part) for part in parts] == [1, 3]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_a_task_whose_step_is_not_finite_does_not_count(monkeypatch):
    objective, calls = make(inner_steps=1), []
    objective.update(0)  # sets the units

    def poisoned(*arguments, **options):
        sample = make_sample(*arguments, **options)
        calls.append(None)
        if len(calls) == 1:
            sample.advantages[1] = math.nan
        return sample

    monkeypatch.setattr(policy_objective, "make_sample", poisoned)
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
    step, calls = OuterLoop.step, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as context:
        context.setattr(OuterLoop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            objective.update(1)
    assert_equal(weights_of(objective), weights_of(twin))
    assert objective.update(1) == twin.update(1)
    assert_equal(weights_of(objective), weights_of(twin))


def test_options_are_plain_values():
    assert PolicyOptions(**asdict(PolicyOptions())) == PolicyOptions()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_one_step_finds_the_goal(seed):
    options = PolicyOptions(inner_lr=0.3, outer_lr=3e-3, gamma=0.99)
    policy = make_policy(seed=seed, width=32)
    objective = PolicyObjective(POINT, policy, env_kwargs={}, seed=seed, options=options)
    for index in range(30):
        objective.update(index)
    returns = objective.evaluate("interpolation", (0, 1, 3), num_tasks=40, seed=0)
    before, after, later = (returns[steps].mean() for steps in (0, 1, 3))
    assert before < -12.0
    assert after > 0.6 * before
    assert later > 0.6 * before
