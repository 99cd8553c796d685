"""The base of every data module: one draw of noise, one split, and the loaders."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from noisylightning.data._random import seeded_generator
from noisylightning.data.manifest import NoisyLabels
from noisylightning.data.noise import AsymmetricNoise, LabelNoise, TransitionNoise, check_labels
from noisylightning.data.view import Augmentation, EpochSampler, Inputs, LabelledView, Transform
from noisylightning.transition import from_flips


class NoisyDataModule(LightningDataModule):
    """Data with noisy training and validation labels and a clean test set.

    A subclass sets ``num_classes`` and ``class_names`` in its constructor and overrides :meth:`load_train` and
    :meth:`load_test`; inputs that need it are brought to the network's form by ``transform`` and, in training only,
    varied by ``augmentation``.

    The labels are corrupted once, those of training and validation together; the test set never passes through here.
    Batches are ``(inputs, labels)``, or ``(inputs, labels, index)`` with the sample's place in :meth:`load_train`.

    Args:
        noise: What corrupts the labels. None takes them as they are.
        noise_seed: Seed of the noise.
        manifest: File of noisy labels (``.npz``): read where it exists, written where it does not.
        val_fraction: Share of the training samples held out for validation, in (0, 1); their labels are noisy too.
        batch_size: Samples in a batch, on each process.
        seed: Seed of the split, of the order and of the augmentation.
        num_workers: Processes that read; 0 is best for data held in memory.
        with_index: Whether batches carry the sample's index.

    Attributes:
        num_classes: Number of classes C, known before ``setup``.
        class_names: Their C names, known before ``setup``.
        transform: From a batch as stored to a batch as the network takes it.
        augmentation: Random variation of training batches, see :class:`~noisylightning.data.view.Augmentation`.
        flips: The paper's map for asymmetric noise, where there is one for this data.
        noisy_labels: After ``setup``, the record of the noise; None where ``noise`` is.

    Example:
        >>> from noisylightning.data import DigitsDataModule, SymmetricNoise
        >>> data = DigitsDataModule(noise=SymmetricNoise(0.2), batch_size=32)
        >>> data.setup("fit")
        >>> inputs, labels = next(iter(data.train_dataloader()))
        >>> inputs.shape, labels.shape, data.transition.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]), torch.Size([10, 10]))
    """

    num_classes: int
    class_names: Sequence[str]
    flips: ClassVar[Mapping[int, Any] | None] = None
    transform: Transform | None = None
    augmentation: Augmentation | None = None

    def __init__(
        self,
        noise: LabelNoise | None = None,
        noise_seed: int = 0,
        manifest: str | Path | None = None,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        with_index: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}; 0.1 holds out a tenth.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.noise = noise
        self.noise_seed = noise_seed
        self.manifest = manifest
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.with_index = with_index
        self.noisy_labels: NoisyLabels | None = None
        self._train: tuple[Inputs, Tensor] | None = None
        self._test: tuple[Inputs, Tensor] | None = None

    @abstractmethod
    def load_train(self) -> tuple[Inputs, Tensor]:
        """Read the samples for training and validation.

        Returns:
            N inputs, and their labels as they come, integers of shape (N,).
        """

    @abstractmethod
    def load_test(self) -> tuple[Inputs, Tensor]:
        """Read the test set.

        Returns:
            Inputs, and their clean labels.
        """

    def asymmetric_transition(self, rate: float) -> Tensor:
        """The T of ``AsymmetricNoise(rate)`` on this data, from the paper's ``flips``.

        Args:
            rate: Probability of each flip.

        Returns:
            T of shape (C, C).

        Raises:
            ValueError: If the paper gives no flips for this data.
        """
        if self.flips is None:
            raise ValueError(
                f"{type(self).__name__} has no flips of its own for AsymmetricNoise(rate={rate}); "
                "give them, for example AsymmetricNoise(rate, flips={0: 1})."
            )
        return from_flips(self.num_classes, self.flips, rate)

    def setup(self, stage: str | None = None) -> None:
        """Read the data, corrupt the labels and split; each once, however often Lightning calls.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all.
        """
        if stage in ("fit", "validate", None) and self._train is None:
            inputs, labels = self.load_train()
            labels = self._checked(inputs, labels, "training labels")
            if self.noise is not None or self.manifest is not None:
                self.noisy_labels = self._corrupt(inputs, labels)
            self._train = inputs, labels
            order = torch.randperm(len(labels), generator=seeded_generator("split", self.seed))
            num_val = round(self.val_fraction * len(labels))
            if not 0 < num_val < len(labels):
                raise ValueError(
                    f"val_fraction={self.val_fraction} of {len(labels)} samples leaves {len(labels) - num_val} to "
                    f"train and {num_val} to validate; choose another."
                )
            self.val_index = order[:num_val].sort().values
            self.train_index = order[num_val:].sort().values
            rank_zero_info(self._describe())
        if stage in ("test", "predict", None) and self._test is None:
            inputs, labels = self.load_test()
            self._test = inputs, self._checked(inputs, labels, "test labels")

    def _checked(self, inputs: Inputs, labels: Tensor, what: str) -> Tensor:
        labels = check_labels(labels, self.num_classes, what=f"{type(self).__name__}'s {what}")
        if len(inputs) != len(labels):
            raise ValueError(
                f"{type(self).__name__} has {len(inputs)} inputs and {len(labels)} {what}; give one label an input."
            )
        return labels

    def _corrupt(self, inputs: Inputs, labels: Tensor) -> NoisyLabels:
        noise = self.noise
        if isinstance(noise, AsymmetricNoise) and noise.flips is None:
            assert noise.rate is not None
            noise = TransitionNoise(self.asymmetric_transition(noise.rate))
        if self.manifest is not None and Path(self.manifest).exists():
            record = NoisyLabels.load(self.manifest, labels)
            if noise is not None:
                record.check_asked(noise, self.num_classes, self.noise_seed)
            return record
        if noise is None:
            raise FileNotFoundError(
                f"no manifest of noisy labels at {self.manifest}, and no noise to make one with: "
                "check the path or give noise."
            )
        record = NoisyLabels.draw(noise, labels, self.num_classes, self.noise_seed, inputs)
        if self.manifest is not None:
            rank_zero_only(record.save)(self.manifest)  # the other ranks drew the same labels
        return record

    def _describe(self) -> str:
        sizes = (
            f"{type(self).__name__}: {len(self.train_index):,} samples to train, {len(self.val_index):,} to validate"
        )
        if self.noisy_labels is None:
            return f"{sizes}; labels as they are."
        asked, seed = self.noisy_labels.requested_rate, self.noisy_labels.seed
        wrong = f"{sizes}; {self.noisy_labels.actual_rate:.2%} of the labels are wrong"
        return f"{wrong}." if asked is None else f"{wrong}, {asked:.2%} asked for (seed {seed})."

    @property
    def summary(self) -> dict[str, int | float | None]:
        """Sizes of the parts that are set up, and the rates of wrong labels asked for and drawn."""
        found: dict[str, int | float | None] = {}
        if self._train is not None:
            found |= {"train": len(self.train_index), "validation": len(self.val_index)}
        if self._test is not None:
            found["test"] = len(self._test[1])
        if self.noisy_labels is not None:
            found["requested_rate"] = self.noisy_labels.requested_rate
            found["actual_rate"] = self.noisy_labels.actual_rate
        return found

    @property
    def transition(self) -> Tensor | None:
        """The true T as asked for, or as measured where the noise asks for none; None where it is not known."""
        return None if self.noisy_labels is None else self.noisy_labels.transition

    def train_dataloader(self) -> DataLoader[Any]:
        """Training samples with noisy labels, augmented, in an order set by seed and epoch."""
        view = self._train_view(self.train_index, self.augmentation)
        trainer = self.trainer
        if trainer is None:
            sampler = EpochSampler(view, seed=self.seed)
        else:
            sampler = EpochSampler(view, self.seed, num_replicas=trainer.world_size, rank=trainer.global_rank)
            # workers read ahead before Lightning sets the epoch of a resumed run
            sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(view, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation samples with noisy labels, in order."""
        return self._loader(self._train_view(self.val_index))

    def test_dataloader(self) -> DataLoader[Any]:
        """Test samples with clean labels, in order."""
        assert self._test is not None, "call setup first"
        inputs, labels = self._test
        return self._loader(self._view(inputs, labels, torch.arange(len(labels))))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test samples again."""
        return self.test_dataloader()

    def estimation_dataloader(self) -> DataLoader[Any]:
        """Training and validation samples with noisy labels, not augmented, in the order of :meth:`load_train`."""
        return self._loader(self._train_view(torch.cat([self.train_index, self.val_index]).sort().values))

    def _train_view(self, index: Tensor, augmentation: Augmentation | None = None) -> LabelledView:
        assert self._train is not None, "call setup first"
        inputs, labels = self._train
        labels = labels if self.noisy_labels is None else self.noisy_labels.labels
        return self._view(inputs, labels, index, augmentation)

    def _view(
        self, inputs: Inputs, labels: Tensor, index: Tensor, augmentation: Augmentation | None = None
    ) -> LabelledView:
        if isinstance(inputs, Tensor) and self.trainer is not None:
            device = self.trainer.strategy.root_device
            if device.type == "cuda":
                inputs = inputs.to(device)
        return LabelledView(inputs, labels, index, self.transform, augmentation, self.seed, self.with_index)

    def _loader(self, view: LabelledView, sampler: EpochSampler | None = None) -> DataLoader[Any]:
        if isinstance(view.inputs, Tensor):  # Lightning would advise workers, which only slow such data down
            warnings.filterwarnings("ignore", ".*does not have many workers which may be a bottleneck.*")
        return DataLoader(
            dataset=view,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=_as_is,
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global stream to the network
        )


def _as_is(batch: Any) -> Any:
    return batch
