"""DualTEstimator is a shell over the function, in one pass and in two."""

import pytest
import torch
from test_anchor import fed, posterior

from noisylightning.estimators import DualTEstimator
from noisylightning.functional import dual_transition
from noisylightning.predictions import Predictions


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("quantile", [None, 0.9, "auto"])
def test_the_metric_is_a_shell_over_the_function(quantile, twice):
    if twice and quantile is None:
        return  # which needs no second pass
    probs, labels = posterior(500, 5, seed=0)
    predictions = Predictions.from_probs(probs, labels)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    found = fed(DualTEstimator(5, quantile), predictions.select(order), twice).compute()
    assert torch.equal(found, dual_transition(predictions.probs, labels, quantile=quantile))


def test_standard_errors_do_not_hang_on_order_and_batches():
    predictions = Predictions.from_probs(*posterior(500, 5, seed=0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    one = fed(DualTEstimator(5, replicates=8), predictions, size=500).standard_error()
    assert torch.equal(fed(DualTEstimator(5, replicates=8), predictions.select(order)).standard_error(), one)
    assert (one > 0).all()


def test_a_class_that_nobody_predicts_is_named():
    probs = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.4, 0.5], [0.2, 0.3, 0.5]])
    with pytest.raises(ValueError, match="class 1 is predicted for no sample"):
        fed(DualTEstimator(3, None), Predictions.from_probs(probs, torch.tensor([0, 1, 2]))).compute()
