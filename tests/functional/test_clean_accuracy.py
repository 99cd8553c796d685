"""Accuracy on clean labels from noisy ones: unbiased, with the right variance, by enumeration and by autograd."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from noisylightning.functional import (
    Estimate,
    clean_accuracy,
    clean_accuracy_difference,
    clean_confusion_matrix,
    condition_warning,
    count_pairs,
    prediction_powered_accuracy,
    prediction_powered_mean,
)
from noisylightning.functional.clean_accuracy import row_variance
from noisylightning.transition import (
    BlockDiagonalTransition,
    LowRankTransition,
    PartDependentTransition,
    SparseTransition,
    SymmetricTransition,
    pairflip,
    symmetric,
)

T = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.6, 0.35], [0.3, 0.1, 0.6]], dtype=torch.float64)
JOINT = torch.tensor([[0.3, 0.05, 0.02], [0.04, 0.25, 0.03], [0.01, 0.06, 0.24]], dtype=torch.float64)


def close(found, expected, **tolerance):
    torch.testing.assert_close(
        found, torch.as_tensor(expected, dtype=torch.float64), **(tolerance or {"rtol": 1e-9, "atol": 1e-12})
    )


# Theorems


def labellings(clean):
    """Every way in which noise may label these samples, and how probable it is."""
    for noisy in product(range(3), repeat=len(clean)):
        yield torch.tensor(noisy), float(T[clean, torch.tensor(noisy)].prod())


@pytest.mark.parametrize("clean", [[0, 1, 2, 2], [1, 1, 0, 1]])
def test_it_is_unbiased(clean):
    """Averaged over every noisy labelling of given samples it is what their clean labels say."""
    clean, first, second = torch.tensor(clean), torch.tensor([0, 2, 2, 1]), torch.tensor([0, 1, 0, 1])
    accuracy, confusion, difference, powered = 0, 0, 0, 0
    for noisy, probability in labellings(clean):
        counts = count_pairs(noisy, first, 3)
        accuracy += probability * clean_accuracy(counts, T).value
        confusion += probability * clean_confusion_matrix(counts, T).value
        difference += probability * clean_accuracy_difference(noisy, first, second, T).value
        # Of these four as trusted and as other samples: what is of f cancels, whatever T is taken
        known = [count_pairs(noisy[some], first[some], 3) for some in (clean != first, clean == first)]
        powered += probability * prediction_powered_accuracy(counts, *known, symmetric(3, 0.5), tune=False).value
    right = (first == clean).double().mean()
    close(accuracy, right)
    close(powered, right)
    close(confusion, count_pairs(clean, first, 3).double() / 4)
    close(difference, right - (second == clean).double().mean())


def test_the_variance_of_sampling_is_unbiased():
    """Averaged over every sample of three that can be drawn, the squared standard error is the estimate's variance."""
    cells = (T.T @ JOINT).flatten()
    values, errors, weights = [], [], []
    for drawn in product(range(9), repeat=3):
        counts = torch.bincount(torch.tensor(drawn), minlength=9).view(3, 3)
        found = clean_accuracy(counts, T)
        values.append(found.value)
        errors.append(found.standard_error)
        weights.append(cells[list(drawn)].prod())
    values, errors, weights = torch.stack(values), torch.stack(errors), torch.stack(weights)
    mean = (weights * values).sum()
    close(mean, JOINT.trace())
    close((weights * errors.square()).sum(), (weights * (values - mean).square()).sum())


def test_a_trusted_mean_stays_right_whatever_the_score_is():
    """Over every way to draw the trusted samples; the score is nonsense."""
    scores, values = torch.tensor([3.0, -1.0, 7.0, 0.5]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    found = []
    for chosen in product(range(4), repeat=2):
        chosen = list(chosen)
        # the others are as many as there are, so that their mean is the score's
        found.append(prediction_powered_mean(scores, values[chosen], scores[chosen], tune=False).value)
    close(torch.stack(found).mean(), 0.5)


def test_a_score_that_tells_nothing_is_not_used_and_one_that_tells_all_is():
    values = (torch.arange(100) % 3 == 0).double()
    alone = prediction_powered_mean(torch.zeros(1000), values, torch.zeros(100))
    close(alone.value, 0.34)
    close(alone.standard_error, values.std() / 10)
    scores = (torch.arange(10_000) % 3 == 0).double()
    powered = prediction_powered_mean(scores, values, values)
    assert abs(float(powered.value) - float(scores.mean())) < 1e-3
    assert float(powered.standard_error) < 0.11 * float(alone.standard_error)


# References


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 10**6))
    generator = np.random.default_rng(seed)
    classes = draw(st.integers(2, 5))
    transition = 0.5 * np.eye(classes) + 0.5 * generator.dirichlet(np.ones(classes), size=classes)
    joint = generator.dirichlet(np.ones(classes**2)).reshape(classes, classes) + np.eye(classes)
    counts = generator.multinomial(500 * classes, (transition.T @ joint / joint.sum()).flatten())
    error = 0.02 * generator.random((classes, classes))
    return torch.from_numpy(transition), torch.from_numpy(counts.reshape(classes, classes)), torch.from_numpy(error)


def bias(function, counts):
    """What sampling adds on average to a function of counts, in second order, half of tr(H Cov)."""
    num, shares = counts.sum(), (counts / counts.sum()).flatten()
    hessian = torch.autograd.functional.hessian(lambda of: function(of.view_as(counts)), counts / num).flatten(0, 1)
    covariance = (shares.diag() - torch.outer(shares, shares)) / (num - 1)
    return (hessian.flatten(1) * covariance).sum() / 2


def statistics(counts, transition):
    """Each statistic as a function of what was counted and T, and its name."""
    joint = torch.linalg.solve(transition.T, counts)
    recall = joint.diagonal() / joint.sum(dim=1)
    yield "micro", joint.trace() / counts.sum()
    yield "macro", recall.mean()
    yield "none", recall
    yield "confusion", joint / counts.sum()


@settings(max_examples=25, deadline=None)
@given(problems())
def test_values_and_errors_follow_from_the_gradients(problem):
    """The delta method, its gradients by autograd."""
    transition, counts, error = problem
    seen, known = counts.double().requires_grad_(), transition.clone().requires_grad_()
    num = int(counts.sum())
    for name, values in statistics(seen, known):
        if name == "confusion":
            found, sure = clean_confusion_matrix(counts, transition, error), clean_confusion_matrix(counts, transition)
        else:
            found = clean_accuracy(counts, transition, error, average=name)
            sure = clean_accuracy(counts, transition, average=name)
        known_bias = torch.zeros_like(values)
        if name in ("macro", "none"):
            recalls = [
                bias(lambda of, place=place: dict(statistics(of, transition))["none"][place], counts.double())
                for place in range(len(transition))
            ]
            known_bias = torch.stack(recalls).mean() if name == "macro" else torch.stack(recalls)
            assume(float(torch.stack(recalls).abs().max()) < 0.1)  # of a T that is nearly singular it is no expansion
        close(found.value, values.detach() - known_bias, rtol=1e-9, atol=1e-12 + 0.2 * float(known_bias.abs().max()))
        one_more = torch.linalg.inv(transition).square().sum(dim=0) / num / (num - 1)  # in each cell of a column
        more = one_more[:, None].expand_as(values).flatten() if name == "confusion" else torch.zeros(values.numel())
        for value, both, sampled, extra in zip(
            values.flatten(), found.standard_error.flatten(), sure.standard_error.flatten(), more, strict=True
        ):
            by_count, by_transition = torch.autograd.grad(value, (seen, known), retain_graph=True)
            scores = num * by_count
            mean = (counts * scores).sum() / num
            sampling = (counts * (scores - mean).square()).sum() / num / (num - 1) + extra
            close(sampled.square(), sampling, rtol=1e-7, atol=1e-14)
            of_rows = row_variance(by_transition, error).sum()
            close(both.square(), sampling + of_rows, rtol=1e-7, atol=1e-14)


def test_sampling_adds_nothing_to_recall_on_average():
    """Where it would, by two points: pair-flip 0.45 and 500 samples a class."""
    transition, generator = pairflip(10, 0.45).double(), torch.Generator().manual_seed(0)
    joint = (0.9 * torch.eye(10).double() + 0.1 / 9 * (1 - torch.eye(10).double())) / 10
    drawn = torch.multinomial((transition.T @ joint).flatten().expand(300, -1), 5000, True, generator=generator)
    found = [clean_accuracy(cells.bincount(minlength=100).view(10, 10), transition, average="macro") for cells in drawn]
    values = torch.stack([estimate.value for estimate in found])
    assert abs(float(values.mean()) - 0.9) < 0.005
    rare = torch.tensor([[4985, 3], [4, 8]])  # of the second class 2 in 5,000, more or less
    few = clean_accuracy(rare, torch.tensor([[0.9980, 0.0020], [0.3, 0.7]]), average="none")
    assert abs(float(few.value[1]) - 1) < float(few.standard_error[1])


def test_it_is_a_mean_over_samples():
    """As it is written down: NumPy on arrays."""
    generator = np.random.default_rng(0)
    noisy, first, second = generator.integers(3, size=(3, 400))
    scores = np.linalg.inv(T.numpy())
    values, others = scores[noisy, first], scores[noisy, second]
    tensors = [torch.from_numpy(some) for some in (noisy, first, second)]
    found = clean_accuracy(count_pairs(*tensors[:2], 3), T)
    close(found.value, values.mean())
    close(found.standard_error, values.std(ddof=1) / 20)
    found = clean_accuracy_difference(*tensors, T)
    close(found.value, (values - others).mean())
    close(found.standard_error, (values - others).std(ddof=1) / 20, rtol=1e-7, atol=0)  # fixed point rounds
    low, high = found.interval(0.9)
    close(high - low, 2 * 1.6448536269514722 * found.standard_error, rtol=1e-9, atol=0)


def test_prediction_powered_inference_of_counts_is_that_of_samples():
    generator = np.random.default_rng(1)
    noisy, first, clean = (torch.from_numpy(some) for some in generator.integers(3, size=(3, 300)))
    scores, right = torch.linalg.inv(T)[noisy, first], (first == clean).double()
    known = torch.arange(300) < 60
    parts = [known.logical_not(), known & (right == 0), known & (right == 1)]
    counts = [count_pairs(noisy[part], first[part], 3) for part in parts]
    for tune in (True, False):
        found = prediction_powered_accuracy(*counts, T, tune)
        expected = prediction_powered_mean(scores[~known], right[known], scores[known], tune)
        close(found.value, expected.value)
        close(found.standard_error, expected.standard_error)
    f, g, y = scores[~known].numpy(), scores[known].numpy(), right[known].numpy()
    pooled = (240 * f.var(ddof=1) + 60 * g.var(ddof=1)) / 300
    factor = np.cov(g, y)[0, 1] / ((1 + 60 / 240) * pooled)
    found = prediction_powered_accuracy(*counts, T)
    close(found.value, factor * f.mean() + (y - factor * g).mean())
    close(found.standard_error**2, factor**2 * f.var(ddof=1) / 240 + (y - factor * g).var(ddof=1) / 60)


def test_a_wrong_transition_moves_the_estimate_as_its_gradient_says():
    """A small error of T, and the variance that a row of that error has."""
    counts = (10_000 * T.T @ JOINT).round().long()
    step = torch.tensor([[0.0, 0.0, 0.0], [1e-6, -1e-6, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    moved = clean_accuracy(counts, T + step).value - clean_accuracy(counts, T).value
    sure, unsure = clean_accuracy(counts, T), clean_accuracy(counts, T, step.abs())
    close((unsure.standard_error.square() - sure.standard_error.square()).sqrt(), moved.abs(), rtol=1e-3, atol=0)


# The errors of a row


def test_errors_of_rows_sum_to_zero():
    """What is added to all entries of a row moves nothing, and some rows' covariance is known exactly."""
    errors = torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(row_variance(torch.full((5, 5), 3.0, dtype=torch.float64), errors), torch.zeros(5))
    gradient = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = torch.full((6,), 0.06, dtype=torch.float64)
    row[2] = 0.7
    drawn = torch.diag(row) - torch.outer(row, row)  # covariance of one drawn label; symmetric noise
    error = drawn.diagonal().sqrt().expand(2, 6)
    close(row_variance(gradient, error), torch.einsum("ni,ij,nj->n", gradient, drawn, gradient))
    together = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)  # one parameter moves all
    direction = torch.tensor([-0.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    close(row_variance(gradient, together.expand(2, 6)), (gradient @ direction).square())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 20))
def test_frequencies_of_drawn_labels_have_about_the_variance_that_is_taken(seed, classes):
    generator = np.random.default_rng(seed)
    row = 0.5 * np.eye(classes)[0] + 0.5 * generator.dirichlet(np.ones(classes))
    gradient = generator.normal(size=classes)
    covariance = np.diag(row) - np.outer(row, row)
    true = gradient @ covariance @ gradient
    error = torch.from_numpy(np.sqrt(covariance.diagonal().copy()))
    found = row_variance(torch.from_numpy(gradient)[None], error[None])
    assert 0.7 < float(found) / true < 1.4  # the root is off by less than a fifth


# T with structure


@pytest.mark.parametrize(
    ("known", "dense"),
    [
        (SymmetricTransition(6, 0.3), symmetric(6, 0.3)),
        (SparseTransition(pairflip(6, 0.3).to_sparse()), pairflip(6, 0.3)),
        (pairflip(6, 0.3).to_sparse(), pairflip(6, 0.3)),
        (
            BlockDiagonalTransition([symmetric(2, 0.1), pairflip(4, 0.2)]),
            torch.block_diag(symmetric(2, 0.1), pairflip(4, 0.2)),
        ),
        (
            LowRankTransition(torch.full((6,), 0.7), torch.full((6, 1), 0.3), torch.full((1, 6), 1 / 6)),
            0.7 * torch.eye(6) + 0.05,
        ),
    ],
)
def test_a_transition_with_structure_gives_what_it_gives_written_out(known, dense):
    counts = torch.randint(50, (6, 6), generator=torch.Generator().manual_seed(0)) + 200 * torch.eye(6).long()
    error = torch.full((6, 6), 0.01)
    state = {name: value.clone() for name, value in known.state_dict().items()} if hasattr(known, "state_dict") else {}
    for function in (clean_accuracy, clean_confusion_matrix):
        found, expected = function(counts, known, error), function(counts, dense, error)
        close(found.value, expected.value, rtol=1e-6, atol=1e-8)
        close(found.standard_error, expected.standard_error, rtol=1e-5, atol=1e-8)
    if state:  # it is not factorized behind its owner's back
        assert known.max_condition is None
        assert all(torch.equal(value, known.state_dict()[name]) for name, value in state.items())


# Near the singular


def test_the_interval_grows_with_the_condition_number_and_says_so():
    joint = (0.8 * torch.eye(4) + 0.05).double() / 4
    widths, sentences = [], []
    for rate in (0.1, 0.3, 0.45, 0.49, 0.499):
        transition = pairflip(4, rate).double()
        counts = (1e6 * transition.T @ joint).round().long()
        widths.append(float(clean_accuracy(counts, transition).standard_error))
        sentences.append(condition_warning(transition))
    assert widths == sorted(widths)
    assert widths[-1] > 50 * widths[0]
    assert sentences[:3] == [None] * 3
    assert sentences[-1].startswith("T is nearly singular (condition number 500): the interval")


def test_standard_errors_that_do_not_exclude_a_singular_transition_are_told():
    assert condition_warning(symmetric(10, 0.5), torch.full((10, 10), 0.005)) is None
    assert "do not exclude a singular T (condition number 3.25)" in condition_warning(
        symmetric(10, 0.5), torch.full((10, 10), 0.1)
    )


COUNTS = torch.tensor([[30, 1, 2], [3, 40, 4], [2, 2, 20]])
UNSEEN = torch.tensor([[10, 0, 0], [0, 10, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: clean_accuracy(COUNTS, torch.full((3, 3), 1 / 3)), ValueError, r"T is singular \(condition number"),
        (lambda: clean_accuracy(COUNTS, SymmetricTransition(3, 2 / 3)), ValueError, "T is singular .*inf"),
        (lambda: clean_accuracy(COUNTS, PartDependentTransition(3)), ValueError, "depends on the sample.*trusted"),
        (lambda: clean_accuracy(COUNTS, torch.eye(4)), ValueError, "T is for 4 classes, but the counts are of"),
        (lambda: clean_accuracy(COUNTS, 2 * T), ValueError, "sums to 2"),
        (lambda: clean_accuracy(COUNTS.double(), T), TypeError, "must be integers, got torch.float64"),
        (lambda: clean_accuracy(-COUNTS, T), ValueError, "hold -40"),
        (lambda: clean_accuracy(torch.eye(3).long() * torch.tensor([1, 0, 0]), T), ValueError, "at least 2 .* got 1"),
        (lambda: clean_accuracy(COUNTS, T, average="weighted"), ValueError, "'none', got 'weighted'"),
        (lambda: clean_accuracy(COUNTS, T, torch.zeros(2, 2)), ValueError, r"standard errors are of shape \(2, 2\)"),
        (lambda: clean_accuracy(COUNTS, T, -torch.ones(3, 3)), ValueError, "negative or not finite"),
        (lambda: clean_accuracy(COUNTS, T, torch.full((3, 3), torch.nan)), ValueError, "negative or not finite"),
        (lambda: clean_accuracy(UNSEEN, T, average="macro"), ValueError, "are of class 2, so its recall is unknown"),
        (lambda: count_pairs(torch.tensor([0, 3]), torch.tensor([0, 1]), 3), ValueError, "Noisy labels must.* got 3"),
        (lambda: count_pairs(torch.tensor([0, 2]), torch.tensor([0, -1]), 3), ValueError, "Predicted classes .*-1"),
        (lambda: count_pairs(torch.tensor([0, 2]), torch.tensor([0]), 3), ValueError, "give one of each a sample"),
        (lambda: Estimate(torch.tensor(0.5), torch.tensor(0.1)).interval(95), ValueError, r"\(0, 1\), got 95"),
        (lambda: prediction_powered_accuracy(COUNTS, 0 * COUNTS, 0 * COUNTS, T), ValueError, "2 samples with"),
        (lambda: prediction_powered_mean(torch.ones(3), torch.ones(2), torch.ones(3)), ValueError, "one of each"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Exactness


def test_equal_networks_differ_by_nothing():
    noisy, first = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])
    found = clean_accuracy_difference(noisy, first, first, T, torch.full((3, 3), 0.1))
    assert (float(found.value), float(found.standard_error)) == (0.0, 0.0)
