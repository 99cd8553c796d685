"""T from samples whose clean labels are known (GLC, Hendrycks et al., NeurIPS 2018)."""

import math

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.probabilities import check_labels, check_probabilities


def trusted_transition(
    probs: Tensor, clean_labels: Tensor, noisy_labels: Tensor | None = None, *, pseudo_counts: float = 100.0
) -> Tensor:
    r"""Estimate T from the predictions, and the noisy labels where they are known, of trusted samples.

    Row i is first the mean of p(noisy | x) over the trusted samples of class i (gold loss correction, Hendrycks et al.,
    NeurIPS 2018, section 3), :math:`M_{i \cdot}`; with one sample a class it is the posterior at that sample. It is as
    good as the network, however many samples there are. The noisy labels of the same samples, :math:`n_{ij}` times j
    where i is right, are unbiased but few: so M is the prior that they are added to,
    :math:`\hat T_{ij} = (n_{ij} + a M_{ij}) / (n_i + a)`, the mean of a Dirichlet posterior.

    Args:
        probs: Predicted noisy posterior p(noisy | x), shape ``(N, C)``, rows sum to one.
        clean_labels: Labels known to be right, integers of shape ``(N,)``, -1 where unknown.
        noisy_labels: Labels as they were written down, integers of shape ``(N,)``, -1 where unknown; None for none.
        pseudo_counts: a: how many noisy labels the mean prediction of a class counts for. Infinite: they are not read.

    Returns:
        T-hat, ``(C, C)``, float32, rows sum to one.

    Raises:
        TypeError: If the probabilities are not floating point or the labels not integers.
        ValueError: If an argument is none of the above, or a class has no trusted sample.

    Example:
        >>> probs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        >>> trusted_transition(probs, torch.tensor([0, 0, 1]))
        tensor([[0.7000, 0.3000],
                [0.1000, 0.9000]])
        >>> trusted_transition(probs, torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1]), pseudo_counts=2)
        tensor([[0.3500, 0.6500],
                [0.0667, 0.9333]])
    """
    check_pseudo_counts(pseudo_counts)
    check_probabilities(probs)
    num_classes = probs.shape[1]
    noisy_labels = torch.full_like(clean_labels, -1) if noisy_labels is None else noisy_labels
    for labels, what in ((clean_labels, "clean labels"), (noisy_labels, "noisy labels")):
        check_labels(labels, num_classes, what, lowest=-1)
        if labels.shape != probs.shape[:1]:
            raise BadValue(
                f"There are {len(probs)} predictions and {what} of shape {tuple(labels.shape)}: pass one a prediction."
            )
    weights = torch.ones(len(probs), dtype=torch.long, device=probs.device)
    moments = trusted_moments(probs, clean_labels.long(), noisy_labels.long(), weights)
    check_trusted_classes(moments[:, 0])
    return trusted_rows(moments, pseudo_counts).float()


def check_pseudo_counts(pseudo_counts: float) -> None:
    """Raise unless it is a positive number; infinity is one."""
    if not pseudo_counts > 0:
        raise BadValue(
            f"pseudo_counts must be positive, or infinite for none of the noisy labels, got {pseudo_counts}."
        )


def trusted_moments(probs: Tensor, clean_labels: Tensor, noisy_labels: Tensor, weights: Tensor) -> Tensor:
    """Return what T is computed from, as integers that add up over batches.

    Args:
        probs: p(noisy | x), shape ``(N, C)``.
        clean_labels: int64 of shape ``(N,)``; samples with -1 do not count.
        noisy_labels: int64 of shape ``(N,)``, -1 where unknown.
        weights: How often each sample counts, int64 of shape ``(N,)``.

    Returns:
        int64 of shape ``(C, 1 + 2 C)``: in row i the number of trusted samples of class i, the sums of their
        predictions in fixed point, and how often each noisy label stands beside them.
    """
    trusted = clean_labels >= 0
    probs, clean, noisy, weights = probs[trusted], clean_labels[trusted], noisy_labels[trusted], weights[trusted]
    num, num_classes = probs.shape
    each = torch.zeros(num, 1 + 2 * num_classes, dtype=torch.long, device=probs.device)
    each[:, 0] = 1
    each[:, 1 : 1 + num_classes] = to_fixed(probs)
    known = (noisy >= 0).nonzero().flatten()
    each[known, 1 + num_classes + noisy[known]] = 1
    total = torch.zeros(num_classes, 1 + 2 * num_classes, dtype=torch.long, device=probs.device)
    return total.index_add(0, clean, each * weights[:, None])


def check_trusted_classes(counts: Tensor) -> None:
    """Raise unless every class has a trusted sample.

    Args:
        counts: How many there are of each class, ``(C,)``.

    Raises:
        ValueError: If a class has none.

    Example:
        >>> check_trusted_classes(torch.tensor([3, 0]))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: T cannot be estimated from the 3 trusted samples: none is of class 1; ...
    """
    missing = (counts == 0).nonzero().flatten().tolist()
    if missing:
        raise BadValue(
            f"T cannot be estimated from the {int(counts.sum())} trusted samples: none is of class"
            f" {', '.join(map(str, missing[:10]))}{' ...' if len(missing) > 10 else ''}; trust one at least of each"
            " (--data.trusted), or choose another estimator."
        )


def trusted_rows(moments: Tensor, pseudo_counts: float) -> Tensor:
    """Return T-hat of :func:`trusted_transition` from :func:`trusted_moments`.

    Args:
        moments: int64 of shape ``(..., C, 1 + 2 C)``, no class without a sample.
        pseudo_counts: As there.

    Returns:
        T-hat, ``(..., C, C)``, float64.
    """
    num_classes = moments.shape[-2]
    predicted = from_fixed(moments[..., 1 : 1 + num_classes])
    mean = predicted / predicted.sum(dim=-1, keepdim=True)
    if math.isinf(pseudo_counts):
        return mean
    observed = moments[..., 1 + num_classes :].double() + pseudo_counts * mean
    return observed / observed.sum(dim=-1, keepdim=True)
