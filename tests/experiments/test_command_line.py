from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ssm_metarl_gym.experiments.command_line import flag_of, option, parse_options, refuse

DESCRIPTION = """What the script does.

    one    a table
    other  of two columns
"""


def check_rate(value, flag):
    if value > 1:
        raise ValueError(f"{flag} must be <= 1; got {value}.")


@dataclass(frozen=True)
class Options:
    agents: tuple[Path, ...] = option((), "who acts", is_positional=True)
    name: str = option("a", "what it is called", choices=("a", "b"))
    some_size: int = option(3, "how large it is", least=1)
    start: int | None = option(None, "where it begins", least=0, below=2**31)
    seed: int = option(0, "which one")
    rate: float = option(0.5, "how fast it is", check=check_rate)
    sizes: tuple[int, ...] = option((1, 2), "all of them", least=1)
    families: tuple[str, ...] = option(("x",), "or none", choices=("x", "y"), may_be_empty=True)
    folder: Path | None = option(None, "where it goes")
    env_kwargs: dict[str, Any] = option({}, "what else")
    fast: bool = option(False, "in a hurry")

    def __post_init__(self):
        if self.fast and self.start is not None:
            raise ValueError("--fast must stand without --start. Leave one of them out.")


def parse(*arguments):
    return parse_options(Options, arguments, description=DESCRIPTION)


def test_without_arguments_every_option_has_its_default():
    assert parse() == Options()
    assert parse().env_kwargs is not parse().env_kwargs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "b", "--some-size", "4"], Options(name="b", some_size=4)),
        (["--some_size=4"], Options(some_size=4)),
        (["--some-size", "4", "--some-size", "5"], Options(some_size=5)),
        (["--start", "0", "--rate", "1e-3"], Options(start=0, rate=1e-3)),
        (["--sizes", "3", "4", "5", "--families"], Options(sizes=(3, 4, 5), families=())),
        (["--folder", "a/b", "--fast"], Options(folder=Path("a/b"), fast=True)),
        (
            ["--env-kwargs", '{"a": [-1, null], "b": {"c": "d"}}'],
            Options(env_kwargs={"a": [-1, None], "b": {"c": "d"}}),
        ),
        (["x", "y/z", "--some-size", "4"], Options(agents=(Path("x"), Path("y/z")), some_size=4)),
    ],
)
def test_what_is_given_arrives(arguments, expected):
    assert parse(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "c"], "--name must be one of ['a', 'b']; got 'c'."),
        (["--some-size", "0"], "--some-size must be >= 1; got 0."),
        (["--some-size", "-1"], "--some-size must be >= 1; got -1."),
        (["--some-size", "many"], "--some-size must be a whole number; got 'many'."),
        (["--some-size", "1e3"], "--some-size must be a whole number; got '1e3'."),
        (["--some-size"], "Expected 1 values.\n"),
        (["--start", "2147483648"], "--start must be >= 0 and less than 2147483648; got 2147483648."),
        (["--some-size", "100000000000"], "--some-size must be >= 1 and less than 2147483648; got 100000000000."),
        (["--rate", "high"], "--rate must be a number; got 'high'."),
        (["--rate", "2"], "--rate must be <= 1; got 2.0."),
        (["--sizes", "1", "0"], "--sizes must be >= 1; got 0."),
        (["--sizes"], "--sizes must have at least one value; got none."),
        (["--families", "x", "z"], "--families must be one of ['x', 'y']; got 'z'."),
        (["--folder", ""], "--folder must be a path, in UTF-8 and not empty; got ''."),
        (["--folder", "\udcff"], "--folder must be a path"),
        (["--env-kwargs", "[1]"], "--env-kwargs must be an object in JSON, like '{\"name\": 8}'; got '[1]'."),
        (["--env-kwargs", "{"], "got '{'."),
        (["--env-kwargs", "[" * 100_000], f"got '{200 * '['}...'."),
        (["--env-kwargs", "null"], "got 'null'."),
        (["--some-sise", "4"], "got '--some-sise'. Did you mean '--some-size'?"),
        (["--no-fast"], "got '--no-fast'."),
        (["--tyro-print-completion", "x"], "got '--tyro-print-completion'."),
        (["--fast", "--start", "1"], "--fast must stand without --start. Leave one of them out."),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(*arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert ": error: " in err
    assert message in err


def test_help_tells_meanings_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "    one    a table\n    other  of two columns\n" in text
    words = " ".join(text.replace("│", " ").split())  # some versions of tyro draw boxes
    for entry in (
        "[PATH ...] who acts",
        "--name NAME what it is called; one of a, b (default: a)",
        "--some-size N how large it is (default: 3)",
        "--start N where it begins --seed N which one (default: 0) --rate X how fast it is (default: 0.5)",
        "--sizes N ... all of them (default: 1 2)",
        "--folder PATH where it goes --env-kwargs JSON what else --fast in a hurry",
    ):
        assert entry in words


def test_a_script_refuses_in_the_same_way(capsys):
    with pytest.raises(SystemExit) as exit_info:
        refuse("--output must\nbe new.")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err.endswith(": error: --output must be new.\n")


def test_a_flag_is_the_name_with_dashes():
    assert flag_of("num_tasks") == "--num-tasks"


def test_options_are_checked_together(capsys):
    def check(options):
        if options.some_size > options.rate:
            raise ValueError("--rate must be the greater one.")

    assert parse_options(Options, ["--rate", "1", "--some-size", "1"], description="", check=check).some_size == 1
    with pytest.raises(SystemExit):
        parse_options(Options, [], description="", check=check)
    assert capsys.readouterr().err.endswith(": error: --rate must be the greater one.\n")
