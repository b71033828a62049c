"""What the command lines of several scripts share."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "json_object"]

_METAVARS: dict[Any, str] = {int: "N", Path: "DIR", str: "NAME"}


def json_object(text: str) -> dict[str, Any]:
    """What an option that takes an object in JSON holds: a ``type`` for argparse."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be an object in JSON, like '{{\"name\": 8}}'; got {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser, options_type: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Add a flag for each field of a dataclass of options, all of which have a default.

    The metadata ``help`` of a field says what it is. A bool is a switch, and a dictionary is given in JSON.

    Args:
        parser: The parser.
        options_type: The dataclass.
        choices: The valid values of those options that have a few.
    """
    for option in fields(options_type):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        flag, text = f"--{option.name.replace('_', '-')}", option.metadata["help"]
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", help=text)
        elif isinstance(default, dict):
            parser.add_argument(flag, type=json_object, default=default, metavar="JSON", help=text)
        elif option.name in choices:
            parser.add_argument(flag, choices=choices[option.name], default=default, help=f"default: {default}")
        else:
            text = f"{text} (default: {default})"
            value_type: Any = option.type
            parser.add_argument(flag, type=value_type, default=default, metavar=_METAVARS[value_type], help=text)
