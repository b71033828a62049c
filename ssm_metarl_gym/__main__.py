"""``python -m ssm_metarl_gym``: for those who have the package and no clone of its repository."""

import sys

from ssm_metarl_gym.commands.command_line import run

if __name__ == "__main__":
    sys.exit(run())
