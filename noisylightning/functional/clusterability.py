"""T from samples whose nearest neighbours share their class: clusterability (Zhu et al., ICML 2021)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.label_mixture import LabelMixture, start_of
from noisylightning.functional.names import name_rows
from noisylightning.functional.neighbours import approximate_where_large, nearest_neighbours
from noisylightning.functional.probabilities import check_every_class, check_noisy_labels

_BLOCK = 2**20  # entries of a table of samples and classes at a time
_SHARES = (1.0, 0.5, 0.25, 0.125)
_STARTS = 3
_MISMATCH_STEPS = 50


@dataclass(frozen=True)
class Clusters:
    """What :func:`clusterability` found, about T and about itself.

    Args:
        mixture: The fit to the triples' labels; its table 0 is T-hat, its rows named.
        mismatch: Share of the samples, of all that were looked at, whose nearest neighbour is of another class, as far
            as the labels show it through T-hat: too low by up to a half where features are poor, and too high by about
            ``noise`` where samples are few.
        share: The share of the triples that were used, those whose surroundings are purest.
        tuples: The labels of these, and the class of their surroundings, ``(n, 4)``.
        places: Where in the data the sample in the middle of each is, ``(n,)``.
        overlap: By how much sharing samples between triples multiplies variances.
    """

    mixture: LabelMixture
    mismatch: float
    share: float
    tuples: Tensor
    places: Tensor
    overlap: float

    @property
    def transition(self) -> Tensor:
        """T-hat, ``(C, C)``, float64."""
        return self.mixture.tables[0]

    @property
    def noise(self) -> float:
        """The relative L1 error that chance alone leaves in a T counted from as many labels, each counted once."""
        labels = 3 * len(self.tuples) / self.overlap * self.mixture.prior[:, None]
        table = (labels * self.transition + 1) / (labels + len(labels))  # what was not seen is not impossible
        return float((table * (1 - table) / labels.clamp_min(1)).sqrt().sum()) * math.sqrt(2 / math.pi) / len(labels)

    def replicated(self, weights: Tensor) -> Tensor:
        """Fit anew, from this fit, to each of B weightings of the triples.

        Args:
            weights: How often each triple counts, shape ``(n, B)``.

        Returns:
            T-hat of each, ``(B, C, C)``, as far from this T-hat as if triples shared no samples.
        """
        fits = [self.mixture.fit(*_counted(self.tuples, weight)).tables[0] for weight in weights.unbind(dim=1)]
        return self.transition + math.sqrt(self.overlap) * (torch.stack(fits) - self.transition)


def clusterability(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    groups: Tensor | None = None,
    neighbours: int = 30,
    share: float | None = None,
    queries: int = 2**16,
    approximate: bool | None = None,
    seed: int = 0,
) -> Clusters:
    r"""Estimate T from features, in three steps.

    1. *Triples.* A sample and its two nearest neighbours share their clean class, mostly; then their three noisy labels
       are independent draws from one row of T (Zhu et al., ICML 2021): :math:`P(a, b, c) = \sum_i p_i T_{ia} T_{ib}
       T_{ic}`. The paper fits moments of order one to three; here it is maximum likelihood, by expectation
       maximisation, which takes a hundredth of the time and no :math:`C^3` tensor.
    2. *Surroundings.* Where neighbours are of other classes T-hat is too even. Noise that depends on the class alone
       falls on each sample by itself: a choice of triples by the labels of the *other* neighbours, the third to the
       last, does not bias T. Their likelihood under each row of T-hat says which class i the surroundings are of, and
       how much likelier they are all of i than half of i, half of another. In each class the surest triples are kept.
    3. *Fit.* The kept triples are fitted anew, with the class of their surroundings as one more annotator, who has a
       confusion matrix of his own.

    Rows are known up to their order; they are named by the largest product of the diagonal.

    Args:
        features: Shape ``(N, D)``, floating.
        labels: Noisy labels, integers of shape ``(N,)``.
        num_classes: The number of classes C.
        groups: Neighbours are sought within the group alone, as in
            :func:`~noisylightning.functional.neighbours.nearest_neighbours`.
        neighbours: How many nearest neighbours are looked at, at least 3.
        share: The share of the triples to keep, in (0, 1]; where it is left out, of 1, 1/2, 1/4 and 1/8 the largest
            whose T-hat differs from those of all smaller ones by no more than chance (Lepski 1990).
        queries: How many samples at most are the middle of a triple, drawn at random; their neighbours are sought
            among all samples.
        approximate: Whether neighbours may be approximate, as in
            :func:`~noisylightning.functional.neighbours.nearest_neighbours`; where it is left out, they may among more
            than 2^18 samples on the processor, if faiss is installed.
        seed: Seed of that draw, and of the fit's starts.

    Returns:
        T-hat and what goes with it.

    Raises:
        TypeError: If features or labels are of the wrong dtype.
        ValueError: If a shape or a value is out of bounds, a class has no label, there are too few samples, features
            are the same for all samples or not finite, or a fit does not converge.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> clean = torch.arange(3000) % 3
        >>> features = 4 * torch.eye(3)[clean] + torch.randn(3000, 3, generator=generator)
        >>> transition = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.7, 0.3], [0.1, 0.0, 0.9]])
        >>> noisy = torch.multinomial(transition[clean], 1, generator=generator).flatten()
        >>> found = clusterability(features, noisy, num_classes=3)
        >>> bool((found.transition - transition).abs().max() < 0.06)
        True
    """
    check_noisy_labels(labels, len(features), num_classes)
    check_every_class(torch.bincount(labels, minlength=num_classes))
    if neighbours < 3:
        raise BadValue(f"neighbours must be at least 3, of which two make a triple, got {neighbours}.")
    if share is not None and not 0 < share <= 1:
        raise BadValue(f"share must be None or in (0, 1], got {share}.")
    if queries < 1:
        raise BadValue(f"queries must be at least 1, got {queries}.")
    middle = torch.arange(len(features))
    if len(features) > queries:
        middle = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:queries].sort().values
    if approximate is None:
        approximate = approximate_where_large(features, groups)
    near = nearest_neighbours(features, neighbours, middle.to(features.device), groups, approximate).cpu()
    labels = labels.cpu()
    triples = torch.cat([middle[:, None], near[:, :2]], dim=1)

    drawn = [seed + i for i in range(1, _STARTS)]
    counted = _counted(labels[triples], torch.ones(len(triples)))
    fits = [start_of(num_classes, (0, 0, 0), start).fit(*counted) for start in (None, *drawn)]
    first = max(fits, key=lambda fit: fit.log_likelihood)

    surroundings, purity = _surroundings(labels[near[:, 2:]], first)
    tuples = torch.cat([labels[triples], surroundings[:, None]], dim=1)
    found: list[Clusters] = []
    for asked in _SHARES[::-1] if share is None else (share,):
        kept = _purest(surroundings, purity, asked)
        fit = _with_surroundings(first).fit(*_counted(tuples[kept], torch.ones(len(kept))))
        times = torch.bincount(triples[kept].flatten()).double()
        overlap = float(times.square().sum() / times.sum())
        now = Clusters(fit, 0.0, asked, tuples[kept], middle[kept], overlap)
        if not all(_agree(now, before) for before in found):
            break
        found.append(now)
    best = found[-1]
    named = _named(best.mixture)
    return replace(best, mixture=named, mismatch=_mismatch(labels[triples[:, :2]], named))


def _counted(tuples: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different tuples, and their weights."""
    different, which = tuples.unique(dim=0, return_inverse=True)
    return different, torch.zeros(len(different), dtype=torch.float64).index_add_(0, which, weights.double())


def _named(mixture: LabelMixture) -> LabelMixture:
    """Put the classes into the order in which the product of the diagonal is largest."""
    order = name_rows(mixture.tables[0])
    return replace(mixture, prior=mixture.prior[order], tables=mixture.tables[:, order])


def _smooth(tables: Tensor) -> Tensor:
    """Return tables without a zero."""
    return 0.99 * tables + 0.01 / tables.shape[-1]


def _with_surroundings(mixture: LabelMixture) -> LabelMixture:
    """Add an annotator to start from, one who is mostly right."""
    classes = len(mixture.prior)
    right = _smooth(torch.eye(classes, dtype=torch.float64))
    tables = torch.stack([_smooth(mixture.tables[0]), right])
    return LabelMixture(_smooth(mixture.prior), tables, (0, 0, 0, 1))


def _surroundings(labels: Tensor, mixture: LabelMixture) -> tuple[Tensor, Tensor]:
    """Say which class the surroundings are of, and how sure it is that they are of no other.

    Args:
        labels: Those of the surroundings, ``(Q, K)``.
        mixture: The fit to the triples.

    Returns:
        The class, ``(Q,)``, and the logarithm of the odds of "all of it" to "half of it, half of another", ``(Q,)``.
    """
    columns = _smooth(mixture.tables[0]).t().contiguous()
    log_columns, log_prior = columns.log(), _smooth(mixture.prior).log()
    classes, odds = [], []
    for part in labels.split(max(1, _BLOCK // len(columns))):
        pure = sum((log_columns[label] for label in part.unbind(dim=1)), torch.zeros(()))
        own = (pure + log_prior).argmax(dim=1, keepdim=True)
        mixed = torch.zeros_like(pure)
        for label in part.unbind(dim=1):
            column = columns[label]
            mixed += ((column + column.gather(1, own)) / 2).log()
        mixed.scatter_(1, own, -torch.inf)
        classes.append(own.flatten())
        odds.append(pure.gather(1, own).flatten() - mixed.logsumexp(dim=1))
    return torch.cat(classes), torch.cat(odds)


def _purest(surroundings: Tensor, purity: Tensor, share: float) -> Tensor:
    """Return the places of the purest share of each class, in order."""
    order = purity.argsort(descending=True, stable=True)
    kept = []
    for i in surroundings.unique():
        of_class = order[surroundings[order] == i]
        kept.append(of_class[: math.ceil(share * len(of_class))])
    return torch.cat(kept).sort().values


def _agree(larger: Clusters, smaller: Clusters) -> bool:
    """Whether two T-hat differ by no more than the smaller's chance error, its triples being part of the larger's."""
    difference = (larger.transition - smaller.transition).abs().sum() / len(smaller.transition)
    return float(difference) <= smaller.noise


def _mismatch(pairs: Tensor, mixture: LabelMixture) -> float:
    """The share of pairs of two classes: expectation maximisation of the pairs' joint distribution, T being known."""
    table, prior = _smooth(mixture.tables[0]), _smooth(mixture.prior)
    seen = torch.zeros_like(table).index_put_(tuple(pairs.t()), table.new_ones(len(pairs)), accumulate=True) / len(
        pairs
    )
    joint = 0.9 * prior.diag() + 0.1 * prior.outer(prior)
    for _ in range(_MISMATCH_STEPS):
        joint = joint * (table @ (seen / (table.t() @ joint @ table)) @ table.t())
    return 1 - float(joint.trace() / joint.sum())
