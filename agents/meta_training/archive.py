"""What the file of a trainer holds: plain values, and an environment whose module is not imported by surprise."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["check_module", "to_plain_values"]


def to_plain_values(value: Any) -> Any:
    """A value as JSON could hold it: numbers and arrays of NumPy become Python's, tasks and distributions dictionaries.

    Raises:
        ValueError: It holds something else.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if callable(to_dict := getattr(value, "to_dict", None)):
        return to_plain_values(to_dict())
    if isinstance(value, Mapping):
        return {name: to_plain_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain_values(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        "env_kwargs must hold what the file of a trainer can hold: what JSON can, tasks and distributions; got "
        f"{value!r}. Register an environment that is made with it."
    )


def check_module(env_id: str, source: str | Path, allowed_modules: Collection[str]) -> None:
    """The module that making ``env_id`` would import must be there already, or allowed.

    Raises:
        ValueError: It is neither.
    """
    allowed = {allowed_modules} if isinstance(allowed_modules, str) else set(allowed_modules)
    module, _, _ = env_id.rpartition(":")
    if module and module not in allowed | sys.modules.keys():
        raise ValueError(
            f"{source} must be of an environment that is registered; its {env_id!r} would import the module {module!r} "
            f"and run its code. Import it first, or give allowed_modules=[{module!r}], if you trust the file."
        )
