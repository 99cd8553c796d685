"""What a run shows: our lines, warnings and one bar of 80 columns, without Lightning's own talk."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_info
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.internals import callbacks

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_PACKAGES = ("pytorch_lightning", "lightning_fabric", "lightning")
_SECONDS_BETWEEN_LINES = 30.0


class _WithoutLightningsTalk(logging.Filter):
    """Keep warnings, what others say, and what somebody has asked one of Lightning's callbacks to say."""

    def filter(self, record: logging.LogRecord) -> bool:
        parts = Path(record.pathname).parts
        talk = any(package in parts for package in _PACKAGES) and "callbacks" not in parts
        interrupted = "Detected" in record.getMessage()  # KeyboardInterrupt: the only sign that it was heard
        return record.levelno > logging.INFO or not talk or interrupted


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Leave Lightning's own talk out, and write lines above a bar, not into it."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    quiet = _WithoutLightningsTalk()
    with ExitStack() as left, warnings.catch_warnings():
        # Raised within Lightning by torch of late, about Lightning's own code: nothing that a user could mend.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
        warnings.filterwarnings("ignore", message="The dirpath has changed")  # a checkpoint tested in a run of its own
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # main(args) in a program is fine
        left.enter_context(logging_redirect_tqdm([log for log in loggers if log.handlers]))
        for log in loggers:
            for handler in log.handlers:
                handler.addFilter(quiet)
                left.callback(handler.removeFilter, quiet)
        show = warnings.showwarning
        warnings.showwarning = _above_the_bar
        left.callback(setattr, warnings, "showwarning", show)
        yield


def _above_the_bar(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    text = warnings.formatwarning(message, category, filename, lineno, line)
    tqdm.write(text.rstrip("\n"), file=file or sys.stderr)


class Bar(TQDMProgressBar):
    """A bar that fits 80 columns, and that leaves nothing behind where its results are printed anyway."""

    BAR_FORMAT = "{desc} {bar} {n_fmt}/{total_fmt} {remaining}{postfix}"

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Say which stage and epoch it is."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description_str(_where(trainer))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics by short names."""
        return _short(super().get_metrics(trainer, pl_module))

    def init_validation_tqdm(self) -> Any:
        """Make the bar of a validation."""
        return _passing(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Any:
        """Make the bar of a test."""
        return _passing(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Any:
        """Make the bar of a prediction."""
        return _passing(super().init_predict_tqdm())


def _passing(bar: Any) -> Any:
    bar.leave = False
    return bar


class EpochLines(Callback):
    """In a log file, in the place of a bar: a line an epoch, at most one in half a minute."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to wait for the first line."""
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the fit is."""
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            metrics = ", ".join(f"{name} {value}" for name, value in _short(trainer.progress_bar_metrics).items())
            rank_zero_info(f"{_where(trainer)}: {metrics}.")


def progress(given: list[Any]) -> Callback | None:
    """Return what shows a run's progress, where none of the callbacks given does."""
    if any(isinstance(callback, ProgressBar) for callback in given):
        return None
    return Bar() if sys.stdout.isatty() else EpochLines()


def _where(trainer: Trainer) -> str:
    stages = [cb.stage for cb in callbacks(trainer) if isinstance(cb, EstimateTransitionCallback)]
    epoch = f"poch {trainer.current_epoch}/{(trainer.max_epochs or 0) - 1}"
    return f"Stage {stages[0]}, e{epoch}" if stages else f"E{epoch}"


def _short(metrics: dict[str, Any]) -> dict[str, str]:
    """Leave out what is of no use while one waits, and shorten the rest."""
    names = {"train_loss": "loss", "val_accuracy": "val_acc"}
    shown = {names.get(name, name): value for name, value in metrics.items() if name not in ("v_num", "train_accuracy")}
    return {name: f"{float(value):.3f}" if _is_number(value) else str(value) for name, value in shown.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) or (isinstance(value, torch.Tensor) and value.numel() == 1)
