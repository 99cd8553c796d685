"""Parts of features and their T, on data that are put together from parts."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from noisylightning.functional.part_dependent import part_codes, part_transitions
from noisylightning.transition import pairflip, symmetric, validate_transition

DOUBLE = {"dtype": torch.float64}
PARTS = torch.stack([pairflip(3, 0.4, **DOUBLE), symmetric(3, 0.1, **DOUBLE)])


def mixtures(samples=600, seed=0):
    """Codes, features on four columns, classes and exact posteriors of samples that are mixtures of two parts."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(samples, generator=generator, **DOUBLE)
    share[:4] = torch.tensor([0.0, 1.0, 0.0, 1.0], **DOUBLE)  # pure ones, by which the parts are told apart
    codes = torch.stack([share, 1 - share], dim=1)
    features = codes @ torch.tensor([[1.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 2.0]], **DOUBLE)
    clean = torch.arange(samples) % 3
    posteriors = torch.einsum("nr,rnj->nj", codes, PARTS[:, clean])
    return codes, features * (1 + share)[:, None], clean, posteriors


def test_the_codes_are_the_shares_of_the_parts():
    codes, features, _, _ = mixtures()
    found = part_codes(features, 2)
    if found[1, 0] < 0.5:
        found = found.flip(1)
    torch.testing.assert_close(found, codes, atol=0.03, rtol=0)
    assert torch.equal(part_codes(features, 2), part_codes(features, 2))
    silent = torch.cat([features, torch.zeros(1, 4, **DOUBLE)])
    assert part_codes(silent, 2)[-1].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("anchors", [20, 100])
def test_the_transitions_of_the_parts_are_found_exactly(anchors):
    codes, _, clean, posteriors = mixtures()
    found = part_transitions(posteriors, clean, codes, anchors=anchors, ridge=0)
    torch.testing.assert_close(found, PARTS, atol=1e-3, rtol=0)


def test_the_least_squares_are_scipys():
    generator = torch.Generator().manual_seed(3)
    probs = torch.rand(40, 3, generator=generator, **DOUBLE).softmax(dim=1)
    codes = torch.rand(40, 2, generator=generator, **DOUBLE)
    codes /= codes.sum(dim=1, keepdim=True)
    labels = torch.arange(40) % 3
    found = part_transitions(probs, labels, codes, anchors=8, ridge=0.1)
    for i in range(3):
        order = np.argsort(-probs[:, i].numpy(), kind="stable")
        at = order[int(0.3 * int((labels == i).sum())) :][:8]

        def loss(flat, at=at):
            found, targets = flat.reshape(2, 3), probs.numpy()[at]
            return ((codes.numpy()[at] @ found - targets) ** 2).sum() + 0.8 * (
                (found - targets.mean(axis=0)) ** 2
            ).sum()

        rows = {"type": "eq", "fun": lambda flat: flat.reshape(2, 3).sum(axis=1) - 1}
        best = minimize(loss, np.full(6, 1 / 3), bounds=[(0, 1)] * 6, constraints=rows, tol=1e-14)
        assert loss(found[:, i].numpy().ravel()) <= best.fun + 1e-9
    for part in found:
        validate_transition(part)


def test_a_part_that_no_anchor_has_gets_the_mean_row():
    probs = torch.rand(30, 3, generator=torch.Generator().manual_seed(0), **DOUBLE).softmax(dim=1)
    codes = torch.tensor([[1.0, 0.0]]).expand(30, -1)
    found = part_transitions(probs, torch.arange(30) % 3, codes, anchors=5)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: part_codes(torch.tensor([[1.0, torch.nan]]), 1), "features must be finite"),
        (lambda: part_codes(torch.tensor([[1.0, -2.0], [0.0, 1.0]]), 1), "not negative, got -2: name a layer"),
        (lambda: part_codes(torch.rand(5, 3), 4), "num_parts must be from 1 to 3, .* got 4"),
        (lambda: part_codes(torch.ones(5, 3), 2), "The features are the same for every sample"),
        (
            lambda: part_transitions(torch.full((4, 2), 0.5), torch.zeros(4).long(), torch.ones(4, 1)),
            "no example among 4 carries the noisy label 1",
        ),
        (
            lambda: part_transitions(torch.full((4, 2), 0.5), torch.arange(4) % 2, torch.ones(4, 1)),
            "anchors must be from 1 to 4, .* got 20",
        ),
    ],
)
def test_refuses_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")
