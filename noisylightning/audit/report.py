"""An audit on the terminal."""

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from noisylightning.audit.files import pairs
from noisylightning.audit.tally import Audit

_SHOWN = 10  # pairs of classes


def print_audit(audit: Audit) -> None:
    """Print how many labels are wrong, and the pairs of classes with the most of them.

    Args:
        audit: The audit.

    Example:
        >>> import torch
        >>> from noisylightning.audit import audit_predictions
        >>> from noisylightning.predictions import Predictions
        >>> T, labels = torch.tensor([[0.8, 0.2], [0.0, 1.0]]), torch.tensor([1, 0])
        >>> print_audit(audit_predictions(Predictions(torch.zeros(2, 2), labels), T))  # doctest: +NORMALIZE_WHITESPACE
        About 0 of 2 labels are wrong (0 to 1), 8.3 %; the interval covers 95 % for which
        labels happen to be wrong, given p(clean | x) and T; not for errors of the
        network, nor for noise that depends on more than the class.
        given  is  labels  interval
        ────────────────────────────
        1      0      0.2  0 to 0.9
    """
    table, errors, console = audit.table, audit.errors, Console()

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")

    console.print(
        f"About {errors.total:,.0f} of {len(table):,} labels are wrong ({errors.low:,.0f} to {errors.high:,.0f}),"
        f" {100 * errors.total / len(table):.1f} %; the interval covers {audit.covers}.",
        highlight=False,
        markup=False,
    )
    if audit.clean_accuracy is not None:
        accuracy, (least, most) = audit.clean_accuracy.value, audit.clean_accuracy.interval(audit.level)
        console.print(
            "The networks that judged them, each trained without the samples it judged, are right on"
            f" {100 * float(accuracy):.1f} % ({100 * float(least):.1f} to {100 * float(most):.1f}) by clean labels,"
            " if T is right.",
            highlight=False,
            markup=False,
        )
    shown = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("given", "is", "labels", "interval"):
        shown.add_column(column, justify="right" if column in ("labels", "interval") else "left", no_wrap=True)
    for clean, noisy in pairs(audit, _SHOWN):
        low, high = errors.pairs_low[clean, noisy], errors.pairs_high[clean, noisy]
        names = (escape(table.class_names[label]) for label in (noisy, clean))
        shown.add_row(
            *names, number(float(errors.pairs[clean, noisy])), f"{number(float(low))} to {number(float(high))}"
        )
    console.print(shown)
