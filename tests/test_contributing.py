"""CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))


def follow(section: str, copy: Path) -> list[str]:
    """Write what the section's blocks say, and return the commands that it ends with."""
    commands = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", SECTIONS[section], re.DOTALL):
        if language == "bash":
            commands += block.splitlines()
            continue
        first, _, content = block.partition("\n")
        path = copy / first.removeprefix("# ")
        if language == "diff":
            for hunk in content.split("@@\n"):
                patch(path, hunk.splitlines())
        else:
            path.parent.mkdir(exist_ok=True)
            assert not path.exists(), path
            path.write_text(content)
    return commands


def patch(path: Path, lines: list[str]) -> None:
    before, after = ("".join(line[1:] + "\n" for line in lines if line[0] != sign) for sign in "+-")
    text = path.read_text()
    assert text.count(before) == 1, f"{path} holds {before!r} {text.count(before)} times"
    path.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> dict[str, list[list[str]]]:
    """What each section ends with, after a copy of the repository has been changed as all of them say."""
    copy = tmp_path_factory.getbasetemp() / "copy"
    for name in ("noisylightning", "tests", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    return {section: [shlex.split(line) for line in follow(section, copy)] for section in SECTIONS}


@pytest.fixture
def run(commands, tmp_path_factory):
    """Run a command in the copy."""
    copy = tmp_path_factory.getbasetemp() / "copy"

    def run(program: str, *arguments: str) -> None:
        own = {"python": [sys.executable], "noisylightning": [sys.executable, "-m", "noisylightning"]}[program]
        environment = os.environ | {"PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run([*own, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"

    return run


def test_a_loss(commands, run):
    for command in commands["A loss"]:
        run(*command)


def test_an_estimator_a_noise_and_a_data_set(commands, run):
    files = []
    for section in ("An estimator", "A noise", "A data set"):
        tests, fit = commands[section]
        assert tests[:4] == ["python", "-m", "pytest", "-q"]
        assert fit[:2] == ["noisylightning", "fit"]
        files += tests[4:]
    run("python", "-m", "pytest", "-q", *files)  # at once, to import torch once


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")], ids=" ".join)
def test_the_examples_are_as_clean_as_the_rest(arguments, run):
    run("python", "-m", "ruff", *arguments, ".")
