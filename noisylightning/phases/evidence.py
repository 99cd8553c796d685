"""What speaks for one T-hat against another: how well networks that are trained with it foretell held-out labels."""

from torch import Tensor

from noisylightning.functional.consensus import paired_gain
from noisylightning.phases.base import Candidate

SURE = 2.0  # standard errors by which one must foretell labels better than the other
_SURER = 3.0  # where it is the best of several


def gain_over(rival: Candidate, candidate: Candidate) -> tuple[float, float]:
    """Return by how much more probable labels are with a candidate than with a rival, and its standard error."""
    assert candidate.log_likelihood is not None
    assert rival.log_likelihood is not None
    return paired_gain(candidate.log_likelihood, rival.log_likelihood)


def is_worse(candidate: Candidate, before: Candidate) -> bool:
    """Tell whether labels are less probable with a candidate than they were before its last round."""
    if before.log_likelihood is None:
        return False
    gain, error = gain_over(before, candidate)
    return gain < -SURE * error


def contenders(candidates: list[Candidate]) -> list[int]:
    """Return the places of those under which labels are about as likely as they can be, the identity apart.

    Who was out before has no weights, and stays out, though a new leader may be within its reach.
    """
    found = {
        place: candidate.log_likelihood
        for place, candidate in enumerate(candidates)
        if place and candidate.log_likelihood is not None and candidate.weights
    }
    if not found:
        return []
    leader = max(found.values(), key=lambda log_likelihood: float(log_likelihood.mean()))

    def is_close(log_likelihood: Tensor) -> bool:
        gain, error = paired_gain(leader, log_likelihood)
        return gain <= SURE * error

    return [place for place, log_likelihood in found.items() if is_close(log_likelihood)]


def in_log_likelihood(candidate: Candidate, identity: Candidate, labels: Tensor) -> tuple[float, float, str]:
    """Return gain and standard error against the better of two rivals, and its name.

    Where labels say nothing of the classes, a T of even rows beats networks without T, which learn them by heart.
    """
    assert candidate.log_likelihood is not None
    assert identity.log_likelihood is not None
    shares = (labels.bincount().double() / len(labels)).log()[labels]
    rivals = [(identity.log_likelihood, "no T"), (shares, "the labels' shares alone")]
    log_likelihood, name = max(rivals, key=lambda rival: float(rival[0].mean()))
    return *paired_gain(candidate.log_likelihood, log_likelihood), name


def in_accuracy(candidate: Candidate, identity: Candidate, labels: Tensor) -> tuple[float, float, str] | None:
    """Return the gain in labels foretold, as :func:`in_log_likelihood`; None unless it is one by three standard errors.

    As long as a class's own label is its most frequent one, who foretells more labels knows more classes, however the
    noise depends on the sample.
    """
    assert candidate.foretold is not None
    assert identity.foretold is not None
    rivals = [(identity.foretold, "no T"), (labels == labels.bincount().argmax(), "the most frequent label")]
    hits, name = max(rivals, key=lambda rival: int(rival[0].sum()))
    gain, error = paired_gain(candidate.foretold.double(), hits.double())
    return (gain, error, name) if gain > _SURER * error else None
