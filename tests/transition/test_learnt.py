"""T learnt with the network: what it always is, what it begins from, and which way it learns."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from noisylightning import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.transition import (
    LearntTransition,
    NoiseAdaptation,
    TotalVariation,
    TransitionRevision,
    VolumeMinimization,
    from_flips,
    pairflip,
    relative_l1_error,
    symmetric,
    validate_transition,
)

DOUBLE = {"dtype": torch.float64}
KINDS = [LearntTransition, NoiseAdaptation, TotalVariation, TransitionRevision, VolumeMinimization]
each_kind = pytest.mark.parametrize("kind", KINDS)


def correction_of(transition, **settings):
    if isinstance(transition, TransitionRevision):
        return ImportanceReweighting(transition, **settings)
    return ForwardCorrection(transition)


def problem(classes=4, samples=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, **DOUBLE)
    return logits, torch.randint(classes, (samples,), generator=generator)


@each_kind
@settings(deadline=None, max_examples=30)
@given(st.integers(2, 6), st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 10.0, 200.0]))
def test_it_is_row_stochastic_whatever_its_scores_are(kind, classes, seed, scale):
    transition = kind(classes)
    nn.init.normal_(transition.scores, std=scale, generator=torch.Generator().manual_seed(seed))
    dense = transition.to_dense().detach()
    validate_transition(dense, classes)
    if kind is VolumeMinimization:
        assert (dense.diagonal() >= dense.amax(dim=1)).all()


@each_kind
@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_it_begins_as_partly_random_labels(kind, classes):
    expected = 0.7 * torch.eye(classes) + 0.3 / classes
    torch.testing.assert_close(kind(classes, random_share=0.3).to_dense().detach(), expected)
    assert kind(classes).condition_number() <= 3  # (1 + random_share) / (1 - random_share), and less


def test_the_papers_start_of_volume_minimization():
    for classes, score, share in ((10, -2.0, 0.57), (100, -4.5, 0.53)):
        paper = VolumeMinimization(classes)
        nn.init.constant_(paper.scores, score)
        ours = VolumeMinimization(classes, random_share=share).to_dense()
        assert torch.allclose(paper.to_dense(), ours, atol=6e-3)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_begins_from_an_estimate_to_float_precision(kind, dtype):
    transition = kind(5).to(dtype)
    for estimate in (symmetric(5, 0.4, dtype=dtype), pairflip(5, 0.45, dtype=dtype), torch.eye(5, dtype=dtype)):
        transition.start_from(estimate)
        dense = transition.to_dense()
        torch.testing.assert_close(dense.detach(), estimate, rtol=4e-6 if dtype == torch.float32 else 1e-13, atol=1e-7)
        assert dense.requires_grad
    generator = torch.Generator().manual_seed(1)
    estimate = (4 * torch.eye(5, **DOUBLE) + torch.rand(5, 5, generator=generator, **DOUBLE)).to(dtype)
    estimate = estimate / estimate.sum(dim=1, keepdim=True)
    transition.start_from(estimate)
    torch.testing.assert_close(transition.to_dense().detach(), estimate)


@each_kind
def test_zeros_of_an_estimate_have_finite_gradients(kind):
    transition = kind(4, pull=0.5)
    transition.start_from(from_flips(4, {0: 1}, 0.4))
    logits, labels = problem()
    correction_of(transition)(logits.float(), labels).backward()
    assert transition.scores.grad.isfinite().all()
    assert transition.scores.grad[0].abs().max() > 0
    if kind is not TransitionRevision:
        assert transition.scores.grad[0, 2:].abs().max() < 1e-30


@each_kind
def test_the_loss_has_the_gradient_that_differences_show(kind):
    transition = kind(4, pull=0.7).double()
    estimate = 0.8 * pairflip(4, 0.3, **DOUBLE) + 0.05
    transition.start_from(estimate)
    logits, labels = problem()
    correction = correction_of(transition, **({"detach_weight": False} if kind is TransitionRevision else {}))

    def loss(scores, logits):
        return torch.func.functional_call(correction, {"T.scores": scores}, (logits, labels))

    generator = torch.Generator().manual_seed(2)
    moved = transition.scores.detach() + 0.02 * torch.randn(4, 4, generator=generator, **DOUBLE)
    assert torch.autograd.gradcheck(loss, (moved.requires_grad_(), logits.requires_grad_()))


@each_kind
def test_backward_correction_follows_a_learnt_transition(kind):
    transition = kind(4).double()
    correction = BackwardCorrection(transition)
    logits, labels = problem()
    transition.start_from(pairflip(4, 0.2, **DOUBLE))
    expected = BackwardCorrection(pairflip(4, 0.2, **DOUBLE))(logits, labels)
    torch.testing.assert_close(correction.eval()(logits, labels), expected)
    before = transition.to_dense()
    with pytest.raises(ValueError, match="condition number"):
        transition.start_from(symmetric(4, 0.75, **DOUBLE))
    assert torch.equal(transition.to_dense(), before)


# Waiting


@each_kind
def test_until_the_estimate_is_there_it_is_the_base_loss_to_the_last_bit(kind):
    transition = kind(4, pull=1.0).double()
    correction = correction_of(transition)
    logits, labels = problem()
    logits.requires_grad_()
    transition.await_estimate()
    assert torch.equal(correction.transition, torch.eye(4, **DOUBLE))
    value = correction(logits, labels)
    value.backward()
    plain = logits.detach().clone().requires_grad_()
    expected = nn.functional.cross_entropy(plain, labels)
    expected.backward()
    assert torch.equal(value, expected)
    assert torch.equal(logits.grad, plain.grad)
    assert torch.equal(transition.scores.grad, torch.zeros(4, 4, **DOUBLE))  # there, for processes that wait for it
    correction.set_transition(pairflip(4, 0.2, **DOUBLE))
    assert not transition.is_identity
    assert correction(logits, labels) != expected


@each_kind
def test_what_is_saved_says_whether_it_waits(kind):
    waiting, learning = kind(3), kind(3)
    waiting.await_estimate()
    learning.start_from(pairflip(3, 0.2))
    nn.init.normal_(learning.scores, std=0.1, generator=torch.Generator().manual_seed(0))
    for saved in (waiting, learning):
        model = nn.ModuleDict({"correction": correction_of(kind(3))})
        state = correction_of(saved).state_dict()
        assert sorted(state) == ["transition.held", "transition.scores", "transition.start"]
        model.load_state_dict({f"correction.{name}": value for name, value in state.items()})
        loaded = copy.deepcopy(model)["correction"].T
        assert loaded.is_identity == saved.is_identity
        assert torch.equal(loaded.to_dense(), saved.to_dense())
    with pytest.raises(ValueError, match="build the model with the T that it was trained with"):
        ForwardCorrection(num_classes=3).load_state_dict(correction_of(learning).state_dict())


@each_kind
def test_held_it_is_a_fixed_matrix(kind):
    transition = kind(4, pull=1.0).double()
    correction, matrix = correction_of(transition), pairflip(4, 0.6, **DOUBLE)
    correction.set_transition(matrix, learn=False)
    logits, labels = problem()
    fixed = type(correction)(matrix)
    assert torch.equal(correction(logits, labels), fixed(logits, labels))
    assert torch.equal(transition.to_dense(), matrix)
    assert not transition.is_identity
    correction(logits, labels).backward()
    assert torch.equal(transition.scores.grad, torch.zeros(4, 4, **DOUBLE))
    correction.set_transition(pairflip(4, 0.2, **DOUBLE))
    assert transition.to_dense().requires_grad


# Penalties


@each_kind
def test_the_pull_is_the_divergence_from_the_start(kind):
    transition, free = kind(3, pull=2.0).double(), kind(3).double()
    start = 0.7 * pairflip(3, 0.3, **DOUBLE) + 0.1
    logits, _ = problem(3)
    for one in (transition, free):
        one.start_from(start)
    others = free.penalty(logits)
    at_start = transition.penalty(logits) - (0 if others is None else others)
    assert abs(at_start.item()) < 1e-15
    for one in (transition, free):
        nn.init.constant_(one.scores[0, :2], 0.05)
    learnt = transition.to_dense()
    others = free.penalty(logits)
    pull = transition.penalty(logits) - (0 if others is None else others)
    torch.testing.assert_close(pull, 2 * (start * (start / learnt).log()).sum() / 3)


def test_the_volume_and_the_separation():
    logits, _ = problem(3, 5)
    volume = VolumeMinimization(3, volume_weight=0.3).double()
    volume.start_from(pairflip(3, 0.3, **DOUBLE))
    torch.testing.assert_close(volume.penalty(logits), 0.3 * pairflip(3, 0.3, **DOUBLE).det().abs().log())
    p = logits.softmax(dim=1)
    pairs = sum((p[i] - p[i - 1]).abs().sum() / 2 for i in range(5)) / 5
    torch.testing.assert_close(TotalVariation(3, separation=0.4).penalty(logits), -0.4 * pairs)
    pixels = logits.t()[None].unsqueeze(-1)  # (1, C, 5, 1): every pixel is a sample
    torch.testing.assert_close(TotalVariation(3, separation=0.4).penalty(pixels), -0.4 * pairs)
    assert NoiseAdaptation(3).penalty(logits) is None


# Learning


@each_kind
def test_beside_the_clean_posteriors_it_learns_the_true_transition(kind):
    classes, true = 3, pairflip(3, 0.3)
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(6000) % classes
    labels = torch.multinomial(true[clean], 1, generator=generator).flatten()
    logits = 20.0 * nn.functional.one_hot(clean, classes)
    transition = kind(classes)
    correction = ForwardCorrection(transition)  # the likelihood of T, for T-Revision too
    optimizer = torch.optim.Adam(transition.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        correction(logits, labels).backward()
        optimizer.step()
    assert relative_l1_error(transition.to_dense(), true) < 0.05


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: LearntTransition(1), "at least 2 classes"),
        (lambda: LearntTransition(3, random_share=1.0), "random_share must lie strictly between 0 and 1, got 1.0"),
        (lambda: LearntTransition(3, pull=-1.0), "pull must not be negative, got -1.0"),
        (lambda: VolumeMinimization(3, volume_weight=-1.0), "volume_weight must not be negative"),
        (lambda: TotalVariation(3, separation=-1.0), "separation must not be negative"),
        (lambda: LearntTransition(3).start_from(torch.eye(4)), "for 4 classes but 3"),
        (lambda: LearntTransition(3).start_from(torch.ones(3, 3)), "sums to 3"),
        (
            lambda: VolumeMinimization(3).start_from(from_flips(3, {2: 0}, 0.6)),
            r"class 2 is labelled 0 as often as 2 \(0.600 and 0.400\).*use NoiseAdaptation or",
        ),
    ],
)
def test_refuses_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")
