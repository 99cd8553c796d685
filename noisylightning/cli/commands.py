"""What the commands do: LightningCLI with more commands, links from the data, and a closing table."""

import os
import re
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import Tensor

from noisylightning.audit import Audit
from noisylightning.cli.audit import audit_checkpoint, audit_file, publish_audit
from noisylightning.cli.classes import import_class
from noisylightning.cli.compare import compare
from noisylightning.cli.help import COMMANDS, class_help
from noisylightning.cli.name_data import name_data
from noisylightning.cli.parser import Parser
from noisylightning.cli.save_config import SaveConfig
from noisylightning.cli.terminal import EpochLines, progress, quiet_terminal
from noisylightning.data.checkpoint import complete_arguments
from noisylightning.data.text import NoisyTextDataModule
from noisylightning.encoders import load_encoder
from noisylightning.encoders.load import WAYS
from noisylightning.errors import BadValue, NoSuchPackage, UserError
from noisylightning.estimators import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory
from noisylightning.estimators.standalone import estimate_from_data, estimate_from_predictions, estimate_with_trainer
from noisylightning.extraction import extract_features
from noisylightning.internals import callbacks, dev_batches, devices_of, refuse_test_monitors
from noisylightning.judging import judge_fit
from noisylightning.module import NoisyLabelClassifier
from noisylightning.predictions.writer import PredictionWriter
from noisylightning.quick import QuickAnswer, quick
from noisylightning.results import evaluate_fit, publish_results


class CommandTrainer(Trainer):
    """A Trainer that has a method for each command."""

    def estimate(
        self,
        model: LightningModule | None = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        predictions: Path | None = None,
        output: Path = Path("transition.npy"),
        estimator: EstimatorFactory = AnchorEstimator,
        feature_layer: str | None = None,
    ) -> Tensor:
        """Estimate T from a checkpoint, from a file of predictions, or from data without a network."""
        if predictions is not None:
            return estimate_from_predictions(predictions, output, estimator)
        if model is None and datamodule is not None and ckpt_path is None:
            return estimate_from_data(datamodule, output, estimator)
        if model is None or datamodule is None:
            raise BadValue(
                "estimate needs --model and --data, most simply by --config FILE.yaml, and --ckpt_path; or"
                " --predictions FILE; or --data alone, for an estimator that needs no network (--estimator"
                " ClusterabilityEstimator)."
            )
        safely = weights_only is not False
        return estimate_with_trainer(self, model, datamodule, ckpt_path, output, estimator, safely, feature_layer)

    def audit(
        self,
        model: LightningModule | None = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        predictions: Path | None = None,
        transition: Path | None = None,
        standard_error: Path | None = None,
        probs_of: Literal["clean", "noisy"] = "noisy",
        folds: int | None = None,
        level: float = 0.95,
        output: Path = Path("audit"),
    ) -> Audit:
        """Say which labels are wrong and how many, by a checkpoint or by a file of predictions and T."""
        if predictions is not None:
            found = audit_file(predictions, transition, standard_error, probs_of, level)
        elif model is None or datamodule is None or ckpt_path is None:
            raise BadValue(
                "audit needs --model and --data, most simply by --config FILE.yaml, and --ckpt_path; or --predictions"
                " FILE and --transition FILE."
            )
        elif transition is not None:
            raise BadValue("--transition goes with --predictions: a checkpoint has the T that it was trained with.")
        else:
            safely = weights_only is not False
            found = audit_checkpoint(self, model, datamodule, ckpt_path, standard_error, level, safely, folds)
        publish_audit(self, found, output, None if predictions is not None else datamodule)
        return found

    def features(
        self,
        model: LightningModule | None = None,
        datamodule: Any = None,
        encoder: str | None = None,
        output: Path = Path("features"),
        weights: str | None = None,
        size: int | None = None,
        precision: Literal["32", "bf16"] = "32",
        views: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Run an encoder over data once."""
        if datamodule is None or encoder is None:
            raise BadValue(
                f"features needs --data and --encoder, one of {', '.join(WAYS)}; features --help explains it."
            )
        takes: Literal["images", "texts"] = "texts" if isinstance(datamodule, NoisyTextDataModule) else "images"
        made = load_encoder(encoder, weights, size, takes)
        made.precision = precision
        shows = self.progress_bar_callback is not None or any(isinstance(cb, EpochLines) for cb in callbacks(self))
        extract_features(datamodule, made, output, views, batch_size, devices_of(self), progress=shows)

    def quick(
        self,
        datamodule: Any = None,
        model: LightningModule | None = None,
        encoder: str | None = None,
        size: int | None = None,
        weights: str | None = None,
        output: Path = Path("quick"),
        epochs: int = 20,
    ) -> QuickAnswer:
        """Find T, a classifier and the wrong labels on the features of a pretrained encoder."""
        if datamodule is None or model is not None:
            raise BadValue(
                "quick makes its own model of your data: give --data.root FOLDER, with a folder of images for each"
                " class, or --data.labels TABLE too; or --data.train_file TABLE; or any --data CLASS."
            )
        takes: Literal["images", "texts"] = "texts" if isinstance(datamodule, NoisyTextDataModule) else "images"
        chosen = None if encoder is None else load_encoder(encoder, weights, size, takes)
        if encoder is None and (size is not None or weights is not None):
            raise BadValue("size and weights are those of an encoder: say which (--encoder).")

        def shown() -> list[Callback]:
            bar = progress([])
            return [] if bar is None else [bar]

        return quick(datamodule, chosen, output, epochs, int(os.environ.get("PL_GLOBAL_SEED", 0)), True, shown)


BACKBONE = "model.init_args.backbone.init_args"
NETWORKS = (BACKBONE, f"{BACKBONE}.backbone.init_args")  # the second within a BatchNormHead
TRANSITION = "model.init_args.correction.init_args.transition.init_args"
OWNERS = ("model.init_args", *NETWORKS, TRANSITION)
CLASSES = {f"{owner}.num_classes": "data.num_classes" for owner in OWNERS}
SIZES = {
    f"{network}.{size}": source
    for network in NETWORKS
    for size, source in (("in_features", "data.num_features"), ("vocab_size", "data.vocab_size"))
}
"""What a network takes from the data; sizes only where the configuration gives none."""


def _is_required(config: Namespace, target: str) -> bool:
    owner, _, name = target.rpartition(".init_args.")
    parameter = signature(import_class(config[owner].class_path)).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def _size(source: str, target: str) -> Callable[[object], int]:
    attribute = source.partition(".")[2]

    def size(data: object) -> int:
        if not hasattr(data, attribute):
            option = target.replace(".init_args", "")
            raise BadValue(f"{type(data).__name__} has no {attribute} that the network could take: give --{option}.")
        return int(getattr(data, attribute))

    return size


class NoisyLightningCLI(LightningCLI):
    """LightningCLI that takes sizes from the data and closes a fit with a table."""

    _links = CLASSES | SIZES
    _needed: frozenset[str] = frozenset()

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Make the parser, and keep how it is made."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self._setup = add_subcommands, main_kwargs, subparser_kwargs

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how many classes, features and words there are; take the file that predictions go to."""
        if isinstance(parser, Parser) and parser.command == "predict":
            parser.add_argument("--output", type=Path | None, default=None)
        for target, source in self._links.items():
            if target in self._needed:
                parser.link_arguments("data", target, compute_fn=_size(source, target), apply_on="instantiate")
            else:  # where the data does not know it, the network's default holds
                parser.link_arguments(source, target, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse with all links, and anew with those that this network has a use for.

        Lightning writes what is linked into a checkpoint's hyper-parameters also where the network does not take it,
        and jsonargparse leaves it out of the saved configuration also where the data does not know it.
        jsonargparse cannot link the only argument of a class: a T that has no other is told the number of classes.
        """
        given = args if isinstance(args, list) else sys.argv[1:]
        if any(argument.startswith("--print_config") for argument in given):  # prints, and ends, while it parses
            self._links = CLASSES
            self.setup_parser(*self._setup)
            parser = self.parser
        super().parse_arguments(parser, args)
        config = self.config.get(self.config.get("subcommand") or "", self.config)
        self._links = {
            target: source
            for target, source in self._links.items()
            if target in config
            and (target in CLASSES or config[target] is None)
            and (target.removesuffix(".num_classes") != TRANSITION or len(vars(config[TRANSITION])) > 1)
        }
        self._needed = frozenset(target for target in self._links if target in SIZES and _is_required(config, target))
        self.setup_parser(*self._setup)
        super().parse_arguments(self.parser, args)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and our own."""
        predict = {"model", "dataloaders", "datamodule", "return_predictions"}
        return {
            **LightningCLI.subcommands(),
            "predict": predict,
            "estimate": {"model", "datamodule"},
            "audit": {"model", "datamodule"},
            "features": {"model", "datamodule"},
            "quick": {"model", "datamodule"},
        }

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with a bar of ours."""
        config = self._get(self.config_init, "trainer", default={})
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        shown = progress(given) if config.get("enable_progress_bar") is not False else None
        if isinstance(shown, EpochLines):
            kwargs["enable_progress_bar"] = False
        try:
            return super().instantiate_trainer(callbacks=[*given, shown] if shown else given, **kwargs)
        except (MisconfigurationException, ValueError) as error:
            raise BadValue(f"--trainer: {error}") from error

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write the predictions unless a writer of the user's own does."""
        present = callbacks(self.trainer)
        if not any(isinstance(callback, BasePredictionWriter) for callback in present):
            present.append(PredictionWriter(self._get(self.config_init, "output")))
        self.trainer.predict(return_predictions=False, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Let a checkpoint say what its data module would else read off the training data."""
        given = self.config[self.subcommand] if self.subcommand else self.config
        path = given.get("ckpt_path")
        if self.subcommand != "fit" and path and Path(path).is_file() and given.get("data"):
            complete_arguments(given.data.class_path, given.data.init_args, path)

    def before_fit(self) -> None:
        """Refuse to choose by clean test data, whatever the model."""
        refuse_test_monitors(self.trainer)

    def after_fit(self) -> None:
        """Show what the fit has reached."""
        if isinstance(self.model, NoisyLabelClassifier) and not dev_batches(self.trainer):
            results = evaluate_fit(self.trainer, self.model, self.datamodule)
            verdict = judge_fit(self.trainer, self.model, self.datamodule, results)
            publish_results(self.trainer, results, verdict)


def main(args: ArgsType = None) -> None:
    """Run ``noisylightning fit|validate|test|predict|estimate|audit|features|quick|compare``.

    Args:
        args: Command-line arguments; ``sys.argv`` where they are left out.
    """
    given = sys.argv[1:] if args is None else args
    try:
        if isinstance(given, list) and given[:1] == ["compare"]:
            compare(given[1:])
            return
        if isinstance(given, list) and (text := class_help(given)) is not None:
            print(text, end="")
            sys.exit()
        if isinstance(given, list) and given[:1] == ["quick"]:
            args = ["quick", *name_data(given[1:])]
        with quiet_terminal():
            NoisyLightningCLI(
                trainer_class=CommandTrainer,
                trainer_defaults={"enable_model_summary": False},  # it would list our metrics
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,  # the module makes its own at each stage
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=Parser,
                parser_kwargs={
                    "prog": "noisylightning",
                    "command": "",
                    **{name: {"command": name} for name, command in COMMANDS.items() if command.usage is None},
                },
                args=args,
            )
    except Exception as error:
        sentence = _sentence_of(error)
        if sentence is None:
            raise
        sys.exit(f"noisylightning: {sentence}")


def _sentence_of(error: BaseException) -> str | None:
    """Return what an error says to the user, its traceback being of no use; None where it is of use.

    jsonargparse wraps what a constructor raises, so the causes are looked at too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if isinstance(cause, ModuleNotFoundError) and not (cause.name or "").startswith("noisylightning"):
            return str(_no_such_package(cause))
        cause = cause.__cause__
    return None


def _no_such_package(error: ModuleNotFoundError) -> NoSuchPackage:
    """Say which package is missing; Lightning's loggers name a requirement, an import the module."""
    text = str(error)
    requirement = re.search(r"Requirement '([^']+)'", text)
    package = requirement[1] if requirement else (error.name or "").partition(".")[0]
    if not package:
        return NoSuchPackage(text.splitlines()[0])
    return NoSuchPackage(f"A package that these options need is not installed: pip install '{package}'.")
