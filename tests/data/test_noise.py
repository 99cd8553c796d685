import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.data import (
    AsymmetricNoise,
    InstanceDependentNoise,
    NoisyLabels,
    PairFlipNoise,
    SymmetricNoise,
    TransitionNoise,
)
from noisylightning.data.noise import check_labels, measure_transition, sample_noisy_labels
from noisylightning.data.noisy_labels import labels_checksum
from noisylightning.transition import MNIST_FLIPS, from_flips, mnist_asymmetric, pairflip, symmetric


def cycling(n: int, num_classes: int) -> torch.Tensor:
    return torch.arange(n) % num_classes


@pytest.mark.parametrize(
    ("noise", "asked"),
    [
        (SymmetricNoise(0.5), symmetric(10, 0.5)),
        (PairFlipNoise(0.45), pairflip(10, 0.45)),
        (AsymmetricNoise(0.6, flips=dict(MNIST_FLIPS)), mnist_asymmetric(0.6)),
        (AsymmetricNoise(0.4, flips={0: {1: 1.0, 2: 3.0}}), from_flips(10, {0: {1: 1.0, 2: 3.0}}, 0.4)),
        (TransitionNoise(symmetric(10, 0.3)), symmetric(10, 0.3)),
    ],
)
def test_drawn_labels_follow_the_transition_asked_for(noise, asked):
    clean = cycling(200_000, 10)
    drawn = NoisyLabels.draw(noise, clean, num_classes=10, seed=3)
    assert torch.equal(drawn.transition, asked)
    measured = measure_transition(clean, drawn.labels, 10)
    # five standard deviations of a share among 20,000 draws
    assert ((measured - asked).abs() <= 5 * (asked * (1 - asked) / 20_000).sqrt()).all()
    assert drawn.requested_rate == pytest.approx(1 - asked.diagonal().mean().item(), abs=1e-6)
    assert drawn.actual_rate == pytest.approx((drawn.labels != clean).double().mean().item())


def test_a_row_is_sampled_as_a_hand_written_inverse_would():
    transition = torch.tensor([[0.0, 0.25, 0.0, 0.75], [0.5, 0.0, 0.5, 0.0], [0, 0, 0, 1.0], [1.0, 0, 0, 0]])
    labels = torch.randint(4, (500,), generator=torch.Generator().manual_seed(0))
    u = torch.rand(500, generator=torch.Generator().manual_seed(7), dtype=torch.float64).tolist()
    expected = []
    for label, draw in zip(labels.tolist(), u, strict=True):
        noisy, below = 0, float(transition[label, 0])
        while draw >= below:
            noisy += 1
            below += float(transition[label, noisy])
        expected.append(noisy)
    found = sample_noisy_labels(labels, transition, torch.Generator().manual_seed(7))
    assert found.tolist() == expected


@given(rate=st.floats(0, 1), num_classes=st.integers(2, 12), seed=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_no_label_outside_the_classes_and_none_of_probability_zero(rate, num_classes, seed):
    clean = cycling(300, num_classes)
    drawn = NoisyLabels.draw(PairFlipNoise(rate), clean, num_classes, seed)
    assert drawn.transition[clean, drawn.labels].gt(0).all()


def test_the_seed_alone_decides():
    clean = cycling(1000, 4)
    first, again, other = (NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed) for seed in (1, 1, 2))
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def test_the_global_stream_is_neither_read_nor_moved():
    clean = cycling(1000, 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed=1).labels, first.labels)


def test_noisy_labels_come_back_as_they_were(tmp_path):
    clean = cycling(100, 4)
    drawn = NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed=2**40 + 1)
    drawn.save(tmp_path / "deep" / "noise.npz")
    found = NoisyLabels.load(tmp_path / "deep" / "noise.npz", clean)
    assert torch.equal(found.labels, drawn.labels)
    assert torch.equal(found.transition, drawn.transition)
    for name in ("noise", "seed", "checksum", "requested_rate", "actual_rate"):
        assert getattr(found, name) == getattr(drawn, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["noise.npz"]


def test_noisy_labels_refuse_other_data(tmp_path):
    clean = cycling(100, 4)
    NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed=0).save(tmp_path / "noise.npz")
    other = clean.clone()
    other[[0, 1]] = other[[1, 0]]
    with pytest.raises(ValueError, match="was made for other data"):
        NoisyLabels.load(tmp_path / "noise.npz", other)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "noise.npz"
    with pytest.raises(FileNotFoundError, match="no noisy labels at"):
        NoisyLabels.load(path, cycling(4, 2))
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ValueError, match="is not a file of noisy labels"):
        NoisyLabels.load(path, cycling(4, 2))
    np.savez(path, labels=np.zeros(4, np.int64))
    with pytest.raises(ValueError, match="is not a file of noisy labels"):
        NoisyLabels.load(path, cycling(4, 2))
    np.savez(path, labels=np.array([{}], dtype=object), requested_rate=0.0)
    with pytest.raises(ValueError, match="is not a file of noisy labels"):
        NoisyLabels.load(path, cycling(4, 2))


def test_truncated_noisy_labels_are_refused(tmp_path):
    path = tmp_path / "noise.npz"
    clean = cycling(1000, 4)
    NoisyLabels.draw(SymmetricNoise(0.5), clean, 4, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is not a file of noisy labels"):
        NoisyLabels.load(path, clean)


def test_noisy_labels_of_other_noise_are_refused():
    drawn = NoisyLabels.draw(SymmetricNoise(0.5), cycling(100, 4), 4, seed=0)
    drawn.check_asked(SymmetricNoise(0.5), 4, seed=0)
    words = r"labels by SymmetricNoise\(rate=0.5\) and not by the "
    with pytest.raises(ValueError, match=words + r"SymmetricNoise\(rate=0.4\) asked for"):
        drawn.check_asked(SymmetricNoise(0.4), 4, seed=0)
    with pytest.raises(ValueError, match=words + r"InstanceDependentNoise\(rate=0.5\) asked for"):
        drawn.check_asked(InstanceDependentNoise(0.5), 4, seed=0)
    other = NoisyLabels.draw(TransitionNoise(symmetric(4, 0.1)), cycling(100, 4), 4, seed=0)
    with pytest.raises(ValueError, match="not by the TransitionNoise"):
        other.check_asked(TransitionNoise(symmetric(4, 0.2)), 4, seed=0)
    with pytest.raises(ValueError, match="noise seed 0, not 1"):
        drawn.check_asked(SymmetricNoise(0.5), 4, seed=1)


def test_the_checksum_does_not_depend_on_the_integer_type():
    labels = cycling(50, 5)
    assert labels_checksum(labels) == labels_checksum(labels.to(torch.uint8))
    assert labels_checksum(labels) != labels_checksum(labels.flip(0))


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (torch.tensor([0.0, 1.0]), TypeError, "must be integers in 0..1, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "must be integers in 0..1, got torch.bool"),
        (torch.tensor([[0, 1]]), ValueError, r"shape \(N,\) with N > 0, got \(1, 2\)"),
        (torch.tensor([], dtype=torch.long), ValueError, r"got \(0,\)"),
        (torch.tensor([0, 1, 2]), ValueError, "got 2 at sample 2"),
        (torch.tensor([0, -1]), ValueError, "got -1 at sample 1"),
        (torch.tensor([1, 1]), ValueError, "no sample of class 0"),
    ],
)
def test_bad_labels_are_refused_in_one_sentence(labels, error, words):
    with pytest.raises(error, match=words) as caught:
        check_labels(labels, 2)
    assert "\n" not in str(caught.value)


def test_a_map_is_wanted_where_the_data_has_none():
    with pytest.raises(ValueError, match="give flips"):
        AsymmetricNoise(0.3).transition(4)


def test_a_transition_of_another_size_is_refused(tmp_path):
    np.save(tmp_path / "t.npy", symmetric(3, 0.1).numpy())
    assert torch.equal(TransitionNoise(tmp_path / "t.npy").transition(3), symmetric(3, 0.1))
    with pytest.raises(ValueError, match="4"):
        TransitionNoise(tmp_path / "t.npy").transition(4)


def patterns(n):
    """Two kinds of input in each of four classes."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(8, 30, generator=generator)
    clean = torch.arange(n) % 4
    kind = clean + 4 * (torch.arange(n) // 4 % 2)
    return kinds[kind] + 0.01 * torch.randn(n, 30, generator=generator), clean, kind


@pytest.mark.parametrize("rate", [0.1, 0.45])
def test_instance_dependent_rates_follow_the_truncated_normal(rate):
    inputs, clean, _ = patterns(40_000)
    drawn = NoisyLabels.draw(InstanceDependentNoise(rate), clean, 4, seed=0, inputs=inputs)
    u = np.random.default_rng(0).normal(rate, 0.1, 1_000_000)
    assert drawn.requested_rate == rate
    assert drawn.actual_rate == pytest.approx(u[(u >= 0) & (u <= 1)].mean(), abs=0.01)
    assert torch.equal(drawn.transition, measure_transition(clean, drawn.labels, 4))


def test_instance_dependent_noise_depends_on_the_input_within_a_class():
    inputs, clean, kind = patterns(40_000)
    noisy = NoisyLabels.draw(InstanceDependentNoise(0.4), clean, 4, seed=0, inputs=inputs).labels
    by_kind = torch.bincount(kind * 4 + noisy, minlength=32).view(8, 4) / 5000
    assert (by_kind[:4] - by_kind[4:]).abs().max() > 0.2


def test_instance_dependent_noise_depends_on_the_seed_and_not_on_the_batches(monkeypatch):
    inputs, clean, _ = patterns(2000)
    first = NoisyLabels.draw(InstanceDependentNoise(0.4), clean, 4, seed=0, inputs=inputs).labels
    monkeypatch.setattr(InstanceDependentNoise, "batch_size", 77)
    assert torch.equal(NoisyLabels.draw(InstanceDependentNoise(0.4), clean, 4, seed=0, inputs=inputs).labels, first)
    other = NoisyLabels.draw(InstanceDependentNoise(0.4), clean, 4, seed=1, inputs=inputs).labels
    assert not torch.equal(other, first)


def test_instance_dependent_noise_refuses_a_bad_rate_and_no_inputs():
    _, clean, _ = patterns(80)
    with pytest.raises(ValueError, match=r"the rate must lie in \[0, 1\], got 1.2"):
        InstanceDependentNoise(1.2)
    with pytest.raises(ValueError, match="needs the inputs"):
        NoisyLabels.draw(InstanceDependentNoise(0.2), clean, 4, seed=0)
