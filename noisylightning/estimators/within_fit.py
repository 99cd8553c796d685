"""T-hat within a fit: the network runs over the estimation data, and an estimator over its predictions."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from noisylightning.errors import NotReady
from noisylightning.estimators.base import TransitionEstimator, check_needs
from noisylightning.predictions.collect import (
    Predict,
    estimation_loader,
    inference,
    known_of,
    predictions,
    warn_of_randomness,
)

__all__ = ["Predict", "estimate", "estimation_loader", "feed", "warn_of_randomness"]


def estimate(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
) -> Tensor:
    """Run the network over the loader and return T-hat on the CPU, the same bits on every process.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        estimator: A new estimator.
        predict: Maps the module and a batch to logits and noisy labels.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        ValueError: If T cannot be estimated from these predictions.
    """
    feed(trainer, module, loader, estimator, predict)
    transition: Tensor = trainer.strategy.broadcast(estimator.compute().cpu())
    return transition


def feed(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
) -> None:
    """Run the network over the loader, and the estimator over its predictions; an error on one process ends them all.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: What :func:`estimation_loader` gives.
        estimator: Updated on the module's device.
        predict: Maps the module and a batch to logits and noisy labels.

    Raises:
        RuntimeError: If another process failed.
        ValueError: If the estimator needs what the pass does not give, or the predictions are none.
    """
    estimator.to(module.device)
    failure: Exception | None = None
    try:
        check_needs(estimator, known_of(trainer.datamodule, loader.dataset))  # type: ignore[attr-defined]
        with inference(trainer, module):
            for batch in predictions(trainer, module, loader, predict, estimator.num_classes):
                estimator.update(batch)
    except Exception as error:
        failure = error
    # The collectives that follow are reached by all processes or by none.
    if not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
        raise failure or NotReady("T could not be estimated: another process failed; see its message.")
