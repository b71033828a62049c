"""Checks of arguments: each raises a ValueError that says the rule and the value received."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeAlias

from gymnasium import spaces

__all__ = ["Rule", "check_choice", "check_fields", "check_flat_box", "check_integer", "check_number", "is_number"]

# What a number must be, in words that follow "must be", and as a function that says whether it is.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def check_choice(what: str, value: object, valid: Sequence[str]) -> None:
    """``value`` must be one of the valid names; the message lists them, and the nearest one."""
    if value not in valid:
        nearest = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{what} must be one of {list(valid)}; got {value!r}.{hint}")


def check_integer(what: str, value: object, least: int = 1) -> None:
    """``value`` must be a whole number, Python's or NumPy's, of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an int >= {least}; got {value!r}.")


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, Python's or NumPy's; a bool is none."""
    # The common case first: the test of an abstract class takes three times as long.
    return isinstance(value, float) or (isinstance(value, Real) and not isinstance(value, bool))


def check_number(what: str, value: object, rule: Rule) -> None:
    """``value`` must be a real number that keeps the rule."""
    words, holds = rule
    if not is_number(value) or not holds(value):
        raise ValueError(f"{what} must be {words}; got {value!r}.")


def check_fields(record: object, rules: Mapping[str, Rule]) -> None:
    """The attributes of ``record`` must be real numbers that keep their rules; the message names all that do not."""
    faults = []
    for name, rule in rules.items():
        try:
            check_number(name, getattr(record, name), rule)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(" ".join(faults))


def check_flat_box(what: str, space: spaces.Space[Any]) -> spaces.Box:
    """``space`` must be a one-dimensional ``Box``, which is returned."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{what} must be a one-dimensional Box; got {space}. Wrap the environment in Gymnasium's "
            "FlattenObservation first."
        )
    return space
