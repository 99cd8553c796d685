"""T from the samples that a classifier of one noisy label against the rest is surest of."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.stats import beta  # type: ignore[import-untyped]
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.probabilities import check_every_class, check_noisy_labels

Method = Literal["prefix", "cost"]
"""How the samples of a row are chosen: see :func:`selective_classification`."""

_COSTS = tuple(k / 20 for k in range(1, 20))
_FEWEST = 10
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Selected:
    """What :func:`selective_classification` found.

    Args:
        counts: How many of the samples accepted for class i carry noisy label j, ``(C, C)``.
        accepted: Places of the samples accepted for each class.
        lower: Lower confidence bounds of the mean of p(noisy | x) over the accepted samples, ``(C, C)``; None where
            none are known.
        upper: Upper ones.
    """

    counts: Tensor
    accepted: tuple[Tensor, ...]
    lower: Tensor | None = None
    upper: Tensor | None = None

    @property
    def transition(self) -> Tensor:
        """T-hat, ``(C, C)``, float64."""
        return self.counts.double() / self.counts.sum(dim=1, keepdim=True)


def selective_classification(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    method: Method = "prefix",
    min_accepted: float = 0.005,
    confidence: float = 0.95,
    seed: int = 0,
) -> Selected:
    r"""Estimate T by selective classification: row j is the label histogram of samples accepted as surely of class j.

    - ``"prefix"``: logistic regression of label j against the rest learns on one half of the data and ranks the other;
      accepted is the prefix, of at least ``min_accepted * N`` samples, with the largest share of label j, the largest
      such.
    - ``"cost"``: for costs c = 0.05, ..., 0.95 logistic regression learns from all samples as class 1, with weight c,
      and from those that are not labelled j again as class 0, with weight 1, and accepts what it calls class 1;
      of those that accept at least ``min_accepted * N`` the one with the largest share of label j counts.

    Both are the estimators of "selective classification" in BCAM's label-noise-T-estimation, with logistic regression
    on standardised features as the classifier. Like every estimate from anchor points they need samples that are surely
    of class j, and rows in which label j is larger than it is in the other rows of its column.

    *Bounds*, for ``"prefix"``: given its classifier, the labels of the other half are independent draws from p(noisy |
    x), so that for each fixed prefix the Clopper-Pearson interval of a count holds; the union bound over all prefixes
    and all entries of T makes it hold, with probability ``confidence``, for whichever prefixes are chosen. The bounds
    are of the mean of p(noisy | x) over the accepted samples. That is T's row where these are all of class j, which no
    bound can say. ``"cost"`` chooses by the labels that it learnt from; no useful bound is known.

    Args:
        features: Shape ``(N, D)``, floating.
        labels: Noisy labels, integers of shape ``(N,)``.
        num_classes: The number of classes C.
        method: ``"prefix"`` or ``"cost"``.
        min_accepted: The least share of the samples to accept, of at least 10 samples.
        confidence: Probability with which all bounds hold together.
        seed: Seed of the halves.

    Returns:
        T-hat and its bounds.

    Raises:
        TypeError: If features or labels are of the wrong dtype.
        ValueError: If a shape or a value is out of bounds, features are not finite or all the same, a class has too few
            labels, or a classifier does not converge or accepts too few samples.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.arange(4000) % 2
        >>> features = torch.randn(4000, 1, generator=generator) + 6 * clean[:, None]
        >>> noisy = torch.multinomial(torch.tensor([[0.8, 0.2], [0.3, 0.7]])[clean], 1, generator=generator).flatten()
        >>> found = selective_classification(features, noisy, num_classes=2, min_accepted=0.2)
        >>> found.transition.round(decimals=1)
        tensor([[0.8000, 0.2000],
                [0.3000, 0.7000]], dtype=torch.float64)
    """
    check_noisy_labels(labels, len(features), num_classes)
    check_every_class(torch.bincount(labels, minlength=num_classes))
    if method not in ("prefix", "cost"):
        raise BadValue(f"method must be 'prefix' or 'cost', got {method!r}.")
    if not 0 < min_accepted <= 0.5:
        raise BadValue(f"min_accepted must be in (0, 0.5], got {min_accepted}.")
    if not 0 < confidence < 1:
        raise BadValue(f"confidence must be in (0, 1), got {confidence}.")
    least = math.ceil(min_accepted * len(features))
    if least < _FEWEST:
        raise BadValue(
            f"{least} of {len(features)} samples are too few for a row of T: raise min_accepted to"
            f" {min(_FEWEST / len(features), 0.5):.2g} at least, or give more samples."
        )
    table, labels = _standardised(features), labels.cpu()
    if method == "cost":
        accepted = tuple(_cheapest(table, labels, j, least) for j in range(num_classes))
        return Selected(_counts(accepted, labels, num_classes), accepted)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    learnt, ranked = (half.sort().values for half in order.tensor_split(2))
    if len(ranked) < least:
        raise BadValue(f"Of {len(ranked)} samples, one half, {least} cannot be accepted: lower min_accepted.")
    accepted = tuple(_prefix(table, labels, learnt, ranked, j, least) for j in range(num_classes))
    counts = _counts(accepted, labels, num_classes)
    events = num_classes**2 * (len(ranked) - least + 1)
    lower, upper = clopper_pearson(counts, counts.sum(dim=1, keepdim=True), (1 - confidence) / events)
    return Selected(counts, accepted, lower, upper)


def clopper_pearson(successes: Tensor, trials: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Bound probabilities from counts, exactly (Clopper and Pearson 1934).

    Args:
        successes: How often it happened, integers of any shape.
        trials: Of how many times, of a shape that goes with it.
        error: With which probability a bound, the lower or the upper, may fail.

    Returns:
        Lower and upper bounds, float64, shaped as ``successes``.

    Example:
        >>> lower, upper = clopper_pearson(torch.tensor([0, 5]), torch.tensor([10, 10]), error=0.05)
        >>> lower, upper
        (tensor([0.0000, 0.1871], dtype=torch.float64), tensor([0.3085, 0.8129], dtype=torch.float64))
    """
    k, n = np.broadcast_arrays(successes.cpu().numpy(), trials.cpu().numpy())
    lower = np.where(k > 0, beta.ppf(error / 2, np.maximum(k, 1), n - k + 1), 0.0)
    upper = np.where(k < n, beta.ppf(1 - error / 2, k + 1, np.maximum(n - k, 1)), 1.0)
    return torch.from_numpy(lower), torch.from_numpy(upper)


def _standardised(features: Tensor) -> np.ndarray:
    if not features.is_floating_point():
        raise BadType(f"features must be floating point, got {features.dtype}: convert them.")
    if features.ndim != 2 or not features.isfinite().all():
        raise BadValue(f"features must be finite numbers of shape (N, D), got {tuple(features.shape)}.")
    table = features.cpu().double()
    deviation = table.std(dim=0)
    varies = deviation > 1e-6 * table.abs().amax(dim=0)
    if not varies.any():
        raise BadValue(f"The features of all {len(table)} samples are the same: no classifier can tell them apart.")
    table = (table - table.mean(dim=0))[:, varies] / deviation[varies]
    return table.numpy()


def _scores(table: np.ndarray, target: np.ndarray, weights: np.ndarray | None, label: int, asked: np.ndarray) -> Tensor:
    """Learn the target from a table, and return how strongly each row of another is of class 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if target.all() or not target.any():
        raise BadValue(f"One half of the data has no example of label {label}, or no other: give more examples of it.")
    classifier = LogisticRegression(max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            classifier.fit(table, target, sample_weight=weights)
        except ConvergenceWarning as error:
            raise BadValue(
                f"The classifier of label {label} did not converge in {_MAX_ITERATIONS} steps: give fewer features, or"
                " use another estimator."
            ) from error
    return torch.from_numpy(classifier.decision_function(asked))


def _prefix(table: np.ndarray, labels: Tensor, learnt: Tensor, ranked: Tensor, label: int, least: int) -> Tensor:
    own = labels == label
    score = _scores(table[learnt.numpy()], own[learnt].numpy(), None, label, table[ranked.numpy()])
    order = ranked[score.argsort(descending=True, stable=True)]
    share = own[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    share = share[least - 1 :]
    best = int((share == share.max()).nonzero()[-1])  # of equals the largest
    return order[: least + best].sort().values


def _cheapest(table: np.ndarray, labels: Tensor, label: int, least: int) -> Tensor:
    own = labels == label
    other = (~own).numpy()
    rows = np.concatenate([table, table[other]])
    target = np.arange(len(rows)) < len(table)
    best, purest = None, -1.0
    for cost in _COSTS:
        accepted = (_scores(rows, target, np.where(target, cost, 1.0), label, table) > 0).nonzero().flatten()
        if len(accepted) >= least and (purity := float(own[accepted].double().mean())) > purest:
            best, purest = accepted, purity
    if best is None:
        raise BadValue(
            f"No classifier of label {label} accepts {least} samples: lower min_accepted, give better features, or use"
            " method='prefix'."
        )
    return best


def _counts(accepted: tuple[Tensor, ...], labels: Tensor, num_classes: int) -> Tensor:
    return torch.stack([torch.bincount(labels[places], minlength=num_classes) for places in accepted])
