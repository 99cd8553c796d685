"""What speaks for one T-hat against another."""

import pytest
import torch

from noisylightning.phases import Candidate
from noisylightning.phases.evidence import contenders, gain_over, in_accuracy, in_log_likelihood, is_worse

LABELS = torch.arange(100) % 2


def seen(name, hits=None, log_likelihood=None, weights=None):
    foretold = None if hits is None else torch.arange(100) < hits
    return Candidate(name, torch.eye(2), weights or [], log_likelihood, foretold=foretold)


def test_a_gain_is_paired_over_samples():
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = seen("one", log_likelihood=9 * spread), seen("other", log_likelihood=9 * spread + 0.1)
    gain, error = gain_over(one, other)
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(0, abs=1e-12)
    assert is_worse(one, other)
    assert not is_worse(other, one)
    assert not is_worse(one, seen("none"))


def test_the_rival_is_what_foretells_better_of_no_t_and_the_shares():
    candidate = seen("T", log_likelihood=torch.full((100,), -0.5))
    plain = seen("identity", log_likelihood=torch.full((100,), -0.6))
    assert in_log_likelihood(candidate, plain, LABELS)[2] == "no T"
    plain = seen("identity", log_likelihood=torch.full((100,), -0.9))
    gain, _, rival = in_log_likelihood(candidate, plain, LABELS)
    assert rival == "the labels' shares alone"
    assert gain == pytest.approx(-0.5 + torch.tensor(2.0).log().item(), rel=1e-6)


def test_more_labels_are_foretold_by_three_standard_errors_or_it_is_no_gain():
    plain = seen("identity", hits=60)
    gain, error, rival = in_accuracy(seen("T", hits=72), plain, LABELS)
    assert (gain, rival) == (pytest.approx(0.12), "no T")
    assert error == pytest.approx((0.12 * 0.88 / 99) ** 0.5)
    assert in_accuracy(seen("T", hits=68), plain, LABELS) is None  # by 2.9
    assert in_accuracy(seen("T", hits=60), plain, LABELS) is None


def test_a_label_for_all_is_a_rival_too():
    """Where labels say nothing, networks without T foretell fewer than who always says the most frequent one."""
    labels = (torch.arange(100) >= 80).long()
    assert in_accuracy(seen("T", hits=80), seen("identity", hits=60), labels) is None
    gain, _, rival = in_accuracy(seen("T", hits=95), seen("identity", hits=60), labels)
    assert (gain, rival) == (pytest.approx(0.15), "the most frequent label")


def test_who_has_networks_and_is_near_the_leader_goes_on():
    spread = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found = [
        seen("identity", log_likelihood=spread, weights=[{}]),
        seen("near", log_likelihood=-spread, weights=[{}]),
        seen("far", log_likelihood=spread - 9, weights=[{}]),
        seen("out", log_likelihood=spread, weights=[]),
        seen("leads", log_likelihood=spread + 0.01, weights=[{}]),
    ]
    assert contenders(found) == [1, 4]
    assert contenders(found[:1]) == []
