"""The pages in docs/, run as they stand: a page's python and bash blocks in their order, in a folder of its own.

A block that begins with ``>>>`` is a doctest. Of bash blocks the lines that begin with ``noisylightning`` are run, in
this process; RUN in them is the folder of one short fit that the pages share.
"""

import doctest
import re
import shlex
from pathlib import Path

import pytest

from noisylightning.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
STACK = [f"--config={ROOT}/configs/{name}.yaml" for name in ("digits/mlp", "noise/symmetric_0.2")]
SHORT = ["--trainer.max_epochs=2", "--trainer.accelerator=cpu"]  # where a page's fit says less
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # so short a fit gives a T-hat that is doubted


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    """The folder of a fit in two stages."""
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["noisylightning"])
        main(["fit", *STACK, f"--config={ROOT}/configs/methods/forward_estimated.yaml", *SHORT])
    return folder / "lightning_logs" / "version_0"


def run_command(line: str, shared_run: Path) -> None:
    _, command, *arguments = shlex.split(line.replace("RUN/", f"{shared_run}/"))
    main([command, *arguments, *(SHORT if command == "fit" else [])])


def run_python(block: str, namespace: dict[str, object], page: str) -> None:
    if not block.startswith(">>>"):
        exec(compile(block, page, "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(block, namespace, page, page, 0)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    said: list[str] = []
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_examples_run(page, shared_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["noisylightning"])  # Lightning warns of arguments given twice
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    namespace: dict[str, object] = {"__name__": page.stem, "RUN": str(shared_run)}
    blocks = re.findall(r"```(python|bash)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert blocks
    for language, block in blocks:
        if language == "python":
            run_python(block, namespace, page.name)
            continue
        for line in block.splitlines():
            if line.startswith("noisylightning "):
                run_command(line, shared_run)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_it_names_exist_and_the_readme_names_it(page):
    text = page.read_text()
    for name in re.findall(r"(?:configs|benchmarks)/[\w./-]+\.\w+", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (page.parent / name).exists(), name
    assert f"docs/{page.name}" in (ROOT / "README.md").read_text()
