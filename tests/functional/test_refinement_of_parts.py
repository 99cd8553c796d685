"""Refining T by what networks say of samples that they have not seen."""

import pytest
import torch

from noisylightning.functional import refinement
from noisylightning.functional.refinement import HeldOut, foretold, held_out_log_likelihood, refine
from noisylightning.transition import relative_l1_error, symmetric

CLASSES = 3
TRUE = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.0, 0.1, 0.9]], dtype=torch.float64)

EVEN = torch.tensor([[0.4, 0.6, 0.0], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def parts(true: torch.Tensor = TRUE, num: int = 6000, stretched: float = 1.0) -> list[HeldOut]:
    """Calibrated predictions of overlapping classes, or overconfident ones, in two parts."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(num, CLASSES, generator=generator, dtype=torch.float64)
    clean = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    labels = torch.multinomial(true[clean], 1, generator=generator)[:, 0]
    index = torch.arange(num)
    return [HeldOut(stretched * logits[half::2], labels[half::2], index[half::2]) for half in (0, 1)]


@pytest.mark.parametrize("stretched", [0.5, 1.0, 2.0])
def test_it_finds_t_from_a_poor_start_however_sure_the_networks_are(stretched):
    start = symmetric(CLASSES, 0.4).double()
    found = refine(parts(stretched=stretched), start)
    assert relative_l1_error(found.transition, TRUE) < 0.2 * relative_l1_error(start, TRUE)
    error = found.standard_error()
    assert ((found.transition - TRUE).abs() < 4 * error + 0.01).all()


def test_classes_that_give_each_other_some_labels_are_calibrated_all_the_same():
    """At symmetric 0.9, a class's own counted in, each keeps twice what it gives to another."""
    true = torch.full((CLASSES, CLASSES), 0.25, dtype=torch.float64) + 0.25 * torch.eye(CLASSES)
    found = refine(parts(true, num=20_000, stretched=0.5), true)
    assert relative_l1_error(found.transition, true) < 0.04


def test_the_truth_is_likelier_than_the_start_and_than_none():
    held_out, start = parts(), symmetric(CLASSES, 0.4).double()
    found = refine(held_out, start)
    for other in (start, torch.eye(CLASSES, dtype=torch.float64)):
        assert found.log_likelihood.mean() > held_out_log_likelihood(held_out, [other, other]).mean()


def test_what_is_foretold_is_the_label_that_t_makes_most_probable():
    """Of class 0 label 1 is the most frequent one."""
    likeliest = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]])
    held_out = [HeldOut(9 * torch.eye(3), torch.tensor([1, 1, 2]), torch.arange(3))]
    assert foretold(held_out * 2, likeliest).tolist() == [True] * 6
    assert foretold(held_out, torch.eye(3)).tolist() == [False, True, True]


def test_what_is_foretold_does_not_depend_on_how_many_are_looked_at_at_once(monkeypatch):
    held_out = parts(num=600)
    whole = foretold(held_out, TRUE)
    monkeypatch.setattr(refinement, "_MAX_AT_ONCE", 7 * CLASSES)
    assert torch.equal(foretold(held_out, TRUE), whole)


def test_it_is_the_same_in_any_order_within_the_parts():
    held_out, start = parts(num=600), symmetric(CLASSES, 0.4).double()
    shuffled = []
    for part in held_out:
        order = torch.randperm(len(part.index), generator=torch.Generator().manual_seed(1))
        shuffled.append(HeldOut(part.logits[order], part.noisy_labels[order], part.index[order]))
    one, other = refine(held_out, start), refine(shuffled, start)
    assert torch.equal(one.transition, other.transition)
    assert torch.equal(one.standard_error(), other.standard_error())


def test_classes_that_exchange_their_labels_keep_their_scores():
    held_out = parts(EVEN, stretched=2.0)
    found = refine(held_out, EVEN)
    for part, scaled in zip(held_out, found.parts, strict=True):
        between = part.logits[:, 0] - part.logits[:, 1]
        torch.testing.assert_close(scaled.logits[:, 0] - scaled.logits[:, 1], between)
        assert scaled.logits[:, 2].std() < 0.95 * part.logits[:, 2].std()


def test_rows_of_classes_that_keep_their_scores_are_made_of_the_surer_half(monkeypatch):
    """A network that is not sure enough does the true T less harm there."""
    held_out = parts(EVEN, num=20_000, stretched=0.4)
    found = refine(held_out, EVEN)
    assert found.alike == [0, 1]
    for part, surest in zip(held_out, found.surest, strict=True):
        assert abs(len(surest.index) - len(part.index) / 2) <= CLASSES
        place = {int(number): row for row, number in enumerate(part.index)}
        rows = torch.tensor([place[int(number)] for number in surest.index])
        sure, predicted = part.logits.softmax(dim=1).max(dim=1)
        for name in range(CLASSES):
            of_name = rows[predicted[rows] == name]
            left = torch.ones_like(predicted, dtype=torch.bool).index_fill(0, rows, False) & (predicted == name)
            assert sure[of_name].min() >= sure[left].max()
    monkeypatch.setattr(refinement, "_surer_half", lambda logits: logits[:, 0] > -1e9)
    of_all = refine(held_out, EVEN)
    assert relative_l1_error(found.transition, EVEN) < relative_l1_error(of_all.transition, EVEN)
    assert (found.standard_error()[:2, :2] > 1.1 * of_all.standard_error()[:2, :2]).all()


def test_where_the_surer_half_has_too_few_of_a_class_all_samples_count(monkeypatch):
    held_out = parts(EVEN)
    monkeypatch.setattr(refinement, "_surer_half", lambda logits: logits.softmax(dim=1)[:, 2] > 0.99)
    found = refine(held_out, EVEN)
    assert found.alike == []
    assert found.transition.isfinite().all()
    assert found.standard_error().isfinite().all()


def test_of_very_many_classes_the_last_step_has_standard_errors_or_none(monkeypatch):
    found = refine(parts(), symmetric(CLASSES, 0.4).double())
    whole = found.standard_error()
    monkeypatch.setattr(refinement, "MOST_CLASSES", CLASSES - 1)
    assert (found.standard_error() < 1.2 * whole + 1e-3).all()
    monkeypatch.setattr(refinement, "_MAX_REPLICATED", 1)
    assert found.standard_error() is None


def test_a_class_that_is_all_but_gone_is_refused(monkeypatch):
    monkeypatch.setattr(refinement, "_LEAST_SHARE", 1.5)  # which then the class of the fewest samples is
    with pytest.raises(ValueError, match=r"samples, though \d+ carry its label, so that another class stands for two"):
        refine(parts(), symmetric(CLASSES, 0.4).double())
