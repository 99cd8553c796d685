"""The command ``noisylightning``: LightningCLI over all models, data modules, corrections and estimators."""

import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import auto_cli
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import Tensor

import noisylightning.data
import noisylightning.losses
import noisylightning.models  # noqa: F401  (imported, their classes go by their bare names in YAML)
from noisylightning.errors import UserError
from noisylightning.estimators import AnchorEstimator, EstimatorFactory
from noisylightning.estimators.standalone import estimate_from_predictions, estimate_with_trainer
from noisylightning.internals import dev_batches
from noisylightning.module import NoisyLabelClassifier
from noisylightning.summary import summarize


class EstimatingTrainer(Trainer):
    """A Trainer that can also estimate T: what ``noisylightning estimate`` runs."""

    def estimate(
        self,
        model: LightningModule,
        datamodule: Any,
        ckpt_path: str | None = None,
        output: str | Path = "transition.npy",
        estimator: EstimatorFactory = AnchorEstimator,
    ) -> Tensor:
        """Estimate T from a checkpoint by a prediction pass over the training data.

        Args:
            model: A module whose ``predict_step`` returns p(clean | x), or p(noisy | x) where it has no correction.
            datamodule: Data module with an ``estimation_dataloader()``.
            ckpt_path: Checkpoint to load; the weights as they are where it is left out.
            output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it.
            estimator: Makes the estimator from the number of classes.

        Returns:
            T-hat, ``(C, C)``.
        """
        return estimate_with_trainer(self, model, datamodule, ckpt_path, output, estimator)


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
        words = given if isinstance(given, list) else []
        if words[:1] == ["estimate"] and any(word.split("=")[0] == "--predictions" for word in words):
            auto_cli(estimate_from_predictions, args=words[1:], as_positional=False, prog="noisylightning estimate")
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
