"""The command ``noisylightning``: LightningCLI over all models, data modules, corrections and estimators."""

import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import auto_cli
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

import noisylightning.data
import noisylightning.losses
import noisylightning.models  # noqa: F401  (imported, their classes go by their bare names in YAML)
from noisylightning.data.checkpoint import complete_arguments
from noisylightning.errors import UserError
from noisylightning.estimation import EstimatingTrainer, estimate_from_table
from noisylightning.internals import dev_batches
from noisylightning.module import NoisyLabelClassifier
from noisylightning.summary import summarize


class NoisyLightningCLI(LightningCLI):
    """LightningCLI that takes the number of classes from the data and closes a fit with a table."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Let the data say how many classes there are, to the model and to its network."""
        for owner in ("model", "model.init_args.backbone"):
            parser.link_arguments("data.num_classes", f"{owner}.init_args.num_classes", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and ``estimate``."""
        return {**LightningCLI.subcommands(), "estimate": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that answers a mistake with one sentence, not with two screens of usage."""
        parser = super().init_parser(**{"usage": "%(prog)s [options]", **kwargs})

        def error(message: str, ex: Exception | None = None) -> NoReturn:
            if not parser.exit_on_error:
                type(parser).error(parser, message, ex)
            sys.exit(f"noisylightning: {_one_sentence(message)}")

        parser.error = error  # type: ignore[method-assign]
        return parser

    def before_instantiate_classes(self) -> None:
        """Let a checkpoint say what its data module would else read off the training data."""
        given = self.config[self.subcommand] if self.subcommand else self.config
        path = given.get("ckpt_path")
        if self.subcommand != "fit" and path and Path(path).is_file() and given.get("data"):
            complete_arguments(given.data.class_path, given.data.init_args, path)

    def after_fit(self) -> None:
        """Show what the fit has reached."""
        if isinstance(self.model, NoisyLabelClassifier) and not dev_batches(self.trainer):
            summarize(self.trainer, self.model, self.datamodule)


def _one_sentence(message: str) -> str:
    """Keep of jsonargparse's tree of attempts what was wrong, and leave out what else would have been right."""
    hints = ("Does not validate", "Subtypes", "Errors:", "Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(hints))


def main(args: ArgsType = None) -> None:
    """Run ``noisylightning fit|validate|test|predict|estimate``.

    Args:
        args: Command-line arguments; ``sys.argv`` where they are left out.
    """
    # Raised within Lightning by torch of late, about Lightning's own code: nothing that a user could mend.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    given = sys.argv[1:] if args is None else args
    try:
        if isinstance(given, list) and given[:1] == ["estimate"] and any(arg.startswith("--probs") for arg in given):
            auto_cli(estimate_from_table, args=given[1:], as_positional=False, prog="noisylightning estimate")
            return
        NoisyLightningCLI(
            trainer_class=EstimatingTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the module makes its own at each stage
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "noisylightning"},
            args=args,
        )
    except Exception as error:
        # An error of ours says all in its one sentence; any other keeps its traceback.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):  # jsonargparse wraps what a constructor raises
            cause = cause.__cause__
        if cause is None:
            raise
        sys.exit(f"noisylightning: {cause}")
