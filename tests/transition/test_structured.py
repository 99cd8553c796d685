"""Structured transition matrices: the same numbers as the dense T, at the price of the structure."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch

from noisylightning.corrections import BackwardCorrection, ForwardCorrection, ImportanceReweighting
from noisylightning.functional import forward_cross_entropy, noisy_log_posterior
from noisylightning.losses import CrossEntropy, SquareLoss
from noisylightning.transition import (
    BlockDiagonalTransition,
    LowRankTransition,
    SparseTransition,
    SymmetricTransition,
    Transition,
    condition_number,
    from_flips,
    pairflip,
    sparse,
    symmetric,
    validate_transition,
)

CLASSES = 9
DOUBLE = {"dtype": torch.float64}


def low_rank(seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept = 0.5 + 0.4 * torch.rand(CLASSES, generator=generator, **DOUBLE)
    patterns = torch.zeros(2, CLASSES, **DOUBLE)
    patterns[0, :4], patterns[1, 3:] = 1 / 4, 1 / 6
    share = torch.rand(CLASSES, generator=generator, **DOUBLE)
    share[0] = 0
    return LowRankTransition(kept, torch.stack([share, 1 - share], 1) * (1 - kept).unsqueeze(1), patterns)


def flips(dtype=torch.float64):
    """Sparse, with a class that nothing turns into, and one group that is all connected."""
    return from_flips(CLASSES, {1: 2, 2: {3: 2, 4: 1}, 3: {1: 1, 8: 1}, 6: 5, 7: 5}, 0.4, dtype=dtype)


STRUCTURED = {
    "symmetric": lambda: SymmetricTransition(CLASSES, 0.4),
    "clean": lambda: SymmetricTransition(CLASSES, 0.0),
    "mostly_wrong": lambda: SymmetricTransition(CLASSES, 0.95),
    "complementary": lambda: SymmetricTransition(CLASSES, 1.0),
    "sparse": lambda: SparseTransition(flips().to_sparse()),
    "blocks": lambda: BlockDiagonalTransition(
        [symmetric(4, 0.3, **DOUBLE), pairflip(3, 0.2, **DOUBLE), symmetric(2, 0.1, **DOUBLE)],
        [[0, 5, 7, 8], [1, 2, 4], [3, 6]],
    ),
    "low_rank": low_rank,
}
every = pytest.mark.parametrize("name", STRUCTURED)


def random_problem(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, **DOUBLE)
    return logits, torch.randint(shape[1], shape[:1] + shape[2:], generator=generator)


def dense_of(transition):
    """T written out by pushing the unit vectors through it; symmetric noise knows no dtype."""
    return transition.product(torch.eye(CLASSES, **DOUBLE))


@every
def test_is_a_row_stochastic_matrix_under_the_protocol(name):
    transition = STRUCTURED[name]()
    assert isinstance(transition, Transition)
    assert transition.num_classes == CLASSES
    validate_transition(dense_of(transition))
    torch.testing.assert_close(transition.to_dense().double(), dense_of(transition), rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("shape", [(7, CLASSES), (2, CLASSES, 3)])
@pytest.mark.parametrize("kind", [ForwardCorrection, BackwardCorrection, ImportanceReweighting])
@pytest.mark.parametrize("loss", [CrossEntropy, SquareLoss])
def test_gives_the_loss_and_gradient_of_the_dense_matrix(name, shape, kind, loss):
    structured = kind(STRUCTURED[name](), loss=loss())
    dense = kind(dense_of(STRUCTURED[name]()), loss=loss())
    logits, target = random_problem(*shape)
    soft = random_problem(*shape, seed=1)[0].softmax(1)
    for labels in (target, soft):
        one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value, expected = structured(one, labels), dense(two, labels)
        tolerance = (
            1e-6 if kind is BackwardCorrection and name in ("symmetric", "mostly_wrong", "complementary") else 1e-11
        )
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)
        value.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(structured.noisy_log_posterior(logits), dense.noisy_log_posterior(logits))


@every
def test_is_exact_where_probabilities_underflow(name):
    transition = STRUCTURED[name]().float()
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([-1e4, 0.0, 20.0, 1e4])[torch.randint(4, (200, CLASSES), generator=generator)]
    dense = dense_of(STRUCTURED[name]())
    for label in range(CLASSES):
        one, two = logits.clone().requires_grad_(), logits.double().requires_grad_()
        target = torch.full((200,), label)
        value = forward_cross_entropy(one, target, transition, reduction="none")
        expected = forward_cross_entropy(two, target, dense, reduction="none")
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5)
        value.sum().backward()
        expected.sum().backward()
        # A pattern's own log-likelihood of about -1e4 is rounded to 5e-4, relative in the gradient.
        tolerance = 1e-3 if name == "low_rank" else 1e-5
        torch.testing.assert_close(one.grad.double(), two.grad, rtol=tolerance, atol=tolerance)
    log_q = noisy_log_posterior(logits, transition)
    torch.testing.assert_close(log_q.double(), noisy_log_posterior(logits.double(), dense), rtol=1e-5, atol=1e-5)


@every
def test_condition_number_is_that_of_the_dense_matrix(name):
    expected = condition_number(dense_of(STRUCTURED[name]())).item()
    assert STRUCTURED[name]().condition_number() == pytest.approx(expected, rel=1e-9)


@every
def test_gradcheck(name):
    logits, target = random_problem(3, CLASSES)
    soft = random_problem(3, CLASSES, seed=1)[0].softmax(1)
    for kind in (ForwardCorrection, BackwardCorrection):
        correction = kind(STRUCTURED[name]())
        for labels in (target, soft):
            assert torch.autograd.gradcheck(lambda z, c=correction, y=labels: c(z, y), logits.requires_grad_())


@every
def test_survives_checkpoints_copies_and_pickles(name):
    logits, target = random_problem(5, CLASSES)
    correction = BackwardCorrection(STRUCTURED[name]())
    expected = correction(logits, target)
    file = io.BytesIO()
    torch.save(correction.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    restored = BackwardCorrection(STRUCTURED[name]())
    restored.load_state_dict(state)
    for other in (restored, copy.deepcopy(correction), pickle.loads(pickle.dumps(correction))):
        assert torch.equal(other(logits, target), expected)


OTHERS = {  # of the same kind, with other values, and another number of entries where that is not part of the kind
    "symmetric": lambda: SymmetricTransition(CLASSES, 0.1),
    "clean": lambda: SymmetricTransition(CLASSES, 0.6),
    "mostly_wrong": lambda: SymmetricTransition(CLASSES, 0.2),
    "complementary": lambda: SymmetricTransition(CLASSES, 0.0),
    "sparse": lambda: SparseTransition(pairflip(CLASSES, 0.2, **DOUBLE).to_sparse()),
    "blocks": lambda: BlockDiagonalTransition([symmetric(3, 0.2, **DOUBLE)] * 3),
    "low_rank": lambda: low_rank(seed=1),
}


def everything(transition):
    """All that a T can be asked."""
    logits, target = random_problem(5, CLASSES)
    soft = logits.softmax(1)
    return [
        transition.log_likelihood(logits, target),
        transition.mean_cross_entropy(logits, target),
        transition.log_posterior(logits),
        transition.label_columns(target),
        transition.inverse_rows(target, torch.float64),
        transition.inverse_rows(soft, torch.float64),
        transition.unbiased_log_likelihood(logits, target),
        transition.mean_unbiased_cross_entropy(logits, target),
        transition.to_dense(),
        torch.tensor(transition.condition_number()),
    ]


@every
def test_everything_that_a_transition_is_made_of_is_in_its_state(name):
    trained, restored = STRUCTURED[name](), OTHERS[name]()
    for transition in (trained, restored):
        transition.factorize(1e4)
    before, expected = everything(restored), everything(trained)
    assert not torch.equal(before[0], expected[0])
    restored.load_state_dict(trained.state_dict())
    for got, value in zip(everything(restored), expected, strict=True):
        assert torch.equal(got, value)


@every
def test_label_columns_are_columns(name):
    transition = STRUCTURED[name]()
    target = torch.tensor([3, 0, 3, CLASSES - 1])
    expected = dense_of(transition).t()[target]
    torch.testing.assert_close(transition.label_columns(target).double(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("one", "other", "sentence"),
    [
        (SymmetricTransition(4, 0.1), SymmetricTransition(5, 0.2), "is for 5 classes but this one is for 4"),
        (
            SparseTransition(pairflip(4, 0.2).to_sparse()),
            SparseTransition(pairflip(5, 0.2).to_sparse()),
            r"'columns.start' of shape \(6,\)",
        ),
        (low_rank(), LowRankTransition(torch.ones(3), torch.zeros(3, 1), torch.ones(1, 3)), r"'diagonal' of shape"),
        (low_rank(), SymmetricTransition(CLASSES, 0.1), "has no 'diagonal'"),
    ],
    ids=["symmetric", "sparse", "low_rank", "another kind"],
)
def test_a_state_of_other_sizes_is_refused_whole(one, other, sentence):
    before = {name: value.clone() for name, value in one.state_dict().items()}
    with pytest.raises(ValueError, match=sentence) as caught:
        one.load_state_dict(other.state_dict())
    assert str(caught.value).endswith("build T as when it was saved.")
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match=r"this ForwardCorrection|build T"):
        ForwardCorrection(one).load_state_dict(ForwardCorrection(other).state_dict())


def test_a_loaded_sparse_transition_is_the_loaded_one():
    """Another matrix of as many entries, with fuller columns and another inverse."""
    first = BackwardCorrection(SparseTransition(pairflip(4, 0.2, **DOUBLE).to_sparse()))
    other = from_flips(4, {1: 0, 2: 0, 3: {0: 1, 1: 1}}, 0.3, **DOUBLE)
    second = BackwardCorrection(SparseTransition(other.to_sparse()))
    first.load_state_dict(second.state_dict())
    logits, target = random_problem(5, 4)
    assert torch.equal(first(logits, target), second(logits, target))
    assert first.T.columns.width == 4


@every
@pytest.mark.parametrize("kind", [ForwardCorrection, BackwardCorrection])
@pytest.mark.parametrize("soft", [False, True])
def test_compiles_without_a_graph_break(name, kind, soft):
    torch.compiler.reset()
    logits, target = random_problem(5, CLASSES)
    logits = logits.float()
    labels = random_problem(5, CLASSES, seed=1)[0].softmax(1).float() if soft else target
    correction = kind(STRUCTURED[name]().float())
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    torch.compile(correction, fullgraph=True, backend="aot_eager")(one, labels).backward()
    correction(two, labels).backward()
    torch.testing.assert_close(one.grad, two.grad)


@every
def test_functorch_agrees_with_autograd(name):
    logits, target = random_problem(5, CLASSES)
    transition = STRUCTURED[name]()
    each = torch.func.vmap(torch.func.grad(lambda z, y: forward_cross_entropy(z, y, transition)))(logits, target)
    leaf = logits.clone().requires_grad_()
    forward_cross_entropy(leaf, target, transition, reduction="sum").backward()
    torch.testing.assert_close(each, leaf.grad)


@every
def test_autocast_computes_in_float32(name):
    logits, target = random_problem(5, CLASSES)
    soft = random_problem(5, CLASSES, seed=1)[0].softmax(1)
    half = logits.bfloat16()
    for kind, labels in itertools.product((ForwardCorrection, BackwardCorrection), (target, soft)):
        correction = kind(STRUCTURED[name]().float())
        with torch.autocast("cpu", torch.bfloat16):
            got = correction(half, labels)
        torch.testing.assert_close(got, correction(half.float(), labels), rtol=1e-5, atol=1e-5)


# --- symmetric ------------------------------------------------------------------------------------------------------


def test_symmetric_noise_keeps_no_matrix():
    transition = SymmetricTransition(10**9, 0.2)
    assert not list(transition.buffers())
    assert transition.condition_number() == pytest.approx((1 + 0.2) / 0.8)


def test_symmetric_noise_at_the_rate_where_labels_carry_nothing():
    loss = ForwardCorrection(SymmetricTransition(4, 0.75))
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(logits, torch.tensor([0, 1, 2]))
    value.backward()
    assert value.item() == pytest.approx(torch.tensor(4.0).log().item())
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="condition number inf"):
        BackwardCorrection(SymmetricTransition(4, 0.75))


# --- sparse ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_any_sparse_layout(layout):
    dense = flips()
    blocksize = (3, 3) if layout in ("bsr", "bsc") else None
    matrix = dense.to_sparse(layout=getattr(torch, f"sparse_{layout}"), blocksize=blocksize)
    torch.testing.assert_close(SparseTransition(matrix).to_dense(), dense)


def test_entries_given_twice_add_up():
    index = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]])
    with torch.sparse.check_sparse_tensor_invariants(True):
        matrix = torch.sparse_coo_tensor(index, torch.tensor([0.5, 0.2, 0.3, 1.0]), (2, 2))
    torch.testing.assert_close(SparseTransition(matrix).to_dense(), torch.tensor([[0.8, 0.2], [0.0, 1.0]]))


def test_a_label_that_no_class_turns_into_is_impossible():
    dense = torch.tensor([[0.5, 0.0, 0.5], [0.2, 0.0, 0.8], [0.0, 0.0, 1.0]])
    transition = SparseTransition(dense.to_sparse())
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = forward_cross_entropy(logits, torch.tensor([1, 0]), transition, reduction="none")
    assert loss[0] == torch.inf
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="condition number inf"):
        BackwardCorrection(transition)


def test_large_groups_are_inverted_by_iteration(monkeypatch):
    monkeypatch.setattr(sparse, "LARGEST_GROUP", 3)
    dense = pairflip(CLASSES, 0.45, **DOUBLE)
    transition = SparseTransition(dense.to_sparse())
    transition.factorize(max_condition=1e3)
    assert transition.inverse is None
    inverse = dense.inverse()
    target = torch.arange(CLASSES)
    torch.testing.assert_close(transition.inverse_rows(target, torch.float64), inverse, rtol=1e-12, atol=1e-12)
    soft = random_problem(4, CLASSES)[0].softmax(1)
    torch.testing.assert_close(transition.inverse_rows(soft, torch.float64), soft @ inverse, rtol=1e-12, atol=1e-12)
    assert transition.condition_number() >= condition_number(dense) - 1e-9
    with pytest.raises(ValueError, match="past the bound 9"):
        transition.factorize(max_condition=9)
    with pytest.raises(ValueError, match=r"connects 9 classes.*keeps only 0.4"):
        SparseTransition(pairflip(CLASSES, 0.6).to_sparse()).factorize(1e3)


def test_a_hundred_thousand_classes_with_twenty_entries_train():
    classes, entries, samples = 100_000, 20, 8
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(classes).repeat_interleave(entries)
    noisy = torch.randint(classes, (classes * entries,), generator=generator)
    noisy[::entries] = torch.arange(classes)
    probability = torch.full((classes * entries,), 0.2 / (entries - 1))
    probability[::entries] = 0.8
    with torch.sparse.check_sparse_tensor_invariants(True):
        matrix = torch.sparse_coo_tensor(torch.stack([clean, noisy]), probability, (classes, classes))
    correction = ForwardCorrection(SparseTransition(matrix))
    held = sum(buffer.numel() for buffer in correction.buffers())
    assert held <= 3 * classes * entries
    inputs = torch.randn(samples, 16, generator=generator)
    target = torch.randint(classes, (samples,), generator=generator)
    weight = torch.zeros(classes, 16, requires_grad=True)
    losses = []
    for _ in range(4):
        loss = correction(inputs @ weight.t(), target)
        losses.append(loss.item())
        (slope,) = torch.autograd.grad(loss, weight)
        weight = (weight - 8 * slope).detach().requires_grad_()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    backward = BackwardCorrection(correction.T)
    assert backward(inputs @ weight.t(), target).isfinite()


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: SymmetricTransition(1, 0.2), ValueError, "at least 2 classes, got 1"),
        (lambda: SymmetricTransition(3, 1.2), ValueError, r"\[0, 1\], got 1.2"),
        (lambda: SparseTransition(torch.eye(3)), TypeError, "sparse tensor"),
        (lambda: SparseTransition(torch.eye(3).long().to_sparse()), TypeError, "floating"),
        (lambda: SparseTransition(torch.eye(3)[:2].to_sparse()), ValueError, r"square.*\(2, 3\)"),
        (lambda: SparseTransition((2 * torch.eye(3)).to_sparse()), ValueError, "row 0.*sums to 2"),
        (lambda: SparseTransition(torch.tensor([[1.5, -0.5], [0.0, 1.0]]).to_sparse()), ValueError, "negative"),
        (
            lambda: SparseTransition(torch.eye(3).to_sparse()).inverse_rows(torch.tensor([0]), torch.float32),
            RuntimeError,
            "factorize",
        ),
        (lambda: BlockDiagonalTransition([torch.eye(2), torch.ones(1, 1)], [[0, 1], [1]]), ValueError, "exactly one"),
        (lambda: BlockDiagonalTransition([torch.eye(2)], [[0, 1, 2]]), ValueError, r"blocks of \[2\].*\[3\]"),
        (lambda: BlockDiagonalTransition([torch.ones(2, 2)]), ValueError, "sums to 2"),
        (
            lambda: LowRankTransition(torch.ones(3), torch.zeros(2, 1), torch.ones(1, 3)),
            ValueError,
            "do not go together",
        ),
        (lambda: LowRankTransition(torch.ones(2), torch.ones(2, 1), torch.ones(1, 2)), ValueError, "sums to 3"),
        (lambda: LowRankTransition(torch.ones(2), -torch.ones(2, 1), torch.ones(1, 2)), ValueError, "left holds"),
        (
            lambda: BackwardCorrection(LowRankTransition(torch.zeros(2), torch.ones(2, 1), torch.full((1, 2), 0.5))),
            ValueError,
            "zero at class 0",
        ),
        (
            lambda: forward_cross_entropy(torch.zeros(1, 4), torch.tensor([0]), SymmetricTransition(3, 0.2)),
            ValueError,
            "for 3 classes but logits have 4",
        ),
    ],
)
def test_refuses_in_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")


def test_no_use_of_a_sparse_transition_warns():
    logits, target = random_problem(5, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BackwardCorrection(STRUCTURED["sparse"]())(logits, logits.softmax(1))
        ForwardCorrection(STRUCTURED["sparse"]())(logits, target)


def test_a_sparse_transition_takes_a_sparse_estimate():
    transition = SparseTransition(5)
    assert transition.is_identity
    transition.factorize(100.0)
    transition.start_from(pairflip(5, 0.2).to_sparse())
    assert not transition.is_identity
    assert transition.to_dense().equal(pairflip(5, 0.2))
    torch.testing.assert_close(
        transition.inverse_rows(torch.arange(5), torch.float32), torch.linalg.inv(pairflip(5, 0.2)), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="condition number"):
        transition.start_from(torch.full((5, 5), 0.2).to_sparse())
    assert transition.to_dense().equal(pairflip(5, 0.2))
    transition.start_from(torch.eye(5).to_sparse())
    assert transition.is_identity


@pytest.mark.parametrize(
    ("estimate", "error", "message"),
    [
        (torch.eye(3), TypeError, "SparseTransition cannot take the values of a dense T.*estimate T with max_entries"),
        (torch.eye(4).to_sparse(), ValueError, "for 4 classes but 3 are expected"),
        (torch.ones(3, 3).to_sparse(), ValueError, "sums to 3, not to one"),
    ],
)
def test_what_is_no_sparse_estimate_is_refused(estimate, error, message):
    with pytest.raises(error, match=message):
        SparseTransition(3).start_from(estimate)


def test_a_correction_takes_a_sparse_tensor_as_it_is():
    sparse = pairflip(4, 0.3).to_sparse()
    given, awaiting, dense = ForwardCorrection(sparse), ForwardCorrection(), ForwardCorrection(num_classes=4)
    awaiting.set_transition(sparse)
    dense.set_transition(sparse)
    assert isinstance(given.T, SparseTransition)
    assert isinstance(awaiting.T, SparseTransition)
    for correction in (given, awaiting, dense):
        assert correction.transition.equal(pairflip(4, 0.3))
