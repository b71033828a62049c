import math
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from gymnasium import spaces

from ssm_metarl_gym.checks import (
    as_array,
    check_choice,
    check_fields,
    check_flag,
    check_flat_box,
    check_generator,
    check_integer,
    check_number,
    has_bounds,
    is_number,
    shown,
)

POSITIVE = ("a finite number > 0", lambda value: 0.0 < value < math.inf)
SHARE = ("a number in [0, 1)", lambda value: 0.0 <= value < 1.0)


@dataclass(frozen=True)
class Settings:
    step: float = 0.1
    decay: float = 0.9
    name: str = "unchecked"

    def __post_init__(self):
        check_fields(self, {"step": POSITIVE, "decay": SHARE})


def test_bounds_as_large_as_a_type_can_hold_are_none():
    largest = np.finfo(np.float32).max
    low, high = np.array([-1, -largest, -np.inf, 0]), np.array([1, largest, 1, largest])
    assert has_bounds(spaces.Box(low.astype(np.float32), high.astype(np.float32))).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert has_bounds(spaces.Box(-3, 3, (2,), dtype=np.int64)).all()
    assert has_bounds(spaces.Box(0, 255, (2,), dtype=np.uint8)).all()
    assert not has_bounds(spaces.Box(-np.inf, np.inf, (2,), dtype=np.int32)).any()
    assert not has_bounds(spaces.Box(np.float16(-65504), np.float16(65504), (2,), dtype=np.float16)).any()


def test_a_flag_is_no_text_and_no_number():
    for flag in (True, False, np.bool_(True)):
        check_flag("first_order", flag)
    for value in ("False", 1, None):
        with pytest.raises(ValueError, match=rf"^first_order must be True or False; got {value!r}\.$"):
            check_flag("first_order", value)


def test_the_nearest_choice_is_named():
    check_choice("colour", "red", ["red", "green"])
    with pytest.raises(ValueError, match=r"^colour must be one of \['red', 'green'\]; got 'gren'. Did you mean 'green"):
        check_choice("colour", "gren", ["red", "green"])
    with pytest.raises(ValueError, match=r"^colour must be one of \['red', 'green'\]; got 7\.$"):
        check_choice("colour", 7, ["red", "green"])


def test_of_many_choices_a_few_are_named():
    names = [f"name_{i}" for i in range(273)]
    with pytest.raises(ValueError, match=r"one of 273 names, 'name_0', 'name_1', 'name_2' to 'name_272'; got 'x"):
        check_choice("a name", "x_1", names)


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, None, "1", math.nan, np.float64(2)])
def test_a_whole_number_of_at_least_one(value):
    for valid in (1, np.int64(7)):
        check_integer("size", valid)
    with pytest.raises(ValueError, match=r"^size must be an int >= 1; got "):
        check_integer("size", value)


def test_numbers_are_those_of_python_and_of_numpy():
    assert all(map(is_number, (1, 0.5, math.nan, math.inf, np.float32(1), np.int8(1), Fraction(1, 2))))
    assert not any(map(is_number, (True, np.True_, "1", None, 1j, [1], np.zeros(1))))
    assert is_number(10**308)
    assert not any(map(is_number, (10**309, -(10**400), Fraction(10**400))))  # no float can hold them


def deep(depth=100_000):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_message_shows_what_can_be_shown_and_no_more():
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown("x" * 1000) == "'" + "x" * 196 + "..."
    assert shown(deep()) == "a value of type list that is too deep or too long to be shown"
    assert shown(10**5000) == "a value of type int that is too deep or too long to be shown"
    for value in (deep(), 10**5000, "x" * 100_000):
        with pytest.raises(ValueError, match=r"^colour must be one of \['red'\]; got .{1,201}$"):
            check_choice("colour", value, ["red"])
        with pytest.raises(ValueError, match=r"^step must be a finite number > 0; got .{1,201}$"):
            check_number("step", value, POSITIVE)


def test_only_a_text_is_a_choice():
    for value in (np.array(["red"]), np.array("red"), ["red"], b"red"):
        with pytest.raises(ValueError, match=r"^colour must be one of"):
            check_choice("colour", value, ["red"])
    check_choice("colour", np.str_("red"), ["red"])


def test_a_generator_is_named_where_another_thing_is_given():
    check_generator(np.random.default_rng(0))
    for rng in (0, None, np.random, np.random.RandomState(0)):
        with pytest.raises(ValueError, match=r"^rng must be a numpy.random.Generator; got .* Use numpy.random.default"):
            check_generator(rng)


def test_what_no_array_can_hold_becomes_one_that_nobody_takes():
    assert as_array([1, 2]).tolist() == [1, 2]
    for value in ([1, [2]], deep()):
        assert (as_array(value).dtype, as_array(value).shape) == (object, ())


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None, True])
def test_a_number_that_breaks_its_rule(value):
    check_number("step", 0.5, POSITIVE)
    with pytest.raises(ValueError, match=r"^step must be a finite number > 0; got "):
        check_number("step", value, POSITIVE)


def test_all_faults_of_a_record_are_told_at_once():
    Settings(step=2, decay=0)
    with pytest.raises(ValueError, match=r"^decay must be a number in \[0, 1\); got 1\.0\.$"):
        Settings(decay=1.0)
    faults = r"^step must be a finite number > 0; got 'big'\. decay must be a number in \[0, 1\); got -1\.$"
    with pytest.raises(ValueError, match=faults):
        Settings(step="big", decay=-1)


def test_a_flat_box_is_handed_back():
    box = spaces.Box(-1, 1, (3,))
    assert check_flat_box("the observation space", box) is box
    for space in (spaces.Box(-1, 1, (3, 1)), spaces.Box(-1, 1, ()), spaces.Discrete(3), spaces.Dict(a=box)):
        with pytest.raises(ValueError, match=r"^the observation space must be a one-dimensional Box; got .*Flatten"):
            check_flat_box("the observation space", space)


def test_checking_takes_no_torch():
    script = "import sys, ssm_metarl_gym.checks; assert not {'torch', 'stable_baselines3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)  # noqa: S603
