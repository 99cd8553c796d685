"""T-hat as files."""

import csv

import numpy as np
import pytest
import torch

from noisylightning.transition import load_transition, symmetric
from noisylightning.transition_files import publish_transition

NAMES = ["cat", "dog, big", 'the "fox"']


@pytest.fixture(scope="module")
def estimate():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, generator=generator).softmax(dim=1)


@pytest.mark.parametrize("class_names", [None, NAMES, ["0", "1", "2"]])
def test_both_tables_read_back_bit_for_bit(tmp_path, estimate, class_names):
    publish_transition(estimate, None, tmp_path, class_names=class_names)
    assert torch.equal(load_transition(tmp_path / "transition.csv"), estimate)
    assert torch.equal(load_transition(tmp_path / "transition.npy"), estimate)


def test_the_table_names_noisy_classes_above_and_clean_ones_at_the_side(tmp_path, estimate):
    publish_transition(estimate, None, tmp_path, class_names=NAMES)
    with (tmp_path / "transition.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["clean \\ noisy", *NAMES]
    assert [row[0] for row in rows] == NAMES
    np.testing.assert_allclose([[float(cell) for cell in row[1:]] for row in rows], estimate, atol=1e-7)


def test_without_names_the_table_is_numbers_alone(tmp_path, estimate):
    publish_transition(estimate, None, tmp_path)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "transition.csv", delimiter=","), estimate, atol=1e-7)


def test_standard_errors_are_saved_beside(tmp_path, estimate):
    publish_transition(estimate, symmetric(3, 0.2), tmp_path, standard_error=estimate / 100)
    saved = np.load(tmp_path / "transition_standard_error.npy", allow_pickle=False)
    assert np.array_equal(saved, (estimate / 100).numpy())


@pytest.mark.parametrize("true", [None, symmetric(3, 0.2)])
def test_loggers_of_pictures_get_one(tmp_path, estimate, true):
    """Of both kinds; a logger that takes none is left alone."""

    class Images:
        def log_image(self, key, images, step):
            seen.append((key, images, step))

    class Figures:
        def add_figure(self, tag, figure, step):
            seen.append((tag, len(figure.axes) > 2, step))

    class Plain:
        pass

    seen, figures, plain = [], Plain(), Plain()
    figures.experiment = Figures()
    publish_transition(estimate, true, tmp_path, [Images(), figures, plain], step=7)
    picture = tmp_path / "transition.png"
    assert seen == [("transition", [str(picture)], 7), ("transition", true is not None, 7)]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_sparse_transition_is_a_file_of_its_own(tmp_path):
    publish_transition(symmetric(3, 0.2).to_sparse(), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["transition.npz"]
    assert load_transition(tmp_path / "transition.npz").to_dense().equal(symmetric(3, 0.2))
    np.savez(tmp_path / "other.npz", probs=np.eye(3))
    with pytest.raises(ValueError, match=r"no sparse transition matrix in .*other\.npz"):
        load_transition(tmp_path / "other.npz")
