"""What Mixup does for cross-entropy and for forward correction with the true T, on noisy MNIST.

    python benchmarks/mixing.py --data-dir FOLDER_WITH_MNIST

15,000 images, a fifth of them for validation; a linear head on pixels, and 784-128-10 without dropout, which begins to
learn labels by heart; AdamW, batches of 256, 20 epochs. The learning rate is chosen for each line by the same search,
on the noisy validation accuracy of the first seed. Weights are selected by noisy validation accuracy; the clean test
set is used once for the last and once for the selected ones. Writes ``benchmarks/results/mixing.json`` after each fit,
from which it goes on if it is started again, and ``mixing.md``.
"""

import argparse
import functools
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_deviation, write_json, write_table
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from noisylightning import ForwardCorrection, KnownTransitionCallback, Mixup, NoCorrection, NoisyLabelClassifier
from noisylightning.data import ArrayDataModule, LabelNoise, MNISTDataModule, PairFlipNoise, SymmetricNoise
from noisylightning.models import MLP
from noisylightning.results import evaluate_fit
from noisylightning.search import tune

NOISES: dict[str, LabelNoise] = {"symmetric 0.5": SymmetricNoise(0.5), "pair-flip 0.45": PairFlipNoise(0.45)}
NETWORKS = {"linear": (), "MLP": (128,)}
LOSSES = ("cross-entropy", "forward, true T")
OPTIONS = {"lr": [1e-3, 5e-3], "weight_decay": [0.01]}


@functools.cache
def mnist(folder: str | None) -> MNISTDataModule:
    """Read the images once."""
    return MNISTDataModule(folder)


def data_of(noise: str, seed: int, arguments: argparse.Namespace) -> ArrayDataModule:
    """Make the data module of a seed."""
    whole = mnist(arguments.data_dir)
    images, labels = whole.load_train()
    return ArrayDataModule(
        images[: arguments.images],
        labels[: arguments.images],
        test=whole.load_test(),
        transform=whole.transform,
        noise=NOISES[noise],
        noise_seed=seed,
        seed=seed,
        batch_size=256,
        val_fraction=0.2,
    )


def model_of(network: str, loss: str, **options: Any) -> NoisyLabelClassifier:
    """Make a model of a setting."""
    return NoisyLabelClassifier(
        MLP(784, 10, hidden=NETWORKS[network], dropout=0.0),
        NoCorrection() if loss == "cross-entropy" else ForwardCorrection(),
        num_classes=10,
        optimizer=functools.partial(torch.optim.AdamW, **options),
    )


def callbacks_of(loss: str, alpha: float, seed: int) -> list[Callback]:
    """Make the callbacks of a line."""
    known = [] if loss == "cross-entropy" else [KnownTransitionCallback()]
    return [*known, *([Mixup(alpha, seed=seed)] if alpha else [])]


def run(
    noise: str, network: str, loss: str, alpha: float, seed: int, options: dict[str, float], epochs: int, data: Any
) -> dict[str, Any]:
    """Train once and return what came out."""
    seed_everything(seed, verbose=False)
    model = model_of(network, loss, **options)
    with tempfile.TemporaryDirectory() as folder:
        selected = ModelCheckpoint(folder, monitor="val_accuracy", mode="max")
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="auto",
            devices=1,
            logger=False,
            default_root_dir=folder,
            callbacks=[*callbacks_of(loss, alpha, seed), selected],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        *_, last, best = evaluate_fit(trainer, model, data)
    case = {"noise": noise, "network": network, "loss": loss, "alpha": alpha, "seed": seed, "options": options}
    return case | {"last": last.test_accuracy, "selected": best.test_accuracy, "selected_epoch": best.epoch}


def main() -> None:
    """Run all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with MNIST/raw (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--images", type=int, default=15_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 1.0], help="of Mixup; 0 is without it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "mixing.json")
    arguments = parser.parse_args()

    settings = {"images": arguments.images, "epochs": arguments.epochs, "options": OPTIONS}
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        found = json.loads(arguments.output.read_text())
        if found["settings"] == settings:
            runs = found["runs"]
    lines = list(product(NOISES, NETWORKS, LOSSES, arguments.alphas))
    for seed, (noise, network, loss, alpha) in product(range(arguments.seeds), lines):
        line = {"noise": noise, "network": network, "loss": loss, "alpha": alpha}
        done = [result for result in runs if line.items() <= result.items()]
        if len(done) > seed:
            continue
        if done:
            options = done[0]["options"]
        else:
            options = tune(
                functools.partial(model_of, network, loss),
                data_of(noise, 0, arguments),
                OPTIONS,
                arguments.epochs,
                functools.partial(callbacks_of, loss, alpha, 0),
                monitor="val_accuracy",
                devices=1,
            ).best.options
        data = data_of(noise, seed, arguments)
        runs.append(run(**line, seed=seed, options=options, epochs=arguments.epochs, data=data))
        print(runs[-1], flush=True)
        write_json(arguments.output, {"environment": environment(), "settings": settings, "runs": runs})

    rows = []
    for noise, network, loss, alpha in lines:
        line = {"noise": noise, "network": network, "loss": loss, "alpha": alpha}
        found = [result for result in runs if line.items() <= result.items()]
        cells = [mean_and_deviation([100 * result[name] for result in found], 2) for name in ("last", "selected")]
        chosen = f"{found[0]['options']['lr']:g}"
        rows.append([noise, network, loss, f"alpha {alpha:g}" if alpha else "-", *cells, chosen])
    header = ["noise", "network", "loss", "Mixup", "clean test %, last epoch", "selected epoch"]
    write_table(arguments.output.with_suffix(".md"), [*header, "learning rate"], rows)


if __name__ == "__main__":
    main()
