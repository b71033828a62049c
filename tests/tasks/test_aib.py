import json

import numpy as np
import pytest

from ssm_metarl_gym.tasks.aib import AIB_CONTEXTS, choose_contexts
from ssm_metarl_gym.tasks.families import FAMILIES, SPLITS, TaskFamily

each_family = pytest.mark.parametrize("name", AIB_CONTEXTS)


@each_family
@pytest.mark.parametrize("split", SPLITS)
def test_there_are_twenty_contexts_of_the_split_of_the_ranges(name, split):
    tasks = AIB_CONTEXTS[name].distribution(split).tasks
    assert len(set(tasks)) == 20
    assert all(map(FAMILIES[name].distribution(split).contains, tasks))


@each_family
def test_no_split_shares_a_context_with_another(name):
    tasks = [task for split in SPLITS for task in AIB_CONTEXTS[name].distribution(split).tasks]
    assert len(set(tasks)) == 60


def test_contexts_by_hand():
    train, inter, extra = (AIB_CONTEXTS["DoubleIntegrator"].distribution(split).tasks for split in SPLITS)
    # 100 pairs, of which the first 50 have the sign -1; every 5.2th is taken.
    assert [task.sign for task in train] == [-1] * 10 + [1] * 10
    assert [train[0].mass, train[-1].mass] == [0.5, 1.5]
    assert train[1].mass == pytest.approx(0.5 + 5 / 49)
    assert [inter[0].mass, inter[-1].mass] == pytest.approx([0.51, 1.49])
    # Index 26 of the sorted pairs is the second value of the upper interval.
    assert [extra[0].mass, extra[-1].mass] == pytest.approx([0.1, 2.0])
    assert extra[5].mass == pytest.approx(1.51 + 1 * (2.0 - 1.51) / 24)


def test_pairs_of_two_ranges_are_taken_in_order():
    pairs = [(task.c0, task.c1) for task in AIB_CONTEXTS["ComplexODE"].distribution("train").tasks]
    assert pairs == sorted(pairs)
    assert (pairs[0], pairs[-1]) == ((-5.0, -5.0), (5.0, 5.0))
    values = np.linspace(-5, 5, 50)
    # 2499 / 19 = 131.5, rounded: the second is the pair of index 132.
    assert pairs[1] == (values[132 // 50], values[132 % 50])


@each_family
def test_is_json_there_and_back(name):
    family = AIB_CONTEXTS[name]
    assert TaskFamily.from_dict(json.loads(json.dumps(family.to_dict())), family.task_type) == family


def test_contexts_are_chosen_by_the_name_of_a_family():
    assert choose_contexts("ComplexODE", "aib") is AIB_CONTEXTS["ComplexODE"]
    assert choose_contexts("anything", "ranges") == "anything"
    with pytest.raises(ValueError, match=r"contexts must be one of .*Did you mean 'aib'"):
        choose_contexts("ComplexODE", "aibs")
    with pytest.raises(ValueError, match=r"family \(with contexts='aib'\) must be one of .*got TaskFamily"):
        choose_contexts(FAMILIES["ComplexODE"], "aib")
