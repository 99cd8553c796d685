"""Time an MNIST epoch of NoisyLabelClassifier in a Trainer against a hand-written PyTorch loop.

    python benchmarks/epoch.py --data-dir FOLDER_WITH_MNIST

Both train 784-128-128-10 by Adagrad on the same batches of the same loader, epoch by epoch in turn within one process;
the ratio is that of the medians. Writes ``benchmarks/results/epoch.json``.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from torch import nn

from noisylightning import ForwardCorrection, NoisyLabelClassifier
from noisylightning.data import MNISTDataModule, SymmetricNoise
from noisylightning.models import MLP


def network() -> nn.Module:
    """The paper's MNIST network."""
    return MLP(in_features=784, num_classes=10, hidden=(128, 128), dropout=0.2)


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    """The paper's optimizer."""
    return torch.optim.Adagrad(parameters, lr=0.01)


class SideBySide(Callback):
    """Runs one hand-written epoch before each of the trainer's, and times both."""

    def __init__(self, data: MNISTDataModule) -> None:
        self.data = data
        self.net = network()
        self.optimizer = optimizer(self.net.parameters())
        self.by_hand: list[float] = []
        self.by_trainer: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run and time the hand-written epoch, then start the clock of the trainer's."""
        begin = time.perf_counter()
        self.net.train()
        for inputs, labels in self.data.train_dataloader():
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(inputs), labels).backward()
            self.optimizer.step()
        self.by_hand.append(time.perf_counter() - begin)
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.by_trainer.append(time.perf_counter() - self._begin)


def main() -> None:
    """Run the comparison and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=None, help="folder with MNIST/raw (default: $NOISYLIGHTNING_DATA)")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "epoch.json")
    arguments = parser.parse_args()

    seed_everything(0)
    data = MNISTDataModule(arguments.data_dir, noise=SymmetricNoise(0.5))
    data.setup("fit")
    timer = SideBySide(data)
    trainer = Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[timer],
    )
    model = NoisyLabelClassifier(network(), ForwardCorrection(data.transition), optimizer=optimizer)
    trainer.fit(model, train_dataloaders=data.train_dataloader())
    by_hand, by_trainer = timer.by_hand[1:], timer.by_trainer[1:]  # the first warms up
    ratio = statistics.median(by_trainer) / statistics.median(by_hand)
    write_json(
        arguments.output,
        {
            "environment": environment(),
            "seconds_by_hand": by_hand,
            "seconds_by_trainer": by_trainer,
            "ratio_of_medians": ratio,
        },
    )
    print(
        f"hand-written {statistics.median(by_hand):.2f} s, trainer {statistics.median(by_trainer):.2f} s: {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
