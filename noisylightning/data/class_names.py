"""Classes by name and by number."""

from collections.abc import Iterable, Sequence
from typing import Any

from noisylightning.errors import BadValue


def class_names_in(labels: Iterable[Any], where: str) -> list[str]:
    """The classes that labels name, in the order of their numbers.

    Args:
        labels: Class names or numbers; blanks name no class.
        where: Where the labels stand, for the error.

    Returns:
        Each of them once, numbers in the order of size, names in that of the alphabet.

    Raises:
        ValueError: If they name fewer than two classes.

    Example:
        >>> class_names_in(["10", "2", "2"], "here"), class_names_in(["dog", "cat", ""], "here")
        (['2', '10'], ['cat', 'dog'])
    """
    names = {str(label).strip() for label in labels} - {""}
    if len(names) < 2:
        found = f"only the class {names.pop()!r}" if names else "no class"
        raise BadValue(f"{where} names {found}; give samples of at least two classes.")
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def class_number(label: Any, class_names: Sequence[str], where: str) -> int:
    """The number of the class that a label names.

    Args:
        label: A class name or, where no class has that name, a class number.
        class_names: Names of the C classes.
        where: Where the label stands, for the error.

    Returns:
        The class number, 0 to C - 1.

    Raises:
        ValueError: If the label is blank or names no class.

    Example:
        >>> class_number("pos", ["neg", "pos"], "here"), class_number(0, ["neg", "pos"], "here")
        (1, 0)
    """
    name = str(label).strip()
    if not name:
        raise BadValue(f"{where} has no label; give one or remove the line.")
    if name in class_names:
        return list(class_names).index(name)
    if not isinstance(label, bool) and name.isdecimal() and int(name) < len(class_names):
        return int(name)
    raise BadValue(
        f"{where} has the label {label!r}, not among the classes {', '.join(class_names)}; correct it or class_names "
        "(--data.class_names)."
    )
