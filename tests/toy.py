"""A small noisy problem and small modules, one of ours and some that know nothing of us, shared by the tests."""

from functools import partial

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisylightning import (
    AnchorEstimator,
    ConfidentJointEstimator,
    ConsensusEstimator,
    EstimateTransitionCallback,
    ForwardCorrection,
    NoisyLabelClassifier,
)
from noisylightning.estimators import TransitionEstimator
from noisylightning.functional.bootstrap import bootstrap_weights
from noisylightning.predictions import Predictions
from noisylightning.transition import Transition, from_flips

CLASSES, FEATURES = 3, 5

anchored = partial(EstimateTransitionCallback, estimator=AnchorEstimator)
"""The two stages alone: T-hat from stage one's network as it is, where the default would refine it."""

counted = partial(ConsensusEstimator, starts=[ConfidentJointEstimator, AnchorEstimator])
"""The default without the estimator that takes longest."""

TRUE = from_flips(CLASSES, {0: 1, 1: 2}, 0.3)


class ToyData(LightningDataModule):
    """Three Gaussian blobs with asymmetric noise; not shuffled, so that runs can be compared bit by bit."""

    num_classes = CLASSES
    transition = TRUE

    def __init__(self, num_train: int = 96, batch_size: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        clean = torch.arange(num_train + 48) % CLASSES
        centres = 3 * torch.eye(CLASSES, FEATURES)
        inputs = centres[clean] + torch.randn(len(clean), FEATURES, generator=generator)
        noisy = torch.multinomial(TRUE[clean], 1, generator=generator).flatten()
        self.train = TensorDataset(inputs[:num_train], noisy[:num_train])
        self.val = TensorDataset(inputs[num_train:], noisy[num_train:])
        self.test = TensorDataset(inputs[num_train:], clean[num_train:])
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=self.batch_size)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def estimation_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size)


class Indexed(ToyData):
    """Samples with their index, enough of them for networks that leave out a part, in few batches, shuffled or not."""

    def __init__(self, num_train: int = 480, batch_size: int = 60, shuffle: bool = False) -> None:
        super().__init__(num_train, batch_size)
        self.train = TensorDataset(*self.train.tensors, torch.arange(num_train))
        self.shuffle = shuffle

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=self.shuffle)


class Networks(Callback):
    """Notes of each network of a fit what it is and which samples it trains on, and how long the fit then is.

    As ``predict`` it notes which samples the running network predicts after it was trained.
    """

    def __init__(self) -> None:
        self.trained: list[list[int]] = []
        self.predicted: list[list[int]] = []
        self.epochs: list[tuple[str, int, int]] = []  # name of the phase, stage, max_epochs
        self.transitions: list[torch.Tensor] = []
        self._running: object = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        engine = next(peer for peer in trainer.callbacks if isinstance(peer, EstimateTransitionCallback))
        running = engine.phase, getattr(engine.phase, "_from", 0)
        if running != self._running:
            self._running = running
            self.trained.append([])
            self.predicted.append([])
            correction = engine._memory.correction
            self.transitions.append(torch.eye(CLASSES) if correction is None else correction.transition.clone())
        if batch_idx == 0:
            self.epochs.append((engine.phase.name, engine.stage, trainer.max_epochs))
        self.trained[-1] += batch[2].tolist()

    def __call__(self, module, batch):
        if self.predicted and len(batch) > 2:
            self.predicted[-1] += batch[2].tolist()
        return module(batch[0]), batch[1]

    def names(self) -> list[str]:
        return [name for name, *_ in self.epochs]


def backbone(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, CLASSES))


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def classifier(seed: int = 0, dropout: float = 0.0, **kwargs) -> NoisyLabelClassifier:
    kwargs.setdefault("correction", ForwardCorrection(num_classes=CLASSES))
    kwargs.setdefault("optimizer", adam)
    return NoisyLabelClassifier(backbone(seed, dropout), **kwargs)


def uncorrected(**kwargs) -> NoisyLabelClassifier:
    """With the identity as its T, so that it trains where no callback gives it one."""
    return classifier(correction=ForwardCorrection(torch.eye(CLASSES)), **kwargs)


class Scripted(NoisyLabelClassifier):
    """Reports the validation accuracies it is told to, one an epoch, the last one ever after."""

    def __init__(self, *scores: float) -> None:
        super().__init__(backbone(), ForwardCorrection(num_classes=CLASSES), optimizer=adam)
        self.scores = scores

    def on_validation_epoch_end(self) -> None:
        self.log("val_accuracy", self.scores[min(self.current_epoch, len(self.scores) - 1)])


def trainer(tmp_path, callbacks=(), max_epochs: int = 4, kind=Trainer, **kwargs) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return kind(default_root_dir=tmp_path, callbacks=list(callbacks), max_epochs=max_epochs, **(defaults | kwargs))


class FeatureMeans(AnchorEstimator):
    """Anchor points, and beside them the mean of the features of each noisy class."""

    needs = frozenset({"features"})
    means: torch.Tensor  # of the last compute(), of whatever instance

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__(num_classes)
        self.add_state("sums", torch.zeros(num_classes, width), dist_reduce_fx="sum")

    def _accumulate(self, batch: Predictions) -> None:
        super()._accumulate(batch)
        self.sums.index_add_(0, batch.noisy_labels, batch.features)

    def compute(self) -> torch.Tensor:
        FeatureMeans.means = (self.sums / self.class_counts[:, None]).cpu()
        return super().compute()


class Counted(TransitionEstimator):
    """The frequencies of the noisy labels among the samples predicted to be of a class, with standard errors."""

    def __init__(self, num_classes: int, replicates: int = 0) -> None:
        super().__init__(num_classes, replicates)
        ones = torch.ones(replicates + 1, num_classes**2, dtype=torch.long)
        self.add_state("counts", 0 * ones, dist_reduce_fx="sum")

    def _accumulate(self, batch: Predictions) -> None:
        cells = batch.logits.argmax(dim=1) * self.num_classes + batch.noisy_labels
        self.counts.index_add_(1, cells, bootstrap_weights(batch.index, self.replicates).T)

    def _all(self) -> torch.Tensor:
        counts = self.counts.unflatten(1, (self.num_classes, self.num_classes)) + 1.0  # a class may be predicted never
        return counts / counts.sum(dim=2, keepdim=True)

    def compute(self) -> torch.Tensor:
        return self._all()[0]

    def _replicated(self) -> torch.Tensor:
        return self._all()[1:]


def means_by_hand(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([features[labels == i].mean(dim=0) for i in range(int(labels.max()) + 1)]).detach()


class OfEachSample(Transition):
    """The T of each of N samples, ``(N, C, C)``."""

    def __init__(self, matrices: torch.Tensor) -> None:
        super().__init__(CLASSES)
        self.matrices = matrices

    def posterior(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,nij->nj", logits.softmax(dim=1), self.matrices)

    def log_likelihood(self, logits, labels):
        return self.posterior(logits).gather(1, labels[:, None])[:, 0].log()

    def mean_cross_entropy(self, logits, labels):
        return -self.log_likelihood(logits, labels).mean()

    def log_posterior(self, logits):
        return self.posterior(logits).log()


class Mixed(Transition):
    """Two matrices, mixed for each sample by a logistic function of its features."""

    needs_features = True

    def __init__(self, width: int = 16) -> None:
        super().__init__(CLASSES)
        self.register_buffer("ends", torch.stack([TRUE, torch.full_like(TRUE, 1 / CLASSES)]))
        self.scores = nn.Linear(width, 1)

    def at(self, features, index):
        share = self.scores(features).sigmoid()[:, :, None]
        return OfEachSample(share * self.ends[0] + (1 - share) * self.ends[1])

    def to_dense(self):
        return self.ends.mean(dim=0)


class ForeignClassifier(LightningModule):
    """What somebody else wrote: its own criterion, optimizer, schedule and metrics, and no import of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.net = backbone()
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        correct = (self(batch[0]).argmax(dim=1) == batch[1]).float().mean()
        self.log("val_acc", correct, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)]


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def estimate_by_hand(module: nn.Module, data: ToyData) -> torch.Tensor:
    inputs, labels = data.train.tensors
    estimator = AnchorEstimator(CLASSES)
    with torch.no_grad():
        estimator.update(Predictions(module.eval()(inputs), labels))
    return estimator.compute()


def clean_accuracy_by_hand(logits: torch.Tensor, noisy: torch.Tensor, transition: torch.Tensor) -> dict[str, float]:
    scores = torch.linalg.inv(transition.double())[noisy, logits.argmax(dim=1)]
    half = 1.959963984540054 * float(scores.std()) / len(scores) ** 0.5
    mean = float(scores.mean())
    return {
        "val_clean_accuracy": mean,
        "val_clean_accuracy_low": mean - half,
        "val_clean_accuracy_high": mean + half,
    }
