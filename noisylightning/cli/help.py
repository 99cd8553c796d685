"""What ``--help`` says: of the commands, and of the classes that their options take."""

import re
import shutil
from argparse import Action
from collections.abc import Container, Iterator, Sequence
from textwrap import fill, shorten
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser
from pytorch_lightning import Trainer

from noisylightning.cli.classes import Kind, classes_of, import_class, kind_of, nearest
from noisylightning.encoders.load import WAYS
from noisylightning.errors import BadValue


class Command(NamedTuple):
    """What a command is for, an example, and the options that it alone has.

    ``usage`` is that of a command which runs no Trainer, so that these are all its options.
    """

    purpose: str
    example: str
    options: dict[str, str]
    usage: str | None = None


_CHECKPOINT = "Weights to use: a checkpoint that a fit has left."
_SAFELY = "Whether the checkpoint may hold plain data only; false also loads pickled objects, which can run any code."

COMMANDS = {
    "quick": Command(
        "From images (--data.root) or a table (--data.train_file) with noisy labels to T, a corrected classifier and"
        " the wrong labels.",
        "noisylightning quick --data.root photos --data.labels labels.csv",
        {
            "encoder": "What makes features of images and texts. Default: the first that can be had: docs/quick.md.",
            "size": "Side of the images in pixels. Default: what the encoder was trained with.",
            "weights": "A local file of weights, for an encoder of timm or torchvision.",
            "epochs": "Epochs of a stage. Default: 20.",
            "output": "The folder for features, the run and the audit. Default: quick.",
        },
    ),
    "fit": Command(
        "Train a network on noisy labels and close with a table of what each stage has reached.",
        "noisylightning fit --config configs/digits/forward_estimated.yaml",
        {"ckpt_path": "Checkpoint to go on from, such as last.ckpt of an interrupted fit.", "weights_only": _SAFELY},
    ),
    "validate": Command(
        "Measure loss and accuracy on the noisy validation data.",
        "noisylightning validate --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt",
        {"ckpt_path": _CHECKPOINT, "weights_only": _SAFELY, "verbose": "Whether to print the results."},
    ),
    "test": Command(
        "Measure the accuracy of the clean prediction on the clean test set.",
        "noisylightning test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt",
        {"ckpt_path": _CHECKPOINT, "weights_only": _SAFELY, "verbose": "Whether to print the results."},
    ),
    "predict": Command(
        "Write the most probable clean class of every sample, and p(clean | x).",
        "noisylightning predict --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt",
        {
            "ckpt_path": _CHECKPOINT,
            "weights_only": _SAFELY,
            "output": "The file, .parquet or .npz. Default: predictions.parquet in the run's folder.",
        },
    ),
    "estimate": Command(
        "Estimate T from a checkpoint's predictions on the training data, from a file of them, or from --data alone.",
        "noisylightning estimate --config RUN/config.yaml --ckpt_path RUN/stage_one.ckpt --output T.npy",
        {
            "ckpt_path": _CHECKPOINT,
            "weights_only": _SAFELY,
            "predictions": "Instead of a model and data: a .npz or .parquet file of p(noisy | x) and noisy labels.",
            "output": "Where T-hat goes, a .npy file; its heat map goes beside it. Default: transition.npy.",
            "estimator": "How T is estimated; --estimator.help lists the ways. Default: AnchorEstimator.",
            "feature_layer": "Layer whose input an estimator of features reads. Default: the last nn.Linear.",
        },
    ),
    "audit": Command(
        "Say which training labels are wrong and how many, by a checkpoint of a network trained with T, or by a file of"
        " predictions and T.",
        "noisylightning audit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt --output audit",
        {
            "ckpt_path": _CHECKPOINT,
            "weights_only": _SAFELY,
            "folds": "Judge each sample by a network that is trained without it: the number of networks, trained anew.",
            "predictions": "Instead of a model and data: a .npz or .parquet file of probabilities and noisy labels.",
            "transition": "T for these predictions: a .npy, .csv or .npz file.",
            "probs_of": "What their probabilities are of: noisy labels, held out, or clean ones. Default: noisy.",
            "standard_error": "A .npy file of T-hat's standard errors. Default: those that the checkpoint has.",
            "level": "Probability that the intervals are to cover. Default: 0.95.",
            "output": "The folder for the table, the totals, the page and weights.npy. Default: audit.",
        },
    ),
    "features": Command(
        "Run a pretrained encoder over the data once, and keep the features in a folder for FeaturesDataModule.",
        "noisylightning features --data CIFAR10NDataModule --encoder efficientnet_lite0 --size 128 --output features",
        {
            "encoder": f"One of {', '.join(WAYS)}; --encoder.help tells them.",
            "weights": "For timm and torchvision, a local file of weights. Default: the published ones.",
            "size": "Side of images, in pixels. Default: what the encoder was trained with.",
            "precision": "32, or bf16 for about half the time and features of two or three digits. Default: 32.",
            "views": "Number of augmented views of each training sample, beside the plain one. Default: 0.",
            "batch_size": "Samples in a batch. Default: 64.",
            "output": "The folder. Default: features.",
        },
    ),
    "compare": Command(
        "Show what runs have reached without clean labels, the best first.",
        "noisylightning compare lightning_logs --output comparison",
        {
            "by": "What they are ordered by: val_accuracy, on noisy validation data, or clean_accuracy, the estimate of"
            " the clean one. Default: val_accuracy.",
            "output": "Folder that compare.csv and compare.png go to. Default: none.",
            "test": "Show the accuracy on the clean test set, too; nothing is ordered by it.",
        },
        "noisylightning compare RUN ... [--OPTION VALUE ...]",
    ),
}


def command_help(command: str) -> str:
    """Return a screen on a command, ``fit`` for example; on all of them for an empty name."""
    if not command:
        return _overview()
    purpose, example, options, usage = COMMANDS[command]
    own = [(f"--{name}", text) for name, text in options.items()]
    if usage is not None:
        runs = "RUN is a run's folder, its summary.json, or a folder with runs in it."
        texts = f"usage: {usage}", _wrapped(purpose), _shell(example, "  "), _wrapped(runs), f"options:\n{_table(own)}"
        return "\n\n".join(texts) + "\n"
    shared = [
        ("--config", "YAML file of options, in any number; what comes later holds over what comes before."),
        ("--data", "Where samples and labels come from: a class, its arguments as --data.NAME."),
        ("--model", "What is trained, and how: a class, its arguments as --model.NAME."),
        ("--trainer.NAME", "Lightning's Trainer: --trainer.max_epochs 20, --trainer.devices 2 ..."),
        ("--seed_everything", "Seed of the weights and of all else at random. Default: 0."),
        ("--print_config", "Print all options with their values, as one YAML file, and stop."),
    ]
    more = [
        ("--data.help", "The data modules; --data.help NAME explains one, --data.noise.help NAME a noise."),
        ("--model.help", "The model; --model.backbone.help, --model.correction.help, --model.correction.loss.help."),
        ("--trainer.help", "All options of Lightning's Trainer; --trainer.callbacks.help, --trainer.logger.help."),
    ]
    blocks = [
        f"usage: noisylightning {command} [--config FILE.yaml ...] [--OPTION VALUE ...]",
        _wrapped(purpose),
        _shell(example, "  "),
        f"options of {command}:\n{_table(own)}",
        f"options of every command:\n{_table(shared)}",
        f"to look further:\n{_table(more)}",
    ]
    return "\n\n".join(blocks) + "\n"


def _overview() -> str:
    lines = [
        "usage: noisylightning COMMAND [--config FILE.yaml ...] [--OPTION VALUE ...]",
        "",
        _wrapped("Train classifiers on wrong labels: the noise's matrix T is estimated, put into the loss, and the"
                 " network trained again. Results and checkpoints go to lightning_logs/version_N, RUN below."),
    ]  # fmt: skip
    for name, command in COMMANDS.items():
        lines += ["", _table([(name, command.purpose)], 10), _shell(command.example, " " * 6)]
    more = "noisylightning COMMAND --help says more; configs/README.md lists what configurations there are."
    lines += ["", _wrapped(more)]
    return "\n".join(lines) + "\n"


def class_help(args: Sequence[str]) -> str | None:
    """Return the help on the class that ``--OPTION.help NAME`` asks for, or on all that the option takes.

    Args:
        args: The command line.

    Returns:
        The text; None where nothing is asked, or where an option is meant that takes no class of ours.

    Raises:
        ValueError: If there is no such class.
    """
    for place, argument in enumerate(args):
        option, given, name = argument.partition("=")
        if option.startswith("--") and option.endswith(".help"):
            following = args[place + 1 : place + 2]
            if not given and following and not following[0].startswith("-"):
                name = following[0]
            option = option[2 : -len(".help")]
            if option == "trainer":
                return _describe(Trainer, option)
            if option == "encoder":  # of the command features; a text's is --data.encoder
                return f"--encoder takes one of\n\n{_table(list(WAYS.items()))}\n"
            kind = kind_of(option)
            if kind is not None:
                return _describe(_find(kind, name, option), option) if name else _listing(kind, option)
    return None


def _find(kind: Kind, name: str, option: str) -> type:
    known = classes_of(kind)
    for path, thing in known.items():
        if name in (path, thing.__name__):
            return thing
    try:
        return import_class(name)
    except (ImportError, AttributeError, ValueError) as error:
        meant = nearest(name, known)
        hint = f"; did you mean {meant}?" if meant else f": --{option}.help lists those known."
        raise BadValue(f"There is no class {name} for --{option}{hint}") from error


def _listing(kind: Kind, option: str) -> str:
    known = classes_of(kind)
    if len(known) == 1:
        return _describe(next(iter(known.values())), option)
    # Without the source, for which there is no room.
    rows = [(name, re.sub(r"\s*\([^()]*\)\.?$", "", _first_sentence(thing))) for name, thing in known.items()]
    width = max(map(len, known)) + 2
    lines = [f"  {name:<{width}}{shorten(text, _columns() - width - 2, placeholder=' ...')}" for name, text in rows]
    return (
        f"--{option} takes one of\n\n" + "\n".join(lines) + "\n\n"
        + _wrapped(f"or the import path of any other {kind.base.__name__}, package.module.Class. --{option}.help NAME"
                   " explains one.")
        + "\n"
    )  # fmt: skip


def _first_sentence(thing: type) -> str:
    return _plain((thing.__doc__ or "").strip().split("\n\n")[0])


def _describe(thing: type, option: str) -> str:
    kind = kind_of(option)
    given = {kind.first} if kind else set()
    rows = [(f"--{option}.{action.dest}", _explain(action, thing)) for action in _parameters(thing, given)]
    return f"{_wrapped(f'{thing.__name__}: {_first_sentence(thing)}')}\n\n{_table(rows)}\n"


def _parameters(thing: type, given: Container[str | None]) -> Iterator[Action]:
    """Yield a class's parameters that have a description, those of its bases included."""
    parser = ArgumentParser()
    names = parser.add_class_arguments(thing, fail_untyped=False)
    return (action for action in parser._actions if action.dest in names and action.dest not in given and action.help)


def _explain(action: Action, owner: type) -> str:
    text = re.sub(r"\s*\(default: (?:[^()]|\([^()]*\))*\)", "", _plain(action.help or ""))
    if not owner.__module__.startswith("noisylightning"):
        text = shorten(text, 200, placeholder=" ...")
    kind = kind_of(action.dest)
    if kind is not None:
        text += f" One of {', '.join(classes_of(kind))}."
    return f"{text.rstrip()} " + ("Required." if action.required else f"Default: {_plain_value(action.default)}.")


def _plain_value(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, tuple) and all(isinstance(each, type) for each in value):
        return ", ".join(each.__name__ for each in value)
    return "none" if value is None else str(value)


def _plain(text: str) -> str:
    """Take the marks of reStructuredText out."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w]+)(?: <[^>]*>)?`", r"\1", text)
    return " ".join(text.replace("``", "").replace("`", "").split())


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _wrapped(text: str) -> str:
    return fill(text, _columns(), break_on_hyphens=False)


def _shell(command: str, indent: str) -> str:
    """Return a command that goes over several lines where it must."""
    together = re.sub(r"(--\w+) ", "\\1\u00a0", command)  # an option and its value stay on one line
    lines = fill(together, _columns() - len(indent) - 6, break_on_hyphens=False, break_long_words=False).split("\n")
    return indent + f" \\\n{indent}    ".join(lines).replace("\u00a0", " ")


def _table(rows: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Return rows of a name and a text that is wrapped beside it."""
    width = width or min(max((len(name) for name, _ in rows), default=0) + 2, 30)
    lines = []
    for name, text in rows:
        if len(name) + 2 > width:
            lines.append(f"  {name}")
            name = ""
        lines.append(
            fill(text, _columns(), initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2),
                 break_on_hyphens=False)
        )  # fmt: skip
    return "\n".join(lines)
