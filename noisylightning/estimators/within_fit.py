"""T-hat within a fit: the network runs over the estimation data, and an estimator over its predictions."""

from contextlib import ExitStack
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from noisylightning.errors import NotReady
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

__all__ = ["Predict", "estimate", "estimation_loader", "feed", "rehearse", "warn_of_randomness"]


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
        failure: Exception | None = None
        try:
            check_needs(estimator, known_of(trainer.datamodule, loader.dataset))  # type: ignore[attr-defined]
            with inference(trainer, module), ExitStack() as recording:
                features = None
                if "features" in estimator.needs:
                    features = recording.enter_context(record_features(module, feature_layer))
                for batch in predictions(trainer, module, loader, predict, estimator.num_classes, features):
                    take(batch)
        except Exception as error:
            failure = error
        # The collectives that follow are reached by all processes or by none.
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
