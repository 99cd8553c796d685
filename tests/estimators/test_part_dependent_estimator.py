"""T by parts as a metric: the same bits in any order, and a row for each sample's place."""

import pytest
import torch

from noisylightning import PartDependentEstimator
from noisylightning.predictions import Predictions


def predictions(samples=120, **known):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, 3, generator=generator)
    features = torch.rand(samples, 6, generator=generator)
    return Predictions(logits, torch.arange(samples) % 3, features=features, **known)


def test_any_order_and_any_batches_give_the_same_bits():
    whole = predictions(index=torch.arange(120) + 5)
    shuffled = whole.select(torch.randperm(120, generator=torch.Generator().manual_seed(1)))
    one, two = (PartDependentEstimator(3, num_parts=4) for _ in range(2))
    one.update(whole)
    for batch in shuffled.split(7):
        two.update(batch)
    assert torch.equal(one.compute(), two.compute())
    first, second = one.details(), two.details()
    assert all(torch.equal(first[name], second[name]) for name in ("parts", "codes"))
    assert first["parts"].shape == (4, 3, 3)
    assert first["codes"].shape == (125, 4)
    torch.testing.assert_close(first["codes"][:5], first["codes"][5:].mean(dim=0).expand(5, -1))  # nobody's
    torch.testing.assert_close(one.compute(), torch.einsum("r,rij->ij", first["codes"][0], first["parts"]))


def test_merged_states_are_the_whole():
    whole = predictions()
    one, parts = PartDependentEstimator(3, num_parts=4), [PartDependentEstimator(3, num_parts=4) for _ in range(2)]
    one.update(whole)
    parts[0].update(whole.select(slice(0, None, 2)))
    parts[1].update(whole.select(slice(1, None, 2)))
    for name in ("probs", "labels", "features", "index"):
        setattr(parts[0], name, [*getattr(parts[0], name), *getattr(parts[1], name)])
    assert torch.equal(parts[0].compute(), one.compute())


def test_unknown_places_and_missing_features_are_refused():
    estimator = PartDependentEstimator(3, num_parts=4)
    estimator.update(predictions(index=torch.full((120,), -1)))
    with pytest.raises(ValueError, match="place of each sample in the data set, but some are unknown"):
        estimator.compute()
    with pytest.raises(ValueError, match="PartDependentEstimator needs features"):
        PartDependentEstimator(3).update(Predictions(torch.zeros(1, 3), torch.tensor([0])))
