"""What the network and T together say about a sample whose noisy label is known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisylightning.errors import BadType
from noisylightning.functional.checks import check_inputs, mask_ignored
from noisylightning.functional.forward import label_log_likelihood, noisy_log_posterior
from noisylightning.kernels.cross_entropy import LARGEST_EXPONENT, exact_log_likelihood
from noisylightning.tensors import class_last, log_softmax, pick
from noisylightning.transition import Transition, as_transition


def clean_log_posterior(
    logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition | str | Path, *, ignore_index: int = -100
) -> Tensor:
    """``log p(clean = j | x, noisy = y) = log p_j + log T[j, y] - log (p T)_y``, exact where these underflow.

    Bayes' rule, with p as the prior and T as the likelihood. The entry at the noisy label is the logarithm of the
    probability that the label is right.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``; ``p`` is their softmax.
        noisy_labels: Class indices, shape ``(N, d1, ...)``.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, a file's path or
            a :class:`~noisylightning.transition.Transition`.
        ignore_index: Entries with this index have no label, and get ``log p``.

    Returns:
        Shape ``(N, C, d1, ...)``, at least float32; NaN for a label that T calls impossible, whose column is zero.

    Raises:
        TypeError: A dtype that is neither a score nor an index.
        ValueError: Shapes that do not go together, or a label out of range.

    Example:
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> clean_log_posterior(torch.zeros(2, 2), torch.tensor([0, 1]), transition).exp()
        tensor([[0.7273, 0.2727],
                [0.2222, 0.7778]])
    """
    transition = as_transition(transition, copy=False)
    if noisy_labels.is_floating_point():
        raise BadType(f"noisy_labels must be int64 class indices, got {noisy_labels.dtype}: which label was observed.")
    check_inputs(logits, noisy_labels)
    transition.check_logits(logits)
    labels, mask = mask_ignored(noisy_labels, logits.shape[1], ignore_index)
    log_p = log_softmax(class_last(logits))
    column = transition.label_columns(labels.flatten()).to(log_p.dtype)
    possible = column > 0
    with torch.no_grad():  # the shift cancels, so it needs no gradient
        shift = torch.where(possible, log_p, -torch.inf).amax(1, keepdim=True)
        shift = shift.masked_fill(shift == -torch.inf, 0)
    joint = torch.where(possible, log_p - shift, -torch.inf) + torch.where(possible, column, 1).log()
    posterior = joint - exact_log_likelihood(log_p - shift, column).unsqueeze(1)
    if mask is not None:
        posterior = torch.where(mask.view(-1, 1), posterior, log_p)
    if logits.ndim == 2:
        return posterior
    return posterior.unflatten(0, labels.shape).movedim(-1, 1)


def importance_weights(
    logits: Tensor, labels: Tensor, transition: Tensor | Transition | str | Path, *, ignore_index: int = -100
) -> Tensor:
    """``p_y / (p T)_y``: by how much the label's probability is larger without the noise than with it.

    Liu and Tao (2016): weighted by it, the losses on noisy labels have the mean of those on clean ones. At most
    ``1 / T[y, y]``; for a T that never keeps the label it may overflow, and is held at ``e^80``.

    Args:
        logits: Scores, shape ``(N, C, d1, ...)``; ``p`` is their softmax.
        labels: Noisy labels: class indices ``(N, d1, ...)``, or probabilities, shaped as ``logits``: then the ratio of
            every label.
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, a file's path or
            a :class:`~noisylightning.transition.Transition`.
        ignore_index: Class indices with this value weigh nothing.

    Returns:
        Shape of ``labels``, at least float32.

    Raises:
        TypeError: A dtype that is neither a score, an index nor a probability.
        ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.

    Example:
        >>> transition = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
        >>> importance_weights(torch.zeros(2, 2), torch.tensor([0, 1]), transition)
        tensor([0.9091, 1.1111])
    """
    transition = as_transition(transition, copy=False)
    check_inputs(logits, labels)
    transition.check_logits(logits)
    labels, mask = mask_ignored(labels, logits.shape[1], ignore_index)
    ratio = importance_ratio(logits, log_softmax(logits), labels, transition)
    return ratio if mask is None else ratio.masked_fill(~mask, 0)


def importance_ratio(logits: Tensor, log_p: Tensor, labels: Tensor, transition: Transition) -> Tensor:
    """:func:`importance_weights` of labels that have been checked, with ``log p`` at hand."""
    if labels.is_floating_point():
        log_ratio = log_p - noisy_log_posterior(logits, transition)
    else:
        log_ratio = pick(log_p, labels) - label_log_likelihood(logits, labels, transition)
    return log_ratio.clamp(max=LARGEST_EXPONENT).exp()
