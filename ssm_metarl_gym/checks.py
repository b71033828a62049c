"""Checks of arguments: each raises a ValueError that says the rule and the value received."""

import difflib
from collections.abc import Sequence
from numbers import Integral, Real

__all__ = ["check_choice", "check_integer", "is_number"]


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
    return isinstance(value, Real) and not isinstance(value, bool)
