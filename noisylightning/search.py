"""A small search over learning rate, weight decay and the like, by noisy validation data alone."""

import logging
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.box
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.seed import isolate_rng
from rich.console import Console
from rich.table import Table

from noisylightning.errors import BadValue
from noisylightning.internals import is_of_test_data


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        options: The setting, by name.
        score: The monitored metric of its best epoch; NaN where it was never a number.
        epoch: That epoch.
    """

    options: dict[str, Any]
    score: float
    epoch: int


@dataclass(frozen=True)
class Search:
    """What :func:`tune` has found.

    Attributes:
        best: The trial that was chosen.
        model: Its module, with the weights of its best epoch.
        trials: All trials, in the order they were made in.
        monitor: The metric on noisy validation data that they were chosen by.
    """

    best: Trial
    model: LightningModule
    trials: tuple[Trial, ...]
    monitor: str


def tune(
    build: Callable[..., LightningModule],
    data: LightningDataModule,
    options: Mapping[str, Sequence[Any]],
    max_epochs: int,
    callbacks: Callable[[], Sequence[Callback]] = tuple,
    monitor: str = "val_loss",
    mode: Literal["max", "min"] | None = None,
    seed: int = 0,
    **trainer: Any,
) -> Search:
    """Fit a module with every setting of a grid, and choose by noisy validation data.

    Two methods with the same options and epochs get the same care, which a comparison of them needs. Every trial begins
    from the same random state, so that nothing but its setting sets it apart; global random states are left as they
    were. Neither checkpoints nor logs are left.

    Args:
        build: Makes a module from a setting, called with the names of ``options``.
        data: The data module, with noisy validation data.
        options: What to try of each name; all combinations are tried, the last name varying fastest.
        max_epochs: Epochs of each trial.
        callbacks: Makes the callbacks of a trial, new ones each time.
        monitor: Metric on noisy validation data; the best epoch of a trial counts, of its last stage where it has
            several.
        mode: Whether the ``"max"`` or the ``"min"`` of it is best; by default the former where it is an accuracy.
        seed: Where every trial begins from.
        **trainer: Further arguments of :class:`pytorch_lightning.Trainer`, such as ``accelerator``.

    Returns:
        The best trial, its module and all trials; of equal ones the first is the best.

    Raises:
        ValueError: If there is nothing to try, ``monitor`` is of training or clean test data, the module does not log
            it, or no trial gives a number.

    Example:
        >>> from functools import partial
        >>> from noisylightning import ForwardCorrection, NoisyLabelClassifier
        >>> from noisylightning.data import DigitsDataModule, SymmetricNoise
        >>> from noisylightning.models import MLP
        >>> from noisylightning.transition import symmetric
        >>> def head(**options):
        ...     correction = ForwardCorrection(symmetric(10, 0.2))
        ...     adam = partial(torch.optim.AdamW, **options)
        ...     return NoisyLabelClassifier(MLP(64, 10, hidden=[]), correction, optimizer=adam)
        >>> data = DigitsDataModule(noise=SymmetricNoise(0.2))
        >>> found = tune(head, data, {"lr": [1e-4, 1e-2], "weight_decay": [0.0]}, max_epochs=2, accelerator="cpu")
        >>> found.best.options
        {'lr': 0.01, 'weight_decay': 0.0}
    """
    if not options or not all(len(values) for values in options.values()):
        raise BadValue(
            "tune has nothing to try: give options, such as {'lr': [1e-3, 1e-2], 'weight_decay': [0, 1e-2]}."
        )
    if is_of_test_data(monitor) or monitor.lower().startswith("train"):
        raise BadValue(
            f"monitor={monitor!r} would choose by what is no validation data: choose by noisy validation data,"
            " monitor='val_loss' or monitor='val_accuracy'."
        )
    mode = mode or ("max" if "acc" in monitor.lower() else "min")
    trials: list[Trial] = []
    best: tuple[float, Trial, LightningModule] | None = None
    for values in product(*options.values()):
        setting = dict(zip(options, values, strict=True))
        with isolate_rng(), _silence(), tempfile.TemporaryDirectory() as folder:
            _seed(seed)
            module = build(**setting)
            judge = ModelCheckpoint(Path(folder) / "best", monitor=monitor, mode=mode, save_weights_only=True)
            score, epoch = _fit(module, data, [*callbacks(), judge], judge, folder, max_epochs, trainer)
        trials.append(Trial(setting, score, epoch))
        loss = -score if mode == "max" else score
        if not math.isnan(score) and (best is None or loss < best[0]):
            best = loss, trials[-1], module
    if best is None:
        raise BadValue(
            f"none of the {len(trials)} settings gave a {monitor} that is a number: try smaller learning rates."
        )
    return Search(best[1], best[2], tuple(trials), monitor)


def _fit(
    module: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    judge: ModelCheckpoint,
    folder: str,
    max_epochs: int,
    options: dict[str, Any],
) -> tuple[float, int]:
    """Fit the module, give it the weights of its best epoch, and return their score and the epoch."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    run = Trainer(default_root_dir=folder, max_epochs=max_epochs, callbacks=callbacks, **(quiet | options))
    try:
        run.fit(module, data)
    except MisconfigurationException as error:
        if repr(judge.monitor) not in str(error):
            raise
        raise BadValue(
            f"monitor={judge.monitor!r} is nothing that {type(module).__name__} logs in validation, only"
            f" {', '.join(sorted(run.callback_metrics)) or 'nothing'}: name a metric on noisy validation data."
        ) from error
    score = math.nan if judge.best_model_score is None else float(judge.best_model_score)
    if not math.isfinite(score):  # Lightning takes NaN for infinity
        return math.nan, run.current_epoch - 1
    saved = torch.load(judge.best_model_path, map_location=module.device, weights_only=True)
    module.load_state_dict(saved["state_dict"])
    return score, int(saved["epoch"])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the global state is what user code draws from)
    torch.manual_seed(seed)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep Lightning's notes of each of many fits to itself; warnings pass."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def print_search(found: Search) -> None:
    """Print a table of what was tried, the chosen setting marked.

    Args:
        found: What :func:`tune` returned.

    Example:
        >>> trials = Trial({"lr": 0.1}, 1.5, 0), Trial({"lr": 0.01}, 0.5, 3)
        >>> print_search(Search(trials[1], LightningModule(), trials, "val_loss"))
        lr    val_loss  epoch
        ───...
        0.1     1.5000      0
        0.01    0.5000      3  best
    """
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in found.best.options:
        table.add_column(name)
    for name in (found.monitor, "epoch"):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in found.trials:
        values = [f"{value:g}" if isinstance(value, float) else str(value) for value in trial.options.values()]
        table.add_row(*values, f"{trial.score:.4f}", str(trial.epoch), "best" if trial is found.best else "")
    Console().print(table)
