"""Dawid and Skene's EM against an independent one in NumPy and against crowd-kit, and where it leads."""

import numpy as np
import pytest
import torch

from noisylightning.functional import dawid_skene
from noisylightning.transition import relative_l1_error


def crowd(num=300, annotators=8, classes=4, share=0.6, seed=0, smallest=0.55):
    """Items, answers of annotators who each have a T of their own, and these."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, classes, num)
    diagonal = rng.uniform(smallest, 0.95, (annotators, classes))
    transitions = np.stack([(1 - d)[:, None] * rng.dirichlet(np.ones(classes), classes) + np.diag(d) for d in diagonal])
    answers = np.stack([[rng.choice(classes, p=t[c]) for c in clean] for t in transitions], axis=1)
    answers[rng.random(answers.shape) > share] = -1
    kept = (answers >= 0).any(axis=1)
    return torch.from_numpy(answers[kept]), clean[kept], torch.from_numpy(transitions)


def reference(answers, classes, smoothing, steps=5000):
    """Loops over items and annotators, probabilities multiplied as they are."""
    num, annotators = answers.shape
    q = np.array([[np.sum(row == j) for j in range(classes)] for row in answers], dtype=float)
    q /= q.sum(axis=1, keepdims=True)
    for _ in range(steps):
        prior = q.mean(axis=0)
        rows = np.full((annotators, classes, classes), float(smoothing))
        for a in range(annotators):
            for j in range(classes):
                rows[a, :, j] += q[answers[:, a] == j].sum(axis=0)
        rows /= rows.sum(axis=2, keepdims=True)
        before, q = q, np.tile(prior, (num, 1))
        for a in range(annotators):
            answered = answers[:, a] >= 0
            q[answered] *= rows[a][:, answers[answered, a]].T
        q /= q.sum(axis=1, keepdims=True)
        if np.abs(q - before).max() < 1e-11:
            break
    return q, rows


@pytest.mark.parametrize("smoothing", [0, 0.1, 1])
def test_agrees_with_numpy(smoothing):
    answers, _, _ = crowd(num=80)
    found = dawid_skene(answers, 4, smoothing=smoothing, tolerance=1e-11)
    soft_labels, rows = reference(answers.numpy(), 4, smoothing)
    np.testing.assert_allclose(found.soft_labels, soft_labels, atol=1e-7)
    np.testing.assert_allclose(found.annotator_transitions, rows, atol=1e-7)


def test_agrees_with_crowd_kit():
    pandas, aggregation = pytest.importorskip("pandas"), pytest.importorskip("crowdkit.aggregation")
    answers, _, _ = crowd()
    item, worker = np.nonzero(answers.numpy() >= 0)
    table = pandas.DataFrame({"task": item, "worker": worker, "label": answers.numpy()[item, worker]})
    theirs = aggregation.DawidSkene(n_iter=5000, tol=1e-13).fit(table)
    found = dawid_skene(answers, 4, smoothing=0, tolerance=1e-9)
    expected = theirs.probas_.sort_index()[list(range(4))].to_numpy()
    np.testing.assert_allclose(
        found.soft_labels, expected, atol=1e-3
    )  # theirs are clipped at 1e-10, and stop by likelihood


def test_answers_give_every_t_and_the_labels_as_they_grow():
    errors = []
    for num in (200, 5000):
        answers, clean, true = crowd(num, share=0.9)
        found = dawid_skene(answers, 4)
        errors.append(float((found.annotator_transitions - true).abs().mean()))
        assert (found.soft_labels.argmax(dim=1).numpy() == clean).mean() > 0.95
        assert relative_l1_error(found.transition, true.mean(dim=0)) < (0.15 if num == 200 else 0.04)
    assert errors[1] < 0.01 < errors[0]


def test_a_spammer_is_found_out_where_votes_count_him():
    """Nine experts are outvoted by ten who always answer 0."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 3, 500)
    right = rng.random((500, 9)) < 0.8
    experts = np.where(right, clean[:, None], rng.integers(0, 3, (500, 9)))
    answers = torch.from_numpy(np.concatenate([experts, np.zeros((500, 10), dtype=int)], axis=1))
    assert (answers.mode(dim=1).values.numpy() == clean).mean() < 0.6
    found = dawid_skene(answers, 3)
    assert (found.soft_labels.argmax(dim=1).numpy() == clean).mean() > 0.98
    assert (found.annotator_transitions[9:, :, 0] > 0.99).all()


def test_the_mean_t_weighs_annotators_by_their_answers():
    answers, _, _ = crowd()
    found = dawid_skene(answers, 4, smoothing=0, tolerance=1e-11)
    weights = torch.stack([(found.soft_labels[answers[:, a] >= 0]).sum(dim=0) for a in range(8)])
    mean = (weights[:, :, None] * found.annotator_transitions).sum(dim=0) / weights.sum(dim=0)[:, None]
    torch.testing.assert_close(found.transition, mean, atol=1e-8, rtol=0)
    assert found.transition.sum(dim=1).allclose(torch.ones(4, dtype=torch.float64))


def test_without_smoothing_a_row_that_nobody_speaks_of_is_the_crowds():
    """The last annotator answered no item of class 1."""
    answers = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, -1], [1, 1, 1, -1]])
    found = dawid_skene(answers, 2, smoothing=0)
    torch.testing.assert_close(found.annotator_transitions[3, 1], found.transition[1])
    assert found.annotator_transitions.isfinite().all()


def test_weights_count_items_as_often_as_they_say():
    answers, _, _ = crowd(num=60)
    weights = torch.arange(60) % 3
    found = dawid_skene(answers, 4, weights=weights[: len(answers)], tolerance=1e-10)
    repeated = dawid_skene(answers.repeat_interleave(weights[: len(answers)], dim=0), 4, tolerance=1e-10)
    torch.testing.assert_close(found.transition, repeated.transition, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("answers", "options", "error", "message"),
    [
        ([[0, 1], [1, 2]], {}, ValueError, "Annotator 1 answers 2, but there are 2 classes, 0 to 1: bring the annot"),
        ([[0, 1], [-2, 1]], {}, ValueError, "Annotator 0 answers -2"),
        ([[0, -1], [1, -1]], {}, ValueError, "Annotator 1 has no answer: leave such columns out"),
        ([[0, 1], [-1, -1], [-1, -1]], {}, ValueError, "Item 1 has no answer, and 1 more: leave such rows out"),
        ([[0, 0], [0, 0]], {}, ValueError, "No annotator ever answers 1: lower num_classes"),
        ([0, 1], {}, ValueError, r"a table \(N, annotators\), got \(2,\)"),
        ([[0.0, 1.0]], {}, TypeError, "answers must be integers, got torch.float32"),
        ([[0, 1], [1, 1]], {"smoothing": -1}, ValueError, "smoothing must be at least 0, got -1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(answers, options, error, message):
    with pytest.raises(error, match=message):
        dawid_skene(torch.tensor(answers), 2, **options)


def test_what_does_not_converge_is_refused():
    with pytest.raises(RuntimeError, match="did not converge in 3 steps: raise max_steps"):
        dawid_skene(crowd()[0], 4, max_steps=3)
