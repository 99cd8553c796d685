"""Whether noise depends on the class alone: the labels of samples that look alike, against one T for all of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue
from noisylightning.functional.posterior import clean_log_posterior
from noisylightning.functional.probabilities import check_noisy_labels
from noisylightning.transition import validate_transition

_LLOYD_STEPS = 25
_EM_STEPS = 100
_LEAST = 1e-12  # share of a class in a mixture: below it numbers become slow, and matter no more


@dataclass(frozen=True)
class ClassConditionalTest:
    """What :func:`class_conditional_test` finds.

    Attributes:
        p_value: Probability of a statistic at least as large if noise depends on the class alone.
        statistic: Twice the log-likelihood that free histograms of labels gain on mixtures of T's rows.
        expected: Its mean if noise depends on the class alone.
        num_groups: Number of groups of samples that look alike.
    """

    p_value: float
    statistic: float
    expected: float
    num_groups: int


def class_conditional_test(
    logits: Tensor,
    noisy_labels: Tensor,
    features: Tensor,
    transition: Tensor,
    standard_error: Tensor | None = None,
    group_size: int = 100,
    replicates: int = 199,
    seed: int = 0,
) -> ClassConditionalTest:
    r"""Test whether noisy labels depend on the features only through the clean class, by one T.

    Samples that are predicted alike are parted into groups that look alike (k-means of the features). Whatever share
    :math:`\pi_{gi}` of group g is truly of class i, its labels then have the distribution :math:`\pi_g T`, a point in
    the convex hull of T's rows. The statistic is twice the log-likelihood ratio of the groups' own histograms and of
    the best mixtures, :math:`2 \sum_g \min_{\pi_g} N_g\, KL(h_g \| \pi_g T)`: no :math:`\pi` is taken from the network,
    so that its mistakes are no evidence against T. Its distribution under the assumption is simulated: T varies by its
    standard errors, and each group's labels are drawn from its mean posterior over the classes, given x and label,
    times T. Where noise varies within a class some groups have fewer wrong labels, or others, than any mixture allows.

    Groups do not depend on labels as long as the network has not seen them: pass held-out samples.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``, of a network trained with T.
        noisy_labels: Labels that it was not trained on, integers of shape ``(N,)``.
        features: What its last layer reads, shape ``(N, D)``.
        transition: T, ``(C, C)``.
        standard_error: That of each entry of T-hat, ``(C, C)``; none where T is known.
        group_size: Mean number of samples in a group.
        replicates: Number of simulations B; no p-value is below ``1 / (B + 1)``.
        seed: Of the groups and of the simulations.

    Returns:
        The p-value and what it comes from.

    Raises:
        TypeError: If the features are not floating point.
        ValueError: If shapes do not go together, a value is not finite, T is none, or no class that is predicted has
            samples for two groups.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.arange(4000) % 2
        >>> features = torch.randn(4000, 3, generator=generator) + 6 * clean[:, None]
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> noisy = torch.multinomial(T[clean], 1, generator=generator).flatten()
        >>> logits = 9.0 * torch.nn.functional.one_hot(clean)
        >>> round(class_conditional_test(logits, noisy, features, T).p_value, 1)
        0.5
        >>> noisy[features[:, 0] < 0] = 0  # a part of class 0 has no wrong label
        >>> class_conditional_test(logits, noisy, features, T).p_value
        0.005
    """
    num_classes = logits.shape[-1]
    validate_transition(transition, num_classes)
    check_noisy_labels(noisy_labels, len(logits), num_classes)
    _check_features(features, len(logits))
    for name, value in (("group_size", group_size), ("replicates", replicates)):
        if value < 1:
            raise BadValue(f"{name} must be at least 1, got {value}.")
    T = transition.detach().cpu().double()
    T = T / T.sum(dim=1, keepdim=True)
    logits, labels = logits.detach().cpu().double(), noisy_labels.cpu().long()
    predicted = logits.argmax(dim=1)
    if not (predicted.bincount() >= 2 * group_size).any():
        raise BadValue(
            f"{len(logits)} samples of {num_classes} classes leave no class two groups of {group_size} that look alike:"
            " give more samples, or a smaller group_size."
        )
    groups = group_alike(features, predicted, group_size, seed)
    counts = _sums(groups, torch.nn.functional.one_hot(labels, num_classes).double())
    sizes = counts.sum(dim=1, keepdim=True)
    if (T.sum(dim=0)[labels] == 0).any():
        return ClassConditionalTest(0.0, torch.inf, 0.0, len(counts))  # a label that no class has
    mixture = _sums(groups, clean_log_posterior(logits, labels, T).exp().nan_to_num(0.0)) / sizes
    mixture = mixture / mixture.sum(dim=1, keepdim=True)
    random = np.random.default_rng(seed)
    drawn = torch.from_numpy(_vary(T, standard_error, replicates, random))
    shares = (mixture @ drawn).numpy()
    simulated = random.multinomial(sizes.flatten().long().numpy(), shares / shares.sum(axis=-1, keepdims=True))
    null = mixture_excess(torch.from_numpy(simulated).double(), T).sum(dim=1)
    statistic = mixture_excess(counts, T).sum()
    p_value = (1 + int((null >= statistic).sum())) / (1 + replicates)
    return ClassConditionalTest(p_value, float(statistic), float(null.mean()), len(counts))


def mixture_excess(counts: Tensor, transition: Tensor) -> Tensor:
    r"""Twice the log-likelihood by which histograms gain on the best mixture of T's rows, by expectation maximisation.

    Args:
        counts: Number of samples with each label, float64 of shape ``(..., C)``.
        transition: T, float64 of shape ``(C, C)``, with no column of zeros whose label is counted.

    Returns:
        :math:`2 N \min_\pi KL(h \| \pi T)`, shape ``(...)``: zero where the histogram h is a mixture.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64)
        >>> mixture_excess(torch.tensor([[50.0, 50.0], [100.0, 0.0]], dtype=torch.float64), T)
        tensor([ 0.0000, 44.6287], dtype=torch.float64)
    """
    totals = counts.sum(dim=-1, keepdim=True).clamp_min(1)
    mixture = torch.full_like(counts, 1 / len(transition))
    for _ in range(_EM_STEPS):
        weights = torch.where(counts > 0, counts / (mixture @ transition), 0)
        mixture = (mixture * (weights @ transition.T) / totals).clamp_min(_LEAST)
    mixed = torch.special.xlogy(counts, mixture @ transition)
    return 2 * (torch.special.xlogy(counts, counts / totals) - mixed).sum(dim=-1).clamp_min(0)


def group_alike(features: Tensor, classes: Tensor, group_size: int, seed: int = 0) -> Tensor:
    """Part the samples of each class into groups that look alike: k-means of the features.

    Args:
        features: Shape ``(N, D)``, floating.
        classes: The class that each sample is predicted to be of, shape ``(N,)``.
        group_size: Mean number of samples in a group; a class with fewer is one group.
        seed: Of the first centres.

    Returns:
        Numbers from 0 to G - 1, int64 of shape ``(N,)``; no group spans two classes, and none is empty.

    Example:
        >>> features = torch.tensor([[0.0], [5.0], [0.1], [5.1]])
        >>> group_alike(features, torch.zeros(4, dtype=torch.long), group_size=2)
        tensor([0, 1, 0, 1])
    """
    generator = torch.Generator().manual_seed(seed)
    features, classes = features.detach().cpu().float(), classes.cpu()
    groups, num = torch.empty(len(features), dtype=torch.long), 0
    for members in (classes == label for label in classes.unique()):
        wanted = max(1, int(members.sum()) // group_size)
        groups[members] = num + _k_means(features[members], wanted, generator)
        num += wanted
    return groups.unique(return_inverse=True)[1]


def _k_means(points: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random points; an empty group keeps its centre."""
    centres = points[torch.randperm(len(points), generator=generator)[:num]]
    nearest = torch.zeros(len(points), dtype=torch.long)
    for _ in range(_LLOYD_STEPS if num > 1 else 0):
        before, nearest = nearest, torch.cdist(points, centres).argmin(dim=1)
        if nearest.equal(before):
            break
        sizes = nearest.bincount(minlength=num)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return nearest


def _sums(groups: Tensor, rows: Tensor) -> Tensor:
    return rows.new_zeros(int(groups.max()) + 1, rows.shape[1]).index_add_(0, groups, rows)


def _vary(transition: Tensor, standard_error: Tensor | None, replicates: int, random: np.random.Generator) -> np.ndarray:
    """Draw T's around T-hat, ``(B, C, C)``: gamma variables of its mean and deviation, rows divided by their sums."""
    mean = np.broadcast_to(transition.numpy(), (replicates, *transition.shape))
    if standard_error is None:
        return mean
    if standard_error.shape != transition.shape:
        raise BadValue(
            f"the standard error of a T of shape {tuple(transition.shape)} has its shape, got"
            f" {tuple(standard_error.shape)}."
        )
    variance = np.square(standard_error.detach().cpu().double().numpy())
    varies = (variance > 0) & (transition.numpy() > 0)
    scale = np.where(varies, variance / np.where(varies, transition.numpy(), 1), 1)
    drawn = np.where(varies, random.gamma(mean / scale) * scale, mean)
    return drawn / drawn.sum(axis=-1, keepdims=True)


def _check_features(features: Tensor, num: int) -> None:
    if not features.is_floating_point():
        raise BadType(f"features must be floating point, got {features.dtype}: convert them.")
    if features.ndim != 2 or len(features) != num:
        raise BadValue(f"features of {num} samples must be of shape ({num}, D), got {tuple(features.shape)}.")
    if not features.isfinite().all():
        row = int((~features.isfinite()).any(dim=1).nonzero()[0])
        raise BadValue(f"features must be finite, but row {row} holds NaN or infinity: leave out that sample.")
