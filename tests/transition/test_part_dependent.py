"""T of the sample from parts: never written out, yet the same as if it were; a row for each sample."""

import pytest
import torch
from torch import nn

from noisylightning import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.transition import PartDependentTransition, pairflip, symmetric

DOUBLE = {"dtype": torch.float64}


def problem():
    generator = torch.Generator().manual_seed(0)
    parts = torch.stack([pairflip(4, 0.3, **DOUBLE), symmetric(4, 0.2, **DOUBLE), torch.eye(4, **DOUBLE)])
    codes = torch.rand(6, 3, generator=generator, **DOUBLE)
    codes /= codes.sum(dim=1, keepdim=True)
    transition = PartDependentTransition(4).double()
    transition.take_details({"parts": parts, "codes": codes})
    logits = 2 * torch.randn(5, 4, generator=generator, **DOUBLE)
    return transition, parts, codes, logits, torch.tensor([0, 3, 1, 2, 1])


def test_every_sample_has_the_transition_of_its_row():
    transition, parts, codes, logits, labels = problem()
    index = torch.tensor([4, 0, 0, 99, -1])  # of two of them nothing is known
    own = torch.cat([codes[[4, 0, 0]], codes.mean(dim=0).expand(2, -1)])
    whole = torch.einsum("nr,rij->nij", own, parts)
    noisy = torch.einsum("ni,nij->nj", logits.softmax(dim=1), whole)
    rows = torch.arange(5)
    at = transition.at(None, index)
    torch.testing.assert_close(at.log_posterior(logits), noisy.log())
    torch.testing.assert_close(at.log_likelihood(logits, labels), noisy[rows, labels].log())
    torch.testing.assert_close(at.label_columns(labels), whole[rows, :, labels])
    torch.testing.assert_close(at.to_dense(), whole.mean(dim=0))
    torch.testing.assert_close(transition.to_dense(), torch.einsum("r,rij->ij", codes.mean(dim=0), parts))
    loss = ForwardCorrection(transition)(logits, labels, index)
    torch.testing.assert_close(loss, -noisy[rows, labels].log().mean())
    soft = logits.flip(1).softmax(dim=1)
    loss = ForwardCorrection(transition)(logits, soft, index)
    torch.testing.assert_close(loss, -(soft * noisy.log()).sum(dim=1).mean())
    beta = logits.softmax(dim=1)[rows, labels] / noisy[rows, labels]
    expected = (beta * -logits.log_softmax(dim=1)[rows, labels]).mean()
    torch.testing.assert_close(ImportanceReweighting(transition)(logits, labels, index), expected)
    assert torch.autograd.gradcheck(
        lambda scores: ForwardCorrection(transition)(scores, labels, index), logits.requires_grad_()
    )


def test_every_pixel_has_the_transition_of_its_sample():
    transition, _, _, logits, labels = problem()
    index = torch.tensor([4, 1])
    pixels, targets = logits[:4].view(2, 2, 4).movedim(2, 1), labels[:4].view(2, 2)
    expected = ForwardCorrection(transition)(logits[:4], labels[:4], index.repeat_interleave(2))
    torch.testing.assert_close(ForwardCorrection(transition)(pixels, targets, index), expected)


def test_it_waits_and_is_then_the_transition_that_it_gets():
    correction = ForwardCorrection(PartDependentTransition(4).double())
    _, parts, codes, logits, labels = problem()
    index = torch.arange(5)
    assert torch.equal(correction(logits, labels, index), nn.functional.cross_entropy(logits, labels))
    with pytest.raises(RuntimeError, match="was given no T"):
        correction.require_transition()
    correction.set_transition(pairflip(4, 0.3, **DOUBLE))
    expected = ForwardCorrection(pairflip(4, 0.3, **DOUBLE))
    torch.testing.assert_close(correction(logits, labels, index), expected(logits, labels))
    correction.set_transition(pairflip(4, 0.3, **DOUBLE), {"parts": parts, "codes": codes})
    correction.require_transition()
    again = ForwardCorrection(PartDependentTransition(4).double())
    again.load_state_dict(correction.state_dict())
    assert torch.equal(again(logits, labels, index), correction(logits, labels, index))
    waiting = ForwardCorrection(PartDependentTransition(4).double())
    again.load_state_dict(waiting.state_dict())  # back to stage one
    assert torch.equal(again(logits, labels, index), nn.functional.cross_entropy(logits, labels))
    correction.T.await_estimate()
    assert torch.equal(correction.transition, torch.eye(4, **DOUBLE))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: PartDependentTransition(3).at(None, None), RuntimeError, "with_index=True"),
        (lambda: PartDependentTransition(3).start_from(torch.eye(4)), ValueError, "for 4 classes but 3"),
        (lambda: BackwardCorrection(PartDependentTransition(3)), TypeError, "use ForwardCorrection"),
        (
            lambda: PartDependentTransition(3).take_details({"parts": torch.eye(3)[None], "codes": torch.ones(2, 2)}),
            ValueError,
            r"codes must be of shape \(N, 1\)",
        ),
        (
            lambda: PartDependentTransition(3).take_details({"parts": torch.eye(3)[None], "codes": torch.zeros(2, 1)}),
            ValueError,
            "does not sum to one",
        ),
        (
            lambda: PartDependentTransition(3).load_state_dict(PartDependentTransition(4).state_dict()),
            ValueError,
            "build T as when it was saved",
        ),
    ],
)
def test_refuses_in_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")
