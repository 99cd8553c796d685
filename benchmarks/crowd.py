"""LabelMe's 59 annotators: majority vote, soft labels, and forward correction with the crowd's confusion.

    python benchmarks/crowd.py --data-dir FOLDER_WITH_LABELME

512 VGG features, a hidden layer of 128 units with dropout 0.5, Adam, batches of 64, a fifth of the 1,000 items for
validation. T and the soft labels are those of Dawid and Skene, from the answers alone. Each method gets the learning
rate, and each run the epoch, with the least loss on its own noisy validation labels; rates are compared by their mean
over the first three seeds. Of the clean test set only the chosen rate's accuracy is reported, once of the last and once
of the selected weights. "right labels" trains on what no annotator gave: what could be reached. Writes
``benchmarks/results/crowd.json`` and ``crowd.md``.
"""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from noisylightning import ForwardCorrection, KnownTransitionCallback, NoCorrection, NoisyLabelClassifier
from noisylightning.data import LabelMeDataModule
from noisylightning.data.crowd import LabelBy
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit
from noisylightning.transition import GroupedTransition

METHODS: dict[str, LabelBy] = {
    "majority vote": "majority",
    "soft labels": "soft",
    "each answer": "each",
    "each answer, forward, T of the crowd": "each",
    "each answer, forward, T of its annotator": "each",
    "right labels": "majority",
}
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01)


class RightLabels(LabelMeDataModule):
    """LabelMe with the labels that no annotator gave."""

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The items, and their right labels."""
        return super().load_train()[0], self.true_labels()


def run(method: str, seed: int, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and return what came out."""
    seed_everything(seed, verbose=False)
    kind = RightLabels if method == "right labels" else LabelMeDataModule
    options = {"val_fraction": 0.2, "batch_size": 64, "seed": seed, "noise_seed": seed, "with_index": True}
    data = kind(arguments.data_dir, METHODS[method], **options)
    data.setup()
    callbacks: list[Callback] = []
    correction: NoCorrection | ForwardCorrection = NoCorrection()
    if method.endswith("T of the crowd"):
        callbacks.append(KnownTransitionCallback())
        correction = ForwardCorrection(num_classes=data.num_classes)
    elif method.endswith("T of its annotator"):
        correction = ForwardCorrection(GroupedTransition(data.crowd.annotator_transitions.float(), data.annotators))
    model = NoisyLabelClassifier(
        MLP(in_features=data.num_features, num_classes=data.num_classes, hidden=(128,), dropout=0.5),
        correction,
        num_classes=data.num_classes,
        optimizer=functools.partial(torch.optim.Adam, lr=rate),
    )
    with tempfile.TemporaryDirectory() as folder:
        selected = ModelCheckpoint(folder, monitor="val_loss", mode="min")
        trainer = Trainer(
            max_epochs=arguments.epochs,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            callbacks=[*callbacks, selected],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        *_, last, best = evaluate_fit(trainer, model, data)
    result = {
        "method": method,
        "seed": seed,
        "learning_rate": rate,
        "noisy_validation": float(selected.best_model_score or 0),
    }
    print(result, flush=True)
    return result | {"last": last.test_accuracy, "selected": best.test_accuracy}


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder of labelme_crowd.npz (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "crowd.json")
    arguments = parser.parse_args()

    runs, tuning, rows = [], [], []
    for method in METHODS:
        first = range(min(3, arguments.seeds))
        tried = [[run(method, seed, rate, arguments) for seed in first] for rate in RATES]
        best = min(tried, key=lambda found: sum(result["noisy_validation"] for result in found))
        best += [run(method, seed, best[0]["learning_rate"], arguments) for seed in range(3, arguments.seeds)]
        runs += best
        hidden = ("last", "selected")  # the test set is no judge of rates
        tuning += [
            {key: value for key, value in result.items() if key not in hidden} for each in tried for result in each
        ]
        cells = [mean_and_deviation([100 * result[key] for result in best], 2) for key in hidden]
        rows.append([method, str(best[0]["learning_rate"]), *cells])
    write_json(
        arguments.output, {"environment": environment(), "epochs": arguments.epochs, "tuning": tuning, "runs": runs}
    )
    header = ["training labels", "learning rate", "clean test %, last epoch", "selected epoch"]
    write_table(arguments.output.with_suffix(".md"), header, rows)


if __name__ == "__main__":
    main()
