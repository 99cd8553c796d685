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
    predictions_of_trusted,
    trusted_loader,
    warn_of_randomness,
)
from noisylightning.predictions.gather import gather
from noisylightning.predictions.record import ROWS, Predictions

__all__ = [
    "Predict",
    "collect",
    "estimate",
    "estimate_from",
    "estimation_loader",
    "feed",
    "rehearse",
    "trusted_predictions",
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
    rehearsal: bool = False,
) -> None:
    """Run the network over the loader, and the estimator over its predictions; an error on one process ends them all.

    An estimator that needs clean labels is fed with the data module's trusted samples afterwards.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        estimator: Updated on the module's device.
        predict: Maps the module and a batch to logits and noisy labels.
        feature_layer: Name in the module of the layer whose input are the features, for an estimator that needs them;
            by default the last ``nn.Linear``.
        rehearsal: Whether only the first batch of the trusted samples is read.

    Raises:
        RuntimeError: If another process failed.
        ValueError: If the estimator needs what the pass does not give, or the predictions are none.
    """
    estimator.to(module.device)
    trusted = trusted_loader(trainer, rehearsal) if "clean_labels" in estimator.needs else None
    for take in passes(estimator, len(loader.dataset)):  # type: ignore[arg-type]
        with _together(trainer):
            check_needs(estimator, known_of(trainer.datamodule, loader.dataset))  # type: ignore[attr-defined]
            with inference(trainer, module), ExitStack() as recording:
                features = None
                if "features" in estimator.needs:
                    features = recording.enter_context(record_features(module, feature_layer))
                for batch in predictions(trainer, module, loader, predict, estimator.num_classes, features):
                    take(batch)
                if trusted is not None:
                    classes = estimator.num_classes
                    for batch in predictions_of_trusted(trainer, module, trusted, predict, classes, features):
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


def trusted_predictions(
    trainer: Trainer,
    module: LightningModule,
    predict: Predict,
    num_classes: int,
    feature_layer: str | None = None,
    with_features: bool = False,
) -> Predictions | None:
    """Run the network, as it is now, over the trusted samples, and bring all of them to every process.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts. What it says is p(noisy | x) in stage one, p(clean | x) with T in its loss.
        predict: Maps the module and a batch to logits and the batch's labels.
        num_classes: Number of classes C.
        feature_layer: As in :func:`feed`.
        with_features: Whether to record features.

    Returns:
        The predictions with ``clean_labels``, in the order of their ``index``, the same on every process; None where
        the data module has no trusted samples.

    Raises:
        RuntimeError: If another process failed.
        ValueError: If the predictions are none.
    """
    loader = trusted_loader(trainer, at_least_one=True)
    if loader is None:
        return None
    parts: list[Predictions] = []
    with _together(trainer), inference(trainer, module), ExitStack() as recording:
        features = recording.enter_context(record_features(module, feature_layer)) if with_features else None
        parts += predictions_of_trusted(trainer, module, loader, predict, num_classes, features)
    return Predictions.concatenate(gather(Predictions.concatenate(parts)))


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
    loader = estimation_loader(trainer, module, rehearsal=True)
    feed(trainer, module, loader, estimator, checked, feature_layer, rehearsal=True)
