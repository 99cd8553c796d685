"""An audit of the training data by a network with T in its loss."""

import pytest
import torch
from toy import CLASSES, ToyData, classifier, trainer

from noisylightning import ForwardCorrection, NoCorrection
from noisylightning.audit import audit_with_trainer
from noisylightning.audit.with_trainer import standard_error_of
from noisylightning.data import ArrayDataModule
from noisylightning.functional import audit_labels
from noisylightning.transition import GroupedTransition, PartDependentTransition, symmetric

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
T = symmetric(CLASSES, 0.3)


def data(**kwargs) -> ArrayDataModule:
    toy = ToyData()
    inputs, labels = toy.train.tensors
    return ArrayDataModule(inputs, labels, class_names=[f"c{i}" for i in range(CLASSES)], **kwargs)


def by_hand(model, module, transition=T):
    inputs, labels = module.load_train()
    with torch.no_grad():
        return audit_labels(model.eval()(inputs).softmax(1).double().log(), labels, transition)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_it_judges_training_and_validation_samples(batch_size, tmp_path):
    model, module = classifier(correction=ForwardCorrection(T)), data(batch_size=batch_size)
    found = audit_with_trainer(trainer(tmp_path), model, module)
    expected = by_hand(model, module)
    assert torch.equal(found.table.index, torch.arange(len(module.load_train()[1])))
    torch.testing.assert_close(found.table.wrong, expected.wrong, atol=1e-6, rtol=1e-4)
    assert found.table.class_names == tuple(f"c{i}" for i in range(CLASSES))
    assert found.errors.total == pytest.approx(float(expected.wrong.sum()), rel=1e-4)
    assert not found.held_out


def test_trusted_samples_take_no_part(tmp_path):
    module = data(trusted=[3, 5])
    found = audit_with_trainer(trainer(tmp_path), classifier(correction=ForwardCorrection(T)), module)
    assert not set(found.table.index.tolist()) & {3, 5}


def test_standard_errors_widen_the_interval(tmp_path):
    model = classifier(correction=ForwardCorrection(T))
    known = audit_with_trainer(trainer(tmp_path), model, data())
    unsure = audit_with_trainer(trainer(tmp_path), model, data(), standard_error=0.05 * torch.ones(CLASSES, CLASSES))
    assert unsure.errors.high - unsure.errors.low > known.errors.high - known.errors.low
    assert unsure.with_transition_error
    assert "sampling error of T-hat" in unsure.covers


def test_a_transition_of_the_sample_is_used(tmp_path):
    module = data()
    labels = module.load_train()[1]
    groups = torch.arange(len(labels)) % 2
    grouped = GroupedTransition(torch.stack([T, symmetric(CLASSES, 0.6)]), groups)
    model = classifier(correction=ForwardCorrection(grouped))
    found = audit_with_trainer(trainer(tmp_path), model, module).table.wrong
    torch.testing.assert_close(found[groups == 0], by_hand(model, module).wrong[groups == 0], atol=1e-6, rtol=1e-4)
    other = by_hand(model, module, symmetric(CLASSES, 0.6)).wrong
    torch.testing.assert_close(found[groups == 1], other[groups == 1], atol=1e-6, rtol=1e-4)
    correction = ForwardCorrection(PartDependentTransition(CLASSES))
    correction.set_transition(T)
    audit_with_trainer(trainer(tmp_path), classifier(correction=correction), module)  # which reads features


@pytest.mark.parametrize(
    ("correction", "message"),
    [
        (NoCorrection(num_classes=CLASSES), "was trained without T, and knows the labels by heart: audit a checkpoint"),
        (
            ForwardCorrection(num_classes=CLASSES),
            "is the identity, by which no label is wrong: if a fit has found",
        ),
    ],
)
def test_a_network_without_a_transition_is_refused(correction, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        audit_with_trainer(trainer(tmp_path), classifier(correction=correction), data())


def test_soft_labels_and_foreign_data_are_refused(tmp_path):
    class Soft(ArrayDataModule):
        def estimation_dataloader(self):
            return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 5), torch.zeros(4, 3)))

    model = classifier(correction=ForwardCorrection(T))
    inputs, labels = ToyData().train.tensors
    with pytest.raises(TypeError, match="one label a sample, integers"):
        audit_with_trainer(trainer(tmp_path), model, Soft(inputs, labels))
    with pytest.raises(ValueError, match=r"int has no estimation_dataloader\(\)"):
        audit_with_trainer(trainer(tmp_path), model, 3)


def test_standard_errors_are_found_in_a_checkpoint_of_the_same_transition(tmp_path):
    memory = {"transition": T, "standard_error": 0.01 * torch.ones(CLASSES, CLASSES)}
    torch.save({"callbacks": {"RunPhases": {"memory": memory}, "other": {}}}, tmp_path / "a.ckpt")
    assert torch.equal(standard_error_of(tmp_path / "a.ckpt", T), memory["standard_error"])
    assert standard_error_of(tmp_path / "a.ckpt", symmetric(CLASSES, 0.1)) is None
    torch.save({}, tmp_path / "b.ckpt")
    assert standard_error_of(tmp_path / "b.ckpt", T) is None
