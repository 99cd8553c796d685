"""The command ``compare``, which runs no Trainer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from noisylightning.cli.help import command_help
from noisylightning.comparison import compare_runs, print_comparison, read_runs, write_comparison
from noisylightning.errors import BadValue


class _Arguments(argparse.ArgumentParser):
    """Speaks in one sentence, and in our words."""

    def format_help(self) -> str:
        return command_help("compare")

    def error(self, message: str) -> NoReturn:
        raise BadValue(f"{message}; noisylightning compare --help explains it.")


def compare(args: Sequence[str]) -> None:
    """Read the runs, and show them beside each other.

    Args:
        args: The command line after ``compare``.

    Raises:
        ValueError: If an option is wrong, or a run cannot be read.
        FileNotFoundError: If there is no run.
    """
    parser = _Arguments(prog="noisylightning compare", allow_abbrev=False)
    parser.add_argument("RUN", nargs="+")
    parser.add_argument("--by", default="val_accuracy")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--test", action="store_true")
    given = parser.parse_args(args)
    rows = compare_runs(read_runs(given.RUN), given.by)
    print_comparison(rows, given.test)
    if given.output is not None:
        write_comparison(rows, given.output, given.test)
        print(f"Left in {given.output}: compare.csv, compare.png.")
