"""The one record of predictions: what it takes, what it refuses, and that a file gives back what went in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.errors import UserError
from noisylightning.predictions import Predictions, files


def some(num: int = 7, classes: int = 3, seed: int = 0, dtype=torch.float32, **others) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(
        torch.randn(num, classes, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(classes, (num,), generator=generator),
        **others,
    )


def everything(num: int = 7) -> Predictions:
    return some(
        num,
        index=torch.arange(num) + 10,
        held_out=torch.arange(num) % 2 == 0,
        features=torch.arange(2.0 * num).reshape(num, 2),
        clean_labels=torch.arange(num) % 4 - 1,
        class_names=["ant", "bee", "cat"],
    )


def assert_same(found: Predictions, expected: Predictions) -> None:
    assert found.class_names == expected.class_names
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-6, rtol=0)
    for name in ("noisy_labels", "index", "held_out", "features", "clean_labels"):
        value = getattr(expected, name)
        assert (getattr(found, name) is None) if value is None else torch.equal(getattr(found, name), value), name


def test_a_networks_scores_are_kept_as_they_are():
    """T-hat of a fit is that of softmax(logits), to the bit."""
    predictions = some()
    assert torch.equal(predictions.probs, predictions.logits.softmax(dim=1))
    assert torch.equal(predictions.log_probs, predictions.logits.log_softmax(dim=1))


def test_impossible_classes_have_probability_zero():
    probs = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    predictions = Predictions.from_probs(probs, torch.tensor([1, 0]))
    torch.testing.assert_close(predictions.probs, probs)
    assert predictions.probs[0, 0] == 0
    assert predictions.log_probs[0, 0] == -torch.inf


def test_what_is_not_said_is_the_cautious_choice():
    predictions = some()
    assert torch.equal(predictions.index, torch.arange(7))
    assert not predictions.held_out.any()
    assert predictions.known == frozenset()
    assert everything().known == {"features", "clean_labels", "held_out"}


def test_half_precision_is_widened_where_it_is_used():
    assert some(dtype=torch.float16).probs.dtype == torch.float32
    assert some(dtype=torch.float64).log_probs.dtype == torch.float64


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"logits": torch.zeros(3, 2, dtype=torch.long)}, TypeError, "floating point, got torch.int64"),
        ({"logits": torch.zeros(3)}, ValueError, r"shape \(N, C\)"),
        ({"logits": torch.zeros(3, 1)}, ValueError, "at least 2"),
        ({"logits": torch.tensor([[0, 0], [0, torch.nan], [0, 0]])}, ValueError, "NaN or .*first in row 1"),
        ({"logits": torch.tensor([[0, 0], [0, 0], [0, torch.inf]])}, ValueError, "NaN or .*first in row 2"),
        ({"logits": torch.full((3, 2), -torch.inf)}, ValueError, "NaN or .*first in row 0"),
        ({"noisy_labels": torch.tensor([0, 1, 2])}, ValueError, "noisy labels|Noisy labels must be .* got 2"),
        ({"noisy_labels": torch.tensor([0.0, 1, 1])}, TypeError, "integer noisy labels"),
        ({"noisy_labels": torch.tensor([0, 1])}, ValueError, "one label a prediction"),
        ({"noisy_labels": torch.tensor([[0, 2], [0, 1], [1, 1]])}, ValueError, "or -1 for an unknown one, got 2"),
        ({"noisy_labels": torch.tensor([[0, 1]])}, ValueError, "3 predictions and noisy labels of 1 samples"),
        ({"index": torch.zeros(2, dtype=torch.long)}, ValueError, r"index must be of shape \(3,\)"),
        ({"index": torch.zeros(3)}, TypeError, "index must be integers"),
        ({"held_out": torch.zeros(3)}, TypeError, "held_out must be bool"),
        ({"clean_labels": torch.tensor([-2, 0, 0])}, ValueError, "Clean labels must be .* got -2"),
        ({"features": torch.zeros(3)}, ValueError, r"features must be of shape \(3, D\)"),
        ({"features": torch.full((3, 1), torch.nan)}, ValueError, "features must be finite"),
        ({"class_names": ["a"]}, ValueError, "2 different names"),
        ({"index": torch.arange(3, device="meta")}, ValueError, "bring both to one device"),
    ],
)
def test_what_is_no_prediction_is_refused_in_one_sentence(fields, error, message):
    good = {"logits": torch.zeros(3, 2), "noisy_labels": torch.tensor([0, 1, 1])}
    with pytest.raises(error, match=message) as caught:
        Predictions(**(good | fields))
    assert isinstance(caught.value, UserError)


def test_annotators_may_have_given_no_label():
    labels = torch.tensor([[0, -1], [1, 1]])
    assert torch.equal(Predictions(torch.zeros(2, 2), labels).noisy_labels, labels)


@settings(max_examples=25, deadline=None)
@given(num=st.integers(1, 20), size=st.integers(1, 25))
def test_batches_joined_are_the_whole(num, size):
    whole = everything(num)
    batches = list(whole.split(size))
    assert [len(batch) for batch in batches] == [size] * (num // size) + [num % size] * (num % size > 0)
    assert_same(Predictions.concatenate(batches), whole)
    assert torch.equal(Predictions.concatenate(batches).probs, whole.probs)


def test_rows_are_chosen_by_place_or_mask():
    whole = everything()
    assert_same(whole.select(torch.tensor([0, 2, 4, 6])), whole.select(whole.held_out))
    assert whole.select(torch.tensor([3])).index.tolist() == [13]


def test_what_does_not_go_together_is_not_joined():
    with pytest.raises(ValueError, match="same fields and classes"):
        Predictions.concatenate([some(), everything()])
    with pytest.raises(ValueError, match="got none"):
        Predictions.concatenate([])


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("make", [some, everything, lambda: some(0)], ids=["some", "everything", "nothing"])
def test_a_file_gives_back_what_went_in(make, suffix, tmp_path):
    make().save(tmp_path / f"p{suffix}")
    assert_same(Predictions.load(tmp_path / f"p{suffix}"), make())


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_labels_of_several_annotators_go_through_a_file(suffix, tmp_path):
    whole = Predictions(torch.zeros(2, 2), torch.tensor([[0, -1, 1], [1, 1, 0]]))
    whole.save(tmp_path / f"p{suffix}")
    assert_same(Predictions.load(tmp_path / f"p{suffix}"), whole)


def test_large_arrays_stay_on_the_disk(tmp_path, monkeypatch):
    """Of a file of numpy's as of one of ours: written in parts, mapped, and not written to."""
    whole = some(1000, 10)
    monkeypatch.setattr("noisylightning.predictions.record.ROWS", 300)
    monkeypatch.setattr(files, "_MAPPED", 2**10)
    whole.save(tmp_path / "ours.npz")
    np.savez(tmp_path / "theirs.npz", logits=np.asfortranarray(whole.logits.numpy()), noisy_labels=whole.noisy_labels)
    for name in ("ours", "theirs"):
        before = (tmp_path / f"{name}.npz").read_bytes()
        arrays, _ = files.read_rows(tmp_path / f"{name}.npz")
        assert all(isinstance(array, np.memmap) for key, array in arrays.items() if key in ("log_probs", "logits"))
        loaded = Predictions.load(tmp_path / f"{name}.npz")
        assert_same(loaded, whole)
        loaded.logits.zero_()
        assert (tmp_path / f"{name}.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0, 1]}, "labels is none of its fields"),
        ({"probs": np.full((2, 2), 0.5)}, "One of log_probs, probs and logits is needed"),
        ({"log_probs": np.zeros((2, 2))}, "rows that sum to one, but one is off by 1"),
        ({"log_probs": np.full((2, 2), "x")}, "log_probs must be numbers"),
        ({"noisy_labels": ["cat", "dog"]}, "'cat', and nothing says in which order the classes are"),
        ({"noisy_labels": np.array([0, None])}, "is no .npz file of plain arrays"),
        ({"held_out": [0, 1]}, "held_out must be bool"),
    ],
)
def test_what_a_file_lacks_is_said_with_its_name(arrays, message, tmp_path):
    good = {"log_probs": np.log(np.full((2, 2), 0.5)), "noisy_labels": [0, 1]}
    np.savez(tmp_path / "p.npz", **(good | arrays))
    with pytest.raises(UserError, match=message) as caught:
        Predictions.load(tmp_path / "p.npz")
    assert "p.npz" in str(caught.value)
