"""Every base loss under every correction: the theorems that hold for all of them, and numbers that stay numbers."""

from itertools import combinations

import pytest
import torch
from test_every_loss import CLASSES, LOSSES, PROPER, random_logits

from noisylightning.corrections import BackwardCorrection, ForwardCorrection, ImportanceReweighting, NoCorrection
from noisylightning.functional import mix_labels
from noisylightning.losses import EarlyLearningRegularization

CORRECTIONS = [ForwardCorrection, BackwardCorrection, ImportanceReweighting]

pytestmark = pytest.mark.filterwarnings("ignore:.*not proper composite")
every_loss = pytest.mark.parametrize("name", LOSSES)
every_correction = pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda correction: correction.__name__)


def random_transition(seed=0):
    noise = torch.rand(CLASSES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    transition = noise / 2 + torch.eye(CLASSES, dtype=torch.float64)
    return transition / transition.sum(1, keepdim=True)


def under(correction, transition, loss):
    """The correction in double precision."""
    module = correction(num_classes=CLASSES, loss=loss).double()
    if module.uses_transition:
        module.set_transition(transition)
    return module


def value_and_slope(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@every_loss
@every_correction
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 0.0]], ids=["", "weighted"])
def test_without_noise_it_is_the_base_loss(name, correction, weight):
    loss, identity = LOSSES[name](weight=weight).double(), torch.eye(CLASSES, dtype=torch.float64)
    corrected = under(correction, identity, LOSSES[name](weight=weight))
    for shape in [(6, CLASSES), (2, CLASSES, 3, 2)]:
        logits = random_logits(*shape)
        labels = torch.randint(CLASSES, shape[:1] + shape[2:], generator=torch.Generator().manual_seed(0))
        for target in (labels, random_logits(*shape, seed=1).softmax(1)):
            expected = value_and_slope(loss, logits, target)
            torch.testing.assert_close(
                value_and_slope(corrected, logits, target), expected, rtol=1e-12, atol=1e-12, msg=str(target.dtype)
            )


@every_loss
@pytest.mark.parametrize("weight", [None, [1.0, 2.0, 0.5, 0.3]], ids=["", "weighted"])
def test_backward_is_unbiased(name, weight):
    """Averaged over the noisy label it is the clean label's loss, for each clean label."""
    transition, logits = random_transition(), random_logits(5, CLASSES)
    loss = LOSSES[name](weight=weight, reduction="none")
    labels = [torch.full((5,), label) for label in range(CLASSES)]
    clean = torch.stack([loss.double()(logits, label) for label in labels], 1)
    backward = under(BackwardCorrection, transition, loss)
    noisy = torch.stack([backward(logits, label) for label in labels], 1)
    torch.testing.assert_close(noisy @ transition.T, clean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted(PROPER))
def test_forward_is_minimised_by_the_clean_posterior(name):
    transition, eta = random_transition(1), random_logits(50, CLASSES, scale=1.0).softmax(1)
    forward = under(ForwardCorrection, transition, LOSSES[name](reduction="none"))

    def risk(logits):
        losses = torch.stack([forward(logits, torch.full((50,), label)) for label in range(CLASSES)], 1)
        return (eta @ transition * losses).sum(1)

    logits = eta.log().requires_grad_()
    least = risk(logits)
    (slope,) = torch.autograd.grad(least.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
    for seed in range(10):
        assert (risk(random_logits(50, CLASSES, seed=seed)) > least - 1e-12).all()


@every_loss
@every_correction
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_extreme_logits_and_impossible_flips_stay_finite(name, correction, dtype):
    transition = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7], [0.2, 0.0, 0.0, 0.8]])
    corrected = correction(transition, loss=LOSSES[name](reduction="sum"))
    rows = torch.tensor([*combinations([1e4, -1e4, 0.0, 9999.0, -1e4, 1e4, 17.0], CLASSES)], dtype=dtype)
    targets = [torch.full((len(rows),), label) for label in range(CLASSES)]
    for target in [*targets, torch.full((len(rows), CLASSES), 1 / CLASSES)]:
        value, slope = value_and_slope(corrected, rows, target)
        assert value.isfinite()
        assert slope.isfinite().all()


@every_loss
@pytest.mark.parametrize("correction", [ForwardCorrection, ImportanceReweighting], ids=lambda c: c.__name__)
def test_a_class_that_is_never_observed_gives_no_nan(name, correction):
    transition = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.3, 0.7, 0.0, 0.0], [0.2, 0.0, 0.0, 0.8]])
    corrected = correction(transition, loss=LOSSES[name](reduction="sum"))
    for label in range(CLASSES):
        value, slope = value_and_slope(corrected, random_logits(5, CLASSES).float(), torch.full((5,), label))
        assert not value.isnan()
        assert not slope.isnan().any()


@pytest.mark.parametrize("correction", [NoCorrection, *CORRECTIONS], ids=lambda correction: correction.__name__)
def test_early_learning_keeps_its_averages_under_correction(correction):
    loss, base = (EarlyLearningRegularization(20, CLASSES).double() for _ in range(2))
    corrected = under(correction, torch.eye(CLASSES, dtype=torch.float64), loss)
    target = torch.arange(5) % CLASSES
    for seed in range(4):
        logits = random_logits(5, CLASSES, seed=seed)
        index = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:5]
        torch.testing.assert_close(corrected(logits, target, index), base(logits, target, index))
    torch.testing.assert_close(loss.average, base.average)
    with pytest.raises(ValueError, match="needs the index of each sample"):
        corrected(logits, target)
    corrected.eval()(logits, target)


@every_loss
@pytest.mark.parametrize("correction", [NoCorrection, *CORRECTIONS], ids=lambda correction: correction.__name__)
def test_a_mixed_label_costs_the_mixture_of_the_losses(name, correction):
    """What Mixup and CutMix rely on, with class weights too."""
    loss = LOSSES[name](weight=[1.0, 2.0, 0.5, 0.3], reduction="none")
    corrected, logits = under(correction, random_transition(), loss), random_logits(6, CLASSES)
    labels = torch.randint(CLASSES, (6,), generator=torch.Generator().manual_seed(0))
    soft = mix_labels(labels, torch.arange(6).flip(0), 0.3, CLASSES).double()
    exact = 0.3 * torch.eye(CLASSES, dtype=torch.float64)[labels]
    exact += 0.7 * torch.eye(CLASSES, dtype=torch.float64)[labels.flip(0)]
    torch.testing.assert_close(soft, exact)
    expected = 0.3 * corrected(logits, labels) + 0.7 * corrected(logits, labels.flip(0))
    torch.testing.assert_close(corrected(logits, exact), expected, rtol=1e-9, atol=1e-9)
