"""The anchor estimate in two passes: bins keep the order, and merging forgets nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from noisylightning.functional.anchor import lexicographic_max, surest_rows
from noisylightning.functional.anchor_survey import (
    BINS,
    bins,
    count_bins,
    find_rank,
    merge_rows,
    rows_within,
    surer,
    surest_below,
)


@given(st.lists(st.floats(0, 1, width=64), min_size=2, max_size=50))
def test_bins_keep_the_order(values):
    probs = torch.tensor(values, dtype=torch.float64).sort().values
    found = bins(probs)
    assert (found.diff() >= 0).all()
    assert found.min() >= 0
    assert found.max() < BINS


def test_bins_are_fine_near_zero_and_near_one():
    logits = torch.linspace(-12, 12, 2000)
    assert len(bins(logits.sigmoid()).unique()) > 1000
    assert int(count_bins(logits.sigmoid().unsqueeze(1)).max()) <= 6


def table(num: int = 300, classes: int = 4) -> torch.Tensor:
    probs = (8 * torch.randn(num, classes, generator=torch.Generator().manual_seed(0)).softmax(dim=1)).round() + 1
    return probs / probs.sum(dim=1, keepdim=True)


def test_a_rank_is_found_in_its_bin():
    probs = torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) ** 4
    ranks = torch.tensor([0, 299, 150, 290])
    found, place = find_rank(count_bins(probs), ranks)
    for i, rank in enumerate(ranks.tolist()):
        column = probs[:, i].sort().values
        assert bins(column[rank]) == found[i]
        assert column[bins(column) == found[i]][place[i]] == column[rank]


def test_rows_in_a_bin_are_counted_and_the_largest_kept():
    probs, chosen = table(), bins(table()[:4].diagonal())
    whole = rows_within(probs, bins(probs), chosen)
    parts = [
        torch.cat(states)
        for states in zip(*(rows_within(part, bins(part), chosen) for part in probs.split(70)), strict=True)
    ]
    for one, other in zip(whole, merge_rows(*parts), strict=True):
        assert torch.equal(one, other)
    classes, counts, rows = whole
    for i, count, row in zip(classes.tolist(), counts.tolist(), rows, strict=True):
        same = probs[probs[:, i] == row[i]]
        assert count == len(same)
        assert torch.equal(row, lexicographic_max(same))
    assert int(counts.sum()) == int((bins(probs) == chosen).sum())


def test_the_surest_below_a_bin_is_that_of_its_parts():
    probs, chosen = table(), bins(torch.tensor([0.3, 0.4, 0.05, 0.9]))
    parts = [surest_below(part, bins(part), chosen) for part in probs.split(70)]
    merged = parts[0]
    for part in parts[1:]:
        merged = surer(merged, part)
    whole = surest_below(probs, bins(probs), chosen)
    assert torch.equal(merged, whole)
    assert (whole[2] == -1).all()
    for i in (0, 1, 3):
        low = probs[bins(probs[:, i]) < chosen[i]]
        assert torch.equal(whole[i], surest_rows(low)[i])
