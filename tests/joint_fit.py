"""A fit with a joint stage two on two processes, and the same resumed; test_joint_distributed.py runs it as a script.

Each rank writes what it saw.
"""

import sys
import warnings
from pathlib import Path

import torch
from joint_data import Batches, TrustedBlobs
from pytorch_lightning.callbacks import ModelCheckpoint
from toy import CLASSES, adam, classifier, trainer

from noisylightning import EstimateTransitionCallback, ForwardCorrection, TrustedDataEstimator
from noisylightning.transition import NoiseAdaptation


def fit(folder: Path, ckpt_path: Path | None = None) -> dict[str, object]:
    every, batches = ModelCheckpoint(folder / "every", filename="{epoch}", save_top_k=-1), Batches()
    callback = EstimateTransitionCallback(2, estimator=TrustedDataEstimator, train_on_trusted=True)
    run = trainer(
        folder, [callback, batches, every], max_epochs=4, enable_checkpointing=True, devices=2, strategy="ddp"
    )
    torch.manual_seed(0)
    # Ranks that disagree at first; batches so small that some are of trusted samples alone, of which T learns nothing.
    correction = ForwardCorrection(NoiseAdaptation(CLASSES))
    model = classifier(run.global_rank, dropout=0.3, optimizer=adam, correction=correction, transition_lr=0.01)
    data = TrustedBlobs(num=60, batch_size=2, trusted=8)
    run.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return {
        "seen": batches.seen,
        "weights": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
        "accuracy": run.callback_metrics["train_accuracy"],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    whole = fit(folder)
    resumed = fit(folder, folder / "every" / "epoch=2.ckpt")
    rank = torch.distributed.get_rank()
    torch.save({"whole": whole, "resumed": resumed}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main()
