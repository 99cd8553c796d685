"""The true T, handed over."""

import pytest
import torch
from toy import TRUE, ToyData, classifier, trainer

from noisylightning import (
    KnownTransitionCallback,
)


def test_known_transition_is_handed_to_the_correction(tmp_path):
    model = classifier()
    trainer(tmp_path, [KnownTransitionCallback()], max_epochs=1).fit(model, ToyData())
    assert torch.equal(model.correction.transition, TRUE)


def test_known_transition_needs_one(tmp_path):
    class Unknown(ToyData):
        transition = None

    with pytest.raises(ValueError, match="needs a data module that knows T"):
        trainer(tmp_path, [KnownTransitionCallback()], max_epochs=1).fit(classifier(), Unknown())
