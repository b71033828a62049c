import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch

from ssm_metarl_gym.agents import RecursiveLeastSquares
from ssm_metarl_gym.experiments.corruption import CorruptedModel
from ssm_metarl_gym.experiments.dynamics_models import make_model
from ssm_metarl_gym.wrappers import ActionCorrection, OnlineAdaptation, VectorActionCorrection, VectorOnlineAdaptation

ENV_ID = "ssm_metarl/PendulumPolarity-v0"


def make_pair(*corruptions, seed=0):
    """A model, and its corrupted copy."""
    torch.manual_seed(0)
    model = make_model(ENV_ID)
    model.target_scale.fill_(0.5)
    return model, CorruptedModel(model, gym.make(ENV_ID).observation_space, corruptions, seed=seed)


def steps(num_steps=3, num_rows=1_000):
    """Observations before and after each step."""
    walk = np.random.default_rng(0).normal(size=(num_steps + 1, num_rows, 3)).astype(np.float32).cumsum(axis=0)
    return list(itertools.pairwise(walk))


@pytest.mark.parametrize("kind", ["outliers", "NaN", "stuck", "late"])
def test_a_share_of_the_targets_is_corrupted_and_the_others_are_not(kind):
    model, corrupted = make_pair((kind, 0.1))
    previous = None
    for step in steps():
        true, given = model.targets(*step), corrupted.targets(*step)
        wrong = (given != true).any(1)  # nan differs from all
        expected = {"outliers": 100 * true, "NaN": true * torch.nan, "stuck": 0 * true, "late": previous}[kind]
        if expected is None:  # nothing came before
            assert not wrong.any()
        else:
            assert 0.06 < wrong.double().mean() < 0.13
            torch.testing.assert_close(given[wrong], expected[wrong], equal_nan=True)
        previous = true


def test_each_step_is_drawn_anew_where_nothing_changes_or_what_changes_is_no_number():
    _, corrupted = make_pair(("NaN", 0.5))
    missing = [corrupted.targets(np.zeros((1, 3)), np.ones((1, 3))).isnan().all().item() for _ in range(200)]
    assert 60 < sum(missing) < 140
    model, corrupted = make_pair(("late", 1.0))
    before, after = steps(1, 1)[0]
    unknown = np.full_like(after, np.nan)
    given = [corrupted.targets(before, each) for each in (unknown, after, before)]
    assert given[1].isnan().all()
    assert torch.equal(given[2], model.targets(before, after))


def test_another_number_of_rows_begins_anew():
    model, corrupted = make_pair(("late", 1.0))
    (before, after), *_ = steps(1, 3)
    corrupted.targets(before, after)
    assert torch.equal(corrupted.targets(before[:1], after[:1]), model.targets(before[:1], after[:1]))


@pytest.mark.parametrize("many", [False, True])
def test_the_wrappers_ask_once_for_each_step_so_that_both_models_are_told_the_same(many, monkeypatch):
    model, corrupted = make_pair(("NaN", 0.5))
    asked, targets = [], CorruptedModel.targets
    monkeypatch.setattr(CorruptedModel, "targets", lambda *args: asked.append(0) or targets(*args))
    if many:
        envs = gym.make_vec(ENV_ID, num_envs=2, autoreset_mode="SameStep")
        env = VectorActionCorrection(VectorOnlineAdaptation(envs, RecursiveLeastSquares(corrupted)), model)
    else:
        env = ActionCorrection(OnlineAdaptation(gym.make(ENV_ID), RecursiveLeastSquares(corrupted)), model)
    env.reset(seed=0)
    for step in range(1, 4):
        env.step(np.zeros(env.action_space.shape, dtype=np.float32))
        assert len(asked) == step


def test_it_predicts_what_the_model_predicts_and_the_seed_says_what_is_corrupted():
    (model, corrupted), (_, again), (_, other) = (make_pair(("NaN", 0.5), seed=seed) for seed in (0, 0, 1))
    observations, actions = steps(1)[0][0], np.zeros((1_000, 1), dtype=np.float32)
    assert torch.equal(model(model.encode(observations, actions)), corrupted(corrupted.encode(observations, actions)))
    missing, same, another = (one.targets(*steps(1)[0]).isnan() for one in (corrupted, again, other))
    assert torch.equal(missing, same)
    assert not torch.equal(missing, another)


def test_each_part_of_the_rows_has_its_own_corruption():
    model, corrupted = make_pair(("NaN", 1.0), ("outliers", 0.0), ("stuck", 1.0))
    (step,) = steps(1, 10)
    true, given = model.targets(*step), corrupted.targets(*step)
    assert given[:4].isnan().all()
    assert torch.equal(given[4:7], true[4:7])
    assert not given[7:].any()


@pytest.mark.parametrize(
    ("corruption", "message"),
    [(("noise", 0.1), "the kind of corruption must be .*'noise'"), (("NaN", 1.5), "the share must be .*1.5")],
)
def test_what_it_cannot_do_is_refused(corruption, message):
    with pytest.raises(ValueError, match=message):
        make_pair(("stuck", 0.1), corruption)


def test_no_corruption_is_refused():
    with pytest.raises(ValueError, match=r"at least one; got none\. Give one"):
        make_pair()
