"""One frozen dataclass of options is one command line.

tyro reads the command line and lays out the help. What is ours: the words for what is wrong, bounds, and JSON.
"""

import contextlib
import dataclasses
import functools
import io
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import tyro

from ssm_metarl_gym.checks import check_choice

__all__ = ["flag_of", "option", "parse_options", "refuse", "refusing"]

BELOW: Final = 2**31  # what no size, number or seed needs to reach, and what overflows in C
LONGEST_SHOWN: Final = 200  # characters of a wrong value
OptionsT = TypeVar("OptionsT")


def option(
    default: Any,
    help: str,  # noqa: A002 - argparse and tyro call it so
    *,
    least: int | None = None,
    below: int | None = None,
    choices: Sequence[str] | None = None,
    check: Callable[[Any, str], object] | None = None,
    may_be_empty: bool = False,
    is_positional: bool = False,
) -> Any:
    """A field of a dataclass of options, with what :func:`parse_options` needs to know of it.

    Args:
        default: Its value where the command line gives none.
        help: What it is.
        least: The least whole number that is valid.
        below: What a whole number must be less than, ``BELOW`` where it is None.
        choices: The valid names, where there are a few.
        check: Checks its value, given that and the flag, before the script begins, and raises ValueError.
        may_be_empty: Whether a flag of several values may be given with none.
        is_positional: Whether its values are given without a flag.
    """
    metadata: dict[str, Any] = {"help": help, "least": least, "below": below, "choices": choices}
    metadata |= {"check": check, "may_be_empty": may_be_empty, "is_positional": is_positional}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_options(
    options: type[OptionsT],
    arguments: Sequence[str] | None = None,
    *,
    description: str,
    check: Callable[[OptionsT], object] | None = None,
) -> OptionsT:
    """The options that a command line gives; where it is not valid, the process ends as :func:`refuse` says.

    Each field is a flag: ``num_tasks`` is ``--num-tasks``. A bool is a switch, a tuple takes several values, and a
    dictionary is an object in JSON.

    Args:
        options: A frozen dataclass whose fields are made by :func:`option`. A ValueError of its ``__post_init__`` is
            a mistake like any other.
        arguments: What follows the name of the script; by default the command line of this process.
        description: What ``--help`` says before it lists the options: the docstring of the script.
        check: Checks all options together, beyond what the dataclass can do by itself, and raises ValueError.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Options:
        ...     num_tasks: int = option(100, "tasks of each split", least=1)
        >>> parse_options(Options, ["--num-tasks", "20"], description="Evaluate.")
        Options(num_tasks=20)
    """
    try:
        # Each value by itself, then what the dataclass says of them together, then what needs a look at the machine.
        parsed = options(**_read(options, list(sys.argv[1:] if arguments is None else arguments), description))
        for field in dataclasses.fields(parsed):  # type: ignore[arg-type]
            if field.metadata["check"] is not None:
                field.metadata["check"](getattr(parsed, field.name), flag_of(field.name))
        if check is not None:
            check(parsed)
    except (ValueError, _WrongValueError) as error:
        refuse(str(error))
    return parsed


def refuse(message: str) -> NoReturn:
    """End the process because of a mistake of its user: with a sentence on standard error, and status 2."""
    print(f"{_program()}: error: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(2)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Within the block a ValueError is a mistake of the user, and ends the process as :func:`refuse` says."""
    try:
        yield
    except ValueError as error:
        refuse(str(error))


def flag_of(name: str) -> str:
    """The flag of a field: ``--num-tasks`` of ``num_tasks``."""
    return f"--{name.replace('_', '-')}"


def _program() -> str:
    return Path(sys.argv[0]).name


class _WrongValueError(Exception):
    """A value of the command line is not valid. No ValueError: tyro would say it in other words."""


def _read(options: Any, arguments: list[str], description: str) -> dict[str, Any]:
    """The values of all fields."""
    fields = dataclasses.fields(options)
    flags = [flag_of(field.name) for field in fields if not field.metadata["is_positional"]]
    if arguments and arguments[0].startswith("--tyro"):  # its own options, which complete command lines
        check_choice("an option", arguments[0], flags)
    # tyro fills a twin of the dataclass, whose annotations say how each field is read.
    hints = typing.get_type_hints(options)
    annotated = [(field.name, _annotate(field, hints[field.name]), _copy_default(field)) for field in fields]
    twin: Any = dataclasses.make_dataclass("twin", annotated)
    place = "DESCRIPTION"  # whose lines tyro would join
    given: Any
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            given, unknown = tyro.cli(
                twin,
                prog=_program(),
                description=place,
                args=arguments,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_info:
        if exit_info.code:
            raise _WrongValueError(_first_sentence(printed.getvalue())) from None
        print(printed.getvalue().replace(place, description.strip(), 1).rstrip())
        raise
    if unknown:
        check_choice("an option", unknown[0], flags)
    return dict(vars(given))


def _first_sentence(text: str) -> str:
    """What tyro says of a mistake: what stands between the first two rules."""
    return " ".join(re.split("-{3,}|─{3,}", text)[1].replace("│", " ").strip("╮ \n").split())


def _read_text(text: str) -> str:
    text.encode()  # what is no UTF-8 could not be printed
    if not text:
        raise ValueError
    return text


def _read_path(text: str) -> Path:
    return Path(_read_text(text))


def _read_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


# How the help calls a value of each type, what it must be, and how it is read: by a function that raises ValueError.
_KINDS: Final[Mapping[Any, tuple[str, str, Callable[[str], Any]]]] = {
    int: ("N", "a whole number", int),
    float: ("X", "a number", float),
    str: ("NAME", "a text, in UTF-8 and not empty", _read_text),
    Path: ("PATH", "a path, in UTF-8 and not empty", _read_path),
    dict: ("JSON", "an object in JSON, like '{\"name\": 8}'", _read_object),
}


def _copy_default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is dataclasses.MISSING:
        return field.default
    return dataclasses.field(default_factory=field.default_factory)


def _annotate(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    """The type of a field with what tyro needs to know of it."""
    metadata, default = field.metadata, field.default
    text = metadata["help"] + (f"; one of {', '.join(metadata['choices'])}" if metadata["choices"] else "")
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    has_none = default is dataclasses.MISSING or default is None or default is False or default == ()
    argument = tyro.conf.arg(help=text, help_behavior_hint="" if has_none else f"(default: {shown})")
    if hint is bool:
        return Annotated[bool, argument]

    members = typing.get_args(hint)
    if type(None) in members:  # int of `int | None`
        hint = members[0]
    is_tuple = typing.get_origin(hint) is tuple
    kind = members[0] if is_tuple else typing.get_origin(hint) or hint
    metavar = _KINDS[kind][0]
    specification = tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if is_tuple else 1,
        metavar=f"{metavar} ..." if is_tuple else metavar,
        instance_from_str=functools.partial(_read_values, field, kind, is_tuple),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    markers = (tyro.conf.Positional,) if metadata["is_positional"] else ()
    return Annotated[(Any, specification, argument, *markers)]


def _read_values(field: "dataclasses.Field[Any]", kind: Any, is_tuple: bool, values: Sequence[str]) -> Any:
    """What a field holds that was given these values."""
    metadata, (_, rule, read) = field.metadata, _KINDS[kind]
    name = field.name.upper() if metadata["is_positional"] else flag_of(field.name)
    if not values and not (metadata["is_positional"] or metadata["may_be_empty"]):
        raise _WrongValueError(f"{name} must have at least one value; got none.")
    results = []
    for value in values:
        try:
            result = read(value)
        except (ValueError, RecursionError):  # of brackets in brackets in brackets
            shown = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."
            raise _WrongValueError(f"{name} must be {rule}; got {shown!r}.") from None
        _check_value(name, result, metadata)
        results.append(result)
    return tuple(results) if is_tuple else results[0]


def _check_value(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """What :func:`option` says of the valid values."""
    least, below, choices = metadata["least"], metadata["below"], metadata["choices"]
    is_too_large = isinstance(value, int) and value >= (below or BELOW)
    if is_too_large or (least is not None and value < least):
        bounds = [f">= {least}"] * (least is not None) + [f"less than {below or BELOW}"] * bool(below or is_too_large)
        raise _WrongValueError(f"{name} must be {' and '.join(bounds)}; got {value}.")
    if choices:
        try:
            check_choice(name, value, choices)
        except ValueError as error:
            raise _WrongValueError(str(error)) from None
