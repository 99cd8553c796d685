"""The verdict at the end of a fit: what it rests on, what it leaves alone, and where it goes."""

import json

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from toy import CLASSES, FEATURES, TRUE, Indexed, anchored, classifier, trainer

from noisylightning import ForwardCorrection, NoCorrection, judging
from noisylightning.functional.class_conditional import class_conditional_test
from noisylightning.functional.verdict import judge
from noisylightning.judging import judge_fit
from noisylightning.phases import refinement
from noisylightning.results import evaluate_fit, publish_results
from noisylightning.run_folder import run_folder

pytestmark = pytest.mark.filterwarnings("ignore:T-hat contradicts the evidence")  # after so few epochs it may


class Validated(Indexed):
    """Toy data with enough noisy validation samples for a test."""

    def val_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(5)
        clean = torch.arange(900) % CLASSES
        inputs = 4 * torch.nn.functional.one_hot(clean, FEATURES) + torch.randn(900, FEATURES, generator=generator)
        labels = torch.multinomial(TRUE[clean], 1, generator=generator).flatten()
        return DataLoader(TensorDataset(inputs, labels), batch_size=64)


def fitted(folder, callbacks=(), correction=None, **settings):
    selected = ModelCheckpoint(monitor="val_loss")
    run = trainer(folder, [*callbacks, selected], enable_checkpointing=True, **settings)
    model, data = classifier(correction=correction or ForwardCorrection(num_classes=CLASSES)), Validated()
    run.fit(model, data)
    return run, model, data


def test_it_tests_the_chosen_weights_on_validation_data_and_leaves_no_trace(tmp_path):
    run, model, data = fitted(tmp_path, correction=ForwardCorrection(TRUE), max_epochs=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    verdict = judge_fit(run, model, data, evaluate_fit(run, model, data))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)

    model.load_state_dict(torch.load(run.checkpoint_callback.best_model_path, weights_only=True)["state_dict"])
    inputs, labels = data.val_dataloader().dataset.tensors
    model.eval()
    with torch.no_grad():
        expected = class_conditional_test(model(inputs), labels, model.backbone[:-1](inputs), TRUE)
    assert verdict.p_value == pytest.approx(expected.p_value)
    assert verdict == judge(model.correction.transition, p_value=verdict.p_value, shares=labels.bincount())
    assert verdict.gain is None


@pytest.mark.filterwarnings("ignore:No T-hat foretells held-out labels")
def test_refinement_says_how_much_t_gains(tmp_path, monkeypatch):
    """Too little to be sure, so that T is the identity."""
    monkeypatch.setattr(refinement, "in_log_likelihood", lambda *_: (0.01, 0.01, "no T"))
    callback = anchored(1, rounds=1, round_epochs=1)
    assert callback.gain is None
    run, model, data = fitted(tmp_path, [callback], max_epochs=2)
    gain, error = callback.gain
    assert gain <= 2 * error
    verdict = judge_fit(run, model, data, evaluate_fit(run, model, data))
    assert (verdict.gain, verdict.gain_error, verdict.decision) == (gain, error, "do not correct")
    assert verdict.reasons[0] == "T-hat is the identity"


def test_without_a_t_there_is_no_verdict(tmp_path):
    run, model, data = fitted(tmp_path, correction=NoCorrection(num_classes=CLASSES), max_epochs=1)
    assert judge_fit(run, model, data, evaluate_fit(run, model, data)) is None


def test_too_few_samples_are_said_to_be_untested(tmp_path, monkeypatch):
    run, model, data = fitted(tmp_path, correction=ForwardCorrection(TRUE), max_epochs=1)
    monkeypatch.setattr(Validated, "val_dataloader", Indexed.val_dataloader)
    verdict = judge_fit(run, model, data, evaluate_fit(run, model, data))
    assert verdict.p_value is None
    assert "was not tested" in verdict.sentence


SINGULAR = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("transition", "corrects"), [(TRUE, True), (SINGULAR, True), (torch.eye(CLASSES), False)], ids=["", "singular", "I"]
)
def test_it_is_printed_and_left_with_what_it_recommends(tmp_path, capsys, transition, corrects):
    run, model, data = fitted(tmp_path, [anchored(1)], max_epochs=2)
    results = evaluate_fit(run, model, data)
    verdict = judge(transition, named=True)
    publish_results(run, results, verdict)
    said = capsys.readouterr().out.splitlines()
    assert said[-2] == verdict.sentence
    assert "summary.json, verdict.json" in said[-1]
    left = json.loads((run_folder(run) / "verdict.json").read_text())
    assert (left["decision"], left["sentence"]) == (verdict.decision, verdict.sentence)
    chosen = results[-1] if corrects else results[0]
    assert left["recommended"] == {"phase": chosen.phase, "selected_by": chosen.selected_by}
    assert chosen.phase == ("correction" if corrects else "noisy labels")


def test_many_classes_are_not_tested(tmp_path, monkeypatch):
    run, model, data = fitted(tmp_path, correction=ForwardCorrection(TRUE), max_epochs=1)
    monkeypatch.setattr(judging, "_MOST_CLASSES", 2)
    assert judge_fit(run, model, data, evaluate_fit(run, model, data)).p_value is None
