import argparse
import re

import pytest

from ssm_metarl_gym.command_line import json_object


def test_an_object_is_read():
    assert json_object('{"a": [1, null], "b": {"c": "d"}}') == {"a": [1, None], "b": {"c": "d"}}


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", "null", '"text"'])
def test_anything_else_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be an object in JSON, .* got {re.escape(text)}$"):
        json_object(text)
