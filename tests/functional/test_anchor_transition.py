"""The anchor estimate as a function: what it refuses, and that the metric over it gives the same bits."""

import pytest
import torch

from noisylightning.estimators import AnchorEstimator
from noisylightning.functional.anchor import anchor_transition, surest_rows
from noisylightning.predictions import Predictions


def example(num: int = 200, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()


@pytest.mark.parametrize("quantile", ["auto", None, 0.9])
def test_the_metric_is_a_shell_over_the_function(quantile):
    logits, labels = example()
    estimator = AnchorEstimator(5, quantile)
    for batch in Predictions(logits, labels).split(64):
        estimator.update(batch)
    assert torch.equal(estimator.compute(), anchor_transition(logits.softmax(dim=1), labels, quantile=quantile))


def test_the_surest_of_the_parts_are_the_surest_of_the_whole():
    probs = (example()[0] / 2).round().softmax(dim=1)  # many ties
    parts = torch.cat([surest_rows(part) for part in probs.split(30)])
    assert torch.equal(surest_rows(parts), surest_rows(probs))


def test_half_precision_is_widened():
    logits, labels = example()
    assert anchor_transition(logits.softmax(dim=1).half(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"quantile": 1.5}, ValueError, "quantile must be"),
        ({"probs": torch.ones(4, 2)}, ValueError, "sum 2: pass softmax"),
        ({"labels": torch.tensor([0.0, 1, 0, 1])}, TypeError, "integer noisy labels"),
        ({"labels": torch.tensor([0, 1])}, ValueError, "one label a prediction"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, ValueError, "no example among 4 carries the noisy label 1"),
        ({"quantile": 0.1}, ValueError, "below its quantile"),
    ],
)
def test_what_it_cannot_estimate_from_is_refused(change, error, message):
    arguments = {"probs": torch.full((4, 2), 0.5), "labels": torch.tensor([0, 1, 0, 1]), **change}
    with pytest.raises(error, match=message):
        anchor_transition(**arguments)
