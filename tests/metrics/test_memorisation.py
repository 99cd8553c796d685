"""The metric of memorisation: exact sums, and what it refuses."""

import pytest
import torch

from noisylightning.functional.memorisation import (
    accuracy_ceiling,
    loss_floor,
    memorised_share,
    wrong_label_probability,
)
from noisylightning.metrics import Memorisation
from noisylightning.transition import DenseTransition, GroupedTransition, symmetric

T = symmetric(4, 0.3)


def samples(number: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 4, generator=generator), torch.randint(4, (number,), generator=generator)


def test_it_is_the_function_of_all_samples():
    logits, labels = samples()
    metric = Memorisation(4)
    metric.update(logits, labels, DenseTransition(T))
    found, counts = metric.compute(), labels.bincount()
    wrong = wrong_label_probability(logits.double(), labels, T).sum()
    assert float(found["memorised"]) == pytest.approx(float(memorised_share(wrong, T, counts)), abs=1e-5)
    assert float(found["accuracy_ceiling"]) == pytest.approx(float(accuracy_ceiling(T, counts)))
    assert float(found["loss_floor"]) == pytest.approx(float(loss_floor(T, counts)))


def test_order_and_batches_leave_its_bits_alone():
    logits, labels = samples()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    one, other = Memorisation(4), Memorisation(4)
    for part in torch.arange(1000).split(100):
        one.update(logits[part], labels[part], T)
    for part in order.split(37):
        other.update(logits[part], labels[part], T)
    assert all(torch.equal(value, other.compute()[name]) for name, value in one.compute().items())


def test_what_is_no_label_does_not_count():
    logits, labels = samples(10)
    one, other = Memorisation(4), Memorisation(4)
    one.update(logits, labels.where(torch.arange(10) < 6, -100), T)
    other.update(logits[:6], labels[:6], T)
    assert one.compute() == other.compute()


def test_it_holds_nothing_of_a_model():
    transition = DenseTransition(T)
    metric = Memorisation(4)
    metric.update(*samples(10), transition)
    assert not list(metric.parameters())
    assert not metric.state_dict()


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda metric: metric.compute(), "Memorisation has seen no label"),
        (
            lambda metric: metric.update(*samples(2), GroupedTransition(T[None], torch.tensor([0, 0]))),
            "GroupedTransition depends on the sample",
        ),
        (
            lambda metric: metric.update(*samples(2), GroupedTransition(torch.eye(3)[None], torch.tensor([0]))),
            "classes",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics' own word for it
def test_bad_input_is_refused_in_a_sentence(act, sentence):
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        act(Memorisation(4))
