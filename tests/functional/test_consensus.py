"""Which T-hat is taken, and by how much one model is better than another."""

import math

import numpy as np
import pytest
import torch

from noisylightning.functional.consensus import most_central, paired_gain
from noisylightning.transition import relative_l1_error, symmetric


def test_the_medoid_is_taken():
    transitions = [symmetric(4, rate) for rate in (0.0, 0.1, 0.25, 0.3, 0.9)]
    distances = np.array([[float(relative_l1_error(one, other)) for other in transitions] for one in transitions])
    assert most_central(transitions) == distances.sum(axis=1).argmin() == 2


def test_one_is_its_own_medoid_and_of_two_the_first_is():
    assert most_central([torch.eye(2)]) == 0
    assert most_central([torch.eye(2), symmetric(2, 0.3)]) == 0


def test_an_outlier_does_not_move_it():
    near = [symmetric(3, rate) for rate in (0.3, 0.31, 0.32)]
    assert most_central([*near, torch.eye(3)[[1, 2, 0]]]) == most_central([*near, torch.full((3, 3), 1 / 3)]) == 1


def test_the_gain_is_that_of_the_pairs():
    generator = torch.Generator().manual_seed(0)
    other = -torch.rand(500, generator=generator, dtype=torch.float64)
    gains = 0.1 + 0.01 * torch.randn(500, generator=generator, dtype=torch.float64)
    mean, error = paired_gain(other + gains, other)
    assert mean == pytest.approx(float(gains.mean()))
    assert error == pytest.approx(float(gains.std()) / math.sqrt(500))
    back, same = paired_gain(other, other + gains)
    assert (back, same) == (pytest.approx(-mean), pytest.approx(error))
    assert paired_gain(other, other) == (0.0, 0.0)
