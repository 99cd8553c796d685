"""What every base loss promises: shapes and reductions, its flags as theorems, precision, compilation, YAML."""

import math
from functools import partial
from itertools import combinations

import jsonargparse
import pytest
import torch
import torch.nn.functional as F

import noisylightning.functional.losses as fl
from noisylightning import losses as nl
from noisylightning.functional.tempered import bi_tempered_loss, log_tempered_softmax

LOSSES = {
    "cross_entropy": nl.CrossEntropy,
    "square": nl.SquareLoss,
    "unhinged": nl.UnhingedLoss,
    "sigmoid": nl.SigmoidLoss,
    "ramp": nl.RampLoss,
    "savage": nl.SavageLoss,
    "mae": nl.MeanAbsoluteError,
    "soft_bootstrap": nl.SoftBootstrap,
    "soft_bootstrap_1": partial(nl.SoftBootstrap, beta=1.0),
    "hard_bootstrap": nl.HardBootstrap,
    "hard_bootstrap_1": partial(nl.HardBootstrap, beta=1.0),
    "gce": nl.GeneralizedCrossEntropy,
    "gce_1": partial(nl.GeneralizedCrossEntropy, q=1.0),
    "truncated_gce": partial(nl.TruncatedGeneralizedCrossEntropy, k=0.2),
    "truncated_gce_1": partial(nl.TruncatedGeneralizedCrossEntropy, q=1.0, k=0.2),
    "rce": nl.ReverseCrossEntropy,
    "sce": nl.SymmetricCrossEntropy,
    "sce_active": partial(nl.SymmetricCrossEntropy, alpha=0.5, beta=0.0),
    "sce_passive": partial(nl.SymmetricCrossEntropy, alpha=0.0),
    "nce": nl.NormalizedCrossEntropy,
    "nce_rce": lambda **kwargs: nl.ActivePassiveLoss(nl.NormalizedCrossEntropy(), nl.ReverseCrossEntropy(), **kwargs),
    "nce_mae": lambda **kwargs: nl.ActivePassiveLoss(
        nl.NormalizedCrossEntropy(), nl.MeanAbsoluteError(), 10.0, 0.1, **kwargs
    ),
    "ce_square": lambda **kwargs: nl.ActivePassiveLoss(nl.CrossEntropy(), nl.SquareLoss(), **kwargs),
    "focal": nl.FocalLoss,
    "focal_0": partial(nl.FocalLoss, gamma=0.0),
    "label_smoothing": nl.LabelSmoothing,
    "negative_label_smoothing": partial(nl.LabelSmoothing, rate=-1.0),
    "label_smoothing_0": partial(nl.LabelSmoothing, rate=0.0),
    "bi_tempered": nl.BiTemperedLoss,
    "bi_tempered_logarithm": partial(nl.BiTemperedLoss, t1=0.3, t2=1.0),
    "bi_tempered_softmax": partial(nl.BiTemperedLoss, t1=1.0, t2=2.0),
    "weighted_in_evaluation": lambda **kwargs: nl.SampleWeighted(torch.ones(9), **kwargs).eval(),
    "early_learning_in_evaluation": lambda **kwargs: nl.EarlyLearningRegularization(9, 4, **kwargs).eval(),
}
PROPER = {
    "cross_entropy",
    "square",
    "soft_bootstrap_1",
    "hard_bootstrap_1",
    "sce_active",
    "ce_square",
    "focal_0",
    "label_smoothing_0",
    "bi_tempered_logarithm",
    "weighted_in_evaluation",
}
SYMMETRIC = {"mae", "gce_1", "rce", "sce_passive", "nce", "nce_rce", "nce_mae"}
CLASSES = 4
every_loss = pytest.mark.parametrize("name", LOSSES)


def random_logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_posteriors(count, seed=0):
    """Distributions all over the simplex, away from its border."""
    return random_logits(count, CLASSES, seed=seed, scale=1.0).softmax(1)


def expected_loss(loss, logits, eta):
    """The loss averaged over labels drawn from ``eta``, for each row."""
    return (eta * loss.vector(logits)).sum(1)


def test_all_losses_are_listed():
    made = {type(make()) for make in LOSSES.values()}
    assert made == {getattr(nl, name) for name in nl.__all__} - {nl.Loss, nl.LikelihoodLoss}


@every_loss
def test_flags_are_stated(name):
    loss = LOSSES[name]()
    assert loss.proper is (name in PROPER)
    assert loss.symmetric is (name in SYMMETRIC)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"early_learning_in_evaluation"}))  # there, cross-entropy
def test_proper_means_that_the_truth_is_the_minimiser(name):
    """At the truth the expected loss is stationary, and nowhere lower; for the others there is a counterexample."""
    loss, eta = LOSSES[name](), random_posteriors(200)
    logits = eta.log().requires_grad_()
    truth = expected_loss(loss, logits, eta)
    far = [random_logits(200, CLASSES, seed=seed, scale=3.0) for seed in range(20)]
    near = [eta.log() + random_logits(200, CLASSES, seed=seed, scale=0.1) for seed in range(20)]
    lowest = torch.stack([expected_loss(loss, z, eta) for z in far + near]).amin(0)
    if loss.proper:
        (slope,) = torch.autograd.grad(truth.sum(), logits)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)
        assert (lowest > truth - 1e-12).all()
    else:
        assert (lowest < truth - 1e-3).any()


@every_loss
def test_symmetric_means_that_the_sum_over_labels_is_constant(name):
    loss = LOSSES[name]()
    sums = loss.vector(random_logits(200, CLASSES)).sum(1)
    spread = sums.max() - sums.min()
    assert (spread < 1e-12) if loss.symmetric else (spread > 1e-3)


@pytest.mark.parametrize("name", sorted(SYMMETRIC))
def test_symmetric_loss_is_the_same_under_symmetric_noise(name):
    """Its noisy risk is an increasing affine function of the clean one, whose coefficients know nothing of p."""
    loss, rate = LOSSES[name](), 0.6
    transition = torch.full((CLASSES, CLASSES), rate / (CLASSES - 1), dtype=torch.float64).fill_diagonal_(1 - rate)
    clean = loss.vector(random_logits(50, CLASSES))
    noisy = clean @ transition.T
    constant = clean.sum(1, keepdim=True) * rate / (CLASSES - 1)
    torch.testing.assert_close(noisy, (1 - rate * CLASSES / (CLASSES - 1)) * clean + constant, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t1", "t2"), [(0.0, 1.5), (0.3, 2.0), (0.8, 1.2), (1.0, 4.0)])
def test_bi_tempered_is_proper_with_its_own_softmax(t1, t2):
    loss = nl.BiTemperedLoss(t1, t2)
    eta = random_posteriors(50)
    logits = ((eta ** (1 - t2) - 1) / (1 - t2)).requires_grad_()  # the tempered logarithm, the link's inverse
    torch.testing.assert_close(log_tempered_softmax(logits, t2).exp(), eta, rtol=1e-12, atol=1e-12)
    truth = expected_loss(loss, logits, eta)
    (slope,) = torch.autograd.grad(truth.sum(), logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)
    for seed in range(10):
        assert (expected_loss(loss, random_logits(50, CLASSES, seed=seed), eta) > truth - 1e-12).all()


EQUALITIES = {
    "focal at 0": (nl.FocalLoss(0.0), F.cross_entropy, 1e-12),
    "symmetric cross-entropy, active part": (nl.SymmetricCrossEntropy(1.0, 0.0), F.cross_entropy, 1e-12),
    "soft bootstrap at 1": (nl.SoftBootstrap(1.0), F.cross_entropy, 1e-12),
    "hard bootstrap at 1": (nl.HardBootstrap(1.0), F.cross_entropy, 1e-12),
    "bi-tempered at 1, 1": (nl.BiTemperedLoss(1.0, 1.0), F.cross_entropy, 1e-12),
    "bi-tempered close to 1, 1": (nl.BiTemperedLoss(1 - 1e-7, 1 + 1e-7), F.cross_entropy, 1e-5),
    "generalized close to 0": (nl.GeneralizedCrossEntropy(1e-9), F.cross_entropy, 1e-7),
    "label smoothing": (nl.LabelSmoothing(0.2), partial(F.cross_entropy, label_smoothing=0.2), 1e-12),
    "bi-tempered at 0, 1": (nl.BiTemperedLoss(0.0, 1.0), lambda z, y: nl.SquareLoss()(z, y) / 2, 1e-12),
    "generalized at 1": (nl.GeneralizedCrossEntropy(1.0), lambda z, y: nl.MeanAbsoluteError()(z, y) / 2, 1e-12),
    "reverse": (nl.ReverseCrossEntropy(-2.0), nl.MeanAbsoluteError(), 1e-12),
    "truncated at 0": (nl.TruncatedGeneralizedCrossEntropy(0.7, 1e-9), nl.GeneralizedCrossEntropy(0.7), 1e-12),
}


@pytest.mark.parametrize("case", EQUALITIES)
def test_losses_that_meet(case):
    loss, other, tolerance = EQUALITIES[case]
    logits, target = random_logits(20, CLASSES), torch.arange(20) % CLASSES
    torch.testing.assert_close(loss(logits, target), other(logits, target), rtol=tolerance, atol=tolerance)


def test_negative_label_smoothing_is_backward_correction_of_symmetric_noise():
    rate = 0.4
    transition = torch.full((CLASSES, CLASSES), rate / (CLASSES - 1), dtype=torch.float64).fill_diagonal_(1 - rate)
    logits = random_logits(20, CLASSES)
    backward = nl.CrossEntropy().vector(logits) @ torch.linalg.inv(transition).T
    smoothed = nl.LabelSmoothing(-rate * CLASSES / (CLASSES - 1 - rate * CLASSES)).vector(logits)
    torch.testing.assert_close(smoothed, backward, rtol=0, atol=1e-12)


FUNCTIONS = {
    "square": lambda z: fl.square_loss(z.log_softmax(1)),
    "unhinged": fl.unhinged_loss,
    "sigmoid": fl.sigmoid_loss,
    "ramp": fl.ramp_loss,
    "savage": lambda z: fl.savage_loss(z.log_softmax(1)),
    "mae": lambda z: fl.mean_absolute_error(z.log_softmax(1)),
    "soft_bootstrap": lambda z: fl.soft_bootstrap(z.log_softmax(1), 0.95),
    "hard_bootstrap": lambda z: fl.hard_bootstrap(z.log_softmax(1), 0.8),
    "gce": lambda z: fl.generalized_cross_entropy(z.log_softmax(1), 0.7),
    "truncated_gce": lambda z: fl.truncated_generalized_cross_entropy(z.log_softmax(1), 0.7, 0.2),
    "rce": lambda z: fl.reverse_cross_entropy(z.log_softmax(1), -4.0),
    "sce": lambda z: fl.symmetric_cross_entropy(z.log_softmax(1), 0.1, 1.0, -4.0),
    "nce": lambda z: fl.normalized_cross_entropy(z.log_softmax(1)),
    "nce_rce": lambda z: fl.normalized_cross_entropy(z.log_softmax(1)) + fl.reverse_cross_entropy(z.log_softmax(1)),
    "nce_mae": lambda z: (
        10 * fl.normalized_cross_entropy(z.log_softmax(1)) + 0.1 * fl.mean_absolute_error(z.log_softmax(1))
    ),
    "focal": lambda z: fl.focal_loss(z.log_softmax(1), 2.0),
    "label_smoothing": lambda z: fl.label_smoothing(z.log_softmax(1), 0.1),
    "negative_label_smoothing": lambda z: fl.label_smoothing(z.log_softmax(1), -1.0),
    "bi_tempered": lambda z: bi_tempered_loss(z, 0.8, 1.2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(6, CLASSES), (2, CLASSES, 3, 5)], ids=str)
def test_module_calls_its_function(name, shape):
    """The defaults are the papers', and the vector is the formula's over dimension 1, dense or not."""
    logits = random_logits(*shape)
    torch.testing.assert_close(LOSSES[name]().vector(logits), FUNCTIONS[name](logits), rtol=1e-14, atol=1e-14)


@every_loss
@pytest.mark.parametrize("shape", [(6, CLASSES), (2, CLASSES, 3), (2, CLASSES, 3, 2)], ids=str)
def test_weights_ignored_labels_and_reductions(name, shape):
    logits = random_logits(*shape)
    target = torch.randint(CLASSES, shape[:1] + shape[2:], generator=torch.Generator().manual_seed(0))
    target.view(-1)[1] = -1
    weight = [1.0, 0.5, 0.0, 3.0]
    vector = LOSSES[name]().vector(logits)
    safe = target.clamp_min(0)
    factor = torch.tensor(weight, dtype=torch.float64)[safe] * (target >= 0)
    expected = vector.gather(1, safe.unsqueeze(1)).squeeze(1) * factor

    def reduced(reduction):
        loss = LOSSES[name](weight=weight, ignore_index=-1, reduction=reduction)
        return loss.double()(logits, target)

    torch.testing.assert_close(reduced("none"), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reduced("sum"), expected.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reduced("mean"), expected.sum() / factor.sum(), rtol=1e-12, atol=1e-12)


@every_loss
@pytest.mark.parametrize("shape", [(6, CLASSES), (2, CLASSES, 3, 2)], ids=str)
def test_soft_target_is_the_expectation(name, shape):
    logits, target = random_logits(*shape), random_logits(*shape, seed=1).softmax(1)
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(logits, target), (target * loss.vector(logits)).sum(1).mean())
    labels = torch.randint(CLASSES, shape[:1] + shape[2:], generator=torch.Generator().manual_seed(0))
    certain = F.one_hot(labels, CLASSES).movedim(-1, 1).double()
    torch.testing.assert_close(loss(logits, certain), loss(logits, labels), rtol=1e-12, atol=1e-12)


@every_loss
def test_gradcheck(name):
    loss, target = LOSSES[name]().double(), torch.tensor([0, 3, 1])
    soft = random_posteriors(3)
    logits = random_logits(3, CLASSES, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)
    assert torch.autograd.gradcheck(lambda z: loss(z, soft), logits)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_extreme_logits_are_finite(name, dtype):
    loss = LOSSES[name](reduction="sum")
    logits = torch.tensor([*combinations([1e4, -1e4, 0.0, 9999.0, -1e4, 1e4, 17.0], CLASSES)], dtype=dtype)
    for label in range(CLASSES):
        z = logits.clone().requires_grad_()
        value = loss(z, torch.full((len(z),), label))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert z.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_in_single_precision(name, dtype):
    loss, target = LOSSES[name](), torch.tensor([0, 3, 1])
    weight = random_logits(5, CLASSES, seed=1).float()
    inputs = random_logits(3, 5).float()
    with torch.autocast("cpu", dtype):
        logits = inputs @ weight
        assert logits.dtype == dtype
        value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.double(), target).float(), rtol=1e-5, atol=1e-5)


@every_loss
def test_compiles_in_one_graph(name):
    """Traced and differentiated as a whole; generating code for it is the compiler's own business."""
    loss, target = LOSSES[name](weight=[1.0, 2.0, 1.0, 0.5]).double(), torch.tensor([0, 3, 1])
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for call in (loss, compiled):
        logits = random_logits(3, CLASSES).requires_grad_()
        value = call(logits, target)
        value.backward()
        results.append((value.detach(), logits.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@every_loss
def test_per_sample_gradients(name):
    loss, target = LOSSES[name]().double(), torch.tensor([0, 3, 1])
    logits = random_logits(3, CLASSES)
    slopes = torch.func.vmap(torch.func.grad(loss))(logits, target)
    z = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(loss(row, label) for row, label in zip(z, target, strict=True)), z)
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-12)


CONFIGS = {
    "SquareLoss": {"weight": [1.0, 2.0], "ignore_index": -1, "reduction": "sum"},
    "UnhingedLoss": {},
    "SigmoidLoss": {},
    "RampLoss": {},
    "SavageLoss": {},
    "MeanAbsoluteError": {},
    "SoftBootstrap": {"beta": 0.9, "weight": [1.0, 2.0], "reduction": "sum"},
    "HardBootstrap": {"beta": 0.7},
    "GeneralizedCrossEntropy": {"q": 0.5},
    "TruncatedGeneralizedCrossEntropy": {"q": 0.5, "k": 0.3},
    "ReverseCrossEntropy": {"log_zero": -6.0},
    "SymmetricCrossEntropy": {"alpha": 6.0, "beta": 0.1},
    "NormalizedCrossEntropy": {},
    "ActivePassiveLoss": {
        "active": {"class_path": "NormalizedCrossEntropy"},
        "passive": {"class_path": "ReverseCrossEntropy", "init_args": {"log_zero": -2.0}},
        "beta": 0.1,
    },
    "FocalLoss": {"gamma": 1.0},
    "LabelSmoothing": {"rate": -1.0},
    "BiTemperedLoss": {"t1": 0.5, "t2": 4.0},
    "EarlyLearningRegularization": {"num_samples": 10, "num_classes": 3, "strength": 7.0, "momentum": 0.9},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_from_configuration(name):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nl.Loss)
    config = parser.parse_object({"loss": {"class_path": name, "init_args": CONFIGS[name]}})
    loss = parser.instantiate_classes(config).loss
    assert type(loss) is getattr(nl, name)
    for key, value in CONFIGS[name].items():
        if key in {"active", "passive"}:
            assert type(getattr(loss, key)).__name__ == value["class_path"]
        elif key == "weight":
            assert loss.weight.tolist() == value
        elif not key.startswith("num_"):
            assert getattr(loss, key) == value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nl.SoftBootstrap(1.5), r"^beta must lie in \[0, 1\], got 1.5: it is the share of the given label"),
        (lambda: nl.HardBootstrap(-0.5), r"^beta must lie in \[0, 1\], got -0.5"),
        (lambda: nl.GeneralizedCrossEntropy(0.0), r"^q must lie in \(0, 1\], got 0.0"),
        (lambda: nl.GeneralizedCrossEntropy(1.2), r"^q must lie in \(0, 1\], got 1.2"),
        (lambda: nl.TruncatedGeneralizedCrossEntropy(2.0), r"^q must lie in \(0, 1\], got 2.0"),
        (lambda: nl.TruncatedGeneralizedCrossEntropy(0.7, 0.0), r"^k must lie in \(0, 1\), got 0.0"),
        (lambda: nl.ReverseCrossEntropy(4.0), r"^log_zero must lie in \(-inf, 0\), got 4.0"),
        (lambda: nl.SymmetricCrossEntropy(-1.0), r"^alpha must lie in \[0, inf\), got -1.0"),
        (lambda: nl.SymmetricCrossEntropy(0.1, math.nan), r"^beta must lie in \[0, inf\), got nan"),
        (lambda: nl.SymmetricCrossEntropy(0.1, 1.0, 0.0), r"^log_zero must lie in \(-inf, 0\), got 0.0"),
        (lambda: nl.SymmetricCrossEntropy(0.0, 0.0), "^alpha and beta are both 0, which leaves no loss"),
        (lambda: nl.FocalLoss(-2.0), r"^gamma must lie in \[0, inf\), got -2.0"),
        (lambda: nl.LabelSmoothing(1.5), r"^rate must lie in \(-inf, 1\], got 1.5"),
        (lambda: nl.BiTemperedLoss(-0.1), r"^t1 must lie in \[0, 1\], got -0.1"),
        (lambda: nl.BiTemperedLoss(0.5, 0.5), r"^t2 must lie in \[1, inf\), got 0.5"),
        (lambda: nl.ActivePassiveLoss(nl.NormalizedCrossEntropy(), nl.MeanAbsoluteError(), 0.0), "^alpha must lie in"),
        (
            lambda: nl.ActivePassiveLoss(nl.NormalizedCrossEntropy(), nl.MeanAbsoluteError(weight=[1.0, 2.0])),
            "^the passive loss has class weights",
        ),
        (
            lambda: nl.ActivePassiveLoss(nl.EarlyLearningRegularization(5, 2), nl.MeanAbsoluteError()),
            "^the active loss, EarlyLearningRegularization, keeps a state",
        ),
    ],
)
def test_bad_hyper_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
