import json
import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest

from ssm_metarl_gym.tasks.classic import CartPoleTask, PendulumTask
from ssm_metarl_gym.tasks.distributions import TaskDistribution, TaskSet
from ssm_metarl_gym.tasks.families import FAMILIES, SPLITS, TaskFamily, parse_family
from ssm_metarl_gym.tasks.marginals import Choice, LogUniform, Uniform
from ssm_metarl_gym.tasks.task import Task

EACH_SPLIT = [
    pytest.param(family, split, id=f"{name}-{split}") for name, family in FAMILIES.items() for split in family.splits
]
LIGHT = TaskDistribution(PendulumTask, {"m": Uniform((0.5, 1)), "polarity": Choice(-1, 1)})
HEAVY = TaskDistribution(PendulumTask, {"m": LogUniform((2, 4))})
SET = TaskSet([PendulumTask(m=1.5), PendulumTask(m=1.6)])
OTHER = TaskDistribution(CartPoleTask, {})


@dataclass(frozen=True)
class DragTask(Task):
    """A type of tasks as a user writes one."""

    drag: float = 0.0


class TestCatalogue:
    def test_splits_are_these(self):
        assert SPLITS == ("train", "interpolation", "extrapolation")
        without = [name for name, family in FAMILIES.items() if family.splits != list(SPLITS)]
        assert without == ["HalfCheetahDir", "AntDir"]  # there are no directions but those to train on

    @pytest.mark.each_value
    @pytest.mark.parametrize(("family", "split"), EACH_SPLIT)
    def test_splits_are_what_they_say(self, family, split):
        drawn = list(family.distribution(split).sample_batch(family.generator(split, 0), 50))
        # The entries of a map of motors are drawn together: what lies outside are its gains.
        marginals = family.train.parameters if isinstance(family.train, TaskDistribution) else {}
        continuous = [name for name, marginal in marginals.items() if not isinstance(marginal, Choice)]
        inside = [
            [family.train.parameters[name].contains(getattr(task, name)) for name in continuous] for task in drawn
        ]
        assert np.all(inside) if split != "extrapolation" else not np.any(inside)
        assert all(map(family.distribution(split).contains, drawn))

    @pytest.mark.parametrize(
        ("name", "train", "extrapolation"),
        [
            (
                "CartPole",
                {"force_mag": ((5, 15),), "length": ((0.25, 0.75),), "masspole": ((0.05, 0.5),)},
                {
                    "force_mag": ((1, 5), (15, 20)),
                    "length": ((0.05, 0.25), (0.75, 1)),
                    "masspole": ((0.01, 0.05), (0.5, 1)),
                },
            ),
            (
                "Pendulum",
                {"m": ((0.75, 1.25),), "l": ((0.75, 1.25),)},
                {"m": ((0.5, 0.75), (1.25, 1.5)), "l": ((0.5, 0.75), (1.25, 1.5))},
            ),
        ],
    )
    def test_ranges_are_those_of_packer_et_al_times_the_sign(self, name, train, extrapolation):
        for split, ranges in (("train", train), ("interpolation", train), ("extrapolation", extrapolation)):
            plain, *signed = (FAMILIES[name + suffix].distribution(split) for suffix in ("", "Polarity", "Switch"))
            assert {parameter: uniform.intervals for parameter, uniform in plain.parameters.items()} == ranges
            assert all(other.parameters == {**plain.parameters, "polarity": Choice(-1, 1)} for other in signed)

    def test_goals_are_those_of_maml_and_beyond_in_both_coordinates(self):
        family, inside, beyond = FAMILIES["PointNavigation"], ((-0.5, 0.5),), ((-0.75, -0.5), (0.5, 0.75))
        for split, ranges in (("train", inside), ("interpolation", inside), ("extrapolation", beyond)):
            parameters = family.distribution(split).parameters
            assert {name: uniform.intervals for name, uniform in parameters.items()} == {
                "goal_x": ranges,
                "goal_y": ranges,
            }

    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
    def test_every_family_survives_json(self, family):
        copy = TaskFamily.from_dict(json.loads(json.dumps(family.to_dict())))
        assert copy == family
        assert hash(copy) == hash(family)
        assert copy.splits == family.splits

    def test_draws_what_it_always_drew(self):
        family = FAMILIES["CartPoleSwitch"]
        tasks = {split: family.distribution(split).sample(family.generator(split, 3)) for split in SPLITS}
        assert {
            split: (task.force_mag, task.length, task.masspole, task.polarity) for split, task in tasks.items()
        } == {
            "train": (10.413696492633944, 0.4393391763014097, 0.45481092363290615, -1),
            "interpolation": (6.003360286615997, 0.5662569432937414, 0.28799756605871885, 1),
            "extrapolation": (1.5005336038167116, 0.09256023699076776, 0.9635597575915213, 1),
        }


class TestTaskFamily:
    full = TaskFamily(train=LIGHT, extrapolation=HEAVY, interpolation=SET)

    def test_every_split_has_its_distribution(self):
        assert self.full.task_type is PendulumTask
        assert self.full.splits == list(SPLITS)
        assert [self.full.distribution(split) for split in SPLITS] == [LIGHT, SET, HEAVY]

    def test_without_interpolation_it_is_that_of_train(self):
        assert [TaskFamily(LIGHT, HEAVY).distribution(split) for split in SPLITS] == [LIGHT, LIGHT, HEAVY]

    def test_without_extrapolation_there_is_no_such_split(self):
        family = TaskFamily(LIGHT, interpolation=SET)
        assert family.splits == ["train", "interpolation"]
        with pytest.raises(
            ValueError, match=r"^split must be one of \['train', 'interpolation'\]; got 'extrapolation'"
        ):
            family.distribution("extrapolation")

    def test_refuses_unknown_splits(self):
        with pytest.raises(
            ValueError, match=r"split must be one of .*got 'extrapolate'. Did you mean 'extrapolation'\?"
        ):
            FAMILIES["CartPole"].distribution("extrapolate")

    def test_takes_the_sets_of_a_split(self):
        train, test = LIGHT.split(30, 10)
        family = TaskFamily(train=train, interpolation=test)
        drawn = {
            split: set(family.distribution(split).sample_batch(family.generator(split, 0), 400))
            for split in family.splits
        }
        assert drawn == {"train": set(train.tasks), "interpolation": set(test.tasks)}
        assert not drawn["train"] & drawn["interpolation"]

    def test_splits_never_share_a_stream(self):
        numbers = {x for split in SPLITS for seed in range(5) for x in self.full.generator(split, seed).random(8)}
        assert len(numbers) == len(SPLITS) * 5 * 8

    def test_one_seed_gives_one_stream_to_every_family(self):
        numbers = [family.generator("train", 5).random(8).tolist() for family in (self.full, FAMILIES["CartPole"])]
        assert numbers[0] == numbers[1]

    def test_equality_and_hash_follow_the_content(self):
        same = TaskFamily(LIGHT, HEAVY, TaskSet(list(SET.tasks)))
        others = [TaskFamily(LIGHT), TaskFamily(LIGHT, HEAVY), TaskFamily(LIGHT, SET), TaskFamily(LIGHT, None, SET)]
        assert same == self.full == deepcopy(same) == pickle.loads(pickle.dumps(same))  # noqa: S301
        assert len({same, self.full, *others}) == 5
        with pytest.raises(FrozenInstanceError):
            same.train = SET

    @pytest.mark.parametrize("others", [{"extrapolation": OTHER}, {"interpolation": OTHER}])
    def test_refuses_to_mix_types_of_tasks(self, others):
        message = "the distributions of a family must be of one type of task; got .*PendulumTask.*CartPoleTask"
        with pytest.raises(ValueError, match=message):
            TaskFamily(LIGHT, **others)
        with pytest.raises(ValueError, match=message):
            TaskFamily.from_dict(
                {"train": LIGHT.to_dict(), **{split: other.to_dict() for split, other in others.items()}}
            )

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("distribution", ["CartPole", LIGHT.to_dict(), Uniform((0, 1)), PendulumTask()])
    def test_refuses_what_is_no_distribution(self, split, distribution):
        with pytest.raises(ValueError, match=f"^{split} must be a TaskDistribution or a TaskSet; got "):
            TaskFamily(**{"train": LIGHT, split: distribution})

    def test_needs_a_distribution_to_train_on(self):
        with pytest.raises(ValueError, match=r"^train must be a TaskDistribution or a TaskSet; got None"):
            TaskFamily(None, HEAVY)

    @pytest.mark.parametrize(
        "family",
        [full, TaskFamily(LIGHT), TaskFamily(SET, LIGHT), TaskFamily(SET, None, HEAVY)],
        ids=lambda f: f.splits,
    )
    def test_dictionaries_and_json_give_an_equal_family_back(self, family):
        text = json.dumps(family.to_dict())
        for copy in (
            TaskFamily.from_dict(family.to_dict()),
            TaskFamily.from_dict(json.loads(text)),
            TaskFamily.from_dict(json.loads(text), PendulumTask),
        ):
            assert copy == family
            assert hash(copy) == hash(family)
            assert json.dumps(copy.to_dict()) == text

    def test_its_dictionary_holds_what_it_was_given(self):
        assert self.full.to_dict() == {
            "train": LIGHT.to_dict(),
            "interpolation": SET.to_dict(),
            "extrapolation": HEAVY.to_dict(),
        }
        assert TaskFamily(LIGHT).to_dict() == {"train": LIGHT.to_dict()}

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (5, "^a family must be a dictionary from split to distribution; got 5"),
            (["train"], r"^a family must be a dictionary from split to distribution; got \['train'\]"),
            ({}, r"^a family must have a distribution for the split 'train'; got \[\]"),
            ({"extrapolation": LIGHT.to_dict()}, r"the split 'train'; got \['extrapolation'\]"),
            ({"trian": LIGHT.to_dict()}, r"^split must be one of .*got 'trian'. Did you mean 'train'\?"),
            ({"train": None}, "^a distribution must be a dictionary of 'task_type' and .*; got None"),
            ({"train": LIGHT.to_dict(), "extrapolation": {}}, r"^a distribution must be .*; got \{\}"),
            ({"train": {"task_type": "PendlumTask", "tasks": []}}, r"got 'PendlumTask'. Did you mean 'PendulumTask'\?"),
        ],
    )
    def test_refuses_other_data(self, data, message):
        with pytest.raises(ValueError, match=message):
            TaskFamily.from_dict(data)

    def test_refuses_data_of_another_type(self):
        with pytest.raises(ValueError, match="must be of type 'CartPoleTask'; got 'PendulumTask'"):
            TaskFamily.from_dict(self.full.to_dict(), CartPoleTask)


class TestParsing:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_name_is_looked_up(self, name):
        assert parse_family(name, FAMILIES[name].task_type) is FAMILIES[name]

    @pytest.mark.parametrize(
        ("given", "expected"), [(LIGHT, TaskFamily(LIGHT)), (SET, TaskFamily(SET)), (TestTaskFamily.full,) * 2]
    )
    def test_distributions_and_families_are_taken_as_they_are_and_as_dictionaries(self, given, expected):
        assert parse_family(given, PendulumTask) == expected
        assert parse_family(given.to_dict(), PendulumTask) == expected
        assert parse_family(json.loads(json.dumps(given.to_dict())), PendulumTask) == expected

    def test_a_users_own_type_of_tasks_has_no_named_families(self):
        distribution = TaskDistribution(DragTask, {"drag": Uniform((-1, 1))})
        assert parse_family(distribution, DragTask).distribution("interpolation") == distribution
        with pytest.raises(ValueError, match=r"^family must be one of \[\]; got 'CartPole'\.$"):
            parse_family("CartPole", DragTask)

    @pytest.mark.parametrize(
        "given", [OTHER, TaskFamily(OTHER), TaskSet([CartPoleTask()]), None, 5, ["Pendulum"], Uniform((0, 1))]
    )
    def test_refuses_other_objects(self, given):
        with pytest.raises(
            ValueError, match=r"^family must be a name, a TaskFamily or a TaskDistribution over PendulumTasks; got "
        ):
            parse_family(given, PendulumTask)

    @pytest.mark.parametrize("given", [OTHER, TaskFamily(OTHER), TaskSet([CartPoleTask()])])
    def test_refuses_the_dictionaries_of_other_types_of_tasks(self, given):
        with pytest.raises(ValueError, match="must be of type 'PendulumTask'; got 'CartPoleTask'"):
            parse_family(given.to_dict(), PendulumTask)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("Pendulm", r"^family must be one of \['Pendulum', .*got 'Pendulm'. Did you mean 'Pendulum'\?"),
            ("CartPole", r"^family must be one of \['Pendulum', "),
            ({}, "the split 'train'"),
            ({"task_type": "PendulumTask"}, "'parameters' or 'tasks'"),
            ({"parameters": {}}, "split must be one of .*; got 'parameters'"),
        ],
    )
    def test_names_and_dictionaries_are_checked(self, given, message):
        with pytest.raises(ValueError, match=message):
            parse_family(given, PendulumTask)


def test_a_finite_set_that_is_trained_on_holds_nothing_out():
    family = TaskFamily(SET)
    assert family.splits == ["train"]
    with pytest.raises(ValueError, match="split must be one of \\['train'\\]; got 'interpolation'"):
        family.distribution("interpolation")
    assert TaskFamily(SET, interpolation=HEAVY).splits == ["train", "interpolation"]


@pytest.mark.parametrize("nothing", [{}, "", 0, False])
def test_only_none_stands_for_a_split_that_is_not_there(nothing):
    with pytest.raises(ValueError, match="extrapolation must be a TaskDistribution or a TaskSet; got"):
        TaskFamily(LIGHT, nothing)
