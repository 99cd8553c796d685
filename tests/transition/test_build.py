"""Transition matrices: what they hold, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning import transition as tr

# The coarse label of each fine label as the CIFAR-100 files give it.
COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
]
BUILDERS = [
    lambda rate: tr.symmetric(7, rate),
    lambda rate: tr.pairflip(7, rate),
    lambda rate: tr.from_flips(7, {0: {1: 2, 3: 5}, 6: 0}, rate),
    tr.mnist_asymmetric,
    tr.cifar10_asymmetric,
    tr.cifar100_asymmetric,
    lambda rate: tr.cifar100_asymmetric(rate, superclasses=False),
    tr.binary_asymmetric,
]


@pytest.mark.parametrize("build", BUILDERS)
@settings(deadline=None)
@given(rate=st.floats(0, 1))
def test_every_builder_is_row_stochastic_and_says_its_rate(build, rate):
    transition = build(rate)
    tr.validate_transition(transition)
    assert transition.dtype == torch.get_default_dtype()
    kept = transition.diagonal()
    known = torch.isclose(kept, torch.tensor(1 - rate)) | (kept == 1) | torch.isclose(kept, torch.tensor(0.95))
    assert known.all()


def test_dtype_is_the_callers_and_exact():
    assert tr.symmetric(3, 0.2, dtype=torch.float64)[0, 1].item() == 0.1
    assert tr.from_flips(3, {0: 1}, 0.1, dtype=torch.float64)[0, 1].item() == 0.1
    assert tr.binary_asymmetric(0.3, dtype=torch.float64).dtype == torch.float64


def test_the_papers_maps():
    digits = tr.mnist_asymmetric(0.6)
    flipped = {(i, j) for i, j in digits.fill_diagonal_(0).nonzero().tolist()}
    assert flipped == {(7, 1), (2, 7), (5, 6), (6, 5), (3, 8)}
    images = tr.cifar10_asymmetric(0.6)
    flipped = {(i, j) for i, j in images.fill_diagonal_(0).nonzero().tolist()}
    assert flipped == {(9, 1), (2, 0), (3, 5), (5, 3), (4, 7)}


def test_cifar100_stays_within_the_superclasses_of_the_files():
    flips = tr.cifar100_flips()
    assert sorted(flips) == sorted(flips.values()) == list(range(100))
    assert all(COARSE[clean] == COARSE[noisy] for clean, noisy in flips.items())
    for start in range(100):
        orbit = {start}
        while (start := flips[start]) not in orbit:
            orbit.add(start)
        assert len(orbit) == 5
    by_id = tr.cifar100_flips(superclasses=False)
    assert (by_id[0], by_id[4], by_id[95], by_id[99]) == (1, 0, 96, 95)


def test_condition_number_is_how_much_backward_amplifies():
    for classes, rate in ((2, 0.3), (10, 0.5), (50, 0.9)):
        transition = tr.symmetric(classes, rate, dtype=torch.float64)
        expected = np.linalg.cond(transition.numpy(), p=np.inf)
        assert tr.condition_number(transition).item() == pytest.approx(expected, rel=1e-9)
    assert tr.condition_number(torch.eye(3)) == 1
    assert tr.condition_number(torch.full((2, 2), 0.5)) == torch.inf


def test_relative_l1_error():
    true = tr.symmetric(4, 0.2, dtype=torch.float64)
    assert tr.relative_l1_error(true, true) == 0
    assert tr.relative_l1_error(torch.eye(4, dtype=torch.float64), true).item() == pytest.approx(0.4)
    with pytest.raises(ValueError, match="shape"):
        tr.relative_l1_error(torch.eye(3), torch.eye(4))


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_load_is_the_inverse_of_save(tmp_path, suffix):
    true = tr.pairflip(5, 0.45, dtype=torch.float64)
    path = tmp_path / f"T{suffix}"
    np.save(path, true.numpy()) if suffix == ".npy" else np.savetxt(path, true.numpy(), delimiter=",")
    assert torch.equal(tr.load_transition(path, dtype=torch.float64), true)
    assert tr.load_transition(str(path)).dtype == torch.get_default_dtype()


def test_load_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"\.npy, \.csv or \.npz"):
        tr.load_transition(tmp_path / "T.pt")
    with pytest.raises(FileNotFoundError, match=r"T\.npy"):
        tr.load_transition(tmp_path / "T.npy")
    np.save(tmp_path / "T.npy", np.array([[1, "x"]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"T\.npy"):
        tr.load_transition(tmp_path / "T.npy")
    np.save(tmp_path / "T.npy", np.eye(3)[:2])
    with pytest.raises(ValueError, match="square"):
        tr.load_transition(tmp_path / "T.npy")
    (tmp_path / "T.csv").write_text("0.5,a\n0.5,0.5\n")
    with pytest.raises(ValueError, match=r"T\.csv"):
        tr.load_transition(tmp_path / "T.csv")


@pytest.mark.parametrize(
    ("matrix", "classes", "sentence"),
    [
        (torch.eye(3)[:2], None, r"square.*\(2, 3\)"),
        (torch.eye(3), 4, "3 classes but 4"),
        (torch.tensor([[1.0, 0.0], [0.7, 0.4]]), None, "row 1.*1.1"),
        (torch.tensor([[1.2, -0.2], [0.0, 1.0]]), None, "-0.2 at row 0, column 1"),
        (torch.tensor([[1.0, 0.0], [float("nan"), 1.0]]), None, "nan at row 1, column 0"),
        (torch.tensor([[0.9, 0.3], [0.1, 0.7]]), None, "transpose"),
    ],
)
def test_validate_says_what_is_wrong(matrix, classes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        tr.validate_transition(matrix, classes)
    assert str(caught.value).endswith(".")


def test_validate_wants_a_floating_tensor():
    with pytest.raises(TypeError, match="int64"):
        tr.validate_transition(torch.eye(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="ndarray"):
        tr.validate_transition(np.eye(2))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tr.symmetric(1, 0.1), "at least 2 classes, got 1"),
        (lambda: tr.symmetric(3, 1.1), r"\[0, 1\], got 1.1"),
        (lambda: tr.pairflip(3, -0.1), "got -0.1"),
        (lambda: tr.binary_asymmetric(float("nan")), "got nan"),
        (lambda: tr.from_flips(3, {0: 3}, 0.1), "class 3 but there are 3"),
        (lambda: tr.from_flips(3, {1: 1}, 0.1), "class 1 into itself"),
        (lambda: tr.from_flips(3, {1: {0: 0}}, 0.1), "positive"),
        (lambda: tr.from_flips(3, {1: {}}, 0.1), "positive"),
    ],
)
def test_builders_refuse(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
