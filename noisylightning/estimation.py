"""T-hat without a fit: from a checkpoint by a prediction pass of its own, or from a table of predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning.atomic import written_whole
from noisylightning.callbacks.estimate import EstimatorFactory
from noisylightning.corrections import Correction
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.estimators import AnchorEstimator, TransitionEstimator
from noisylightning.plotting import draw_transition
from noisylightning.transition import relative_l1_error


class _Collect(Callback):
    """Feeds the predictions of a pass to an estimator; batches are ``(inputs, noisy labels, ...)``."""

    def __init__(self, estimator: TransitionEstimator) -> None:
        self.estimator = estimator
        self.transition: Tensor | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.estimator = self.estimator.to(pl_module.device)
        # Every process updates at least once: a list state that stays empty cannot be gathered.
        nothing = torch.empty(0, self.estimator.num_classes, device=pl_module.device)
        self.estimator.update(nothing, torch.empty(0, dtype=torch.long, device=pl_module.device))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        correction = getattr(pl_module, "correction", None)
        if isinstance(correction, Correction):  # the network speaks of clean classes, the labels are noisy
            outputs = correction.noisy_log_posterior(outputs.log()).exp()
        self.estimator.update(outputs, batch[1])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.transition = trainer.strategy.broadcast(self.estimator.compute().cpu())


class EstimatingTrainer(Trainer):
    """A Trainer that can also estimate T: what ``noisylightning estimate`` runs."""

    def estimate(
        self,
        model: LightningModule,
        datamodule: Any,
        ckpt_path: str | None = None,
        output: str | Path = "transition.npy",
        estimator: EstimatorFactory = AnchorEstimator,
        weights_only: bool | None = None,
    ) -> Tensor:
        """Estimate T from a checkpoint by a prediction pass over the training data.

        It is a prediction pass of its own, so it runs under every strategy that predicts, FSDP and DeepSpeed included.

        Args:
            model: A module whose ``predict_step`` returns p(clean | x), or p(noisy | x) where it has no correction.
            datamodule: Data module with an ``estimation_dataloader()``.
            ckpt_path: Checkpoint to load; the weights as they are where it is left out.
            output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it.
            estimator: Makes the estimator from the number of classes.
            weights_only: Whether the checkpoint may hold plain data only, as it may where this is left out.

        Returns:
            T-hat, ``(C, C)``.
        """
        if not hasattr(datamodule, "estimation_dataloader"):
            raise BadValue(
                f"{type(datamodule).__name__} has no estimation_dataloader(): give it one, un-augmented and in order."
            )
        collect = _Collect(estimator(datamodule.num_classes))
        self.callbacks.append(collect)  # type: ignore[attr-defined]
        datamodule.prepare_data()
        datamodule.setup("fit")
        loader = datamodule.estimation_dataloader()
        self.predict(
            model, loader, ckpt_path=ckpt_path, return_predictions=False, weights_only=weights_only is not False
        )
        assert collect.transition is not None
        if self.is_global_zero:
            _save(collect.transition, output, getattr(datamodule, "transition", None), len(loader.dataset))
        return collect.transition


def estimate_from_table(
    probs: str | Path,
    labels: str | Path,
    output: str | Path = "transition.npy",
    estimator: EstimatorFactory = AnchorEstimator,
) -> Tensor:
    """Estimate T from predictions made elsewhere.

    Args:
        probs: ``.npy`` file of p(noisy | x), shape ``(N, C)``.
        labels: ``.npy`` file of the noisy labels, integers, shape ``(N,)``.
        output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it.
        estimator: Makes the estimator from the number of classes.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the predictions are no table of probabilities, or the labels do not go with them.
    """
    tables = []
    for path in map(Path, (probs, labels)):
        if not path.exists():
            raise NoSuchFile(f"There is no file {path}: give the .npy file of predictions and that of labels.")
        tables.append(torch.from_numpy(np.load(path, allow_pickle=False)))
    predicted, noisy_labels = tables
    if predicted.ndim != 2:
        raise BadValue(f"{probs} must hold a table (N, C) of probabilities, got shape {tuple(predicted.shape)}.")
    found = estimator(predicted.shape[1])
    found.update(predicted, noisy_labels)
    transition: Tensor = found.compute()
    _save(transition, output, None, len(predicted))
    return transition


def _save(transition: Tensor, output: str | Path, true: Tensor | None, num_examples: int) -> None:
    output = Path(output)
    if output.suffix != ".npy":
        raise BadValue(f"output must end in .npy, got {output}.")
    with written_whole(output) as path:
        np.save(path, transition.numpy(), allow_pickle=False)
    with written_whole(output.with_suffix(".png")) as path:
        draw_transition(transition, title="estimated T")[0].savefig(path, dpi=150)
    error = "" if true is None else f"; relative L1 error {relative_l1_error(transition, true.cpu()):.4f}"
    rank_zero_info(f"T estimated from {num_examples:,} examples{error}; saved as {output}.")
