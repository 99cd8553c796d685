"""The command's parser: one sentence for a mistake, one screen for ``--help``."""

import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._util import NestedArg  # what an option of a nested argument becomes
from pytorch_lightning.cli import LightningArgumentParser

from noisylightning.cli.classes import classes_of, import_class, kind_of, nearest
from noisylightning.cli.help import COMMANDS, command_help


class Parser(LightningArgumentParser):
    """LightningArgumentParser that says what is wrong in one sentence, not with two screens of usage.

    Args:
        command: ``fit``, ``validate`` ...; empty for the parser of them all, None for the parser of a class.
        kwargs: Those of LightningArgumentParser.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        if command is not None:
            kwargs["allow_abbrev"] = False  # --trainer.max_epoch is a mistake, not --trainer.max_epochs
        super().__init__(*args, **kwargs)
        self.command = command

    def add_lightning_class_args(
        self, lightning_class: Any, nested_key: str, subclass_mode: bool = False, required: bool = True
    ) -> list[str]:
        """Take a class's arguments; neither model nor data is needed where there can be a table of predictions."""
        required = required and self.command not in ("estimate", "audit", "features", "quick")
        return super().add_lightning_class_args(lightning_class, nested_key, subclass_mode, required)

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Namespace | None, append: bool = False) -> Any:
        """Let a file set arguments of the callback that was added last, as ``--trainer.callbacks.NAME`` does."""
        named = isinstance(value, dict | Namespace) and not append and "class_path" not in value
        if key != "trainer.callbacks" or not named:
            return super()._check_value_key(action, value, key, cfg, append)
        cfg = Namespace() if cfg is None else cfg.clone()
        for name, given in dict(value.items()).items():
            callbacks = cfg.get(key)
            if not callbacks or name not in _parameters(callbacks[-1].class_path):
                raise TypeError(
                    f'Parser key "{key}": {name} is no argument of the callback that was added last: give the file of a'
                    " method that adds one that takes it before this file."
                )
            cfg[key] = super()._check_value_key(action, NestedArg(name, given), key, cfg)
        return cfg[key]

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return what the command is for and how it is used."""
        return super().format_help(*args, **kwargs) if self.command is None else command_help(self.command)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Stop with one sentence."""
        if not self.exit_on_error or self.command is None:
            super().error(message, ex)
        sys.exit(f"noisylightning: {one_sentence(message, self)}")


def one_sentence(message: str, parser: ArgumentParser) -> str:
    """Keep of jsonargparse's tree of attempts which option is wrong and why, and add what was probably meant."""
    hints = ("Does not validate", "Subtypes", "Errors:", "Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(hints))
    option = ".".join(re.findall(r'Parser key "([\w.]+)"', text))
    owner = next(reversed(re.findall(r"Problem with given class_path '([\w.]+)'", text)), None)
    fault = re.split(r"Parser key \"[\w.]+\"(?: element \d+)?: |Problem with given class_path '[\w.]+': ", text)[-1]
    if unknown := re.search(r"Expected a dot import path string: (\w+)", fault):
        return _no_such_class(unknown[1], option or _option_of_help(fault))
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", fault):
        names = _parameters(owner) if owner else _options(parser)
        return f"{_named(option)}{unknown[0]}{_of(owner)}{_did_you_mean(nearest(unknown[1], names)) or '.'}"
    if unknown := re.search(r"[Uu]nrecognized arguments: --([\w.+]+)", fault):
        return f"there is no option --{unknown[1]}{_did_you_mean(_nearest_option(unknown[1], parser), '--') or '.'}"
    if missing := re.search(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", fault):
        prefix = f"--{option}." if option else "--"
        options = " and ".join(prefix + name.rpartition(".")[2] for name in missing[1].rstrip(".").split(", "))
        return f"{options} must be given, on the command line or by --config FILE.yaml."
    if unknown := re.search(r"invalid choice: '([^']*)'", fault):
        meant = _did_you_mean(nearest(unknown[1], COMMANDS)) or ";"
        return f"there is no command {unknown[1]}{meant} noisylightning --help explains them."
    if 'expected "subcommand"' in fault:
        return f"say what to do: {', '.join(COMMANDS)}; noisylightning --help explains them."
    fault = re.sub(r"Expected a path but \S+ either not accessible or invalid ", "", fault)
    fault = re.sub(r"Expected an? <class '(?:\w+\.)*(\w+)'>", r"expected \1", fault)
    return _named(option) + fault


def _named(option: str) -> str:
    return f"--{option}: " if option else ""


def _option_of_help(fault: str) -> str:
    found = re.match(r"--([\w.]+)\.help", fault)
    return found[1] if found else ""


def _of(owner: str | None) -> str:
    return f" by {owner.rpartition('.')[2]}" if owner else ""


def _did_you_mean(name: str | None, prefix: str = "") -> str:
    return f"; did you mean {prefix}{name}?" if name else ""


def _no_such_class(name: str, option: str) -> str:
    kind = kind_of(option)
    meant = None if kind is None else nearest(name, classes_of(kind))
    listed = f"--{option}.help lists those known, and any" if kind else "any"
    return (
        f"--{option}: there is no class {name}{_did_you_mean(meant) or ';'} {listed} other goes by its import path,"
        " package.module.Class."
    )


def _options(parser: ArgumentParser) -> list[str]:
    return [name.removeprefix("--") for action in parser._actions for name in action.option_strings]


def _nearest_option(name: str, parser: ArgumentParser) -> str | None:
    close = get_close_matches(name, _options(parser), n=1)
    return close[0] if close else None


def _parameters(path: str) -> list[str]:
    return ArgumentParser().add_class_arguments(import_class(path), fail_untyped=False)
