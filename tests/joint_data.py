"""A small noisy problem with trusted samples, drawn from the training data or apart, shared by the tests."""

import torch
from pytorch_lightning.callbacks import Callback
from toy import CLASSES, FEATURES

from noisylightning import NoisyLabelClassifier
from noisylightning.data import ArrayDataModule, TransitionNoise
from noisylightning.transition import from_flips

NOISE = from_flips(CLASSES, {0: 1, 1: 2}, 0.3)


def blobs(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(num) % CLASSES
    draws = torch.randn(num, FEATURES, generator=torch.Generator().manual_seed(seed))
    return 3 * torch.eye(CLASSES, FEATURES)[labels] + draws, labels


class TrustedBlobs(ArrayDataModule):
    """Three Gaussian blobs, shuffled; of 150 samples 15 validate, and four of each class are trusted."""

    def __init__(self, num: int = 150, **options) -> None:
        options = {"trusted": 4, "batch_size": 20, "noise": TransitionNoise(NOISE)} | options
        super().__init__(*blobs(num), **options)


class TrustedApart(TrustedBlobs):
    """The same, with six trusted samples that are no part of them."""

    def __init__(self, **options) -> None:
        super().__init__(**{"trusted": None, **options})

    def load_trusted(self):
        return blobs(6, seed=1)


class Killed(RuntimeError):
    pass


class Batches(Callback):
    """Keeps of each training batch the epoch, its index and its flags; and kills the fit at one, if asked."""

    def __init__(self, dies_at: tuple[int, int] | None = None) -> None:
        self.seen: list[tuple[int, list[int], list[bool] | None]] = []
        self.dies_at = dies_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.dies_at:
            raise Killed
        index = batch[2].tolist() if len(batch) > 2 else []
        self.seen.append((trainer.current_epoch, index, batch[3].tolist() if len(batch) > 3 else None))

    def of_epoch(self, epoch: int) -> list[tuple[int, bool]]:
        return [
            pair for at, index, flags in self.seen if at == epoch and flags for pair in zip(index, flags, strict=True)
        ]

    def joint_epochs(self) -> list[int]:
        return sorted({epoch for epoch, _, flags in self.seen if flags is not None})


class OneCycle(NoisyLabelClassifier):
    """A schedule that must know the number of steps."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
