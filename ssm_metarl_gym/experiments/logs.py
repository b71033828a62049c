"""Stable-Baselines3's log for a run that may go on from a checkpoint."""

import csv
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

from stable_baselines3.common.logger import CSVOutputFormat, HumanOutputFormat, KVWriter, Logger, make_output_format

from ssm_metarl_gym.files import replacing

__all__ = ["KeepingCSV", "load_pending", "make_logger", "save_pending"]

_PENDING: Final = "log.json"


class KeepingCSV(CSVOutputFormat):
    """SB3's CSV log, which begins with what an earlier session wrote up to the checkpoint that this one starts from.

    Args:
        path: The file.
        column: The column that says how far a row is.
        last: How far the checkpoint is: rows beyond it are left out.

    Raises:
        ValueError: The file is no such log.
    """

    def __init__(self, path: Path, column: str, last: int) -> None:
        rows: list[dict[str, Any]] = []
        self.keys: list[str] = []
        if path.exists():
            try:
                with path.open(newline="") as file:
                    reader = csv.DictReader(file)
                    # A session that was killed while it wrote may have left a row with too few or too many columns.
                    complete = [row for row in reader if None not in row and None not in row.values()]
                rows = [row for row in complete if float(row[column] or "inf") <= last]
            except (OSError, ValueError, KeyError, csv.Error) as error:
                raise ValueError(
                    f"{path} must be the log of this run, with a column {column}; it is damaged, or of something else. "
                    "Move it away to begin another one."
                ) from error
            self.keys = list(reader.fieldnames or []) if rows else []
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.keys, lineterminator="\n")
            if rows:
                writer.writeheader()
                writer.writerows(rows)
        # SB3's own constructor would empty the file.
        self.file = path.open("r+", newline="")
        self.file.seek(0, 2)
        self.separator, self.quotechar = ",", '"'


def make_logger(folder: Path, column: str, last: int, *, stdout: bool = False) -> Logger:
    """A log in progress.csv, for TensorBoard where it is installed, and on the terminal where that is wanted.

    ``column`` and ``last`` are as in :class:`KeepingCSV`.
    """
    formats: list[KVWriter] = [KeepingCSV(folder / "progress.csv", column, last)]
    if importlib.util.find_spec("tensorboard") is not None:
        formats.append(make_output_format("tensorboard", str(folder)))
    if stdout:
        formats.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder), formats)


def save_pending(logger: Logger, checkpoint: Path) -> None:
    """Write the values that wait for the next row of the log into a checkpoint, which else would lose them."""
    values = {name: getattr(value, "item", lambda value=value: value)() for name, value in logger.name_to_value.items()}
    pending = {"values": values, "counts": logger.name_to_count, "excluded": logger.name_to_excluded}
    (checkpoint / _PENDING).write_text(json.dumps(pending))


def load_pending(logger: Logger, checkpoint: Path) -> None:
    """Give a logger what :func:`save_pending` wrote, if it did."""
    if (checkpoint / _PENDING).exists():
        pending = json.loads((checkpoint / _PENDING).read_text())
        logger.name_to_value.update(pending["values"])
        logger.name_to_count.update(pending["counts"])
        logger.name_to_excluded.update({name: tuple(formats) for name, formats in pending["excluded"].items()})
