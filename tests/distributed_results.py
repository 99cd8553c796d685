"""A fit on two CPU processes and its measures, run as a script by test_evaluation.py; each rank writes what it saw."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset
from toy import ToyData, anchored, classifier, trainer

from noisylightning import ForwardCorrection, NoisyLabelClassifier
from noisylightning.data import ArrayDataModule, SymmetricNoise
from noisylightning.evaluation import validation_predictions
from noisylightning.fit_weights import borrowed
from noisylightning.judging import judge_fit
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit, publish_results
from noisylightning.run_folder import run_folder
from noisylightning.transition import symmetric

NOISE = symmetric(3, 0.3)


class Uneven(ToyData):
    """Somebody's data module, whose loaders Lightning pads; one rank has a batch more than the other."""

    def __init__(self) -> None:
        super().__init__(batch_size=8)
        self.val = TensorDataset(*(part[:33] for part in self.val.tensors))
        self.test = TensorDataset(*(part[:17] for part in self.test.tensors))


def arrays() -> ArrayDataModule:
    """One of our data modules, whose loaders pad nothing: 17 samples to validate, 17 to test."""
    inputs, labels = ToyData(num_train=90).train.tensors
    noise = SymmetricNoise(0.3)  # whose T is NOISE
    return ArrayDataModule(
        (inputs, labels), test=(inputs[:17], labels[:17]), noise=noise, batch_size=8, val_fraction=17 / 90
    )


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    spread = {"devices": 2, "strategy": "ddp"}

    callback = anchored(1)
    checkpoint = ModelCheckpoint(monitor="val_accuracy", mode="max")
    run = trainer(folder, [callback, checkpoint], max_epochs=2, enable_checkpointing=True, **spread)
    model, data = classifier(), Uneven()
    run.fit(model, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = evaluate_fit(run, model, data)
    untouched = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    verdict = judge_fit(run, model, data, results)
    publish_results(run, results, verdict)
    with borrowed(run, model):
        predictions = validation_predictions(run, model, data)
    last = run_folder(run)

    torch.manual_seed(0)
    own = NoisyLabelClassifier(MLP(5, 3, hidden=(8,)), ForwardCorrection(NOISE))
    short = trainer(folder, max_epochs=1, **spread)
    short.fit(own, arrays())
    fitted = {name: float(value) for name, value in short.callback_metrics.items() if name.startswith("val")}
    tested = short.test(own, arrays(), verbose=False)[0]

    found = {
        "results": [asdict(result) for result in results],
        "untouched": untouched,
        "decision": verdict.decision,
        "predicted": {name: getattr(predictions, name).tolist() for name in ("logits", "noisy_labels", "features")},
        "folder": str(last),
        "fitted": fitted,
        "tested": tested,
    }
    (folder / f"rank{run.global_rank}.json").write_text(json.dumps(found))
    if run.global_rank == 0:
        torch.save(model.state_dict(), folder / "model.pt")
        torch.save(own.state_dict(), folder / "own.pt")


if __name__ == "__main__":
    main()
