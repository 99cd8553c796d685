"""Accuracies that count each sample once, on any number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_results import NOISE, Uneven, arrays
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler
from toy import ToyData, classifier, clean_accuracy_by_hand, trainer

from noisylightning import ForwardCorrection, NoisyLabelClassifier
from noisylightning.evaluation import _share, measure
from noisylightning.models import MLP

SCRIPT = Path(__file__).parent / "distributed_results.py"


def by_hand(model: NoisyLabelClassifier, data) -> dict[str, float]:
    """Measures over whole tensors, without loaders, samplers and metrics."""
    model.eval()
    with torch.no_grad():
        inputs, noisy = data.val.tensors
        noisy_logits = model(inputs)
        noisy_prediction = noisy_logits.softmax(dim=1) @ model.correction.transition
        inputs, clean = data.test.tensors
        logits = model(inputs).detach()
    correct = (logits.argmax(dim=1) == clean).float()
    return {
        "val_accuracy": float((noisy_prediction.argmax(dim=1) == noisy).float().mean()),
        "test_accuracy": float(correct.mean()),
        "test_balanced_accuracy": float(torch.stack([correct[clean == i].mean() for i in clean.unique()]).mean()),
        "test_loss": float(nn.functional.cross_entropy(logits, clean)),
        **clean_accuracy_by_hand(noisy_logits, noisy, model.correction.transition),
    }


def test_it_measures_what_a_count_by_hand_and_the_trainer_measure(tmp_path):
    model, data = classifier(correction=ForwardCorrection(ToyData.transition)), ToyData()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    model.eval()
    found = measure(run, model, data)
    expected = by_hand(model, data)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-6), name
    assert "val_clean_accuracy" in found
    measured = run.validate(model, data, verbose=False)[0] | run.test(model, data, verbose=False)[0]
    assert found == {name: measured[name] for name in found}


@pytest.mark.parametrize(("limit", "seen"), [(1.0, 48), (1, 16), (2, 32), (0.34, 16), (0, 0)])
def test_the_limits_of_the_trainer_hold(tmp_path, limit, seen):
    class Counting(NoisyLabelClassifier):
        def forward(self, inputs):
            nonlocal counted
            counted += len(inputs)
            return super().forward(inputs)

    counted = 0
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=limit, limit_test_batches=0)
    model, data = Counting(nn.Linear(5, 3), num_classes=3), ToyData()
    run.strategy.connect(model)
    measure(run, model, data)
    assert counted == seen


def test_without_a_loader_there_is_no_measure(tmp_path):
    class Untested(ToyData):
        has_test = False

    run = trainer(tmp_path, max_epochs=1)
    model = classifier()
    run.strategy.connect(model)
    assert measure(run, model, Untested()).keys() == {"val_accuracy"}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"batch_size": 4, "shuffle": True},
        {"batch_size": None},
        {"batch_size": 4, "sampler": SubsetRandomSampler(range(3, 20))},
        {"batch_sampler": [[0, 1], [2], [3, 4, 5]]},
        {"batch_size": 4, "sampler": "padding"},
    ],
)
def test_shares_are_exactly_what_a_loader_reads(monkeypatch, world, settings):
    """Whatever chooses the samples: each of them on one process."""
    data = list(range(23))
    if settings.get("sampler") == "padding":
        padding = torch.utils.data.DistributedSampler(data, num_replicas=world, rank=0)
        settings = {**settings, "sampler": padding}
    loader, seen = DataLoader(data, **settings), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        seen += [sample for batch in _share(loader) for sample in torch.as_tensor(batch).reshape(-1).tolist()]
    if isinstance(settings.get("sampler"), SubsetRandomSampler):
        assert sorted(seen) == list(range(3, 20))
    else:
        assert sorted(seen) == (list(range(6)) if "batch_sampler" in settings else data)


# Two processes


@pytest.fixture(scope="module")
def distributed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (folder / "stdout").write_text(done.stdout)
    return folder


def ranks(folder: Path) -> list[dict]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_count_each_sample_of_any_data_module_once(distributed):
    zero, one = ranks(distributed)
    assert zero == one
    assert zero["untouched"]
    first, last, best = zero["results"]
    model = classifier()
    model.load_state_dict(torch.load(distributed / "model.pt", weights_only=True))
    expected = by_hand(model, Uneven())
    for name in ("val_accuracy", "test_accuracy", "test_balanced_accuracy"):
        assert last[name] == pytest.approx(expected[name], abs=1e-6), name
    for bound in ("", "_low", "_high"):
        assert last[f"clean_accuracy{bound}"] == pytest.approx(expected[f"val_clean_accuracy{bound}"], abs=1e-5)
    assert [row["phase"] for row in (first, last, best)] == ["noisy labels", "correction", "correction"]


def test_two_processes_bring_the_validation_predictions_together_in_order(distributed):
    found = ranks(distributed)[0]["predicted"]
    model, (inputs, labels) = classifier().eval(), Uneven().val.tensors
    model.load_state_dict(torch.load(distributed / "model.pt", weights_only=True))
    with torch.no_grad():
        expected = {"logits": model(inputs), "features": model.backbone[:-1](inputs)}
    assert found["noisy_labels"] == labels.tolist()
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), value, msg=name)


def test_two_processes_log_exact_validation_and_test_metrics_of_our_data_modules(distributed):
    """Uneven numbers of batches, nothing padded; the loss too is that of all samples."""
    model, data = NoisyLabelClassifier(MLP(5, 3, hidden=(8,)), ForwardCorrection(NOISE)), arrays()
    model.load_state_dict(torch.load(distributed / "own.pt", weights_only=True))
    data.setup()
    whole = {"val": data.val_dataloader().dataset, "test": data.test_dataloader().dataset}
    model.eval()
    for kind, measured in (("val", "fitted"), ("test", "tested")):
        inputs, labels = whole[kind].__getitems__(list(range(17)))
        logits = model(inputs).detach()
        probs = logits.softmax(dim=1) @ NOISE if kind == "val" else logits.softmax(dim=1)
        expected = {
            f"{kind}_accuracy": float((probs.argmax(dim=1) == labels).float().mean()),
            f"{kind}_loss": float(nn.functional.nll_loss(probs.log(), labels)),
            **(clean_accuracy_by_hand(logits, labels, NOISE) if kind == "val" else {}),
        }
        for rank in ranks(distributed):
            for name, value in expected.items():
                assert rank[measured][name] == pytest.approx(value, abs=1e-5), name
    zero, one = ranks(distributed)
    assert zero["fitted"] == one["fitted"]


def test_two_processes_have_one_folder_and_one_table(distributed):
    zero, one = ranks(distributed)
    assert zero["folder"] == one["folder"]
    assert {path.name for path in Path(zero["folder"]).iterdir()} >= {
        "summary.json",
        "verdict.json",
        "stage_one.ckpt",
        "transition.csv",
    }
    assert (distributed / "stdout").read_text().count("correction, last") == 1
