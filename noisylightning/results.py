"""What a fit has reached: its weights measured on noisy validation data and on the clean test set."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.box
import torch
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from rich.console import Console
from rich.table import Table
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue
from noisylightning.evaluation import measure
from noisylightning.fit_weights import borrowed, same_weights, stage_one, weights_of_fit
from noisylightning.functional.bootstrap import expected_l1_error
from noisylightning.functional.clean_accuracy import condition_warning
from noisylightning.functional.verdict import Verdict
from noisylightning.internals import standard_error_of
from noisylightning.module import NoisyLabelClassifier
from noisylightning.run_folder import run_folder
from noisylightning.transition import Transition, relative_l1_error


@dataclass(frozen=True)
class Result:
    """What one set of weights has reached.

    Attributes:
        phase: The phase they were trained in: ``"noisy labels"``, ``"correction"`` or ``"trusted"``.
        selected_by: The metric on noisy validation data that they were the best by, or ``"last"``.
        epoch: The epoch they are of.
        correction: Class of the correction they were trained with; None where T had no part in their training.
        loss: Class of the base loss.
        val_accuracy: Accuracy of the noisy prediction, argmax of p T, on the noisy validation data; None without it.
        test_accuracy: Accuracy of p(clean | x) on the clean test set; None where there is no test set.
        test_balanced_accuracy: Its mean over classes.
        transition_error: Relative L1 error of T in the correction; None without one, or where the true T is not known.
        expected_transition_error: The one that T-hat's standard errors lead one to expect; None without them.
        clean_accuracy: Accuracy of p(clean | x) on clean labels, as it follows by T from the noisy validation labels;
            stage one's by the T of the fit's end. None without a T that is the same for every sample.
        clean_accuracy_low: The lower bound of its 95 % interval.
        clean_accuracy_high: The upper bound.
    """

    phase: str
    selected_by: str
    epoch: int
    correction: str | None
    loss: str
    val_accuracy: float | None
    test_accuracy: float | None
    test_balanced_accuracy: float | None
    transition_error: float | None
    expected_transition_error: float | None = None
    clean_accuracy: float | None = None
    clean_accuracy_low: float | None = None
    clean_accuracy_high: float | None = None


def evaluate_fit(trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule) -> list[Result]:
    """Measure what a fit leaves: stage one's weights, the last ones, and those that its ModelCheckpoint selected.

    Each set of weights is measured once, each sample once, whatever the number of processes. Nothing is logged, and
    model and trainer are left as the fit left them. A collective: every process calls it.

    Args:
        trainer: The trainer, after its fit.
        model: The model, after its fit.
        data: The data module of the fit.

    Returns:
        One result for each set of weights; the last of them is the fit's choice, the best by the trainer's
        ModelCheckpoint, or the last weights where none monitors a metric.

    Example:
        >>> from noisylightning.data import DigitsDataModule
        >>> from noisylightning.models import MLP
        >>> model, data = NoisyLabelClassifier(MLP(64, 10), num_classes=10), DigitsDataModule()
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
        >>> trainer.fit(model, data)
        >>> [(result.phase, result.selected_by) for result in evaluate_fit(trainer, model, data)]
        [('noisy labels', 'last')]
    """
    data.setup("validate")
    data.setup("test")
    results: list[Result] = []
    measured: tuple[dict[str, Any], dict[str, float]] | None = None
    transition = deepcopy(model.correction.class_conditional)  # stage one's weights have none of their own
    with borrowed(trainer, model), isolate_rng(), torch.no_grad():
        for weights in weights_of_fit(trainer, model):
            model.load_state_dict(weights.state, strict=model.strict_loading)
            if measured is None or not same_weights(trainer, measured[0], weights.state):
                measured = weights.state, measure(trainer, model, data, transition)
            corrected = weights.phase != "noisy labels" and model.correction.uses_transition
            results.append(
                Result(
                    phase=weights.phase,
                    selected_by=weights.selected_by,
                    epoch=weights.epoch,
                    correction=type(model.correction).__name__ if corrected else None,
                    loss=type(model.correction.loss).__name__,
                    val_accuracy=measured[1].get("val_accuracy"),
                    test_accuracy=measured[1].get("test_accuracy"),
                    test_balanced_accuracy=measured[1].get("test_balanced_accuracy"),
                    transition_error=_error(model.correction, data) if corrected else None,
                    expected_transition_error=_expected(trainer, model.correction.transition) if corrected else None,
                    clean_accuracy=measured[1].get("val_clean_accuracy"),
                    clean_accuracy_low=measured[1].get("val_clean_accuracy_low"),
                    clean_accuracy_high=measured[1].get("val_clean_accuracy_high"),
                )
            )
    if transition is not None:
        _warn(transition, standard_error_of(trainer, transition.to_dense()), results[-1])
    return results


def _warn(transition: Transition, standard_error: Tensor | None, chosen: Result) -> None:
    """Say it where T leaves the accuracy on clean labels open, or cannot be right."""
    try:
        sentences = [condition_warning(transition, standard_error)]
    except BadValue as error:
        sentences = [str(error)]
    value, low = chosen.clean_accuracy, chosen.clean_accuracy_low
    if value is not None and low is not None and low > 1:
        sentences.append(
            f"By T the accuracy on clean labels is {value:.3f}, at least {low:.3f}: so T is wrong, or noise does not"
            " depend on the class alone; do not trust the estimate."
        )
    for sentence in filter(None, sentences):
        rank_zero_warn(sentence)


def _error(correction: Correction, data: LightningDataModule) -> float | None:
    true: Tensor | None = getattr(data, "transition", None)
    transition = None if true is None else correction.transition  # written out only where it is compared
    return None if true is None or transition is None else float(relative_l1_error(transition.cpu(), true.cpu()))


def _expected(trainer: Trainer, transition: Tensor | None) -> float | None:
    error = None if transition is None else standard_error_of(trainer, transition)
    return None if error is None else float(expected_l1_error(error))


# Telling


def print_results(results: Sequence[Result]) -> None:
    """Print the closing table.

    Args:
        results: What :func:`evaluate_fit` returned.

    Example:
        >>> result = Result("correction", "last", 3, "ForwardCorrection", "CrossEntropy", 0.5, 0.75, 0.7, None)
        >>> print_results([result])  # doctest: +NORMALIZE_WHITESPACE +ELLIPSIS
        weights           loss               epoch  noisy val  clean test  T error
        ───...
        correction, last  ForwardCorrection      3    50.00 %     75.00 %        -
    """
    estimated = any(result.clean_accuracy is not None for result in results)
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 0 if estimated else 1, 0, 0))
    for column in ("weights", "loss", "epoch", "noisy val", "clean est.", "clean test", "T error"):
        if estimated and column not in ("weights", "loss", "epoch"):
            column = column.replace(" ", "\n")  # it must fit 80 columns, so no space is lost between them either
        elif column == "clean est.":
            continue
        table.add_column(column, justify="left" if column in ("weights", "loss") else "right", no_wrap=True)

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    for result in results:
        error = "-" if result.transition_error is None else f"{result.transition_error:.4f}"
        table.add_row(
            f"{result.phase}, {_chosen(result)}",
            result.correction or result.loss,
            str(result.epoch),
            percent(result.val_accuracy),
            *([_bounds(result)] if estimated else []),
            percent(result.test_accuracy),
            error,
        )
    Console().print(table)


def _bounds(result: Result) -> str:
    if result.clean_accuracy is None or result.clean_accuracy_high is None:
        return "-"
    return f"{100 * result.clean_accuracy:.1f}±{100 * (result.clean_accuracy_high - result.clean_accuracy):.1f}%"


def publish_results(trainer: Trainer, results: Sequence[Result], verdict: Verdict | None = None) -> None:
    """Print the closing table, send the scores to the loggers and leave ``summary.json`` in the run's folder.

    A verdict is printed below the table, and left as ``verdict.json`` with the weights that it recommends.

    The last result, the fit's choice, goes to the loggers as ``test_accuracy``, ``test_balanced_accuracy``,
    ``transition_error`` and ``expected_transition_error``, where logs end and run tables look; each other as
    ``noisy_labels_best/test_accuracy`` and the like. A collective: every process calls it.

    Args:
        trainer: The trainer, after its fit.
        results: What :func:`evaluate_fit` returned.
        verdict: What :func:`~noisylightning.judging.judge_fit` returned.
    """
    folder = run_folder(trainer)
    if trainer.is_global_zero:
        print_results(results)
        if verdict is not None:
            _publish_verdict(folder, verdict, _recommended(verdict, results))
        with written_whole(folder / "summary.json") as path:
            path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
        _log(trainer, results)
        Console().print(_whereabouts(trainer, folder, verdict is not None), soft_wrap=True)


def _recommended(verdict: Verdict, results: Sequence[Result]) -> Result | None:
    """Return the fit's choice; stage one's where the verdict is against correcting, None where it left none."""
    if verdict.corrects:
        return results[-1]
    return next((result for result in results if result.phase == "noisy labels"), None)


def _publish_verdict(folder: Path, verdict: Verdict, recommended: Result | None) -> None:
    which = None if recommended is None else {"phase": recommended.phase, "selected_by": recommended.selected_by}
    content = {**asdict(verdict), "sentence": verdict.sentence, "recommended": which}
    if verdict.condition is not None and math.isinf(verdict.condition):
        content["condition"] = None  # JSON has no infinity; the sentence says it
    with written_whole(folder / "verdict.json") as path:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    Console().print(verdict.sentence, soft_wrap=True, highlight=False, markup=False)


def _log(trainer: Trainer, results: Sequence[Result]) -> None:
    scores: dict[str, float] = {}
    for result in results:
        prefix = "" if result is results[-1] else f"{result.phase}_{_chosen(result)}/".replace(" ", "_")
        for name in ("test_accuracy", "test_balanced_accuracy", "transition_error", "expected_transition_error"):
            value = getattr(result, name)
            if value is not None:
                scores[prefix + name] = value
    for logger in trainer.loggers:
        logger.log_metrics(scores, step=trainer.global_step)
        logger.save()


def _chosen(result: Result) -> str:
    return "last" if result.selected_by == "last" else "best"


def _whereabouts(trainer: Trainer, folder: Path, has_verdict: bool) -> str:
    left = ["T-hat", "summary.json"] if stage_one(trainer) else ["summary.json"]
    left += ["verdict.json"] if has_verdict else []
    checkpoints = getattr(trainer.checkpoint_callback, "dirpath", None)
    if checkpoints is not None and Path(checkpoints).absolute().is_relative_to(folder.absolute()):
        left, checkpoints = ["checkpoints", *left], None
    elsewhere = f"; checkpoints are in {checkpoints}" if checkpoints else ""
    return f"Left in {folder}: {', '.join(left)}{elsewhere}."
