"""Checks of arguments: each raises a ValueError that says the rule and the value received."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gymnasium import spaces

__all__ = [
    "Rule",
    "as_array",
    "as_number",
    "check_choice",
    "check_fields",
    "check_flat_box",
    "check_generator",
    "check_integer",
    "check_number",
    "has_bounds",
    "is_number",
    "shown",
]

_MOST_NAMES = 50  # in a message

# What a number must be, in words that follow "must be", and as a function that says whether it is.
Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def shown(value: object, width: int = 200) -> str:
    """A value as a message shows it: its ``repr``, cut to a width, or its type where it is too deep or too long."""
    try:
        text = repr(value)
    except Exception:  # of whatever a user gave: too many brackets in each other, an integer of too many digits
        return f"a value of type {type(value).__name__} that is too deep or too long to be shown"
    return text if len(text) <= width else f"{text[: width - 3]}..."


def check_choice(what: str, value: object, valid: Sequence[str]) -> None:
    """``value`` must be one of the valid names; the message lists them, and the nearest one."""
    if not isinstance(value, str) or value not in valid:
        nearest = difflib.get_close_matches(shown(value)[:100].strip("'"), valid, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        names = str(list(valid))
        if len(valid) > _MOST_NAMES:  # a message is to be read
            names = f"{len(valid)} names, {', '.join(map(repr, valid[:3]))} to {valid[-1]!r}"
        raise ValueError(f"{what} must be one of {names}; got {shown(value)}.{hint}")


def check_integer(what: str, value: object, least: int = 1) -> None:
    """``value`` must be a whole number, Python's or NumPy's, of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an int >= {least}; got {shown(value)}.")


def check_generator(rng: object) -> None:
    """``rng`` must be one of NumPy's generators."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng must be a numpy.random.Generator; got {shown(rng)}. Use numpy.random.default_rng(seed).")


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, Python's or NumPy's, that a float can hold; a bool is none."""
    if isinstance(value, float):  # the common case: the test of an abstract class takes three times as long
        return True
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def as_number(value: Any) -> Any:
    """Python's number of an array or a tensor without dimensions; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_number(what: str, value: object, rule: Rule) -> None:
    """``value`` must be a real number that keeps the rule."""
    words, holds = rule
    if not is_number(value) or not holds(value):
        raise ValueError(f"{what} must be {words}; got {shown(value)}.")


def check_flag(what: str, value: object) -> None:
    """``value`` must be True or False: in a condition any text would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{what} must be True or False; got {shown(value)}.")


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


def as_array(value: Any) -> npt.NDArray[Any]:
    """``numpy.asarray``; of what no array can hold, one of type object and of no shape, which no rule lets through."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return np.array(None, dtype=object)


def has_bounds(space: "spaces.Box") -> npt.NDArray[np.bool_]:
    """Which entries of a box have bounds on both sides; bounds that are as large as a type can hold are none."""
    # Of whole numbers the box itself knows: all that a byte can hold may well be meant.
    bounded: npt.NDArray[np.bool_] = space.bounded_below & space.bounded_above
    if np.issubdtype(space.dtype, np.floating):
        largest = min(float(np.finfo(np.float32).max), float(np.finfo(space.low.dtype).max))  # type: ignore[type-var]
        bounded = bounded & (space.low > -largest) & (space.high < largest)
    return bounded


def check_flat_box(what: str, space: "spaces.Space[Any]") -> "spaces.Box":
    """``space`` must be a one-dimensional ``Box``, which is returned."""
    from gymnasium import spaces  # here, because a robot that runs a bundle has checks but no Gymnasium

    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(
            f"{what} must be a one-dimensional Box; got {space}. Wrap the environment in Gymnasium's "
            "FlattenObservation first."
        )
    return space
