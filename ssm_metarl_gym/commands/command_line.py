"""The words after ``python -m ssm_metarl_gym``."""

import argparse
import os
import sys
from collections.abc import Sequence

from ssm_metarl_gym.commands.listing import show_environments
from ssm_metarl_gym.commands.versions import show_versions

__all__ = ["run"]


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: The words; None for those of this process.

    Returns:
        The exit status: 0, or 1 where a check failed or nobody read to the end, or 2 where there is nothing to check.
    """
    parser = argparse.ArgumentParser("python -m ssm_metarl_gym", description="Environments with hidden physics.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the environments, and what each of them hides")
    commands.add_parser("demo", help="a policy of one physics, kept in another one (half a minute)")
    check = commands.add_parser("check", help="is an environment a family of tasks, and if not, what is wrong?")
    check.add_argument(
        "environment",
        help="module:Class, or an id: of a registered environment, or module:id of one that the module registers",
    )
    commands.add_parser("version", help="the versions of everything, for a report of a fault")
    options = parser.parse_args(arguments)
    try:
        status = _do(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough, as head has; how it would have ended, nobody knows
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _do(options: argparse.Namespace) -> int:
    if options.command == "list":
        show_environments()
    elif options.command == "version":
        show_versions()
    elif options.command == "demo":
        from ssm_metarl_gym.commands.demo import show_demo  # torch takes seconds to import

        show_demo()
    else:
        return _check(options.environment)
    return 0


def _check(environment: str) -> int:
    from ssm_metarl_gym.commands.checking import check_family, find_maker

    try:
        make = find_maker(environment)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if check_family(make) else 1
