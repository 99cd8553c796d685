"""Noise for any map-style data set and any data module."""

from collections.abc import Sequence, Sized
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.view import Inputs
from noisylightning.errors import BadType, BadValue


class DatasetInputs:
    """The inputs of a map-style data set of ``(input, label)``, read one by one and stacked.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return num_samples(self.dataset)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        """Inputs at ``index``, collated as a DataLoader would."""
        return default_collate([self.dataset[i][0] for i in index.tolist()])


def num_samples(dataset: Dataset[Any]) -> int:
    """The length of a map-style data set.

    Args:
        dataset: The data set.

    Returns:
        Its number of samples.

    Raises:
        TypeError: If it has none.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise BadType(
            f"labels are corrupted by the place of a sample, which {type(dataset).__name__} does not give: use a "
            "map-style data set, with __getitem__ and __len__."
        )
    return len(dataset)


def labels_of(dataset: Dataset[Any]) -> Tensor:
    """The labels of a map-style data set of ``(input, label)``, without reading inputs where that can be.

    Args:
        dataset: The data set.

    Returns:
        Its labels in order, as a tensor.

    Example:
        >>> inputs, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
        >>> labels_of(Subset(TensorDataset(inputs, labels), [1, 2]))
        tensor([1, 0])
    """
    num = num_samples(dataset)
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(part) for part in dataset.datasets])
    targets = getattr(dataset, "targets", None)  # torchvision's name
    if targets is not None and len(targets) == num and getattr(dataset, "target_transform", None) is None:
        return torch.as_tensor(targets)
    return torch.as_tensor([dataset[i][1] for i in range(num)])


class DatasetDataModule(NoisyDataModule):
    """Any map-style data sets of ``(input, label)``.

    What the data sets do to inputs at random is their own affair: it draws on the global random stream.

    Args:
        train: For training and validation.
        num_classes: Number of classes C.
        test: With clean labels; None for no test set.
        plain: The samples of ``train`` in the same order without random variation, for validation and estimation; by
            default ``train`` itself.
        class_names: Names of the C classes; by default their numbers.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        TypeError: If a data set is iterable-style.
        ValueError: If ``plain`` has other labels than ``train``.

    Example:
        >>> from noisylightning.data import PairFlipNoise
        >>> dataset = TensorDataset(torch.randn(100, 3), torch.arange(100) % 4)
        >>> data = DatasetDataModule(dataset, num_classes=4, noise=PairFlipNoise(0.3))
        >>> data.setup("fit")
        >>> data.summary["requested_rate"], len(data.estimation_dataloader().dataset)
        (0.3, 100)
    """

    def __init__(
        self,
        train: Dataset[Any],
        num_classes: int,
        test: Dataset[Any] | None = None,
        plain: Dataset[Any] | None = None,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.class_names = [str(c) for c in range(num_classes)] if class_names is None else class_names
        self.has_test = test is not None
        self.train = train
        self.plain = plain
        self.test = test

    def load_train(self) -> tuple[Inputs, Tensor]:
        """The samples of ``plain``, and the labels of ``train``."""
        labels = labels_of(self.train)
        if self.plain is None:
            if "Random" in repr(getattr(self.train, "transform", None)):
                rank_zero_warn(
                    f"{type(self.train).__name__} varies its inputs at random, in validation and estimation too; give "
                    "the same samples without that as plain."
                )
        elif not torch.equal(labels, labels_of(self.plain)):
            raise BadValue(
                "plain has other labels than train: give the same samples in the same order, without random variation."
            )
        return DatasetInputs(self.train if self.plain is None else self.plain), labels

    def load_test(self) -> tuple[Inputs, Tensor]:
        """The samples of ``test``."""
        assert self.test is not None
        return DatasetInputs(self.test), labels_of(self.test)

    def train_dataloader(self) -> DataLoader[Any]:
        """Training samples of ``train`` with noisy labels, in an order set by seed and epoch."""
        view = self._training_view(self.train_index)
        view.inputs = DatasetInputs(self.train)
        return self._shuffled(view)


class WrappedDataModule(NoisyDataModule):
    """Any data module whose loaders read map-style data sets of ``(input, label)``.

    Its own validation set stays one, with labels from the same draw of noise as the training set's; without one,
    ``val_fraction`` of the training set is held out. Its test set is left as it is. Batch size and order are this
    module's, not the wrapped one's.

    Args:
        datamodule: The data module.
        num_classes: Number of classes C.
        class_names: Names of the C classes; by default their numbers.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        TypeError: At ``setup``, if a loader is not a DataLoader of a map-style data set.

    Example:
        >>> from noisylightning.data import PairFlipNoise
        >>> dataset = TensorDataset(torch.randn(100, 3), torch.arange(100) % 4)
        >>> other = LightningDataModule.from_datasets(train_dataset=dataset, num_workers=0)
        >>> data = WrappedDataModule(other, num_classes=4, noise=PairFlipNoise(0.3))
        >>> data.setup("fit")
        >>> data.summary["train"], data.summary["requested_rate"]
        (90, 0.3)
    """

    def __init__(
        self,
        datamodule: LightningDataModule,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.datamodule = datamodule
        self.num_classes = num_classes
        self.class_names = [str(c) for c in range(num_classes)] if class_names is None else class_names
        self.has_test = self._has("test_dataloader")
        self._num_train: int | None = None

    def _has(self, hook: str) -> bool:
        return is_overridden(hook, self.datamodule)

    def prepare_data(self) -> None:
        """Let the wrapped module prepare its data."""
        self.datamodule.prepare_data()

    def load_train(self) -> tuple[Inputs, Tensor]:
        """The wrapped module's training samples, and after them its validation samples, if it has any."""
        self.datamodule.setup("fit")
        parts = [self._dataset("train_dataloader")]
        if self._has("val_dataloader"):
            self._num_train = num_samples(parts[0])
            parts.append(self._dataset("val_dataloader"))
        dataset: Dataset[Any] = ConcatDataset(parts)
        return DatasetInputs(dataset), labels_of(dataset)

    def load_test(self) -> tuple[Inputs, Tensor]:
        """The wrapped module's test samples."""
        self.datamodule.setup("test")
        dataset = self._dataset("test_dataloader")
        return DatasetInputs(dataset), labels_of(dataset)

    def split(self, num: int) -> tuple[Tensor, Tensor]:
        """The wrapped module's own split, if it has one."""
        if self._num_train is None:
            return super().split(num)
        return torch.arange(self._num_train), torch.arange(self._num_train, num)

    def _dataset(self, hook: str) -> Dataset[Any]:
        loader = getattr(self.datamodule, hook)()
        if not isinstance(loader, DataLoader):
            raise BadType(
                f"{type(self.datamodule).__name__}.{hook}() gives a {type(loader).__name__}, not one DataLoader, so "
                "that its samples have no place: wrap a data module of single loaders."
            )
        num_samples(loader.dataset)
        return loader.dataset
