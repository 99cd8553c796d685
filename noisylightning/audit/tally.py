"""An audit, and what is kept of each batch until it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisylightning.audit.table import AuditTable
from noisylightning.functional.audit import (
    ExpectedErrors,
    error_sums,
    expected_errors,
    judge_labels,
    label_posterior,
)
from noisylightning.functional.clean_accuracy import Estimate
from noisylightning.transition import Transition


@dataclass(frozen=True, eq=False)
class Audit:
    """What is found out about the labels of a data set.

    Attributes:
        table: How probably each is wrong.
        errors: How many are, in all and for each pair of classes, with intervals.
        level: Probability that the intervals are to cover.
        with_transition_error: Whether they cover the standard errors of T-hat.
        held_out: Whether every sample was judged by a network that was trained without it.
        clean_accuracy: If so, the accuracy on clean labels of the networks that judged; None where it does not follow
            from noisy labels, T being singular or of the sample.
    """

    table: AuditTable
    errors: ExpectedErrors
    level: float
    with_transition_error: bool
    held_out: bool
    clean_accuracy: Estimate | None = None

    @property
    def covers(self) -> str:
        """What the intervals cover, in words."""
        of_transition = " and for the sampling error of T-hat" if self.with_transition_error else ""
        return (
            f"{100 * self.level:g} % for which labels happen to be wrong, given p(clean | x) and T{of_transition};"
            " not for errors of the network, nor for noise that depends on more than the class"
        )

    @property
    def labels_checksum(self) -> str:
        """SHA-256 of the given labels in the order of index, as little-endian 64-bit integers."""
        return hashlib.sha256(self.table.noisy_labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()


class Tally:
    """Takes batches of predictions; memory is that of a few numbers a sample and a few tables of ``(C, C)``.

    Args:
        num_classes: Number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.sums = torch.zeros(3, num_classes, num_classes, dtype=torch.long)
        self._parts: list[dict[str, Tensor]] = []

    def add(self, logits: Tensor, noisy_labels: Tensor, index: Tensor, transition: Transition) -> None:
        """Take a batch.

        Args:
            logits: Scores of the clean classes, shape ``(N, C)``.
            noisy_labels: The given labels, shape ``(N,)``.
            index: Places in the training data, shape ``(N,)``.
            transition: T of these samples.

        Raises:
            ValueError: As :func:`~noisylightning.functional.label_posterior` does.
        """
        posterior = label_posterior(logits, noisy_labels, transition)
        self.sums += error_sums(posterior, noisy_labels).to(self.sums.device)
        columns = {"index": index, "noisy_labels": noisy_labels, **judge_labels(posterior, noisy_labels)._asdict()}
        self._parts.append({name: column.cpu() for name, column in columns.items()})

    @property
    def columns(self) -> dict[str, Tensor]:
        """The columns of the table, so far, in the order in which batches came."""
        return {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}


def conclude(
    columns: dict[str, Tensor],
    sums: Tensor,
    transition: Tensor | None = None,
    standard_error: Tensor | None = None,
    level: float = 0.95,
    held_out: bool = False,
    class_names: Sequence[str] | None = None,
    samples: Sequence[str] | None = None,
) -> Audit:
    """Make the audit of what tallies have taken.

    Args:
        columns: Of all samples, in the order of index.
        sums: Of all samples.
        transition: T written out, ``(C, C)``, where there are standard errors.
        standard_error: That of each entry of T-hat; None for none.
        level: Probability that the intervals are to cover.
        held_out: Whether every sample was judged by a network that was trained without it.
        class_names: The C names; by default the numbers.
        samples: File name or text of each sample, in the order of index.

    Returns:
        The audit.
    """
    names = range(sums.shape[1]) if class_names is None else class_names
    table = AuditTable(
        **columns,
        class_names=tuple(map(str, names)),
        samples=None if samples is None else tuple(samples),
    )
    errors = expected_errors(sums, transition, standard_error, level)
    return Audit(table, errors, level, standard_error is not None, held_out)
