"""Which row of T-hat is of which class, by what a network says of trusted samples."""

import pytest
import torch

from noisylightning.functional import exchangeable
from noisylightning.phases.naming import Answers, name_classes

OFF = torch.tensor([[0.71, 0.29, 0.0], [0.37, 0.63, 0.0], [0.0, 0.0, 1.0]])  # truly (0.4, 0.6) and (0.6, 0.4)


def answers(labels: list[int], predicted: list[int]) -> Answers:
    """Say that a network is rather sure."""
    log_probs = torch.full((len(labels), 3), 0.05).log()
    log_probs[torch.arange(len(labels)), torch.tensor(predicted)] = torch.tensor(0.9).log()
    return Answers(log_probs, torch.tensor(labels))


def test_trusted_labels_are_asked_also_where_an_estimate_just_tells_the_classes_apart():
    assert not exchangeable(OFF)
    order, decided = name_classes(OFF, answers([0, 0, 1, 2], [1, 1, 0, 2]))
    assert order.tolist() == [1, 0, 2]
    assert not decided  # nobody has to be warned
    assert name_classes(OFF, answers([0, 0, 1, 2], [0, 1, 1, 2]))[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("labels", "decided"), [([0], True), ([2], False)])
def test_a_label_of_either_class_decides(labels, decided):
    even = torch.tensor([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]])
    assert name_classes(even, answers(labels, labels))[1] is decided


def test_classes_that_labels_tell_apart_keep_their_names():
    clear = torch.tensor([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]])
    order, decided = name_classes(clear, answers([0, 1], [1, 0]))  # the network is wrong
    assert order.tolist() == [0, 1, 2]
    assert not decided


def test_without_trusted_labels_the_diagonal_is_the_largest():
    assert name_classes(OFF[[1, 0, 2]], None)[0].tolist() == [1, 0, 2]
