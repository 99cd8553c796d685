import os
from pathlib import Path

import numpy as np
import pytest
import torch

from noisylightning.data import ConfusionNoise, HumanNoise, NoisyLabels, measure_transition
from noisylightning.data.human import read_human_labels

REAL = Path(os.environ.get("NOISYLIGHTNING_DATA", "data"))
needs_cifar10n = pytest.mark.skipif(
    not (REAL / "cifar10n.npz").is_file(), reason="no cifar10n.npz in the folder NOISYLIGHTNING_DATA names"
)
CLEAN = torch.arange(400) % 4
HUMAN = torch.where(torch.arange(400) < 100, (CLEAN + 1) % 4, CLEAN)


@pytest.fixture(params=["npz", "pt"])
def human_file(request, tmp_path):
    arrays = {"clean_label": CLEAN.numpy(), "worse_label": HUMAN.numpy()}
    path = tmp_path / f"human.{request.param}"
    if request.param == "npz":
        np.savez(path, **arrays)
    else:
        torch.save(arrays, path)
    return path


def test_labels_are_taken_as_people_gave_them_and_the_transition_is_measured(human_file):
    drawn = NoisyLabels.draw(HumanNoise(human_file, "worse_label"), CLEAN, 4, seed=0)
    assert torch.equal(drawn.labels, HUMAN)
    assert drawn.requested_rate is None
    assert drawn.actual_rate == 0.25
    torch.testing.assert_close(drawn.transition, torch.eye(4) * 0.75 + torch.eye(4).roll(1, dims=1) * 0.25)


def test_their_confusions_can_be_drawn_at_random(human_file):
    clean = torch.arange(40_000) % 4
    drawn = NoisyLabels.draw(ConfusionNoise(human_file, "worse_label"), clean, 4, seed=0)
    measured = measure_transition(CLEAN, HUMAN, 4)
    assert torch.equal(drawn.transition, measured)
    assert (measure_transition(clean, drawn.labels, 4) - measured).abs().max() < 0.03


def test_other_data_is_refused(human_file):
    with pytest.raises(ValueError, match="400 clean labels are not the 399 labels at hand; use"):
        NoisyLabels.draw(HumanNoise(human_file, "worse_label"), CLEAN[1:], 4, seed=0)
    with pytest.raises(ValueError, match="at hand, 400 of them differ; use"):
        NoisyLabels.draw(HumanNoise(human_file, "worse_label"), CLEAN.roll(1), 4, seed=0)


def test_an_unknown_key_is_answered_with_the_known_ones(human_file):
    with pytest.raises(ValueError, match=r"no labels named 'wrose': choose from \['clean_label', 'worse_label'\]"):
        HumanNoise(human_file, "wrose").read(4)


def test_a_missing_or_broken_file_is_named(human_file):
    with pytest.raises(FileNotFoundError, match="no human labels at"):
        read_human_labels(human_file.with_name("other.npz"))
    human_file.write_bytes(human_file.read_bytes()[:300])
    with pytest.raises(ValueError, match="is truncated or holds no arrays of labels") as caught:
        read_human_labels(human_file)
    assert "\n" not in str(caught.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"human.{suffix}"
    if suffix == "npz":
        np.savez(path, clean_label=np.array([Evil()], dtype=object))
    else:
        torch.save({"clean_label": Evil()}, path)
    with pytest.raises(ValueError, match=r"holds (more than|no) arrays of labels"):
        read_human_labels(path)
    assert not (tmp_path / "made-by-a-pickle").exists()


@needs_cifar10n
@pytest.mark.parametrize(
    ("key", "rate"),
    [
        ("aggre_label", 9.01),
        ("random_label1", 17.23),
        ("random_label2", 18.12),
        ("random_label3", 17.64),
        ("worse_label", 40.21),
    ],
)
def test_cifar10n_has_the_published_rates(key, rate):
    clean, human = HumanNoise(REAL / "cifar10n.npz", key).read(10)
    assert (clean != human).double().mean().item() * 100 == pytest.approx(rate, abs=0.005)
