"""An audit of predictions, made anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from noisylightning.audit.tally import Audit, Tally, conclude
from noisylightning.errors import BadValue
from noisylightning.functional.audit import clean_log_probs
from noisylightning.functional.clean_accuracy import clean_accuracy, count_pairs
from noisylightning.predictions import Predictions
from noisylightning.transition import Transition, as_transition

_ENTRIES = 2**20  # probabilities in a batch
_PROGRESS_AFTER_SECONDS = 2.0


def audit_predictions(
    predictions: Predictions,
    transition: Tensor | Transition | str | Path,
    *,
    probs_of: Literal["clean", "noisy"] = "clean",
    standard_error: Tensor | None = None,
    level: float = 0.95,
    samples: Sequence[str] | None = None,
    progress: bool = False,
) -> Audit:
    """Audit the labels of a data set, by predictions and T.

    From arrays make the record first: ``Predictions.from_probs(probs, labels)``.

    Args:
        predictions: Of the network, with the given labels; each sample once.
        transition: T: a tensor ``(C, C)``, dense or sparse, a file's path or a
            :class:`~noisylightning.transition.Transition`, also one that knows samples by their index or features.
        probs_of: What the predictions are probabilities of: ``"clean"``, p(clean | x) of a network trained with T in
            its loss; or ``"noisy"``, p(noisy | x) of one trained without, which T turns into p(clean | x) and which
            must be held out.
        standard_error: That of each entry of T-hat, ``(C, C)``; None for a T that is known.
        level: Probability that the intervals are to cover.
        samples: File name or text of each sample, in the order of the predictions.
        progress: Whether to show a bar where it takes long.

    Returns:
        The audit.

    Raises:
        ValueError: If a sample comes twice, has no label or several, or its place is unknown; if probabilities of noisy
            labels are not held out; or as :func:`~noisylightning.functional.label_posterior` does.

    Example:
        >>> import torch
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> probs, labels = torch.tensor([[0.98, 0.02], [0.5, 0.5]]), torch.tensor([1, 0])
        >>> found = audit_predictions(Predictions.from_probs(probs, labels), T)
        >>> found.table.wrong, found.table.labels, round(found.errors.total, 2)
        (tensor([0.9333, 0.2727], dtype=torch.float64), tensor([0, 0]), 1.21)
    """
    if probs_of not in ("clean", "noisy"):
        raise BadValue(f"probs_of must be 'clean' or 'noisy', got {probs_of!r}.")
    _check_samples(predictions)
    if samples is not None and len(samples) != len(predictions):
        raise BadValue(f"There are {len(samples)} samples' names and {len(predictions)} predictions: give one each.")
    transition = as_transition(transition, predictions.num_classes)
    of_noisy = probs_of == "noisy"
    if of_noisy:
        _require_held_out(predictions)
    order = predictions.index.argsort(stable=True)
    held_out = bool(predictions.held_out.all())
    tally, pairs = Tally(predictions.num_classes), torch.zeros(1, dtype=torch.long)
    places = order.split(max(1, _ENTRIES // predictions.num_classes))
    for chosen in tqdm(places, "Auditing", disable=not progress, leave=False, delay=_PROGRESS_AFTER_SECONDS):
        batch = predictions.select(chosen)
        logits = clean_log_probs(batch.probs, transition) if of_noisy else batch.logits
        tally.add(logits, batch.noisy_labels, batch.index, transition.at(batch.features, batch.index))
        if held_out:
            pairs = pairs + count_pairs(batch.noisy_labels, logits.argmax(dim=1), predictions.num_classes)
    found = conclude(
        tally.columns,
        tally.sums,
        None if standard_error is None else transition.to_dense(),
        standard_error,
        level,
        held_out=held_out,
        class_names=predictions.class_names,
        samples=None if samples is None else [samples[place] for place in order.tolist()],
    )
    if held_out:
        with suppress(BadValue):  # a T that tells no accuracy
            return replace(found, clean_accuracy=clean_accuracy(pairs, transition, standard_error))
    return found


def _check_samples(predictions: Predictions) -> None:
    if not len(predictions):
        raise BadValue("There is no prediction to audit: give those of the training data.")
    if predictions.noisy_labels.ndim != 1:
        raise BadValue(
            f"An audit judges one label a sample, but there are {predictions.noisy_labels.shape[1]} annotators' labels:"
            " give one a sample, for example the majority's."
        )
    without = predictions.noisy_labels < 0
    if without.any():
        raise BadValue(f"The sample in row {int(without.nonzero()[0])} has no noisy label (-1): leave it out.")
    if (predictions.index < 0).any():
        raise BadValue("The place of a sample in the training data is unknown (index -1): give the index.")
    index = predictions.index.sort().values
    double = index[1:][index[1:] == index[:-1]]
    if len(double):
        raise BadValue(f"The sample with index {int(double[0])} comes twice: give each sample once.")


def _require_held_out(predictions: Predictions) -> None:
    seen = int((~predictions.held_out).sum())
    if seen:
        raise BadValue(
            f"{seen:,} of {len(predictions):,} predictions are p(noisy | x) of samples that the network was trained on"
            " and knows by heart (held_out is false): predict each sample by a network trained without it, as in"
            " cross-validation, and set held_out; or give p(clean | x) of a network trained with T in its loss"
            " (probs_of='clean', --probs_of clean)."
        )
