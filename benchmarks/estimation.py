"""Time the estimation pass of EstimateTransitionCallback against a bare inference loop over the same data.

    python benchmarks/estimation.py

Random images of CIFAR-10's and MNIST's shapes through a ResNet and an MLP; the two run in turn within one fit, and the
ratio is that of the medians. Writes ``benchmarks/results/estimation.json`` and ``estimation.md``.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json, write_table
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from noisylightning import AnchorEstimator, ForwardCorrection, NoisyLabelClassifier
from noisylightning.data import ArrayDataModule
from noisylightning.estimators import within_fit
from noisylightning.models import MLP, CIFARResNet


class Compare(Callback):
    """Runs both, in turn, before training begins."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.bare: list[float] = []
        self.passes: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time a bare loop and the pass, again and again."""
        for _ in range(self.repeats + 1):
            loader = within_fit.estimation_loader(trainer, pl_module)
            self.bare.append(self._bare(pl_module, loader))
            begin = time.perf_counter()
            within_fit.estimate(trainer, pl_module, loader, AnchorEstimator(10), lambda m, b: (m(b[0]), b[1]))
            self.passes.append(time.perf_counter() - begin)

    @torch.no_grad()
    def _bare(self, module: nn.Module, loader: DataLoader[Any]) -> float:
        begin = time.perf_counter()
        module.eval()
        torch.cat([module(batch[0]).softmax(dim=1) for batch in loader])
        module.train()
        return time.perf_counter() - begin


def main() -> None:
    """Run the comparison and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "estimation.json")
    arguments = parser.parse_args()
    rows, results = [], {}
    seed_everything(0)
    cases = {
        "ResNet-14, 2,000 images 3x32x32": (CIFARResNet(depth=14, num_classes=10), torch.randn(2000, 3, 32, 32)),
        "784-128-128-10, 60,000 images 28x28": (MLP(784, 10), torch.randn(60000, 1, 28, 28)),
    }
    for name, (backbone, inputs) in cases.items():
        labels = torch.arange(len(inputs)) % 10
        data = ArrayDataModule((inputs, labels))
        compare = Compare(arguments.repeats)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=1,
            limit_val_batches=0,
            callbacks=[compare],
        )
        trainer.fit(NoisyLabelClassifier(backbone, ForwardCorrection(torch.eye(10))), data)
        bare, passes = compare.bare[1:], compare.passes[1:]  # the first warms up
        ratio = statistics.median(passes) / statistics.median(bare)
        results[name] = {"seconds_bare": bare, "seconds_pass": passes, "ratio_of_medians": ratio}
        rows.append([name, f"{statistics.median(bare):.3f}", f"{statistics.median(passes):.3f}", f"{ratio:.2f}"])
    write_json(arguments.output, {"environment": environment(), "results": results})
    write_table(arguments.output.with_suffix(".md"), ["network and data", "bare loop, s", "pass, s", "ratio"], rows)


if __name__ == "__main__":
    main()
