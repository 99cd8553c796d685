"""The same setting is the same plain data in every process, another one is other data."""

from functools import partial

import pytest
import torch

from noisylightning import AnchorEstimator
from noisylightning.phases.identity import identify


class Predict:
    def __init__(self, temperature=1.0):
        self.temperature = temperature
        self.seen = [torch.zeros(2)]
        self._cache = 3

    def __call__(self, module, batch):
        return module(batch[0]) / self.temperature, batch[1]

    def twice(self, module, batch):
        return self(module, batch)


def one(module, batch):
    return module(batch[0]), batch[1]


def other(module, batch):
    return module(batch[0]), batch[2]


MAKERS = [
    lambda: one,
    lambda: other,
    lambda: lambda module, batch: batch,
    lambda: AnchorEstimator,
    lambda: partial(AnchorEstimator, quantile=0.9),
    lambda: partial(AnchorEstimator, quantile=None),
    lambda: partial(partial(one, 1), AnchorEstimator, quantile=None),
    lambda: partial(one, torch.tensor([1.0, 2.0])),
    lambda: partial(one, torch.tensor([2.0, 1.0])),
    lambda: Predict(),
    lambda: Predict(2.0),
    lambda: Predict().twice,
    lambda: Predict(2.0).twice,
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_setting_made_twice_is_the_same(make):
    assert identify(make()) == identify(make())
    assert "0x" not in repr(identify(make()))


def test_different_settings_differ():
    found = [identify(make()) for make in MAKERS]
    assert all(found.index(value) == index for index, value in enumerate(found))


def test_it_loads_with_weights_only(tmp_path):
    found = [identify(make()) for make in MAKERS]
    torch.save(found, tmp_path / "found.pt")
    assert torch.load(tmp_path / "found.pt", weights_only=True) == found


def test_a_lambda_goes_by_its_qualified_name():
    assert identify(lambda: 1).endswith("test_identity.test_a_lambda_goes_by_its_qualified_name.<locals>.<lambda>")


def test_only_public_plain_attributes_count():
    assert identify(Predict()) == {"class": f"{__name__}.Predict", "temperature": 1.0}
