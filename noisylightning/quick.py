"""From data to the answer: features, T-hat, a corrected head, the verdict, and which labels are wrong."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, ProgressBar
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from noisylightning.audit import Audit, Thumbnails, print_audit, thumbnails_of, write_audit
from noisylightning.audit.thumbnails import are_images
from noisylightning.callbacks import EstimateTransitionCallback
from noisylightning.corrections import Correction, ForwardCorrection, NoCorrection
from noisylightning.data import FeaturesDataModule, NoisyDataModule
from noisylightning.encoders import Encoder, choose_encoder
from noisylightning.errors import BadValue, UserError
from noisylightning.estimators.standalone import estimate_from_data
from noisylightning.extraction import extract_features
from noisylightning.functional.verdict import Verdict
from noisylightning.held_out_audit import audit_held_out
from noisylightning.judging import judge_fit
from noisylightning.models import MLP
from noisylightning.module import NoisyLabelClassifier
from noisylightning.results import Result, evaluate_fit, publish_results
from noisylightning.search import tune

AUDIT_FOLDS = 5
BATCH = 128
RATES = (3e-4, 3e-3, 3e-2)
DECAY = 1e-2


@dataclass(frozen=True)
class QuickAnswer:
    """What :func:`quick` has found.

    Attributes:
        results: What the weights have reached: stage one's, the last, the chosen ones.
        verdict: Whether to trust the correction; None where there is nothing to judge.
        audit: Which labels are wrong; None where T-hat is the identity, by which none is, and nearest neighbours tell
            none either.
        model: The head, with the last weights.
        features: What it was trained on.
    """

    results: list[Result]
    verdict: Verdict | None
    audit: Audit | None
    model: NoisyLabelClassifier
    features: NoisyDataModule


def quick(
    data: NoisyDataModule,
    encoder: Encoder | str | None = None,
    output: str | Path = "quick",
    epochs: int = 20,
    seed: int = 0,
    progress: bool = False,
    callbacks: Callable[[], Sequence[Callback]] = list,
) -> QuickAnswer:
    """Find out what noisy labels are worth, on frozen features: T-hat, a corrected classifier, and which are wrong.

    Images and texts are encoded once, into ``output/features``, from where a second call takes them; other inputs are
    features already. A linear head is trained on them in two stages, with the default estimator and forward correction,
    at the one of three learning rates with which cross-entropy is best on noisy validation data. Its results, T-hat and
    verdict are printed, and left in ``output/lightning_logs``. Five heads, each trained without a fifth of the samples,
    judge the labels by T-hat, in ``output/audit``; if that is the identity, by which no label is wrong, by T-hat of the
    nearest neighbours, which ranks them all the same.

    Args:
        data: The data.
        encoder: The encoder, or its name, see :func:`~noisylightning.encoders.load_encoder`; by default the first of
            :func:`~noisylightning.encoders.choose_encoder` that can be had.
        output: The folder.
        epochs: Epochs of a stage.
        seed: Seed of the weights and of the order of the samples.
        progress: Whether to show how far encoding is.
        callbacks: Makes the callbacks that each fit gets beside its own, such as a progress bar.

    Returns:
        What was found.

    Raises:
        ValueError: If the data has no training samples, or ``encoder`` is given for what needs none.

    Example:
        >>> from noisylightning.data import ImageFolderDataModule
        >>> found = quick(ImageFolderDataModule("photos"))  # doctest: +SKIP
    """
    output = Path(output)
    features = _features(data, encoder, output / "features", progress)
    rate = _rate(features, epochs, seed)
    model = _model(features, seed, ForwardCorrection(num_classes=features.num_classes), rate)
    callback = EstimateTransitionCallback(stage_one_epochs=epochs)
    best = ModelCheckpoint(monitor="val_loss", mode="min")
    trainer = _trainer(output, 2 * epochs, [callback, best, *callbacks()])
    trainer.fit(model, features)
    results = evaluate_fit(trainer, model, features)
    verdict = judge_fit(trainer, model, features, results)
    publish_results(trainer, results, verdict)
    audit, transition = None, callback.transition
    if model.correction.known_transition().is_identity:
        transition = _of_neighbours(features, output)
    if transition is not None:
        judges = _model(features, seed, ForwardCorrection(transition), rate)
        audit = audit_held_out(
            _trainer(output, epochs, list(callbacks()), logs=False),
            judges, features, AUDIT_FOLDS, epochs, callback.standard_error,
        )  # fmt: skip
        write_audit(audit, output / "audit", _thumbnails(data))
        print_audit(audit)
        rank_zero_info(f"Open {output / 'audit' / 'audit.html'} to see them, and to mark them.")
    return QuickAnswer(results, verdict, audit, model, features)


def _features(data: NoisyDataModule, encoder: Encoder | str | None, folder: Path, progress: bool) -> NoisyDataModule:
    """Encode images and texts, and serve the features; any other data serves its own inputs."""
    data.prepare_data()
    found = data.read_part("train")
    if found is None:
        raise BadValue("There are no training samples: give them (--data.root, --data.train_file).")
    samples, _ = found
    texts = samples if isinstance(samples, Sequence) else None
    if not isinstance(samples, Sequence) and not are_images(samples[torch.tensor([0])]):
        if encoder is not None:
            raise BadValue(
                f"{type(data).__name__} has no images or texts, but rows of numbers, which are features as they are:"
                " leave encoder (--encoder) out."
            )
        return data
    if encoder is None:
        encoder, reason = choose_encoder(texts)
        rank_zero_info(reason)
    extract_features(data, encoder, folder, progress=progress)
    return FeaturesDataModule(folder, seed=data.seed, val_fraction=data.val_fraction, batch_size=BATCH)


def _rate(features: NoisyDataModule, epochs: int, seed: int) -> float:
    """The learning rate with which cross-entropy has the least loss on noisy validation data."""

    def build(lr: float) -> NoisyLabelClassifier:
        return _model(features, seed, NoCorrection(), lr)

    found = tune(build, features, {"lr": RATES}, epochs, accelerator="auto", devices=1)
    rate: float = found.best.options["lr"]
    rank_zero_info(f"Learning rate {rate:g}, of {', '.join(f'{each:g}' for each in RATES)}, by noisy validation loss.")
    return rate


def _model(features: NoisyDataModule, seed: int, correction: Correction, rate: float) -> NoisyLabelClassifier:
    """A linear head, with the same first weights every time."""
    seed_everything(seed, verbose=False)
    head = MLP(features.num_features, features.num_classes, hidden=())  # type: ignore[attr-defined]
    optimizer = functools.partial(torch.optim.AdamW, lr=rate, weight_decay=DECAY)
    return NoisyLabelClassifier(head, correction, num_classes=features.num_classes, optimizer=optimizer)


def _of_neighbours(features: NoisyDataModule, output: Path) -> Tensor | None:
    """T-hat by which labels can be ranked where that of the fit is the identity."""
    try:
        found = estimate_from_data(features, output / "transition_of_neighbours.npy")
    except UserError as error:
        rank_zero_info(f"T-hat is the identity, by which no label is wrong, so there is no audit. {error}")
        return None
    if torch.equal(found, torch.eye(len(found))):
        rank_zero_info("T-hat is the identity, and that of the nearest neighbours too: no label is found to be wrong.")
        return None
    rank_zero_info(
        "T-hat is the identity, by which no label is wrong: they are ranked by T-hat of the nearest neighbours, which"
        " nothing shows to be better, so do not trust how many it says are wrong."
    )
    return found


def _trainer(output: Path, epochs: int, callbacks: list[Callback], logs: bool = True) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        default_root_dir=output,
        logger=logs,
        enable_checkpointing=logs,
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )


def _thumbnails(data: NoisyDataModule) -> Thumbnails | None:
    found = data.read_part("train")
    assert found is not None
    samples, _ = found
    return None if isinstance(samples, Sequence) else thumbnails_of(samples)
