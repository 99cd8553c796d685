"""T-hat without a fit: from a checkpoint, by a pass of its own, from a file of predictions, or from data alone."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from noisylightning import internals
from noisylightning.atomic import written_whole
from noisylightning.corrections import Correction
from noisylightning.errors import BadType, BadValue
from noisylightning.estimators.anchor import AnchorEstimator
from noisylightning.estimators.base import EstimatorFactory, TransitionEstimator, check_needs, passes
from noisylightning.estimators.clusterability import ClusterabilityEstimator
from noisylightning.estimators.with_features import FeatureEstimator
from noisylightning.functional.names import names_warning
from noisylightning.models import record_features
from noisylightning.plotting import compare_transitions
from noisylightning.predictions.collect import known_of, places, trusted_places
from noisylightning.predictions.record import Predictions
from noisylightning.transition import relative_l1_error
from noisylightning.transition_files import save_sparse

_ENTRIES = 2**22  # probabilities in a batch of a file


class _Feed(BasePredictionWriter):
    """Feeds the predictions of each pass to an estimator; a writer, since Lightning tells those each sample's place.

    The trusted samples, whose labels are clean, are predicted apart: a loader beside the first one would ask for
    another signature of ``predict_step``.
    """

    def __init__(self, estimator: TransitionEstimator, parts: list[dict[str, Tensor]], feature_layer: str | None):
        super().__init__("batch")
        self.estimator = estimator
        self.parts = parts  # what is known of each sample of a part of the data; the second is the trusted samples
        self.part = 0
        self.passes = passes(estimator, sum(len(part["index"]) for part in parts))
        self.take = next(self.passes, None)  # None after the last pass
        self.feature_layer = feature_layer
        self.transition: Tensor | None = None
        self.standard_error: Tensor | None = None
        self.counts = estimator.class_counts
        self.recording = ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.estimator = self.estimator.to(pl_module.device)
        if "features" in self.estimator.needs:
            self._features = self.recording.enter_context(record_features(pl_module, self.feature_layer))
        correction = getattr(pl_module, "correction", None)
        self._correction = correction if isinstance(correction, Correction) else None
        if self._correction is not None and self._correction.needs_features:
            network = getattr(pl_module, "backbone", pl_module)
            self._features_of_transition = self.recording.enter_context(record_features(network))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[1], Tensor):
            raise BadType(
                f"T is estimated from batches (inputs, labels, ...), but a batch is a {type(batch).__name__}: let"
                " estimation_dataloader() give pairs, the labels as a tensor."
            )
        if not isinstance(prediction, Tensor):
            raise BadType(
                f"T is estimated from what {type(pl_module).__name__}.predict_step returns, p(noisy | x) of shape"
                f" (N, C), but it returned a {type(prediction).__name__}."
            )
        known, labels = self._known(batch_indices, prediction), batch[1]
        if self.part:
            known["clean_labels"], labels = labels, known.pop("noisy_labels")
        if "features" in self.estimator.needs:
            features = self._features(len(prediction))
            known["features"] = features if features.dtype == torch.float64 else features.float()
        found = Predictions.from_probs(prediction, labels, **known)
        correction = self._correction
        if correction is not None:  # the network speaks of clean classes, the labels are noisy
            of_samples = {"index": found.index} if (found.index >= 0).all() else {}
            if correction.needs_features:
                of_samples["features"] = self._features_of_transition(len(prediction))
            found = replace(found, logits=correction.noisy_log_posterior(found.logits, **of_samples))
        assert self.take is not None
        self.take(found)

    def _known(self, drawn: Sequence[int] | None, prediction: Tensor) -> dict[str, Tensor]:
        if drawn is None or len(drawn) != len(prediction):  # not one row a sample, or a loader that hides its samples
            unknown = prediction.new_full((len(prediction),), -1, dtype=torch.long)
            return {"index": unknown, "noisy_labels": unknown} if self.part else {"index": unknown}
        chosen = torch.as_tensor(drawn)
        return {name: value[chosen].to(prediction.device) for name, value in self.parts[self.part].items()}

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.recording.close()
        self.part = (self.part + 1) % len(self.parts)
        if self.part == 0:
            self.take = next(self.passes, None)
        if self.take is None:
            self.transition = trainer.strategy.broadcast(self.estimator.compute().cpu())
            error = self.estimator.standard_error()
            self.standard_error = trainer.strategy.broadcast(None if error is None else error.cpu())
            self.counts = trainer.strategy.reduce(self.estimator.class_counts.clone(), reduce_op="sum").cpu()


def estimate_with_trainer(
    trainer: Trainer,
    model: LightningModule,
    datamodule: Any,
    ckpt_path: str | None = None,
    output: str | Path = "transition.npy",
    estimator: EstimatorFactory = AnchorEstimator,
    weights_only: bool = True,
    feature_layer: str | None = None,
) -> Tensor:
    """Estimate T from a checkpoint by a prediction pass over the training data, and the trusted samples if need be.

    It is a prediction pass of its own, so it runs under every strategy that predicts, FSDP and DeepSpeed included.

    Args:
        trainer: Runs the pass.
        model: A module whose ``predict_step`` returns p(clean | x), or p(noisy | x) where it has no correction.
        datamodule: Data module with an ``estimation_dataloader()`` and ``num_classes``.
        ckpt_path: Checkpoint to load; the weights as they are where it is left out.
        output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it, with replicates its standard errors too.
            A sparse T-hat goes into a ``.npz`` file of that name.
        estimator: Makes the estimator from the number of classes.
        weights_only: Whether the checkpoint may hold plain data only.
        feature_layer: Name in ``model.named_modules()`` of the layer whose input are the features, for an estimator
            that needs them; by default the last ``nn.Linear``.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        ValueError: If the data module has no such loader, ``output`` is no ``.npy`` file, or T cannot be estimated.
    """
    output = _checked_output(output)
    loader = _loader(datamodule)
    index, held_out = places(datamodule, loader.dataset)
    made = estimator(datamodule.num_classes)
    check_needs(made, known_of(datamodule, loader.dataset))
    loaders, known = [loader], [{"index": index, "held_out": held_out}]
    if "clean_labels" in made.needs:
        loaders.append(datamodule.trusted_dataloader())
        index, noisy_labels = trusted_places(datamodule, loaders[1].dataset, loader.dataset)
        held_out = torch.ones(len(index), dtype=torch.bool)
        known.append({"index": index, "held_out": held_out, "noisy_labels": noisy_labels})
    feed = _Feed(made, known, feature_layer)
    internals.callbacks(trainer).append(feed)
    try:
        while feed.take is not None:
            trainer.predict(
                model, loaders[feed.part], ckpt_path=ckpt_path, return_predictions=False, weights_only=weights_only
            )
    finally:
        internals.callbacks(trainer).remove(feed)
        feed.recording.close()
    assert feed.transition is not None
    if trainer.is_global_zero:
        num_examples = sum(len(part["index"]) for part in known)
        _save(feed.transition, output, getattr(datamodule, "transition", None), num_examples, feed.standard_error)
        _warn_of_names(feed.transition, feed.counts)
    return feed.transition


def estimate_from_predictions(
    predictions: Path,
    output: Path = Path("transition.npy"),
    estimator: EstimatorFactory = AnchorEstimator,
) -> Tensor:
    """Estimate T from predictions made elsewhere.

    Args:
        predictions: A ``.npz`` or ``.parquet`` file: ``probs``, p(noisy | x) of shape (N, C), or ``log_probs``; and
            ``noisy_labels``; see :class:`~noisylightning.predictions.Predictions`.
        output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it, with replicates its standard errors too.
            A sparse T-hat goes into a ``.npz`` file of that name.
        estimator: Makes the estimator from the number of classes.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no predictions, ``output`` is no ``.npy`` file, or T cannot be estimated.
    """
    output = _checked_output(output)
    loaded = Predictions.load(predictions)
    made = estimator(loaded.num_classes)
    check_needs(made, loaded.known)
    for take in passes(made, len(loaded)):
        for batch in loaded.split(max(1, _ENTRIES // loaded.num_classes)):
            take(batch)
    transition: Tensor = made.compute()
    _save(transition, output, None, len(loaded), made.standard_error())
    _warn_of_names(transition, made.class_counts)
    return transition


def estimate_from_data(
    datamodule: Any,
    output: str | Path = "transition.npy",
    estimator: EstimatorFactory = ClusterabilityEstimator,
) -> Tensor:
    """Estimate T from data alone, without a network: the features are the inputs, flattened.

    Args:
        datamodule: Data module with an ``estimation_dataloader()`` and ``num_classes``.
        output: Where T-hat goes, a ``.npy`` file; its heat map goes beside it.
        estimator: Makes the estimator from the number of classes; one that needs features and no predictions.

    Returns:
        T-hat, ``(C, C)``.

    Raises:
        TypeError: If batches are no pairs of floating inputs and labels.
        ValueError: If the data module has no such loader, the estimator needs a network, ``output`` is no ``.npy``
            file, or T cannot be estimated.
    """
    output = _checked_output(output)
    made = estimator(datamodule.num_classes)
    if not isinstance(made, FeatureEstimator):
        raise BadValue(
            f"{type(made).__name__} needs a network's predictions: give --model and --ckpt_path, or --predictions FILE,"
            " or choose ClusterabilityEstimator (--estimator), which needs none."
        )
    loader = _loader(datamodule)
    index, held_out = places(datamodule, loader.dataset)
    begin = 0
    for batch in loader:
        if not (isinstance(batch, tuple | list) and len(batch) > 1 and all(isinstance(b, Tensor) for b in batch[:2])):
            raise BadType(
                f"T is estimated from batches (inputs, labels, ...), two tensors, but a batch is a"
                f" {type(batch).__name__} of others: let estimation_dataloader() give such pairs."
            )
        inputs, labels = batch[0], batch[1]
        if not inputs.is_floating_point():
            raise BadType(
                f"Without a network the features are the inputs, which are {inputs.dtype} and not numbers to compare:"
                " give --model and --ckpt_path, whose features are."
            )
        logits = torch.zeros(len(labels), datamodule.num_classes)  # nobody has predicted anything
        here = slice(begin, begin + len(labels))
        known = {"index": index[here], "held_out": held_out[here], "features": inputs.flatten(1)}
        made.update(Predictions(logits, labels, **known))
        begin += len(labels)
    transition: Tensor = made.compute()
    _save(transition, output, getattr(datamodule, "transition", None), begin, made.standard_error())
    _warn_of_names(transition, made.class_counts)
    return transition


def _loader(datamodule: Any) -> Any:
    """Return the loader over the data that T is estimated on, once the data is there."""
    if not hasattr(datamodule, "estimation_dataloader"):
        raise BadValue(
            f"{type(datamodule).__name__} has no estimation_dataloader(): give it one, un-augmented and in order."
        )
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule.estimation_dataloader()


def _checked_output(output: str | Path) -> Path:
    if Path(output).suffix != ".npy":
        raise BadValue(f"output must end in .npy, got {output}.")
    return Path(output)


def _warn_of_names(transition: Tensor, noisy_counts: Tensor) -> None:
    warning = names_warning(transition, noisy_counts)
    if warning is not None:
        rank_zero_warn(warning)


def _save(
    transition: Tensor, output: Path, true: Tensor | None, num_examples: int, standard_error: Tensor | None
) -> None:
    if transition.layout != torch.strided:
        output = output.with_suffix(".npz")
        save_sparse(transition, output)
    else:
        with written_whole(output) as path:
            np.save(path, transition.numpy(), allow_pickle=False)
        with written_whole(output.with_suffix(".png")) as path:
            compare_transitions(transition, standard_error=standard_error).savefig(path, dpi=150, bbox_inches="tight")
    if standard_error is not None:
        with written_whole(output.with_name(f"{output.stem}_standard_error.npy")) as path:
            np.save(path, standard_error.cpu().numpy(), allow_pickle=False)
    error = "" if true is None else f"; relative L1 error {relative_l1_error(transition, true.cpu()):.4f}"
    rank_zero_info(f"T estimated from {num_examples:,} examples{error}; saved as {output}.")
