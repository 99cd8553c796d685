"""Trusted samples in a batch: their loss is the base loss, the others' the corrected one, however they are reduced."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toy import CLASSES, OfEachSample

from noisylightning.corrections import (
    BackwardCorrection,
    ForwardCorrection,
    ImportanceReweighting,
    NoCorrection,
)
from noisylightning.losses import (
    CrossEntropy,
    EarlyLearningRegularization,
    FocalLoss,
    GeneralizedCrossEntropy,
    LabelSmoothing,
    SquareLoss,
    SymmetricCrossEntropy,
    UnhingedLoss,
)
from noisylightning.transition import (
    GroupedTransition,
    IdentityForTrusted,
    LowRankTransition,
    NoiseAdaptation,
    SparseTransition,
    SymmetricTransition,
    TotalVariation,
    Transition,
    VolumeMinimization,
    pairflip,
)

N, C = 7, 4
WITH_T = [ForwardCorrection, BackwardCorrection, ImportanceReweighting]
LOSSES = [
    CrossEntropy, SquareLoss, FocalLoss, GeneralizedCrossEntropy, LabelSmoothing, SymmetricCrossEntropy, UnhingedLoss,
]  # fmt: skip
SOME = torch.tensor([True, False, False, True, False, True, False])
pytestmark = pytest.mark.filterwarnings("ignore:.* is not proper composite")

every_correction = pytest.mark.parametrize("kind", WITH_T, ids=lambda kind: kind.__name__)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def problem(seed=0, dtype=torch.float64, shape=()):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(N, C, *shape, generator=generator, dtype=dtype)
    labels = torch.randint(C, (N, *shape), generator=generator)
    noise = torch.rand(C, C, generator=generator, dtype=torch.float64)
    transition = 0.4 * noise / noise.sum(1, keepdim=True) + 0.6 * torch.eye(C, dtype=torch.float64)
    return logits, labels, transition.to(dtype)


@every_reduction
@every_correction
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
def test_cross_entropy_agrees_with_numpy(kind, reduction, weighted, ignored):
    logits, labels, transition = problem()
    if ignored:
        labels[[0, 1]] = -100  # a trusted one and another
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    loss = CrossEntropy(weight=weight, reduction=reduction)
    got = kind(transition, loss=loss)(logits, labels, trusted=SOME)

    p = np.exp(logits.numpy() - np.logaddexp.reduce(logits.numpy(), 1, keepdims=True))
    t, w = transition.numpy(), np.ones(C) if weight is None else weight.numpy()
    values, factors = [], []
    for n in range(N):
        y = labels[n].item()
        if y == -100:
            values.append(0.0)
            factors.append(0.0)
            continue
        base = -w[y] * np.log(p[n, y])
        corrected = {
            ForwardCorrection: -w[y] * np.log(p[n] @ t[:, y]),
            BackwardCorrection: -(np.linalg.inv(t)[y] * w * np.log(p[n])).sum(),
            ImportanceReweighting: p[n, y] / (p[n] @ t[:, y]) * base,
        }[kind]
        values.append(base if SOME[n] else corrected)
        factors.append(w[y])
    expected = {"none": values, "sum": np.sum(values), "mean": np.sum(values) / np.sum(factors)}[reduction]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)


def by_hand(kind, transition, loss, logits, labels, trusted=SOME, **settings):
    """Each sample alone: the base loss by itself, or the correction, which knows of no trusted samples."""
    correction = kind(transition, loss=loss, **settings)
    alone = [(loss if trusted[n] else correction)(logits[n : n + 1], labels[n : n + 1]) for n in range(len(logits))]
    return torch.cat(alone)


@every_correction
@pytest.mark.parametrize("make", LOSSES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_loss_of_every_sample_is_as_by_hand_and_so_is_its_gradient(kind, make, soft, weighted):
    logits, labels, transition = problem(seed=1)
    labels = problem(seed=2)[0].softmax(1) if soft else labels
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64) if weighted else None
    settings = {"detach_weight": False} if kind is ImportanceReweighting else {}
    slopes = []
    for function in (
        lambda z: kind(transition, loss=make(weight=weight, reduction="none"), **settings)(z, labels, trusted=SOME),
        lambda z: by_hand(kind, transition, make(weight=weight, reduction="none"), z, labels, **settings),
    ):
        z = logits.clone().requires_grad_()
        values = function(z)
        values.sum().backward()
        slopes.append((values.detach(), z.grad))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-12)


@every_reduction
@every_correction
def test_labels_in_several_places_of_a_sample(kind, reduction):
    logits, labels, transition = problem(shape=(2, 3))
    labels[0, 1, 1] = labels[2, 0, 0] = -100
    got = kind(transition, loss=CrossEntropy(reduction=reduction))(logits, labels, trusted=SOME)
    values = by_hand(kind, transition, CrossEntropy(reduction="none"), logits, labels)
    expected = {"none": values, "sum": values.sum(), "mean": values.sum() / (labels != -100).sum()}[reduction]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@every_correction
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_kernel_serves_the_others(kind, dtype):
    logits, labels, transition = problem(dtype=torch.float32)
    logits = logits.to(dtype)
    got = kind(transition)(logits, labels, trusted=SOME)
    expected = by_hand(kind, transition, CrossEntropy(reduction="none"), logits, labels).mean()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert got.dtype == torch.float32


# --- none, all, and T the identity: bit for bit -----------------------------------------------------------------------


@every_reduction
@pytest.mark.parametrize("kind", [NoCorrection, *WITH_T], ids=lambda kind: kind.__name__)
def test_none_trusted_is_the_correction_and_all_trusted_the_base_loss_to_the_last_bit(kind, reduction):
    logits, labels, transition = problem(dtype=torch.float32)
    loss = CrossEntropy(reduction=reduction)
    correction = kind(transition, loss=loss) if kind.uses_transition else kind(loss=loss)
    none, every = torch.zeros(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)
    assert torch.equal(correction(logits, labels, trusted=none), correction(logits, labels))
    assert torch.equal(correction(logits, labels, trusted=every), loss(logits, labels))


@every_correction
def test_with_the_identity_as_t_it_makes_no_difference(kind):
    logits, labels, _ = problem(dtype=torch.float32)
    correction = kind(num_classes=C)
    assert torch.equal(correction(logits, labels, trusted=SOME), correction(logits, labels))


@every_correction
def test_one_sample_without_a_batch(kind):
    logits, labels, transition = problem()
    correction = kind(transition)
    known, unknown = (correction(logits[0], labels[0], trusted=torch.tensor(flag)) for flag in (True, False))
    torch.testing.assert_close(known, CrossEntropy()(logits[0], labels[0]))
    torch.testing.assert_close(unknown, correction(logits[0], labels[0]))


def test_an_empty_batch():
    correction = ForwardCorrection(pairflip(C, 0.2), loss=CrossEntropy(reduction="none"))
    empty = correction(torch.zeros(0, C), torch.zeros(0, dtype=torch.long), trusted=torch.zeros(0, dtype=torch.bool))
    assert empty.shape == (0,)


# --- theorem ----------------------------------------------------------------------------------------------------------


def test_the_joint_risk_is_minimised_by_the_clean_posterior():
    """A share of samples whose labels are clean, the rest noisy: at the truth the risk's gradient is zero (forward)."""
    clean = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    transition = problem()[2]
    logits = clean.log().repeat(2 * C, 1).requires_grad_()
    labels, trusted = torch.arange(C).repeat(2), torch.arange(2 * C) < C
    share = torch.cat([0.2 * clean, 0.8 * clean @ transition])  # of each trusted label, then of each noisy one
    values = ForwardCorrection(transition, loss=CrossEntropy(reduction="none"))(logits, labels, trusted=trusted)
    (slope,) = torch.autograd.grad((share * values).sum(), logits)
    torch.testing.assert_close(slope.sum(0), torch.zeros(C, dtype=torch.float64), atol=1e-14, rtol=0)


# --- kinds of T -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: SymmetricTransition(C, 0.4),
        lambda: SparseTransition(pairflip(C, 0.3).to_sparse()),
        lambda: LowRankTransition(torch.full((C,), 0.6), torch.full((C, 1), 0.4), torch.tensor([[0.1, 0.2, 0.3, 0.4]])),
    ],
    ids=["symmetric", "sparse", "low rank"],
)
@every_correction
def test_structured_kinds_of_t(make, kind):
    logits, labels, _ = problem(dtype=torch.float32)
    got = kind(make(), loss=CrossEntropy(reduction="none"))(logits, labels, trusted=SOME)
    expected = by_hand(kind, make(), CrossEntropy(reduction="none"), logits, labels)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_t_of_the_sample_sees_the_others_alone():
    """The trusted samples of a set of their own have indices that it knows nothing of."""
    logits, labels, transition = problem()
    matrices = torch.stack([transition, torch.full_like(transition, 1 / C)])
    grouped = GroupedTransition(matrices, groups=torch.tensor([0, 1, 0, 1]))
    index = torch.tensor([99, 0, 1, 98, 2, 97, 3])
    got = ForwardCorrection(grouped, loss=CrossEntropy(reduction="none"))(logits, labels, index, trusted=SOME)
    expected = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    for n in (1, 2, 4, 6):
        of_sample = matrices[grouped.groups[index[n]]]
        expected[n] = -(logits[n].softmax(0) @ of_sample)[labels[n]].log()
    torch.testing.assert_close(got, expected)


def test_a_t_of_features_gets_the_features_of_the_others():
    class OfFeatures(Transition):
        needs_features = True

        def at(self, features, index):
            self.seen = features
            return OfEachSample(torch.full((len(features), CLASSES, CLASSES), 1 / CLASSES, dtype=torch.float64))

    logits, labels = problem()[0][:, :CLASSES], problem()[1] % CLASSES
    kind = OfFeatures(CLASSES)
    features = torch.arange(N)[:, None]
    correction = ForwardCorrection(kind, loss=CrossEntropy(reduction="none"))
    got = correction(logits, labels, features=features, trusted=SOME)
    assert kind.seen.flatten().tolist() == [1, 2, 4, 6]
    torch.testing.assert_close(got[~SOME], torch.full((4,), CLASSES, dtype=torch.float64).log())
    assert torch.isfinite(correction(logits, labels, features=features, trusted=torch.ones(N, dtype=torch.bool))).all()


@pytest.mark.parametrize("make", [NoiseAdaptation, VolumeMinimization, TotalVariation])
def test_a_t_that_learns_learns_from_the_others_alone(make):
    logits, labels, _ = problem(dtype=torch.float32)
    slopes = []
    for rows, trusted in ((slice(None), SOME), (~SOME, None)):
        correction = ForwardCorrection(make(C), loss=CrossEntropy(reduction="sum"))
        correction(logits[rows], labels[rows], trusted=trusted).backward()
        slopes.append(correction.T.scores.grad)
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("make", [NoiseAdaptation, functools.partial(NoiseAdaptation, pull=0.1), TotalVariation])
def test_a_batch_of_trusted_samples_gives_a_t_that_learns_a_gradient_of_zeros(make):
    """Processes that train together wait for one."""
    logits, labels, _ = problem(dtype=torch.float32)
    correction = ForwardCorrection(make(C))
    value = correction(logits, labels, trusted=torch.ones(N, dtype=torch.bool))
    value.backward()
    assert torch.equal(correction.T.scores.grad, torch.zeros(C, C))
    torch.testing.assert_close(value.detach(), CrossEntropy()(logits, labels))


def test_a_label_that_t_calls_impossible_spoils_no_gradient_of_a_trusted_sample():
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for loss in (CrossEntropy(), FocalLoss(), SquareLoss()):
        logits = torch.tensor([[0.5, 1.0], [2.0, 0.0]], requires_grad=True)
        value = ForwardCorrection(transition, loss=loss)(
            logits, torch.tensor([1, 0]), trusted=torch.tensor([True, False])
        )
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[0].abs().sum() > 0


# --- what else takes it -----------------------------------------------------------------------------------------------


def test_a_loss_with_a_memory_is_called_once():
    """It moves its averages at each call, and processes exchange theirs in it."""
    logits, labels, transition = problem(dtype=torch.float32)
    calls = []

    class Counting(EarlyLearningRegularization):
        def vector(self, *arguments):
            calls.append(len(arguments[0]))
            return super().vector(*arguments)

    loss = Counting(N, C)
    ForwardCorrection(transition, loss=loss)(logits, labels, torch.arange(N), trusted=SOME)
    assert calls == [N]
    torch.testing.assert_close(loss.average[SOME], 0.3 * logits.softmax(1)[SOME])
    torch.testing.assert_close(loss.average[~SOME], 0.3 * (logits.softmax(1) @ transition)[~SOME])


def test_the_noisy_posterior_of_trusted_samples_is_the_clean_one():
    logits, _, transition = problem()
    got = ForwardCorrection(transition).noisy_log_posterior(logits, trusted=SOME).exp()
    p = logits.softmax(1)
    torch.testing.assert_close(got, torch.where(SOME[:, None], p, p @ transition))
    assert torch.equal(NoCorrection().noisy_log_posterior(logits, trusted=SOME), logits.log_softmax(1))


@pytest.mark.parametrize(
    ("trusted", "error", "message"),
    [
        (torch.ones(N), TypeError, r"trusted must be bool.*got torch.float32: batches are \(inputs, labels\)"),
        (torch.ones(N - 1, dtype=torch.bool), ValueError, r"trusted must be of shape \(7,\).*got \(6,\)"),
        (torch.ones(N, 1, dtype=torch.bool), ValueError, r"trusted must be of shape \(7,\).*got \(7, 1\)"),
        ([True] * N, TypeError, "trusted must be bool.*got list"),
    ],
)
def test_flags_that_are_none_are_refused(trusted, error, message):
    logits, labels, transition = problem()
    with pytest.raises(error, match=message):
        ForwardCorrection(transition)(logits, labels, trusted=trusted)


def test_it_is_never_taken_for_one_t_for_all_samples():
    of_batch = IdentityForTrusted(SymmetricTransition(C, 0.4), SOME)
    assert not of_batch.is_class_conditional
    assert not of_batch.is_identity
    assert isinstance(of_batch, nn.Module)
    columns = of_batch.label_columns(torch.zeros(N, dtype=torch.long))
    assert torch.equal(columns[SOME], torch.eye(C)[:1].expand(3, C))
