"""The structure of the package: imports run downwards only, and what is private to a folder stays in it."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import noisylightning

PACKAGE = Path(noisylightning.__file__).parent
NAME = PACKAGE.name
LOWEST_FIRST = re.search(r"lowest first: (.*?)\.\n", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported_names(path: Path) -> Iterator[tuple[str, str]]:
    """The module and the name of each import of ours, wherever in the file it stands; the name may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            if (node.module or "").split(".")[0] == NAME:
                yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == NAME)


def edges(path: Path) -> set[str]:
    names = imported_names(path)
    return {f"{module}.{name}" if f"{module}.{name}" in MODULES else module for module, name in names}


def folder(module: str) -> str:
    """The room that a module is in: a folder of the package, or the file itself where it lies beside the folders."""
    return module.split(".")[1] if "." in module else NAME


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_import_each_other_in_no_circle():
    assert not circle({module: edges(path) - {module} for module, path in MODULES.items()})


def test_rooms_import_downwards_only():
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        room = folder(module)
        graph.setdefault(room, set()).update({folder(found) for found in edges(path)} - {room})
    assert not circle(graph)


def test_contributing_tells_the_order_of_the_rooms():
    assert LOWEST_FIRST, "CONTRIBUTING.md lists the rooms, lowest first"
    order = re.findall(r"`(\w+)`", LOWEST_FIRST[1])
    rooms = {folder(module) for module in MODULES} - {NAME, "__main__"}
    assert rooms == set(order)
    for module, path in MODULES.items():
        for found in edges(path):
            if NAME not in (folder(module), folder(found)) and folder(module) != "__main__":
                assert order.index(folder(found)) <= order.index(folder(module)), f"{module} imports {found}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_private_name_of_another_folder(module):
    for source, name in imported_names(MODULES[module]):
        private = any(part.startswith("_") and not part.startswith("__") for part in (*source.split("."), name))
        home = source if MODULES[source].name == "__init__.py" else source.rpartition(".")[0]
        here = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        assert not private or home == here, f"{module} imports {name} of {source}"


@pytest.mark.parametrize("room", ["tensors", "kernels", "transition", "functional", "losses", "corrections"])
def test_the_mathematics_knows_nothing_of_lightning(room):
    for module, path in MODULES.items():
        if folder(module) == room:
            text = path.read_text()
            assert not re.search(r"^\s*(import|from) (pytorch_lightning|lightning|torchmetrics)", text, re.MULTILINE)
