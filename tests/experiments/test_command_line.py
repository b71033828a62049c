import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ssm_metarl_gym.experiments.command_line import add_arguments, json_object


def test_an_object_is_read():
    assert json_object('{"a": [1, null], "b": {"c": "d"}}') == {"a": [1, None], "b": {"c": "d"}}


@pytest.mark.parametrize("text", ["", "{", "3", "[1]", "null", '"text"'])
def test_anything_else_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be an object in JSON, .* got {re.escape(text)}$"):
        json_object(text)


@dataclass(frozen=True)
class Options:
    name: str = field(default="a", metadata={"help": "what it is called"})
    some_size: int = field(default=3, metadata={"help": "how large it is"})
    folder: Path = field(default=Path("output"), metadata={"help": "where it goes"})
    kwargs: dict = field(default_factory=dict, metadata={"help": "what else"})
    fast: bool = field(default=False, metadata={"help": "in a hurry"})


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    add_arguments(parser, Options, {"name": ["a", "b"]})
    return parser


def test_every_field_is_a_flag(parser):
    assert Options(**vars(parser.parse_args([]))) == Options()
    line = '--name b --some-size 4 --folder x --kwargs {"c":1} --fast'
    assert Options(**vars(parser.parse_args(line.split()))) == Options("b", 4, Path("x"), {"c": 1}, True)


def test_help_tells_meanings_and_defaults(parser):
    text = " ".join(parser.format_help().split())
    assert "--some-size N how large it is (default: 3)" in text
    assert "--name {a,b} default: a" in text
    assert "--fast in a hurry" in text


def test_a_value_that_is_no_choice_is_refused(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--name", "c"])
    assert "invalid choice: 'c'" in capsys.readouterr().err
