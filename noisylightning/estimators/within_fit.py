"""T-hat within a fit: the network runs over the estimation data, and an estimator over its predictions."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from noisylightning.errors import BadValue, NotReady
from noisylightning.estimators.base import TransitionEstimator, check_needs, passes
from noisylightning.models import record_features, require_logits
from noisylightning.predictions.collect import (
    Predict,
    estimation_loader,
    inference,
    known_of,
    predictions,
    warn_of_randomness,
)
from noisylightning.predictions.record import ROWS, Predictions

__all__ = [
    "Predict",
    "collect",
    "estimate",
    "estimate_from",
    "estimation_loader",
    "feed",
    "rehearse",
    "warn_of_randomness",
]


def estimate(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
    feature_layer: str | None = None,
) -> Tensor:
    """Run the network over the loader and return T-hat on the CPU, the same bits on every process.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        estimator: A new estimator.
        predict: Maps the module and a batch to logits and noisy labels.
        feature_layer: Name in the module of the layer whose input are the features, for an estimator that needs them;
            by default the last ``nn.Linear``.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        ValueError: If T cannot be estimated from these predictions.
    """
    feed(trainer, module, loader, estimator, predict, feature_layer)
    transition: Tensor = trainer.strategy.broadcast(estimator.compute().cpu())
    return transition


def estimate_from(trainer: Trainer, record: Predictions, estimator: TransitionEstimator) -> Tensor:
    """Return T-hat from predictions that every process has all of, on the CPU, the same bits on every process.

    Args:
        trainer: The trainer of the fit.
        record: The predictions.
        estimator: A new estimator.
    """
    estimator.distributed_available_fn = lambda: False  # nothing is to be gathered
    with _together(trainer):
        check_needs(estimator, record.known)
        for take in passes(estimator, len(record)):
            for batch in record.split(ROWS):
                take(batch)
    transition: Tensor = trainer.strategy.broadcast(estimator.compute().cpu())
    return transition


def feed(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
    feature_layer: str | None = None,
) -> None:
    """Run the network over the loader, and the estimator over its predictions; an error on one process ends them all.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        estimator: Updated on the module's device.
        predict: Maps the module and a batch to logits and noisy labels.
        feature_layer: Name in the module of the layer whose input are the features, for an estimator that needs them;
            by default the last ``nn.Linear``.

    Raises:
        RuntimeError: If another process failed.
        ValueError: If the estimator needs what the pass does not give, or the predictions are none.
    """
    estimator.to(module.device)
    for take in passes(estimator, len(loader.dataset)):  # type: ignore[arg-type]
        with _together(trainer):
            check_needs(estimator, known_of(trainer.datamodule, loader.dataset))  # type: ignore[attr-defined]
            with inference(trainer, module), ExitStack() as recording:
                features = None
                if "features" in estimator.needs:
                    features = recording.enter_context(record_features(module, feature_layer))
                for batch in predictions(trainer, module, loader, predict, estimator.num_classes, features):
                    take(batch)


def collect(
    trainer: Trainer, module: LightningModule, loader: DataLoader[Any], predict: Predict, num_classes: int
) -> Predictions:
    """Run the network over the loader and return this process's share of its predictions, on the CPU.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        predict: Maps the module and a batch to logits and noisy labels.
        num_classes: The number of classes C.

    Raises:
        RuntimeError: If another process failed.
        ValueError: If the predictions are none, or of other samples than the loader's.
    """
    with _together(trainer), inference(trainer, module):
        batches = predictions(trainer, module, loader, predict, num_classes)
        found = Predictions.concatenate([batch.to("cpu") for batch in batches])
        if (found.index < 0).any():
            raise BadValue(
                "predict gives more or fewer rows than a batch has samples, so that nothing says which were held out:"
                " choose an estimator without folds, or return a row a sample."
            )
    return found


@contextmanager
def _together(trainer: Trainer) -> Iterator[None]:
    """Let an error on one process end them all: the collectives that follow are reached by all or by none."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
        raise failure or NotReady("T could not be estimated: another process failed; see its message.")


def rehearse(
    trainer: Trainer,
    module: LightningModule,
    estimator: TransitionEstimator,
    predict: Predict,
    feature_layer: str | None = None,
) -> None:
    """Put the first batch through the pass and see what would spoil it.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        estimator: A new estimator, of no use afterwards.
        predict: Maps the module and a batch to logits and noisy labels.
        feature_layer: As in :func:`feed`.

    Raises:
        RuntimeError: If another process failed.
        ValueError: As :func:`feed` does; or if the network gives probabilities in the place of logits.
    """

    def checked(module: LightningModule, batch: Any) -> tuple[Tensor, Tensor]:
        found = predict(module, batch)
        if isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
            require_logits(found[0])
        return found

    warn_of_randomness(trainer, module)
    feed(trainer, module, estimation_loader(trainer, module, rehearsal=True), estimator, checked, feature_layer)
