"""Wrong labels learnt by heart: how many, and what T allows to a network that has learnt none."""

from __future__ import annotations

import torch
from torch import Tensor

from noisylightning.functional.names import clean_priors
from noisylightning.functional.posterior import importance_weights
from noisylightning.transition import Transition, as_transition


def wrong_label_probability(logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition) -> Tensor:
    """``1 - p_y T[y, y] / (p T)_y``: how probable it is that a label is wrong, by Bayes' rule.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``; ``p`` is their softmax.
        noisy_labels: The labels, class indices of shape ``(N,)``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``, shape ``(C, C)``.

    Returns:
        Shape ``(N,)``, at least float32.

    Raises:
        TypeError: A dtype that is neither a score nor an index.
        ValueError: Shapes that do not go together, or a label out of range.

    Example:
        >>> T = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> wrong_label_probability(torch.zeros(2, 2), torch.tensor([0, 1]), T)
        tensor([0.2727, 0.2222])
    """
    transition = as_transition(transition, copy=False)
    ratio = importance_weights(logits, noisy_labels, transition)
    kept = transition.label_columns(noisy_labels).gather(1, noisy_labels[:, None])[:, 0].to(ratio.dtype)
    right = torch.where(kept > 0, ratio * kept, 0)  # a label that T calls impossible is wrong
    return (1 - right).clamp(0, 1)  # rounding


def expected_wrong_labels(transition: Tensor, noisy_counts: Tensor) -> Tensor:
    r"""How many labels are wrong by T alone: :math:`N \sum_i \pi_i (1 - T_{ii})`.

    Args:
        transition: T, row-stochastic, shape ``(C, C)``.
        noisy_counts: How many samples carry each label, shape ``(C,)``; they tell the shares of the classes, see
            :func:`~noisylightning.functional.clean_priors`.

    Returns:
        A scalar, float64.

    Example:
        >>> expected_wrong_labels(torch.tensor([[0.9, 0.1], [0.0, 1.0]]), torch.tensor([45, 55]))
        tensor(5.0000, dtype=torch.float64)
    """
    wrong = 1 - transition.detach().cpu().double().diagonal()
    return noisy_counts.sum().cpu() * (clean_priors(transition, noisy_counts) * wrong).sum()


def memorised_share(wrong: Tensor, transition: Tensor, noisy_counts: Tensor) -> Tensor:
    r"""Share of the wrong labels that a network no longer takes for wrong: :math:`1 - \sum_n w_n / N_{wrong}`.

    :math:`w_n` is :func:`wrong_label_probability` by the network's own posteriors, and their sum the number of wrong
    labels that it sees; :func:`expected_wrong_labels` is how many there are by T. A network whose posterior is
    p(clean | x) sees them all, in the mean: :math:`\sum_y (p T)_y w_y = 1 - \sum_i p_i T_{ii}`. One that gives every
    sample the class of its label sees none. So nothing but T is needed as reference.

    Args:
        wrong: The sum of :math:`w_n` over samples, a scalar.
        transition: T, row-stochastic, shape ``(C, C)``.
        noisy_counts: How many of these samples carry each label, shape ``(C,)``.

    Returns:
        A scalar, float64; by chance it may lie a little below 0. NaN where no label is wrong by T.

    Example:
        >>> memorised_share(torch.tensor(4.0), torch.tensor([[0.9, 0.1], [0.0, 1.0]]), torch.tensor([45, 55]))
        tensor(0.2000, dtype=torch.float64)
    """
    expected = expected_wrong_labels(transition, noisy_counts)
    return torch.where(expected > 0, 1 - wrong.cpu().double() / expected, torch.nan)


def accuracy_ceiling(transition: Tensor, noisy_counts: Tensor) -> Tensor:
    r"""The accuracy on noisy labels of a network that knows the clean class: :math:`\sum_i \pi_i \max_j T_{ij}`.

    The most that one can reach in the mean who knows of a sample its class and T, but not its label.

    Args:
        transition: T, row-stochastic, shape ``(C, C)``.
        noisy_counts: How many samples carry each label, shape ``(C,)``, or their shares.

    Returns:
        A scalar, float64.

    Example:
        >>> accuracy_ceiling(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([65, 35]))
        tensor(0.7500, dtype=torch.float64)
    """
    return (clean_priors(transition, noisy_counts) * transition.detach().cpu().double().amax(dim=1)).sum()


def loss_floor(transition: Tensor, noisy_counts: Tensor) -> Tensor:
    r"""The loss of a network that knows the clean class: :math:`-\sum_i \pi_i \sum_j T_{ij} \log T_{ij}`.

    Of cross-entropy, plain or corrected forward, the least that one can reach in the mean who knows of a sample its
    class and T, but not its label.

    Args:
        transition: T, row-stochastic, shape ``(C, C)``.
        noisy_counts: How many samples carry each label, shape ``(C,)``, or their shares.

    Returns:
        A scalar, float64.

    Example:
        >>> loss_floor(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([25, 75]))
        tensor(0.3466, dtype=torch.float64)
    """
    dense = transition.detach().cpu().double()
    return -(clean_priors(transition, noisy_counts) * torch.special.xlogy(dense, dense).sum(dim=1)).sum()
