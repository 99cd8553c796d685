"""AnchorEstimator against an independent NumPy transcription of the paper's recipe, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.estimators import AnchorEstimator
from noisylightning.functional import anchor_transition
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.predictions import Predictions
from noisylightning.transition import relative_l1_error, symmetric


def posterior(
    num_examples: int, num_classes: int, seed: int, sharpness: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(num_examples, num_classes, generator=generator)
    probs = logits.softmax(dim=1)
    labels = torch.multinomial(probs, 1, generator=generator).flatten()
    labels[:num_classes] = torch.arange(num_classes)
    return probs, labels


def fed(estimator, predictions, twice=False, size=64):
    if twice:
        for batch in predictions.split(size):
            estimator.survey(batch)
        estimator.end_survey()
    for batch in predictions.split(size):
        estimator.update(batch)
    return estimator


def reference(probs: np.ndarray, labels: np.ndarray, quantile: float | str | None) -> np.ndarray:
    rows = []
    for i in range(probs.shape[1]):
        column = probs[:, i].copy()
        if quantile is not None:
            q = 1 - 0.3 * np.mean(labels == i) if quantile == "auto" else quantile
            column[column >= np.percentile(column, 100 * q, method="higher")] = -1
        row = probs[column.argmax()]
        rows.append(row / row.sum())
    return np.stack(rows)


@pytest.mark.parametrize("quantile", [None, 0.97, 0.5, "auto"])
def test_agrees_with_numpy(quantile):
    probs, labels = posterior(500, 7, seed=0)
    estimator = AnchorEstimator(7, quantile)
    for part in torch.arange(500).split(64):
        estimator.update(Predictions.from_probs(probs[part], labels[part]))
    expected = reference(probs.numpy().astype(np.float64), labels.numpy(), quantile)
    np.testing.assert_allclose(estimator.compute().numpy(), expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), batch=st.integers(1, 60), quantile=st.sampled_from([None, 0.8, "auto"]))
def test_neither_order_nor_batching_changes_a_bit(seed, batch, quantile):
    probs, labels = posterior(60, 4, seed)
    probs = (probs * 8).round() + 1  # many ties
    probs = probs / probs.sum(dim=1, keepdim=True)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    whole, parts = AnchorEstimator(4, quantile), AnchorEstimator(4, quantile)
    whole.update(Predictions.from_probs(probs, labels))
    for part in order.split(batch):
        parts.update(Predictions.from_probs(probs[part], labels[part]))
    try:
        expected = whole.compute()
    except ValueError as error:
        with pytest.raises(ValueError, match="below its quantile"):
            parts.compute()
        assert "below its quantile" in str(error)  # noqa: PT017
    else:
        assert torch.equal(parts.compute(), expected)


def test_recovers_the_true_transition_where_every_class_has_anchors():
    true = symmetric(5, 0.3, dtype=torch.float64)
    clean = torch.arange(5).repeat(40)
    labels = torch.multinomial(true[clean], 1, generator=torch.Generator().manual_seed(0)).flatten()
    estimator = AnchorEstimator(5, quantile=None)
    estimator.update(Predictions.from_probs(true[clean], labels))
    assert relative_l1_error(estimator.compute(), true) < 1e-12


@pytest.mark.parametrize("num_classes", [34, 100])
def test_scaled_quantile_keeps_rare_classes_where_a_fixed_one_loses_them(num_classes):
    """A fixed 97th percentile removes every example of a class whose prior is below 3 %."""
    generator = torch.Generator().manual_seed(1)
    true = symmetric(num_classes, 0.2)
    clean = torch.arange(num_classes).repeat(50)
    sure = torch.nn.functional.one_hot(clean, num_classes) * 8.0
    p_clean = (sure + torch.randn(sure.shape, generator=generator)).softmax(dim=1)
    probs = p_clean @ true
    labels = torch.multinomial(true[clean], 1, generator=generator).flatten()

    def error(quantile):
        estimator = AnchorEstimator(num_classes, quantile)
        estimator.update(Predictions.from_probs(probs, labels))
        return float((estimator.compute() - true).abs().sum(dim=1).mean())

    assert error("auto") < 0.1
    assert error(0.97) > 1.0


def test_memory_without_a_quantile_does_not_grow():
    estimator = AnchorEstimator(4, quantile=None)
    for seed in range(3):
        estimator.update(Predictions.from_probs(*posterior(100, 4, seed)))
    assert sum(value.numel() for value in estimator.metric_state.values()) == 4 * 4 + 4


def test_double_precision_is_kept_and_half_is_widened():
    probs, labels = posterior(50, 3, 0)
    for dtype, expected in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        estimator = AnchorEstimator(3)
        estimator.update(Predictions.from_probs(probs.to(dtype), labels))
        assert estimator.compute().dtype == expected
    estimator = AnchorEstimator(3, quantile=None)
    estimator.update(Predictions.from_probs(probs.double(), labels))
    assert estimator.compute().dtype == torch.float64


def test_plot_draws_the_estimate():
    estimator = AnchorEstimator(3)
    estimator.update(Predictions.from_probs(*posterior(50, 3, 0)))
    _, axes = estimator.plot()
    np.testing.assert_allclose(axes.images[0].get_array(), estimator.compute().numpy(), atol=1e-7)


@pytest.mark.parametrize(
    ("probs", "labels", "error", "message"),
    [
        (torch.full((2, 3), 1 / 3), torch.tensor([0, 3]), ValueError, "labels between 0 and 2, got 3"),
        (torch.full((2, 3), 1 / 3), torch.tensor([-1, 2]), ValueError, "labels between 0 and 2, got -1"),
        (torch.full((2, 3), 1 / 3), torch.tensor([0.0, 1.0]), TypeError, "integer noisy labels, got torch.float32"),
        (torch.full((2, 4), 1 / 4), torch.tensor([0, 1]), ValueError, r"shape \(N, 3\), got \(2, 4\)"),
        (torch.full((2, 3), 1 / 3), torch.tensor([0]), ValueError, "one label a prediction"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), ValueError, "NaN or infinite predictions"),
        (torch.tensor([[1 / 3] * 3, [0.0, float("inf"), 1.0]]), torch.tensor([0, 1]), ValueError, "first in row 1"),
        (torch.ones(2, 3), torch.tensor([0, 1]), ValueError, "sum 3: pass softmax"),
        (torch.tensor([[1.5, -0.5, 0.0]]), torch.tensor([0]), ValueError, "minimum -0.5"),
        (torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1]), TypeError, "floating-point probabilities"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(probs, labels, error, message):
    with pytest.raises(error, match=message):
        AnchorEstimator(3).update(Predictions.from_probs(probs, labels))


@pytest.mark.parametrize("quantile", [None, "auto"])
def test_a_class_without_examples_is_named(quantile):
    estimator = AnchorEstimator(3, quantile)
    estimator.update(Predictions.from_probs(torch.full((4, 3), 1 / 3), torch.tensor([0, 0, 2, 2])))
    with pytest.raises(ValueError, match="no example among 4 carries the noisy label 1"):
        estimator.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_no_example_at_all_is_named():
    with pytest.raises(ValueError, match="the loader is empty"):
        AnchorEstimator(3).compute()


@pytest.mark.parametrize("quantile", [0, 1, 1.5, -0.1, "97"])
def test_impossible_quantiles_are_refused(quantile):
    with pytest.raises(ValueError, match="quantile must be"):
        AnchorEstimator(3, quantile)


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match="at least 2, got 1"):
        AnchorEstimator(1)


def tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 5, generator=generator)
    tied = (3 * logits).softmax(dim=1).mul(8).round() + 1
    return {
        "random": (3 * logits).softmax(dim=1),
        "random in double": (3 * logits.double()).softmax(dim=1),
        "tied": tied / tied.sum(dim=1, keepdim=True),
        "saturated": (30 * logits).softmax(dim=1),
    }


@pytest.mark.parametrize("quantile", ["auto", 0.5, 0.97, 0.05])
@pytest.mark.parametrize("kind", ["random", "random in double", "tied", "saturated"])
def test_two_passes_give_the_same_bits_as_one(kind, quantile):
    probs = tables()[kind]
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(1)).flatten()
    predictions = Predictions.from_probs(probs, labels)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    one = fed(AnchorEstimator(5, quantile), predictions)
    two = fed(AnchorEstimator(5, quantile), predictions.select(order), twice=True, size=33)
    try:
        expected = one.compute()
    except ValueError as error:
        with pytest.raises(ValueError, match="below its quantile"):
            two.compute()
        assert "below its quantile" in str(error)  # noqa: PT017
    else:
        assert torch.equal(two.compute(), expected)
        assert two.compute().dtype == expected.dtype


def test_two_processes_in_two_passes_give_what_one_does_in_one():
    predictions = Predictions.from_probs(*posterior(600, 5, seed=3))
    halves = [predictions.select(slice(k, None, 2)) for k in range(2)]
    estimators = [AnchorEstimator(5) for _ in halves]
    for estimator, half in zip(estimators, halves, strict=True):
        estimator.survey(half)
    for estimator in estimators:
        estimator.bin, estimator.place = merged(*estimators, "histogram", "surveyed")
    for estimator, half in zip(estimators, halves, strict=True):
        for batch in half.split(50):
            estimator.update(batch)
    merged(*estimators, "rows", "class_counts", "kept_classes", "kept_counts", "kept_rows")
    assert torch.equal(estimators[0].compute(), fed(AnchorEstimator(5), predictions).compute())


def merged(first: AnchorEstimator, second: AnchorEstimator, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The bins and places that follow from states of two processes; the first has them then."""
    whole = first if "rows" in names else AnchorEstimator(5)
    for name in names:
        mine, other, reduction = getattr(first, name), getattr(second, name), first._reductions[name]
        joined = [*mine, *other] if isinstance(mine, list) else reduction(torch.stack([mine, other]))
        setattr(whole, name, joined)
    if "histogram" in names:
        whole._conclude()
    return whole.bin, whole.place


def test_two_passes_keep_few_rows_even_where_the_network_is_saturated():
    probs, labels = posterior(4000, 4, seed=0, sharpness=40.0)
    estimator = fed(AnchorEstimator(4, 0.9), Predictions.from_probs(probs, labels), twice=True, size=40)
    assert sum(len(part) for part in estimator.kept_rows) < 100
    estimator.reset()
    assert estimator.bin is None


def test_it_wants_two_passes_where_there_is_much_to_keep():
    assert not AnchorEstimator(10).wants_survey(60_000)
    assert AnchorEstimator(1000).wants_survey(1_000_000)
    assert not AnchorEstimator(1000, quantile=None).wants_survey(1_000_000)
    assert not AnchorEstimator(1000, replicates=10).wants_survey(1_000_000)
    with pytest.raises(ValueError, match="takes one pass over the predictions: call update alone"):
        AnchorEstimator(3, quantile=None).survey(Predictions(torch.zeros(3, 3), torch.arange(3)))


@pytest.mark.parametrize("quantile", [None, 0.8, "auto"])
@pytest.mark.parametrize("kind", ["random", "tied"])
def test_replicates_are_estimates_from_repeated_samples(kind, quantile):
    probs = tables()[kind]
    labels = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(1)).flatten()
    predictions = Predictions.from_probs(probs, labels)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    estimator = fed(AnchorEstimator(5, quantile, replicates=6), predictions.select(order), size=33)
    expected = []
    for times in bootstrap_weights(torch.arange(400), 6)[:, 1:].unbind(dim=1):
        repeated = predictions.select(torch.arange(400).repeat_interleave(times))
        expected.append(anchor_transition(repeated.probs, repeated.noisy_labels, quantile=quantile))
    assert torch.equal(estimator.standard_error(), torch.stack(expected).double().std(dim=0).float())


def test_standard_errors_that_cannot_be_had_are_refused():
    probs = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.5, 0.5], [0.4, 0.6]])
    estimator = fed(AnchorEstimator(2, 0.9, replicates=50), Predictions.from_probs(probs, torch.tensor([0, 0, 1, 1])))
    with pytest.raises(ValueError, match="There are no standard errors: no prediction for class"):
        estimator.standard_error()
