"""What the answers of several annotators say of the right labels, and of the annotators (Dawid and Skene 1979)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from noisylightning.errors import BadType, BadValue, NotReady


@dataclass(frozen=True)
class DawidSkene:
    """What :func:`dawid_skene` has found out, in float64 on the CPU.

    Attributes:
        soft_labels: Probability of each class given the item's answers, shape ``(N, C)``.
        annotator_transitions: T of each annotator, ``T[a, i, j] = p(a answers j | clean = i)``, ``(A, C, C)``.
        transition: T of an answer drawn at random, whoever gave it, ``(C, C)``: the mean of the annotators', each
            weighted in row i by the number of its answers to items of class i.
        prior: Share of each class, shape ``(C,)``.
        steps: Steps that it took to converge.
    """

    soft_labels: Tensor
    annotator_transitions: Tensor
    transition: Tensor
    prior: Tensor
    steps: int


def dawid_skene(
    answers: Tensor,
    num_classes: int,
    *,
    smoothing: float = 0.1,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 10_000,
) -> DawidSkene:
    r"""Estimate the labels of items, and each annotator's T, from answers alone, by expectation maximisation.

    Dawid and Skene (1979, Applied Statistics 28): given an item's class the annotators answer independently. The steps
    :math:`q_{ni} \propto \pi_i \prod_a T^a_{i, y_{na}}` (their eq. 2.5) and :math:`T^a_{ij} \propto s + \sum_{n: y_{na}
    = j} q_{ni}`, :math:`\pi_i \propto \sum_n q_{ni}` (eqs. 2.3 and 2.4) alternate, from the shares of the votes, until
    no entry of q moves by more than the tolerance. s is a Dirichlet prior's, without which annotators of few answers
    make the labels far too sure of themselves.

    Args:
        answers: Class indices, integers of shape ``(N, A)``, a row an item and a column an annotator; -1 where one gave
            no answer.
        num_classes: Number of classes C.
        smoothing: s, answers that each annotator is taken to have given beforehand to each class of items. With 0, the
            authors' maximum likelihood, a row that no answer speaks of is the crowd's average.
        weights: How often each item counts for prior and T, shape ``(N,)``; once where it is left out.
        start: Soft labels to begin with, ``(N, C)``; the shares of the votes where it is left out.
        tolerance: By how much the soft labels may still move.
        max_steps: After how many steps to give up.

    Returns:
        Soft labels, the annotators' T, their mean and the prior.

    Raises:
        TypeError: If the answers are not integers.
        ValueError: If they are no table, an answer is no class, an annotator, an item or a class has no answer, or
            ``smoothing`` is negative.
        RuntimeError: If it does not converge.

    Example:
        >>> answers = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, -1], [1, -1, 1]])
        >>> found = dawid_skene(answers, num_classes=2)
        >>> found.soft_labels.argmax(dim=1)
        tensor([0, 1, 0, 1])
        >>> found.annotator_transitions[2].round(decimals=2)  # always answers 1
        tensor([[0.0800, 0.9200],
                [0.0500, 0.9500]], dtype=torch.float64)
    """
    answers = check_answers(answers, num_classes).cpu()
    if not smoothing >= 0:
        raise BadValue(f"smoothing must be at least 0, got {smoothing}.")
    num, annotators = answers.shape
    item, annotator = (answers >= 0).nonzero().T
    cell = annotator * num_classes + answers[item, annotator]  # who answered what
    counted = torch.ones(num, 1, dtype=torch.float64) if weights is None else weights.cpu().double()[:, None]
    if start is None:
        votes = torch.zeros(num, num_classes, dtype=torch.float64)
        votes.index_put_((item, answers[item, annotator]), torch.ones((), dtype=torch.float64), accumulate=True)
        soft_labels = votes / votes.sum(dim=1, keepdim=True)
    else:
        soft_labels = start.cpu().double()

    for step in range(1, max_steps + 1):
        mass = counted * soft_labels
        prior = mass.sum(dim=0) / counted.sum()
        counts = torch.zeros(annotators * num_classes, num_classes, dtype=torch.float64).index_add(0, cell, mass[item])
        counts = counts.view(annotators, num_classes, num_classes).mT  # annotator, class, answer
        everyone = counts.sum(dim=0)
        of_class = everyone.sum(dim=1, keepdim=True)
        if not (of_class > 0).all():
            raise BadValue(
                f"No item is left to class {int(of_class.argmin())}, so that nothing says how it is answered: lower"
                " num_classes, add answers, or raise smoothing."
            )
        transition = everyone / of_class
        smoothed = counts + smoothing
        total = smoothed.sum(dim=2, keepdim=True)
        rows = torch.where(total > 0, smoothed / total, transition)
        scores = prior.log().repeat(num, 1).index_add(0, item, rows.log().mT.flatten(0, 1)[cell])
        before, soft_labels = soft_labels, scores.softmax(dim=1)
        if (soft_labels - before).abs().max() <= tolerance:
            return DawidSkene(soft_labels, rows, transition, prior, step)
    raise NotReady(
        f"The annotators' T did not converge in {max_steps} steps: raise max_steps, smoothing={smoothing} or"
        f" tolerance={tolerance}."
    )


def check_answers(answers: Tensor, num_classes: int) -> Tensor:
    """Return the answers as int64; raise unless they are a table in which every annotator, item and class occurs.

    Args:
        answers: As in :func:`dawid_skene`.
        num_classes: Number of classes C.

    Raises:
        TypeError: If the answers are not integers.
        ValueError: If they are no table, an answer is no class, or an annotator, an item or a class has none.

    Example:
        >>> check_answers(torch.tensor([[0, 1], [1, 5]]), num_classes=2)
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: Annotator 1 answers 5, but there are 2 classes, 0 to 1: ...
    """
    if answers.is_floating_point() or answers.dtype == torch.bool:
        raise BadType(f"answers must be integers, got {answers.dtype}: pass class indices, -1 where there is none.")
    if answers.ndim != 2 or 0 in answers.shape:
        raise BadValue(f"answers must be a table (N, annotators), got {tuple(answers.shape)}.")
    answers = answers.long()
    wrong = ((answers < -1) | (answers >= num_classes)).nonzero()
    if len(wrong):
        item, annotator = wrong[0].tolist()
        raise BadValue(
            f"Annotator {annotator} answers {int(answers[item, annotator])}, but there are {num_classes} classes, 0 to"
            f" {num_classes - 1}: bring the annotators to one list of classes, or correct num_classes."
        )
    given = answers >= 0
    for what, axis in (("Item", 1), ("Annotator", 0)):
        without = (~given.any(dim=axis)).nonzero().flatten().tolist()
        if without:
            raise BadValue(
                f"{what} {without[0]} has no answer{f', and {len(without) - 1} more' if without[1:] else ''}: leave"
                f" {'such rows' if axis else 'such columns'} out."
            )
    unused = (torch.bincount(answers[given], minlength=num_classes) == 0).nonzero().flatten().tolist()
    if unused:
        raise BadValue(f"No annotator ever answers {', '.join(map(str, unused[:10]))}: lower num_classes.")
    return answers
