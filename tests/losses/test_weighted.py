"""A loss that weighs each training sample."""

import numpy as np
import pytest
import torch

from noisylightning import BackwardCorrection, ForwardCorrection, ImportanceReweighting, NoCorrection, losses
from noisylightning.losses import SampleWeighted

WEIGHTS = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
T = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch(seed: int = 0, num: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, 3, generator=generator)
    labels = torch.randint(3, (num,), generator=generator)
    return logits, labels, torch.randint(4, (num,), generator=generator)


@pytest.mark.filterwarnings("ignore:.*is not proper composite")
@pytest.mark.parametrize("base", [losses.CrossEntropy, losses.GeneralizedCrossEntropy, losses.SquareLoss])
@pytest.mark.parametrize(
    "make",
    [
        lambda loss: NoCorrection(loss=loss),
        lambda loss: ForwardCorrection(T, loss=loss),
        lambda loss: BackwardCorrection(T, loss=loss),
        lambda loss: ImportanceReweighting(T, loss=loss),
    ],
)
def test_each_sample_has_the_corrected_loss_times_its_weight(make, base):
    logits, labels, index = batch()
    plain = make(base(reduction="none"))(logits, labels)
    found = make(SampleWeighted(WEIGHTS, base(), reduction="none"))(logits, labels, index)
    torch.testing.assert_close(found, WEIGHTS[index] * plain, rtol=1e-12, atol=1e-12)


def test_soft_labels_are_weighed_too():
    logits, _, index = batch()
    soft = torch.rand(8, 3).softmax(dim=1)
    plain = losses.CrossEntropy(reduction="none")(logits, soft)
    found = SampleWeighted(WEIGHTS, reduction="none")(logits, soft, index)
    torch.testing.assert_close(found, WEIGHTS[index] * plain)


def test_a_weight_of_two_is_the_sample_twice_and_of_zero_not_at_all():
    logits, labels, _ = batch(num=4)
    found = SampleWeighted(WEIGHTS, reduction="sum")(logits, labels, torch.arange(4))
    counted = torch.tensor([0, 3, 3])
    expected = losses.CrossEntropy(reduction="sum")(logits[counted], labels[counted])
    half = losses.CrossEntropy(reduction="sum")(logits[2:3], labels[2:3]) / 2
    torch.testing.assert_close(found, expected + half)


def test_class_weights_and_ignored_labels_are_those_of_the_whole():
    logits, labels, index = batch()
    labels[0] = -100
    options = {"weight": [1.0, 3.0, 0.5]}
    plain = losses.CrossEntropy(reduction="none", **options)(logits, labels)
    found = SampleWeighted(WEIGHTS, **options)(logits, labels, index)
    kept = labels >= 0
    of_class = torch.tensor([1.0, 3.0, 0.5])[labels[kept]]
    torch.testing.assert_close(found, (WEIGHTS[index] * plain)[kept].sum() / of_class.sum())


def test_validation_samples_count_alike():
    logits, labels, _ = batch()
    loss = SampleWeighted(WEIGHTS).eval()
    torch.testing.assert_close(loss(logits, labels), losses.CrossEntropy()(logits, labels))


def test_dense_labels_have_the_weight_of_their_sample():
    logits, labels = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    plain = losses.CrossEntropy(reduction="none")(logits, labels)
    found = SampleWeighted(WEIGHTS, reduction="none")(logits, labels, torch.tensor([2, 3]))
    torch.testing.assert_close(found, torch.tensor([[0.5], [2.0]]) * plain)


def test_weights_come_from_a_file_and_go_into_the_state(tmp_path):
    np.save(tmp_path / "weights.npy", WEIGHTS.numpy())
    loss = SampleWeighted(tmp_path / "weights.npy")
    assert torch.equal(loss.sample_weights, WEIGHTS)
    other = SampleWeighted(torch.ones(4))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.sample_weights, WEIGHTS)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (lambda _: [1.0, 2.0], TypeError, "must be a tensor or the path of a .npy file, got list"),
        (lambda _: torch.ones(2, 2), ValueError, r"one number for each training sample, got shape \(2, 2\)"),
        (lambda _: torch.tensor([1.0, -2.0]), ValueError, "that of sample 1 is -2"),
        (lambda _: torch.tensor([1.0, float("nan")]), ValueError, "that of sample 1 is nan"),
        (lambda _: torch.zeros(3), ValueError, "are all zero: no sample would train"),
        (lambda _: torch.tensor([True]), TypeError, "must be real numbers, got torch.bool"),
        (lambda _: "weights.csv", ValueError, "read from a .npy file, got weights.csv"),
        (lambda folder: folder / "none.npy", FileNotFoundError, "no sample weights at"),
        (lambda folder: write(folder / "bad.npy", b"no array"), ValueError, "cannot be read as an array"),
    ],
)
def test_bad_weights_are_refused(tmp_path, weights, error, message):
    with pytest.raises(error, match=message):
        SampleWeighted(weights(tmp_path))


def test_what_cannot_be_weighed_is_refused():
    with pytest.raises(ValueError, match="class weights, which would be lost"):
        SampleWeighted(WEIGHTS, losses.CrossEntropy(weight=[1.0, 2.0]))
    with pytest.raises(ValueError, match="EarlyLearningRegularization keeps a state per sample"):
        SampleWeighted(WEIGHTS, losses.EarlyLearningRegularization(4, 3))
    logits, labels, _ = batch()
    with pytest.raises(ValueError, match="SampleWeighted needs the index of each sample"):
        SampleWeighted(WEIGHTS)(logits, labels)
    with pytest.raises(ValueError, match="index holds 4 but SampleWeighted knows 4 training samples, 0 to 3"):
        SampleWeighted(WEIGHTS)(logits, labels, torch.full((8,), 4))
