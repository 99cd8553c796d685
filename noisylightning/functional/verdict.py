"""What speaks against an estimate of T, and the verdict on correcting with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.names import clean_priors, exchangeable
from noisylightning.transition import condition_number, relative_l1_error

Decision = Literal["correct", "correct, but do not trust the estimate of accuracy", "do not correct"]
GainIn = Literal["log-likelihood", "accuracy"]

_FAR_BELOW, _FAR_ABOVE = 0.15, 0.3  # T-hat under the accuracy cannot be; over it, a hard task explains some of it
_NEARLY_ZERO = 0.05
_ALIKE = 0.1
_SURE = 2.0  # standard errors by which T must foretell labels better than no T
_LEVEL = 0.05  # of the test
_LARGE = 100.0  # condition number: the estimate of accuracy is then up to so many times less sure than a clean one
_LARGEST = 2000  # classes whose T is inverted
_LOST = 0.25  # of the samples that are expected of a class
_ENOUGH = 20  # samples, that their absence says something


@dataclass(frozen=True)
class Verdict:
    """Whether to correct with T-hat, and why; see :func:`judge`.

    Attributes:
        decision: Whether to correct, and whether estimates of clean accuracy that rest on T-hat deserve trust.
        reasons: What led to it, in clauses.
        p_value: Of the test that noise depends on the class alone; None where it was not made.
        gain: By how much held-out labels are foretold better with T-hat than without; None if unknown.
        gain_error: Its standard error, paired over samples.
        gain_in: What it is a gain in: the log-likelihood of a label, or the accuracy, the share of labels foretold.
        condition: T-hat's condition number in the infinity norm; None where T-hat was too large to invert.
        exchangeable: Groups of classes that noisy labels alone cannot tell apart.
        flipped: Classes that are more often labelled as some other class than as themselves.
    """

    decision: Decision
    reasons: tuple[str, ...]
    p_value: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    gain_in: GainIn = "log-likelihood"
    condition: float | None = None
    exchangeable: tuple[tuple[int, ...], ...] = ()
    flipped: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        advice = "; take the weights of plain training that noisy validation data chose" if not self.corrects else ""
        return f"{self.decision[0].upper()}{self.decision[1:]}: {'; '.join(self.reasons)}{advice}."

    @property
    def corrects(self) -> bool:
        """Whether to correct."""
        return self.decision != "do not correct"


def judge(
    transition: Tensor,
    *,
    shares: Tensor | None = None,
    predicted: Tensor | None = None,
    accuracy: float | None = None,
    gain: tuple[float, float] | None = None,
    gain_in: GainIn = "log-likelihood",
    p_value: float | None = None,
    named: bool = False,
    class_names: Sequence[str] | None = None,
) -> Verdict:
    """Say whether to correct with T-hat, whether to trust the estimate of clean accuracy that it gives, and why.

    Do not correct if T-hat is the identity, contradicts the evidence (:func:`doubt`), or does not foretell held-out
    labels better than no T by two standard errors. Correct, but do not trust the estimate of accuracy, if the test that
    noise depends on the class alone rejects at 5 %, or refinement has seen that it does not; if T-hat's condition
    number is above 100; if noisy labels cannot tell classes apart; or if a class has another's label more often than
    its own, as a class under a wrong name would; or if the network hardly ever predicts one of two classes that are
    labelled alike, though labels and T-hat expect its samples: from some first weights training takes both for one.

    Args:
        transition: T-hat, ``(C, C)``, dense or sparse.
        shares: As in :func:`doubt`.
        predicted: How many of the same samples the corrected network takes for each class, ``(C,)``, where it is known.
        accuracy: As in :func:`doubt`.
        gain: Gain in foretelling a held-out label over no T, and its standard error, as
            :func:`~noisylightning.functional.consensus.paired_gain` gives them, where they are known.
        gain_in: What it is a gain in: log-likelihood, or accuracy where refinement has seen that noise depends on the
            sample.
        p_value: Of :func:`~noisylightning.functional.class_conditional.class_conditional_test`, where it was made.
        named: Whether trusted labels have told apart the classes that noisy ones cannot.
        class_names: The C names; numbers where they are left out.

    Raises:
        TypeError: If T-hat is not floating.
        ValueError: If T-hat is not row-stochastic, the p-value outside [0, 1], or the standard error negative.

    Example:
        >>> from noisylightning.transition import symmetric
        >>> judge(symmetric(10, 0.2), gain=(0.05, 0.01), p_value=0.4).sentence
        'Correct: a held-out label is more probable with T-hat, by +0.0500 ± 0.0100 in log-likelihood; nothing shows ...
        >>> judge(symmetric(10, 0.2), gain=(0.05, 0.01), p_value=0.005).decision
        'correct, but do not trust the estimate of accuracy'
        >>> judge(symmetric(10, 0.2), gain=(0.01, 0.01)).decision
        'do not correct'
    """
    _check(gain, p_value)
    groups = () if named else tuple(exchangeable(transition))  # checks T
    flipped = _flipped(transition)
    condition = float(condition_number(transition.to_dense())) if len(transition) <= _LARGEST else None
    against = _against(transition, shares, accuracy, gain, gain_in)
    distrust = _distrust(groups, flipped, condition, p_value, class_names)
    distrust += _lost(transition, shares, predicted, class_names)
    if gain is not None and gain_in == "accuracy":
        more = f"labels are foretold more often with T-hat, {_told(gain, gain_in)}"
        distrust.insert(0, f"{more}, but noise seems to depend on the sample")
    decision: Decision
    if against:
        decision, reasons = "do not correct", against
    elif distrust:
        decision, reasons = "correct, but do not trust the estimate of accuracy", distrust
    else:
        decision, reasons = "correct", [_of_gain(gain), _of_test(p_value)]
    known_gain, gain_error = (None, None) if gain is None else gain
    return Verdict(
        decision, tuple(reasons), p_value, known_gain, gain_error, gain_in, condition, groups, tuple(flipped)
    )


def _check(gain: tuple[float, float] | None, p_value: float | None) -> None:
    if p_value is not None and not 0 <= p_value <= 1:
        raise BadValue(f"p_value is a probability, got {p_value}: pass that of class_conditional_test.")
    if gain is not None and not (math.isfinite(gain[0]) and gain[1] >= 0):
        raise BadValue(f"gain is a mean difference and its standard error, as paired_gain gives them, got {gain}.")


def _against(
    transition: Tensor,
    shares: Tensor | None,
    accuracy: float | None,
    gain: tuple[float, float] | None,
    gain_in: GainIn,
) -> list[str]:
    """Return what speaks against correcting."""
    found = []
    identity = torch.eye(len(transition), dtype=transition.dtype) if len(transition) <= _LARGEST else None
    if identity is not None and float(relative_l1_error(transition.cpu(), identity)) == 0:
        found.append("T-hat is the identity")
    doubted = doubt(transition, shares, accuracy)
    if doubted is not None:
        found.append(doubted)
    if gain is not None and not gain[0] > _SURE * gain[1]:
        what = "make a held-out label surely more probable" if gain_in == "log-likelihood" else "surely foretell more"
        found.append(f"T-hat does not {what}, {_told(gain, gain_in)}")
    return found


def _distrust(
    groups: Sequence[tuple[int, ...]],
    flipped: dict[int, int],
    condition: float | None,
    p_value: float | None,
    class_names: Sequence[str] | None,
) -> list[str]:
    """Return what speaks against an estimate of accuracy that rests on T-hat."""
    found = []
    if p_value is not None and p_value <= _LEVEL:
        found.append(
            f"samples of one class that look different have different noise (p = {p_value:.3g}), or T-hat is off"
        )
    if groups:
        told = "; nor ".join(" and ".join(_name(i, class_names) for i in group) for group in groups)
        found.append(f"noisy labels cannot tell apart {told}")
    rest = [i for i in flipped if not any(i in group for group in groups)]
    if rest:
        told = ", ".join(f"{_name(i, class_names)} as {_name(flipped[i], class_names)}" for i in rest)
        found.append(f"classes are more often labelled as another than as themselves: {told}")
    if condition is not None and condition > _LARGE:
        found.append(f"T-hat is nearly singular, of condition number {condition:.3g}")
    return found


def _lost(
    transition: Tensor, shares: Tensor | None, predicted: Tensor | None, class_names: Sequence[str] | None
) -> list[str]:
    """Return which classes the network hardly ever predicts, though labels and T-hat expect some of their samples."""
    if shares is None or predicted is None:
        return []
    return [
        f"class {_name(i, class_names)} is predicted for {int(predicted[i]):,} of {int(shares.sum()):,} samples, where"
        f" T-hat expects {expected:,.0f}: training has lost that class, so train again from other weights"
        for i, expected in lost_classes(transition, shares, predicted).items()
    ]


def lost_classes(transition: Tensor, shares: Tensor, predicted: Tensor) -> dict[int, float]:
    """Return the classes that a network takes for others labelled alike, and how many of their samples are expected.

    Other classes that are hardly ever predicted are rare, or not learnt yet.

    Args:
        transition: T, ``(C, C)``.
        shares: How many samples carry each label, ``(C,)``.
        predicted: How many of the same samples the network takes for each class, ``(C,)``.

    Example:
        >>> lost_classes(torch.tensor([[0.4, 0.6], [0.6, 0.4]]), torch.tensor([50, 50]), torch.tensor([99, 1]))
        {1: 50.0}
    """
    expected = shares.sum().cpu() * clean_priors(transition.to_dense().cpu().double(), shares.cpu())
    lost = (expected >= _ENOUGH) & (predicted.cpu() < _LOST * expected)
    alike = sorted(i for group in exchangeable(transition) for i in group)
    return {i: round(float(expected[i]), 1) for i in alike if lost[i]}


def _name(i: int, class_names: Sequence[str] | None) -> str:
    return class_names[i] if class_names else str(i)


def _of_gain(gain: tuple[float, float] | None) -> str:
    if gain is None:
        return "nobody measured whether T-hat foretells labels better than no T"
    return f"a held-out label is more probable with T-hat, {_told(gain)}"


def _told(gain: tuple[float, float], gain_in: GainIn = "log-likelihood") -> str:
    return f"by {gain[0]:+.4f} ± {gain[1]:.4f} in {gain_in}"


def _of_test(p_value: float | None) -> str:
    if p_value is None:
        return "whether noise depends on the class alone was not tested"
    return f"nothing shows that noise depends on more than the class (p = {p_value:.2g})"


def doubt(transition: Tensor, shares: Tensor | None = None, accuracy: float | None = None) -> str | None:
    """Return in a clause what speaks against T-hat; None where nothing does.

    A network that predicts the noisy labels from the classes alone is right about as often as labels are kept, the
    diagonal of T weighted by the classes' shares. An estimate far from the accuracy that was measured contradicts it.

    Args:
        transition: T-hat, ``(C, C)``, dense or sparse.
        shares: How many samples carry each label, ``(C,)``, up to a factor; all alike where it is left out.
        accuracy: Accuracy on noisy validation data of the weights that T-hat comes from, in [0, 1], where it is known.

    Example:
        >>> doubt(torch.tensor([[0.8, 0.2], [0.3, 0.7]]), accuracy=0.74) is None
        True
        >>> doubt(torch.eye(2), accuracy=0.6)
        'T-hat is nearly the identity, though noisy validation accuracy is only 0.600'
    """
    diagonal, unlike = _summary(transition.double())
    weights = torch.ones_like(diagonal) if shares is None else shares.to(diagonal)
    kept = float((diagonal * weights).sum() / weights.sum())
    if unlike < _ALIKE:
        return f"its rows are alike up to {unlike:.3f}, as if the labels had nothing to do with the classes"
    lowest = int(diagonal.argmin())
    if diagonal[lowest] < _NEARLY_ZERO:
        return f"by it class {lowest} keeps its label with probability {float(diagonal[lowest]):.3f} only"
    if accuracy is None:
        return None
    if kept - accuracy > _FAR_ABOVE:
        what = "T-hat is nearly the identity" if kept > 0.95 else f"by T-hat {kept:.3f} of the labels are right"
        return f"{what}, though noisy validation accuracy is only {accuracy:.3f}"
    if accuracy - kept > _FAR_BELOW:
        return f"by T-hat {kept:.3f} of the labels are right, though noisy validation accuracy is {accuracy:.3f}"
    return None


def _summary(wide: Tensor) -> tuple[Tensor, float]:
    """Return the diagonal, and the largest distance of a row from the mean row, at least their total variations."""
    if wide.layout == torch.strided:
        return wide.diagonal(), float((wide - wide.mean(dim=0)).abs().sum(dim=1).max())
    entries = wide.to_sparse(layout=torch.sparse_coo).coalesce()
    (rows, columns), values = entries.indices(), entries.values()
    mean = values.new_zeros(len(wide)).index_add(0, columns, values) / len(wide)
    # Where a row has no entry it is as far off as the mean is large.
    beyond = (values - mean[columns]).abs() - mean[columns]
    distance = mean.sum() + values.new_zeros(len(wide)).index_add(0, rows, beyond)
    own = rows == columns
    return values.new_zeros(len(wide)).index_put((rows[own],), values[own]), float(distance.max())


def _flipped(transition: Tensor) -> dict[int, int]:
    """Return the classes that another label is more probable for than their own, and which."""
    entries = transition.detach().cpu().double().to_sparse_coo().coalesce()
    (rows, labels), values = entries.indices(), entries.values()
    own = rows == labels
    diagonal = values.new_zeros(len(transition)).index_put((rows[own],), values[own])
    largest = diagonal.scatter_reduce(0, rows, values, reduce="amax")
    leads = (values > diagonal[rows]) & (values == largest[rows])
    return dict(zip(rows[leads].tolist(), labels[leads].tolist(), strict=True))
