"""What the command lines of several scripts share."""

import argparse
import json
from typing import Any

__all__ = ["json_object"]


def json_object(text: str) -> dict[str, Any]:
    """What an option that takes an object in JSON holds: a ``type`` for argparse."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be an object in JSON, like '{{\"name\": 8}}'; got {text}")
    return value
