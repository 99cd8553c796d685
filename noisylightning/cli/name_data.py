"""Which data module is meant where only its arguments are given."""

from collections.abc import Sequence
from pathlib import Path

from noisylightning.data.rows import read_rows
from noisylightning.errors import BadValue


def name_data(args: Sequence[str]) -> list[str]:
    """Put the class of the data before its arguments: a folder is one of images, a table one of texts or of numbers.

    Args:
        args: The command line after the command.

    Returns:
        The same with ``--data`` first, where it says neither ``--data`` nor a configuration.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If it cannot be read, or has no row.

    Example:
        >>> name_data(["--data.root", "photos", "--epochs", "5"])[0]
        '--data=ImageFolderDataModule'
    """
    given = {}
    for place, argument in enumerate(args):
        option, equals, value = argument.partition("=")
        given[option] = value if equals else next(iter(args[place + 1 : place + 2]), "")
    if given.keys() & {"--data", "--config"}:
        return list(args)
    if "--data.root" in given:
        return ["--data=ImageFolderDataModule", *args]
    if "--data.train_file" in given:
        path = Path(given["--data.train_file"])
        _, row = next(read_rows(path, {}, "train_file"), (0, None))
        if row is None:
            raise BadValue(f"{path} has no row: correct train_file (--data.train_file).")
        has_texts = given.get("--data.text_column", "text") in row
        return [f"--data={'TextTableDataModule' if has_texts else 'TableDataModule'}", *args]
    return list(args)
