"""Correction modules: their theorems found by optimisation, their state, and what they refuse."""

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import nn

import noisylightning.losses
from noisylightning.corrections import (
    BackwardCorrection,
    Correction,
    ForwardCorrection,
    ImportanceReweighting,
    NoCorrection,
)
from noisylightning.losses import CrossEntropy, FocalLoss, LabelSmoothing, Loss, MeanAbsoluteError, SquareLoss
from noisylightning.transition import (
    DenseTransition,
    SparseTransition,
    SymmetricTransition,
    Transition,
    pairflip,
    symmetric,
)

ALL = [NoCorrection, ForwardCorrection, BackwardCorrection, ImportanceReweighting]
WITH_T = ALL[1:]
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
with_transition = pytest.mark.parametrize("kind", WITH_T, ids=lambda kind: kind.__name__)


def random_problem(samples=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (samples,), generator=generator)
    noise = torch.rand(classes, classes, generator=generator, dtype=torch.float64)
    transition = noise / noise.sum(1, keepdim=True) * 0.4 + 0.6 * torch.eye(classes, dtype=torch.float64)
    return logits, target, transition


def made(kind, transition, **kwargs):
    """A correction with T; the baseline has none."""
    return kind(transition, **kwargs) if kind.uses_transition else kind(**kwargs)


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


# --- formulae -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), classes=st.integers(2, 6))
def test_each_formula_agrees_with_numpy(seed, classes):
    logits, target, transition = random_problem(5, classes, seed)
    p, t, y = softmax(logits.numpy()), transition.numpy(), target.numpy()
    rows = np.arange(5)
    nll = -np.log(p)
    expected = {
        NoCorrection: nll[rows, y],
        ForwardCorrection: -np.log((p @ t)[rows, y]),
        BackwardCorrection: (np.linalg.inv(t)[y] * nll).sum(1),
        ImportanceReweighting: p[rows, y] / (p @ t)[rows, y] * nll[rows, y],
    }
    for kind, values in expected.items():
        got = made(kind, transition, loss=CrossEntropy(reduction="none"))(logits, target)
        np.testing.assert_allclose(got.numpy(), values, rtol=1e-12, atol=1e-12)


def test_square_loss_forward_agrees_with_numpy():
    logits, target, transition = random_problem()
    q = softmax(logits.numpy()) @ transition.numpy()
    expected = ((q - np.eye(4)[target.numpy()]) ** 2).sum(1)
    got = ForwardCorrection(transition, loss=SquareLoss(reduction="none"))(logits, target)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_soft_targets_are_expectations_over_hard_ones():
    logits, _, transition = random_problem()
    soft = random_problem(seed=1)[0].softmax(1)
    for kind in ALL:
        correction = made(kind, transition, loss=CrossEntropy(reduction="none"))
        each = torch.stack([correction(logits, torch.full((6,), label)) for label in range(4)], 1)
        torch.testing.assert_close(correction(logits, soft), (soft * each).sum(1))


def test_class_weights_are_forwards_noisy_and_backwards_clean():
    logits, target, transition = random_problem()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    none = {"reduction": "none"}
    forward = ForwardCorrection(transition, loss=CrossEntropy(weight=weight, **none))(logits, target)
    plain = ForwardCorrection(transition, loss=CrossEntropy(**none))(logits, target)
    torch.testing.assert_close(forward, weight[target] * plain)
    backward = BackwardCorrection(transition, loss=CrossEntropy(weight=weight, **none))
    each = torch.stack([backward(logits, torch.full((6,), label)) for label in range(4)], 1)
    torch.testing.assert_close(each @ transition.t(), -weight * logits.log_softmax(1))


def test_the_importance_weight_is_differentiated_when_asked():
    logits, target, transition = random_problem()
    fixed, free = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ImportanceReweighting(transition)(fixed, target).backward()
    ImportanceReweighting(transition, detach_weight=False)(free, target).backward()

    def loss(z, detach):
        p = z.softmax(1)
        rows = torch.arange(6)
        beta = p[rows, target] / (p @ transition)[rows, target]
        return ((beta.detach() if detach else beta) * -p[rows, target].log()).mean()

    for leaf, detach in ((fixed, True), (free, False)):
        z = logits.clone().requires_grad_()
        loss(z, detach).backward()
        torch.testing.assert_close(leaf.grad, z.grad)
    assert not torch.allclose(fixed.grad, free.grad)


@with_transition
def test_gradcheck(kind):
    logits, target, transition = random_problem(3, 3)
    soft = random_problem(3, 3, seed=1)[0].softmax(1)
    settings = {"detach_weight": False} if kind is ImportanceReweighting else {}
    correction = kind(transition, **settings)
    for labels in (target, soft):
        assert torch.autograd.gradcheck(lambda z, labels=labels: correction(z, labels), logits.requires_grad_())
        assert torch.autograd.gradgradcheck(lambda z, labels=labels: correction(z, labels), logits.requires_grad_())


# --- theorems -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_proper_warns_once_and_names_the_theorem():
    with pytest.warns(UserWarning, match=r"MeanAbsoluteError is not proper composite.*Theorem 2 of Patrini") as caught:
        correction = ForwardCorrection(num_classes=3, loss=MeanAbsoluteError())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correction(torch.zeros(2, 3), torch.tensor([0, 1]))
        ForwardCorrection(num_classes=3, loss=SquareLoss())
        BackwardCorrection(num_classes=3, loss=MeanAbsoluteError())


# --- state ----------------------------------------------------------------------------------------------------------


@every
def test_starts_as_the_base_loss_and_is_initialised_once(kind):
    logits, target, _ = random_problem()
    correction = kind().double()
    assert correction.num_classes is None
    if kind is not NoCorrection:
        with pytest.raises(RuntimeError, match="does not know its number of classes"):
            correction(logits, target)
        with pytest.raises(RuntimeError, match="does not know its number of classes"):
            correction.noisy_log_posterior(logits)
    correction.initialize(4)
    correction.initialize(4)
    assert correction.num_classes == 4
    torch.testing.assert_close(correction(logits, target), F.cross_entropy(logits, target))
    with pytest.raises(ValueError, match="is for 4 classes but 5 are asked for"):
        correction.initialize(5)
    if kind is not NoCorrection:
        assert torch.equal(correction.transition, torch.eye(4))


@with_transition
def test_set_transition_writes_in_place(kind):
    logits, target, transition = random_problem()
    correction = kind(num_classes=4).double()
    buffers = {name: buffer.data_ptr() for name, buffer in correction.named_buffers()}
    correction.set_transition(transition)
    assert buffers == {name: buffer.data_ptr() for name, buffer in correction.named_buffers()}
    torch.testing.assert_close(correction(logits, target), kind(transition)(logits, target))
    assert torch.equal(correction.transition, transition)


@with_transition
def test_set_transition_initialises(kind):
    correction = kind()
    correction.set_transition(symmetric(3, 0.2))
    assert correction.num_classes == 3


@every
def test_noisy_log_posterior_is_what_the_network_says_about_the_noisy_label(kind):
    logits, _, transition = random_problem()
    p = logits.softmax(1)
    expected = p if kind is NoCorrection else p @ transition
    torch.testing.assert_close(made(kind, transition).noisy_log_posterior(logits), expected.log())


@with_transition
def test_a_checkpoint_holds_plain_tensors_and_everything_derived_follows(kind):
    logits, target, transition = random_problem()
    trained = kind(transition)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == ["transition"]
    restored = kind(num_classes=4).double()
    restored.load_state_dict(state)
    assert torch.equal(restored(logits, target), trained(logits, target))
    model = nn.Sequential(nn.Linear(4, 4), kind(num_classes=4)).double()
    model.load_state_dict({**model.state_dict(), "1.transition": transition})
    assert torch.equal(model[1](logits, target), trained(logits, target))


@with_transition
def test_columns_stay_contiguous_through_copies_moves_and_loads(kind):
    """One column of T is read per sample: a row-major T would make that slow, silently."""
    correction = kind(symmetric(5, 0.2))
    correction.load_state_dict(kind(pairflip(5, 0.2)).state_dict())
    for module in (correction, copy.deepcopy(correction), correction.double(), correction.to("meta")):
        assert module.transition.t().is_contiguous()


@every
def test_pickles_for_spawned_processes(kind):
    logits, target, transition = random_problem()
    correction = made(kind, transition)
    again = pickle.loads(pickle.dumps(correction))
    assert torch.equal(again(logits, target), correction(logits, target))


@with_transition
def test_a_path_will_do(kind, tmp_path):
    _, _, transition = random_problem()
    np.save(tmp_path / "T.npy", transition.numpy())
    for path in (tmp_path / "T.npy", str(tmp_path / "T.npy")):
        correction = kind(path).double()
        torch.testing.assert_close(correction.transition, transition.float().double())


@with_transition
def test_from_yaml(kind, tmp_path):
    np.savetxt(tmp_path / "T.csv", symmetric(3, 0.2).numpy(), delimiter=",")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--correction", type=Correction)
    loss = {"class_path": "noisylightning.losses.CrossEntropy", "init_args": {"weight": [1.0, 2.0, 3.0]}}
    arguments = {"transition": str(tmp_path / "T.csv"), "loss": loss}
    path = f"noisylightning.corrections.{kind.__name__}"
    config = parser.parse_object({"correction": {"class_path": path, "init_args": arguments}})
    built = getattr(parser, "instantiate", parser.instantiate_classes)(config).correction
    assert type(built) is kind
    assert built.loss.weight.tolist() == [1, 2, 3]
    torch.testing.assert_close(built.transition, symmetric(3, 0.2))
    structured = {"class_path": "noisylightning.transition.SymmetricTransition"}
    structured["init_args"] = {"num_classes": 3, "rate": 0.2}
    config = parser.parse_object({"correction": {"class_path": path, "init_args": {"transition": structured}}})
    built = getattr(parser, "instantiate", parser.instantiate_classes)(config).correction
    assert isinstance(built.T, SymmetricTransition)


def test_the_baseline_carries_no_transition():
    correction = NoCorrection(num_classes=3)
    assert correction.T is correction.transition is None
    assert not correction.state_dict()
    correction.load_state_dict({"transition": torch.eye(3)})  # written when it still carried one
    correction.load_state_dict({"transition.rate": torch.tensor(0.2)})
    assert correction.T is None
    correction.require_transition()


@with_transition
def test_who_was_given_a_transition_knows(kind, tmp_path):
    """In each way that there is; and without, one sentence names the ways."""
    np.save(tmp_path / "T.npy", symmetric(3, 0.2).numpy())
    given = symmetric(3, 0.2), tmp_path / "T.npy", SymmetricTransition(3, 0.2), torch.eye(3)
    for correction in (kind(transition) for transition in given):
        correction.require_transition()
        copy.deepcopy(correction).require_transition()
    set_later, loaded, empty = kind(num_classes=3), kind(num_classes=3), kind()
    set_later.set_transition(symmetric(3, 0.2))
    loaded.load_state_dict(set_later.state_dict())
    nn.Sequential(empty).load_state_dict(nn.Sequential(set_later).state_dict())
    for correction in (set_later, loaded, empty):
        correction.require_transition()
        torch.testing.assert_close(correction.transition, symmetric(3, 0.2))
    for correction in (kind(), kind(num_classes=3)):
        with pytest.raises(RuntimeError, match=r"transition=.*EstimateTransitionCallback.*KnownTransitionCallback"):
            correction.require_transition()


@with_transition
def test_a_state_names_a_structured_transition_part_by_part(kind):
    logits, target, transition = random_problem()
    trained = kind(SparseTransition(transition.to_sparse()))
    state = trained.state_dict()
    assert sorted(state) == ["transition.columns.index", "transition.columns.start", "transition.columns.value"]
    model = nn.ModuleDict({"correction": kind(SparseTransition(torch.eye(4).double().to_sparse()))})
    model.load_state_dict({f"correction.{name}": value for name, value in state.items()})
    assert torch.equal(model["correction"](logits, target), trained(logits, target))
    for one, other in ((trained, kind(transition)), (kind(transition), trained)):
        before = one(logits, target)
        with pytest.raises(ValueError, match="build the model with the T that it was trained with"):
            one.load_state_dict(other.state_dict())
        assert torch.equal(one(logits, target), before)


# --- T that learns, T of the sample --------------------------------------------------------------------------------


@with_transition
def test_a_parameter_is_trained_and_what_derives_from_it_follows(kind):
    logits, target, transition = random_problem(samples=40)
    settings = {"detach_weight": False} if kind is ImportanceReweighting else {}
    parameter = nn.Parameter(transition.clone())
    correction = kind(parameter, **settings)
    assert [id(one) for one in correction.parameters()] == [id(parameter)]
    assert list(correction.state_dict()) == ["transition"]
    optimizer = torch.optim.SGD(correction.parameters(), lr=1e-6)  # no row may leave its sum
    for _ in range(3):
        fixed = kind(parameter.detach().clone(), **settings)
        value = correction(logits, target)
        torch.testing.assert_close(value, fixed(logits, target))
        optimizer.zero_grad()
        value.backward()

        def loss(matrix):
            return torch.func.functional_call(correction, {"T.matrix": matrix}, (logits, target))

        assert torch.autograd.gradcheck(loss, parameter.detach().clone().requires_grad_())
        assert parameter.grad.abs().sum() > 0
        optimizer.step()
    torch.testing.assert_close(correction(logits, target), kind(parameter.detach(), **settings)(logits, target))


def test_a_weight_that_is_constant_for_the_network_moves_a_transition_that_learns():
    logits, target, transition = random_problem(samples=40)
    grads = {}
    for detach in (True, False):
        parameter, scores = nn.Parameter(transition.clone()), logits.clone().requires_grad_()
        ImportanceReweighting(parameter, detach_weight=detach)(scores, target).backward()
        grads[detach] = parameter.grad, scores.grad
    assert torch.equal(grads[True][0], grads[False][0])
    scores = logits.clone().requires_grad_()
    ImportanceReweighting(transition)(scores, target).backward()
    torch.testing.assert_close(grads[True][1], scores.grad)
    assert not torch.allclose(grads[True][1], grads[False][1])


def test_a_tensor_that_wants_a_gradient_but_would_not_get_one_is_refused():
    with pytest.raises(ValueError, match=r"pass nn.Parameter\(T\) to train it, T.detach\(\) to keep it fixed"):
        ForwardCorrection(torch.eye(3).requires_grad_())


class OfTheSample(Transition):
    """Symmetric noise whose rate is one number for a batch, the mean of the samples' only feature."""

    needs_features = True

    def at(self, features, index):
        return DenseTransition.view(symmetric(self.num_classes, float(features.mean()), dtype=torch.float64))

    def penalty(self, logits):
        raise AssertionError("it is asked of the T of the samples")


def test_a_transition_may_depend_on_the_sample():
    logits, target, _ = random_problem()
    features = torch.linspace(0.1, 0.3, 6).unsqueeze(1)
    correction = ForwardCorrection(OfTheSample(4))
    expected = ForwardCorrection(symmetric(4, float(features.mean()), dtype=torch.float64))
    assert torch.equal(correction(logits, target, features=features), expected(logits, target))
    posterior = correction.noisy_log_posterior(logits, features=features)
    torch.testing.assert_close(posterior, expected.noisy_log_posterior(logits))
    single = ForwardCorrection(symmetric(4, float(features[0]), dtype=torch.float64))(logits[0], target[0])
    assert torch.equal(correction(logits[0], target[0], features=features[0]), single)
    with pytest.raises(RuntimeError, match="OfTheSample depends on the sample"):
        correction(logits, target)


def test_the_penalty_of_a_transition_is_part_of_the_training_loss():
    class Penalised(DenseTransition):
        def penalty(self, logits):
            return self.matrix.logdet()

    logits, target, transition = random_problem()
    correction, plain = ForwardCorrection(Penalised(transition)), ForwardCorrection(transition)
    torch.testing.assert_close(correction(logits, target), plain(logits, target) + transition.logdet())
    assert torch.equal(correction.eval()(logits, target), plain(logits, target))


# --- settings -------------------------------------------------------------------------------------------------------


@with_transition
def test_settings_of_the_base_loss_are_kept(kind):
    logits, target, transition = random_problem()
    target[2] = -1
    values = kind(transition, loss=CrossEntropy(reduction="none", ignore_index=-1))(logits, target)
    assert values[2] == 0
    kept = target != -1
    mean = kind(transition, loss=CrossEntropy(ignore_index=-1))(logits, target)
    torch.testing.assert_close(mean, values[kept].mean())
    total = kind(transition, loss=CrossEntropy(reduction="sum", ignore_index=-1))(logits, target)
    torch.testing.assert_close(total, values.sum())


@with_transition
def test_one_sample_and_dense_prediction(kind):
    logits, target, transition = random_problem(12)
    correction = kind(transition, loss=CrossEntropy(reduction="none"))
    flat = correction(logits, target)
    assert correction(logits[0], target[0]).shape == ()
    torch.testing.assert_close(correction(logits[0], target[0]), flat[0])
    image = logits.view(2, 2, 3, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(correction(image, target.view(2, 2, 3)), flat.view(2, 2, 3))


def test_the_floor_is_the_users_choice():
    transition = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    logits, target = torch.zeros(1, 2), torch.tensor([1])
    assert ForwardCorrection(transition)(logits, target) == torch.inf
    assert ForwardCorrection(transition, floor=0.01)(logits, target).item() == pytest.approx(-np.log(0.01))
    with pytest.raises(ValueError, match="floor"):
        ForwardCorrection(transition, floor=-0.1)


def test_a_complementary_transition_cannot_blow_up_the_importance_weight():
    transition = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = ImportanceReweighting(transition, detach_weight=False)(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@with_transition
@pytest.mark.parametrize("loss", [CrossEntropy, SquareLoss, LabelSmoothing, FocalLoss])
@pytest.mark.filterwarnings("ignore:.*not proper composite")
def test_compiles_without_a_graph_break(kind, loss):
    logits, target, transition = random_problem()
    logits, transition = logits.float(), transition.float()
    torch.compiler.reset()
    correction = kind(transition, loss=loss())
    compiled = torch.compile(correction, fullgraph=True, backend="aot_eager")
    one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    compiled(one, target).backward()
    correction(two, target).backward()
    torch.testing.assert_close(one.grad, two.grad)


@with_transition
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(kind, dtype):
    logits, target, transition = random_problem()
    half, correction = logits.to(dtype).requires_grad_(), kind(transition.float())
    with torch.autocast("cpu", dtype):
        loss = correction(half, target)
        posterior = correction.noisy_log_posterior(half)
    torch.testing.assert_close(loss, correction(half.detach().float(), target), rtol=1e-6, atol=1e-6)
    assert posterior.dtype == torch.float32
    loss.backward()
    assert half.grad.isfinite().all()


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ForwardCorrection(torch.ones(2, 2)), ValueError, "sums to 2"),
        (lambda: ForwardCorrection(torch.eye(3)[:2]), ValueError, "square"),
        (lambda: ForwardCorrection(torch.eye(3), num_classes=4), ValueError, "3 classes but 4"),
        (lambda: ForwardCorrection(np.eye(3)), TypeError, "ndarray"),
        (lambda: ForwardCorrection(num_classes=1), ValueError, "num_classes=1"),
        (lambda: ForwardCorrection("missing.npy"), FileNotFoundError, "missing.npy"),
        (lambda: ForwardCorrection(SymmetricTransition(3, 0.1), num_classes=4), ValueError, "for 3 classes but 4"),
        (lambda: ForwardCorrection(num_classes=3).set_transition(torch.eye(4)), ValueError, "4 classes but 3"),
        (lambda: ForwardCorrection(SymmetricTransition(3, 0.1)).set_transition(torch.eye(3)), TypeError, "SymmetricTr"),
        (lambda: NoCorrection(num_classes=3).set_transition(torch.eye(3)), TypeError, "uses no T"),
        (
            lambda: BackwardCorrection(torch.full((2, 2), 0.5)),
            ValueError,
            "condition number inf, past the bound",
        ),
        (lambda: BackwardCorrection(symmetric(2, 0.4), max_condition=4), ValueError, "condition number 5, past.*4"),
        (lambda: BackwardCorrection(SymmetricTransition(2, 0.4), max_condition=4), ValueError, "condition number 5"),
        (lambda: BackwardCorrection(num_classes=3, max_condition=0.5), ValueError, "max_condition.*0.5"),
        (
            lambda: ForwardCorrection(num_classes=3)(torch.zeros(1, 4), torch.tensor([0])),
            ValueError,
            "with 4 classes",
        ),
        (
            lambda: ForwardCorrection(num_classes=3).to("meta")(torch.zeros(1, 3), torch.tensor([0])),
            ValueError,
            "on meta",
        ),
        (lambda: ForwardCorrection(num_classes=3)(torch.zeros(1, 3), torch.tensor([3])), ValueError, "label 3"),
        (lambda: ForwardCorrection(num_classes=3)(torch.zeros(1, 3), torch.ones(1, 3)), ValueError, "sums to 3"),
        (lambda: ForwardCorrection(num_classes=3)(torch.zeros(1, 3), torch.tensor([0]).int()), TypeError, "int32"),
        (lambda: ForwardCorrection(num_classes=3)(torch.zeros(1, 3), torch.tensor(0)), ValueError, "need \\(1,\\)"),
        (lambda: Correction(symmetric(3, 0.1))(torch.zeros(1, 3), torch.tensor([0])), NotImplementedError, "corrected"),
    ],
)
def test_refuses_in_one_sentence(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert str(caught.value).endswith(".")


def test_a_refused_transition_leaves_the_old_one():
    logits, target, transition = random_problem()
    correction = BackwardCorrection(transition)
    before = correction(logits, target)
    with pytest.raises(ValueError, match="condition number"):
        correction.set_transition(symmetric(4, 0.75, dtype=torch.float64))
    assert torch.equal(correction.transition, transition)
    assert torch.equal(correction(logits, target), before)


def test_every_exported_loss_is_a_loss():
    for name in noisylightning.losses.__all__:
        assert issubclass(getattr(noisylightning.losses, name), Loss)
