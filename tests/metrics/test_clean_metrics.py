"""The metrics of clean labels are shells over the functions: exact in any batches, order and number of processes."""

import pytest
import torch
from torch import nn

from noisylightning.functional import (
    clean_accuracy,
    clean_accuracy_difference,
    clean_confusion_matrix,
    count_pairs,
    prediction_powered_accuracy,
)
from noisylightning.metrics import CleanAccuracy, CleanConfusionMatrix, PairedCleanAccuracy, PredictionPoweredAccuracy
from noisylightning.transition import SparseTransition, pairflip

C, N = 5, 400
T, ERROR = pairflip(C, 0.3), torch.full((C, C), 0.01)


def samples(seed=0):
    """Scores of two networks, noisy labels, and the trusted labels of some."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.arange(N) % C
    scores = [3 * nn.functional.one_hot(clean, C) + torch.randn(N, C, generator=generator) for _ in range(2)]
    noisy = torch.multinomial(T[clean], 1, generator=generator).flatten()
    return *scores, noisy, clean.where(torch.arange(N) % 7 == 0, -1)


FIRST, SECOND, NOISY, TRUSTED = samples()
METRICS = {
    "accuracy": (lambda: CleanAccuracy(T, standard_error=ERROR), (FIRST, NOISY)),
    "balanced": (lambda: CleanAccuracy(T, average="macro", standard_error=ERROR), (FIRST, NOISY)),
    "recall": (lambda: CleanAccuracy(T, average="none", standard_error=ERROR), (FIRST, NOISY)),
    "confusion": (lambda: CleanConfusionMatrix(T, standard_error=ERROR), (FIRST, NOISY)),
    "paired": (lambda: PairedCleanAccuracy(T, standard_error=ERROR), (FIRST, SECOND, NOISY)),
    "powered": (lambda: PredictionPoweredAccuracy(T), (FIRST, NOISY, TRUSTED)),
}


def expected(name):
    first, second = FIRST.argmax(dim=1), SECOND.argmax(dim=1)
    if name == "confusion":
        return clean_confusion_matrix(count_pairs(NOISY, first, C), T, ERROR)
    if name == "paired":
        return clean_accuracy_difference(NOISY, first, second, T, ERROR)
    if name == "powered":
        known = TRUSTED >= 0
        parts = ~known, known & (first != TRUSTED), known & (first == TRUSTED)
        return prediction_powered_accuracy(*(count_pairs(NOISY[part], first[part], C) for part in parts), T)
    average = {"accuracy": "micro", "balanced": "macro", "recall": "none"}[name]
    return clean_accuracy(count_pairs(NOISY, first, C), T, ERROR, average)


@pytest.mark.parametrize("name", METRICS)
def test_it_is_the_function_to_the_last_bit_in_any_order_batches_and_processes(name):
    make, tensors = METRICS[name]
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    whole, one, two = make(), make(), make()
    whole.update(*tensors)
    for place, rows in enumerate(order.split(37)):
        (one if place % 3 else two).update(*(tensor[rows] for tensor in tensors))
    for state in whole._defaults:  # what torchmetrics does with the states of two processes
        setattr(one, state, one._reductions[state](torch.stack([getattr(one, state), getattr(two, state)])))
    found = expected(name)
    for metric in (whole, one):
        assert torch.equal(metric.estimate().value, found.value)
        assert torch.equal(metric.estimate().standard_error, found.standard_error)
        assert torch.equal(metric.compute(), found.value.float())
        for bound, true in zip(metric.interval(0.9), found.interval(0.9), strict=True):
            assert torch.equal(bound, true.float())


@pytest.mark.parametrize("name", METRICS)
def test_classes_are_taken_for_scores_and_labels_to_ignore_count_nothing(name):
    make, tensors = METRICS[name]
    metric = make()
    more = [
        torch.cat([tensor.argmax(dim=1) if tensor.ndim == 2 else tensor, torch.zeros(1).long()]) for tensor in tensors
    ]
    place = {"paired": 2}.get(name, 1)
    more[place][-1] = -100
    metric.update(*more)
    assert torch.equal(metric.estimate().value, expected(name).value)


def test_checkpoints_of_a_model_keep_no_transition_with_the_metric():
    model = nn.Module()
    model.metric = CleanAccuracy(SparseTransition(T.to_sparse()))
    assert not model.state_dict()
    assert not list(model.parameters())
    assert not list(model.buffers())


def test_it_goes_with_a_transition_that_changes():
    known = SparseTransition(T.to_sparse())
    metric = CleanAccuracy(known)
    metric.update(FIRST, NOISY)
    known.start_from(pairflip(C, 0.2).to_sparse())
    counts = count_pairs(NOISY, FIRST.argmax(dim=1), C)
    torch.testing.assert_close(metric.estimate().value, clean_accuracy(counts, pairflip(C, 0.2)).value)


def test_it_warns_near_a_singular_transition_and_goes_on():
    metric = CleanAccuracy(pairflip(4, 0.499))
    metric.update(torch.arange(4).repeat(9), torch.arange(4).repeat(9))
    with pytest.warns(UserWarning, match="T is nearly singular"):
        assert float(metric.compute()) > 1


def test_after_an_error_the_states_are_those_of_this_process():
    metric = CleanAccuracy(T)
    metric.update(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        metric.estimate()
    metric.update(torch.tensor([1]), torch.tensor([1]))
    metric.estimate()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CleanAccuracy(T, average="weighted"), ValueError, "average must be"),
        (lambda: CleanAccuracy(2 * T), ValueError, "sums to 2"),
        (lambda: PairedCleanAccuracy(torch.full((3, 3), 1 / 3)), ValueError, "T is singular"),
        (lambda: PredictionPoweredAccuracy(T, standard_error=ERROR), ValueError, "right whatever T is"),
        (lambda: CleanAccuracy(T).update(FIRST[:, :3], NOISY), ValueError, r"scores of shape \(400, 5\)"),
        (lambda: CleanAccuracy(T).update(FIRST, NOISY.float()), TypeError, "one noisy label a sample"),
        (lambda: CleanAccuracy(T).update(FIRST, NOISY + 1), ValueError, "got 5"),
        (lambda: PredictionPoweredAccuracy(T).update(FIRST, NOISY, TRUSTED[:3]), ValueError, "-1 where there is none"),
        (lambda: PredictionPoweredAccuracy(T).update(FIRST, NOISY, TRUSTED + 1), ValueError, "Trusted labels must.*5"),
    ],
)
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_prediction_powered_inference_is_right_where_noise_depends_on_the_sample():
    """A network that errs where labels are wrong: T misleads, a few trusted labels do not."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(C, (20_000,), generator=generator)
    hard = torch.rand(20_000, generator=generator) < 0.3
    noisy = torch.where(hard, (clean + 1) % C, clean)  # 0.3 of all
    predicted = torch.where(hard & (torch.rand(20_000, generator=generator) < 0.5), noisy, clean)
    truth = (predicted == clean).double().mean()
    misled, powered = CleanAccuracy(pairflip(C, 0.3)), PredictionPoweredAccuracy(pairflip(C, 0.3))
    misled.update(predicted, noisy)
    powered.update(predicted, noisy, clean.where(torch.arange(20_000) < 500, -1))
    assert misled.interval()[0] > truth + 0.1
    low, high = powered.interval(0.999)
    assert low < truth < high
    alone = (truth * (1 - truth) / 500).sqrt()
    assert powered.estimate().standard_error < 1.1 * alone
