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
_SUREST = (1 / 8, 1 / 4, 1 / 2)
_LEAST = 1e-12  # share of a class in a mixture: below it numbers become slow, and matter no more


@dataclass(frozen=True)
class ClassConditionalTest:
    """What :func:`class_conditional_test` finds.

    Attributes:
        p_value: Twice the smaller of the two that follow, at most 1.
        of_mixtures: Probability of a statistic at least as large if noise depends on the class alone.
        of_accuracy: Probability of a surplus at least as large if noise depends on the class alone.
        statistic: Twice the log-likelihood that free histograms of labels gain on mixtures of T's rows.
        expected: Its mean if noise depends on the class alone.
        surplus: By how many standard errors the accuracy of the surest samples, by their labels and T, is above one.
        num_groups: Number of groups of samples that look alike.
    """

    p_value: float
    of_mixtures: float
    of_accuracy: float
    statistic: float
    expected: float
    surplus: float
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

    Two things are tested, each at half the level, neither of which takes the network's word for the class of a sample,
    so that its mistakes are no evidence against T.

    - Mixtures. Samples predicted alike are parted into groups that look alike, by k-means of the features. Whatever
      share :math:`\pi_{gi}` of group g is truly of class i, its labels have the distribution :math:`\pi_g T`, a point
      in the convex hull of T's rows. The statistic is twice the log-likelihood ratio of the groups' own histograms
      :math:`h_g` and the best mixtures, :math:`2 \sum_g \min_{\pi_g} N_g\, KL(h_g \| \pi_g T)`.
    - Accuracy. By labels and T the accuracy of any set of samples is the mean of :math:`(T^{-1})_{y \hat y}`, and no
      set's can be above one. Where samples that are easy to tell are labelled better than the rest of their class, that
      of the samples that the network is surest of is. The statistic is the largest of its excesses over one, in
      standard errors, for the surest eighth, quarter, half and all.

    Both distributions are simulated: T varies by its standard errors; the labels of a group are drawn from the mixture,
    of three that are likely, under which its ratio is largest, those of predictions as if all were right.

    Groups do not depend on labels as long as the network has not seen them: pass held-out samples.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``, of a network trained with T.
        noisy_labels: Labels that it was not trained on, integers of shape ``(N,)``.
        features: What its last layer reads, shape ``(N, D)``.
        transition: T, ``(C, C)``.
        standard_error: That of each entry of T-hat, ``(C, C)``; none where T is known.
        group_size: Mean number of samples in a group.
        replicates: Number of simulations B; no p-value is below ``2 / (B + 1)``.
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
        >>> class_conditional_test(logits, noisy, features, T).p_value > 0.05
        True
        >>> noisy[features[:, 0] < 0] = 0  # a part of class 0 has no wrong label
        >>> class_conditional_test(logits, noisy, features, T).p_value
        0.01
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
        return ClassConditionalTest(0.0, 0.0, 1.0, torch.inf, 0.0, 0.0, len(counts))  # a label that no class has
    random = np.random.default_rng(seed)
    drawn = torch.from_numpy(_vary(T, standard_error, replicates, random))
    null = _null(_sums(groups, clean_log_posterior(logits, labels, T).exp().nan_to_num(0.0)), sizes, drawn, T, random)
    statistic = mixture_excess(counts, T).sum()
    of_mixtures = (1 + int((null >= statistic).sum())) / (1 + replicates)
    surplus, null_surplus = _surplus(logits, labels, T, drawn, random)
    of_accuracy = (1 + int((null_surplus >= surplus).sum())) / (1 + replicates)
    p_value = min(1.0, 2 * min(of_mixtures, of_accuracy))
    return ClassConditionalTest(
        p_value, of_mixtures, of_accuracy, float(statistic), float(null.mean()), float(surplus), len(counts)
    )


def _surplus(
    logits: Tensor, labels: Tensor, transition: Tensor, drawn: Tensor, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return by how many standard errors the accuracy of the surest samples is above one, and simulations ``(B,)``.

    Of the surest eighth, quarter, half and all of them the largest. The simulated network is always right.
    """
    inverse, singular = torch.linalg.inv_ex(transition)
    if int(singular):
        return torch.tensor(0.0), torch.zeros(len(drawn))
    num, num_classes = logits.shape
    sureness, predicted = logits.log_softmax(dim=1).max(dim=1)
    rank = sureness.argsort(descending=True, stable=True).argsort()
    block = sum((rank >= num * share).long() for share in _SUREST)
    cell = (block * num_classes + predicted) * num_classes + labels
    shape = len(_SUREST) + 1, num_classes, num_classes
    counts = cell.bincount(minlength=shape[0] * shape[1] * shape[2]).view(shape)
    rows = np.broadcast_to(drawn.numpy()[:, None], (len(drawn), *shape))
    simulated = torch.from_numpy(random.multinomial(counts.sum(dim=-1).numpy(), rows))

    def score(tables: Tensor) -> Tensor:
        tables = tables.double().cumsum(dim=-3)  # block, predicted, label
        sizes = tables.sum(dim=(-2, -1)).clamp_min(1)
        mean = (tables * inverse.T).sum(dim=(-2, -1)) / sizes
        square = (tables * inverse.T.square()).sum(dim=(-2, -1)) / sizes
        error = ((square - mean.square()).clamp_min(_LEAST) / sizes).sqrt()
        return ((mean - 1) / error).amax(dim=-1)

    return score(counts), score(simulated)


def _null(mixture: Tensor, sizes: Tensor, drawn: Tensor, transition: Tensor, random: np.random.Generator) -> Tensor:
    """Simulate the statistic, ``(B,)``: of each group with the classes' shares under which its excess is the largest.

    A network may be less sure than it is right, and purer groups have larger excesses; but in a group of one class
    alone there are not the few samples of others whose labels are at odds with any share. So three are tried.
    """
    excesses = []
    for shares in (mixture, mixture**2, mixture == mixture.amax(dim=1, keepdim=True)):
        labels = ((shares / shares.sum(dim=1, keepdim=True)).to(drawn) @ drawn).numpy()
        counts = random.multinomial(sizes.flatten().long().numpy(), labels / labels.sum(axis=-1, keepdims=True))
        excesses.append(mixture_excess(torch.from_numpy(counts).double(), transition))
    found = torch.stack(excesses, dim=-1)  # (B, G, 3)
    largest = found.mean(dim=0).argmax(dim=-1)
    return found.gather(-1, largest.expand(len(found), -1)[..., None]).sum(dim=(1, 2))


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


def _vary(
    transition: Tensor, standard_error: Tensor | None, replicates: int, random: np.random.Generator
) -> np.ndarray:
    """Draw T's around T-hat, ``(B, C, C)``: gamma variables of its mean and deviation, rows divided by their sums."""
    mean = np.tile(transition.numpy(), (replicates, 1, 1))
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
