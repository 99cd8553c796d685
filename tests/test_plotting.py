"""Pictures of T."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from noisylightning.plotting import compare_transitions, draw_transition
from noisylightning.transition import pairflip, symmetric


def test_the_picture_shows_t_with_clean_classes_down_and_noisy_ones_across():
    transition = pairflip(3, 0.3)
    _, axes = draw_transition(transition, class_names=["cat", "dog", "fox"], title="T")
    np.testing.assert_allclose(axes.images[0].get_array(), transition, atol=1e-7)
    assert (axes.get_ylabel(), axes.get_xlabel(), axes.get_title()) == ("clean class", "noisy label", "T")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "fox"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "fox"]
    assert axes.images[0].get_clim() == (0.0, 1.0)  # pictures can be compared


def test_entries_are_written_where_there_is_something_to_read():
    _, axes = draw_transition(pairflip(3, 0.3))
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {
        **{(i, i): ".70" for i in range(3)},
        **{((i + 1) % 3, i): ".30" for i in range(3)},  # matplotlib's (across, down)
    }


@pytest.mark.parametrize(("num_classes", "numbers", "names"), [(20, True, True), (21, False, True), (41, False, False)])
def test_many_classes_get_neither_numbers_nor_names(num_classes, numbers, names):
    _, axes = draw_transition(symmetric(num_classes, 0.2))
    assert bool(axes.texts) == numbers
    assert ([label.get_text() for label in axes.get_yticklabels()] == [str(i) for i in range(num_classes)]) == names


@pytest.mark.parametrize("names", [["a", "b"], ["aeroplane", "bird"]])
def test_long_names_are_turned(names):
    _, axes = draw_transition(torch.eye(2), class_names=names)
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {45.0 if len(names[0]) > 3 else 0.0}


def test_it_draws_on_given_axes_and_takes_any_floating_tensor():
    ax = Figure().add_subplot()
    figure, same = draw_transition(symmetric(3, 0.2).to(torch.bfloat16).requires_grad_(), ax=ax)
    assert same is ax
    assert figure is ax.figure


def test_estimate_and_truth_stand_side_by_side(tmp_path):
    estimate, true = symmetric(3, 0.2), symmetric(3, 0.4)
    figure = compare_transitions(estimate, true, class_names=["a", "b", "c"], title="digits")
    left, right = figure.axes[:2]
    for axes, title, values in ((left, "estimated", estimate), (right, "true", true)):
        assert axes.get_title() == title
        np.testing.assert_allclose(axes.images[0].get_array(), values, atol=1e-7)
    assert figure.get_suptitle() == "digits"
    figure.savefig(tmp_path / "both.png")


def test_standard_errors_stand_small_under_their_numbers():
    _, axes = draw_transition(pairflip(3, 0.3), standard_error=torch.full((3, 3), 0.0123))
    written = [text.get_text() for text in axes.texts]
    assert sorted(written) == sorted([".70", ".30"] * 3 + ["±.012"] * 6)


@pytest.mark.parametrize("size", [2, 10, 100])
@pytest.mark.parametrize(
    ("true", "error", "titles"),
    [
        (False, False, ["estimated"]),
        (True, False, ["estimated", "true"]),
        (False, True, ["estimated", "standard error"]),
        (True, True, ["estimated", "true", "standard error", "estimated - true"]),
    ],
)
def test_there_is_a_panel_for_all_that_is_known(tmp_path, size, true, error, titles):
    estimate, truth, errors = symmetric(size, 0.2), pairflip(size, 0.3), torch.rand(size, size) / 100
    figure = compare_transitions(estimate, truth if true else None, standard_error=errors if error else None)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == titles
    shown = {"estimated": estimate, "true": truth, "standard error": errors, "estimated - true": estimate - truth}
    for title, axes in panels.items():
        np.testing.assert_allclose(axes.images[0].get_array(), shown[title], atol=1e-6)
    if true and error:
        low, high = panels["estimated - true"].images[0].get_clim()
        assert low == -high  # no difference has no colour
    figure.savefig(tmp_path / "all.png", dpi=30)


def test_an_estimate_without_error_can_be_drawn(tmp_path):
    compare_transitions(torch.eye(2), torch.eye(2), standard_error=torch.zeros(2, 2)).savefig(tmp_path / "sure.png")


def test_nothing_is_registered_with_pyplot():
    before = "matplotlib.pyplot" in sys.modules
    draw_transition(torch.eye(2))
    assert ("matplotlib.pyplot" in sys.modules) == before
