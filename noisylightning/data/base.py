"""The base of every data module: one draw of noise, one split, and the loaders."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from noisylightning.data._random import seeded_generator
from noisylightning.data.checkpoint import CheckpointedDataModule
from noisylightning.data.noise import AsymmetricNoise, LabelNoise, TransitionNoise, check_labels
from noisylightning.data.noisy_labels import NoisyLabels
from noisylightning.data.relabel import Relabel, TrainingLabels
from noisylightning.data.trusted import choose_trusted
from noisylightning.data.view import (
    Augmentation,
    EpochSampler,
    Inputs,
    JointView,
    LabelledView,
    ShareSampler,
    Transform,
)
from noisylightning.errors import BadValue, NoSuchFile, NotReady
from noisylightning.transition import from_flips


class NoisyDataModule(CheckpointedDataModule):
    """Data with noisy training and validation labels and a clean test set.

    A subclass sets ``num_classes`` and ``class_names``, at the latest in its constructor, and overrides
    :meth:`load_train` and :meth:`load_test`; inputs that need it are brought to the network's form by ``transform``
    and, in training only, varied by ``augmentation``.

    The labels are corrupted once, those of training and validation together; the test set never passes through here.
    What is read off the training data (names of classes, the scaling of a table, a vocabulary) is saved with every
    checkpoint, so that to test and to predict needs no training data, see :meth:`from_checkpoint`.
    Batches are ``(inputs, labels)``, or ``(inputs, labels, index)`` with the sample's place in :meth:`load_train`;
    those of :meth:`joint_dataloader` also tell which samples are trusted.

    Args:
        noise: What corrupts the labels. None takes them as they are.
        noise_seed: Seed of the noise.
        noisy_labels_file: File of noisy labels (``.npz``, see :class:`NoisyLabels`): read where it exists, written
            where it does not.
        trusted: Samples whose labels are known to be right: their places in :meth:`load_train`, or how many to draw of
            each class. They keep their labels and leave the noisy training and validation sets.
        val_fraction: Share of the training samples held out for validation, in (0, 1); their labels are noisy too.
        batch_size: Samples in a batch, on each process.
        seed: Seed of the split, of the draw of trusted samples, of the order and of the augmentation.
        num_workers: Processes that read; data held in memory needs none and takes none.
        with_index: Whether batches carry the sample's index.
        relabel: An audit's table, or a :class:`Relabel` that also says how it is used: training labels are corrected,
            made soft or left out by it; validation labels, and those that T is estimated on, stay.

    Attributes:
        num_classes: Number of classes C, known before ``setup``.
        class_names: Their C names, known before ``setup``.
        transform: From a batch as stored to a batch as the network takes it.
        augmentation: Random variation of training batches, see :class:`~noisylightning.data.view.Augmentation`.
        flips: The paper's map for asymmetric noise, where there is one for this data.
        noisy_labels: After ``setup``, the noisy labels and how they came about; None where there is no noise.
        training_labels: After ``setup``, what ``relabel`` has made of the training labels; None without it.
        train_index: After ``setup``, the places in :meth:`load_train` of the training samples, in order.
        val_index: Those of the validation samples.
        trusted_index: Those of the trusted samples.
        has_test: Whether there is a test set, known before ``setup``.
        test_argument: The argument that says where the test set is, for an error to name.

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
    has_test: bool = True
    test_argument: ClassVar[str] = "test"

    def __init__(
        self,
        noise: LabelNoise | None = None,
        noise_seed: int = 0,
        noisy_labels_file: str | Path | None = None,
        trusted: int | list[int] | None = None,
        val_fraction: float = 0.1,
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        with_index: bool = False,
        relabel: Relabel | str | Path | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise BadValue(
                f"val_fraction must lie between 0 and 1, got {val_fraction}; set val_fraction (--data.val_fraction), "
                "0.1 holds out a tenth."
            )
        if batch_size < 1:
            raise BadValue(f"batch_size must be at least 1, got {batch_size}: set batch_size (--data.batch_size).")
        self.noise = noise
        self.noise_seed = noise_seed
        self.noisy_labels_file = noisy_labels_file
        self.trusted = trusted
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.with_index = with_index
        self.relabel = Relabel(relabel) if isinstance(relabel, str | Path) else relabel
        self.training_labels: TrainingLabels | None = None
        self.noisy_labels: NoisyLabels | None = None
        self.train_index = self.val_index = self.trusted_index = torch.empty(0, dtype=torch.int64)
        self._train: tuple[Inputs, Tensor] | None = None
        self._val: tuple[Inputs, Tensor] | None = None
        self._test: tuple[Inputs, Tensor] | None = None
        self._trusted: tuple[Inputs, Tensor] | None = None
        self._predict: tuple[Inputs, Tensor] | None = None
        self._evaluates = False  # whether setup() was called to test or to predict

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

    def load_val(self) -> tuple[Inputs, Tensor] | None:
        """Read a validation set that is no part of :meth:`load_train`, whose samples then all train.

        Returns:
            Inputs, and their labels, which are taken as they are; None where there is no such set, the default.
        """
        return None

    def load_trusted(self) -> tuple[Inputs, Tensor] | None:
        """Read a trusted set that is no part of :meth:`load_train`.

        Returns:
            Inputs, and their clean labels; None where there is no such set, the default.
        """
        return None

    def load_predict(self) -> tuple[Inputs, Tensor] | None:
        """Read samples to predict, labelled or not.

        Returns:
            Inputs, and their labels, -1 where they are not known; None where there are no such samples, the default:
            then the test set is predicted.
        """
        return None

    def read_part(self, part: str) -> tuple[Inputs | Sequence[str], Tensor] | None:
        """Read samples of a part as they are stored, before all that is done to them for a network: for an encoder.

        Args:
            part: ``"train"``, which is training and validation, ``"val"``, ``"trusted"``, ``"test"`` or ``"predict"``.

        Returns:
            N inputs, or N texts, and their labels as they come; None where there is no such part.
        """
        if part == "test" and not self.has_test:
            return None
        found: tuple[Inputs, Tensor] | None = getattr(self, f"load_{part}")()
        return found

    def noisy_label_sets(self, inputs: Inputs | None, labels: Tensor) -> dict[str, NoisyLabels]:
        """Make all noisy labels that this data can have, the ones in use first.

        Args:
            inputs: The inputs of :meth:`load_train`, for noise that depends on them.
            labels: Its labels.

        Returns:
            Noisy labels by a name; none where the labels are taken as they are.
        """
        if self.noise is None and self.noisy_labels_file is None:
            return {}
        return {"noisy": self._corrupt(inputs, labels)}

    def sample_names(self) -> Sequence[str] | None:
        """Say what each sample of :meth:`load_train` is called: its file's name, or its text, shortened.

        Returns:
            N names in order, after :meth:`setup`; None where samples have none, the default.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What was read off the training data, and a checksum of training labels that ``relabel`` has made."""
        found = self.training_labels
        return super().state_dict() | ({} if found is None else {"training_labels": found.checksum})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was made with these classes, and that a resumed fit trains on the same labels.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it was not.
        """
        super().load_state_dict(state_dict)
        own = None if self.training_labels is None else self.training_labels.checksum
        resumes = self.trainer is not None and self.trainer.state.fn == "fit"
        if resumes and state_dict.get("training_labels") != own:
            raise BadValue(
                "The checkpoint was made with other training labels than relabel (--data.relabel) makes now: resume"
                " with the file that the fit began with, or start a new fit."
            )

    def _read_anew(self) -> None:
        """Let go of test data that were read before the checkpoint said how; the loader reads them again."""
        self._test = self._predict = None

    def split(self, num: int) -> tuple[Tensor, Tensor]:
        """Choose which samples train and which validate, at random by ``seed``; override for a split that is given.

        Args:
            num: Number of samples N.

        Returns:
            Places of the training and of the validation samples, int64.
        """
        order = torch.randperm(num, generator=seeded_generator("split", self.seed))
        num_val = round(self.val_fraction * num)
        return order[num_val:].sort().values, order[:num_val].sort().values

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
            raise BadValue(
                f"{type(self).__name__} has no flips of its own for AsymmetricNoise(rate={rate}); "
                "set flips (--data.noise.flips), for example to {0: 1}."
            )
        return from_flips(self.num_classes, self.flips, rate)

    def setup(self, stage: str | None = None) -> None:
        """Read the data, corrupt the labels and split; each once, however often Lightning calls.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all.
        """
        if stage in ("fit", "validate", None) and self._train is None:
            inputs, labels = self._checked(self.load_train(), "training labels", every_class=True)
            self.noisy_labels = self._noisy_labels_of(inputs, labels)
            self.trusted_index = choose_trusted(self.trusted, labels, self.num_classes, self.seed)
            if (val := self.load_val()) is not None:
                self._val = self._checked(val, "validation labels")
            if (trusted := self.load_trusted()) is not None:
                self._trusted = self._checked(trusted, "trusted labels", every_class=True)
            if self._trusted is not None and self.trusted is not None:
                raise BadValue(
                    f"{type(self).__name__} has a trusted set of its own, so trusted={self.trusted} cannot be drawn "
                    "from the noisy one: leave trusted (--data.trusted) out."
                )
            everything = torch.arange(len(labels))
            parts = self.split(len(labels)) if self._val is None else (everything, everything[:0])
            self.train_index, self.val_index = (part[~torch.isin(part, self.trusted_index)] for part in parts)
            if not len(self.train_index) or not (len(self.val_index) or self._val):
                raise BadValue(
                    f"{len(labels)} samples, {len(self.trusted_index)} of them trusted, leave {len(self.train_index)} "
                    f"to train, {len(self.val_index)} to validate: change val_fraction={self.val_fraction} "
                    "(--data.val_fraction) or trusted (--data.trusted)."
                )
            self._train = inputs, labels
            self._relabel(stage)
            rank_zero_info(self._describe())
        elif stage in ("fit", None):
            self._relabel(stage)
        if stage in ("test", "predict", None):
            self._evaluates = True
            if self.is_fitted:  # else the loader reads, when the checkpoint has said how
                if stage != "test":
                    self._read_predict()
                if stage != "predict":
                    self._read_test()

    def _relabel(self, stage: str | None) -> None:
        """Correct the training labels; to validate needs none."""
        if self.relabel is None or stage == "validate" or self.training_labels is not None:
            return
        names = self.sample_names()
        found = self.relabel.apply(self._given_labels, self.train_index, self.num_classes, names)
        self.training_labels, self.train_index = found, found.index

    @property
    def _given_labels(self) -> Tensor:
        assert self._train is not None
        return self._train[1] if self.noisy_labels is None else self.noisy_labels.labels

    def _read_test(self) -> None:
        if self._test is None and self.has_test:
            self._test = self._checked(self.load_test(), "test labels")

    def _read_predict(self) -> None:
        if self._predict is None:
            if (found := self.load_predict()) is None:
                self._read_test()
                return
            self._predict = self._checked(found, "labels of samples to predict", unknown=True)

    def _checked(
        self, part: tuple[Inputs, Tensor], what: str, every_class: bool = False, unknown: bool = False
    ) -> tuple[Inputs, Tensor]:
        inputs, labels = part
        if not unknown or (labels != -1).any():
            known = labels[labels != -1] if unknown else labels
            known = check_labels(known, self.num_classes, f"{type(self).__name__}'s {what}", every_class)
            labels = labels if unknown else known
        if len(inputs) != len(labels):
            raise BadValue(
                f"{type(self).__name__} has {len(inputs)} inputs and {len(labels)} {what}: give one label an input."
            )
        return inputs, labels

    def _noisy_labels_of(self, inputs: Inputs, labels: Tensor) -> NoisyLabels | None:
        if self.noise is None and self.noisy_labels_file is None:
            return None
        return self._corrupt(inputs, labels)

    def _corrupt(self, inputs: Inputs | None, labels: Tensor) -> NoisyLabels:
        noise = self.noise
        if isinstance(noise, AsymmetricNoise) and noise.flips is None:
            assert noise.rate is not None
            noise = TransitionNoise(self.asymmetric_transition(noise.rate))
        file = self.noisy_labels_file
        if file is not None and Path(file).exists():
            found = NoisyLabels.load(file, labels)
            if noise is not None:
                found.check_asked(noise, self.num_classes, self.noise_seed)
            return found
        if noise is None:
            raise NoSuchFile(
                f"There are no noisy labels at {file}, and no noise to draw them with: correct noisy_labels_file "
                "(--data.noisy_labels_file) or set noise (--data.noise)."
            )
        drawn = NoisyLabels.draw(noise, labels, self.num_classes, self.noise_seed, inputs)
        if file is not None:
            rank_zero_only(drawn.save)(file)  # the other ranks drew the same labels
        return drawn

    def _describe(self) -> str:
        sizes = self.summary
        parts = f"{type(self).__name__}: {sizes['train']:,} samples to train, {sizes['validation']:,} to validate"
        if "trusted" in sizes:
            parts += f", {sizes['trusted']:,} trusted"
        if self.training_labels is not None:
            assert self.relabel is not None
            changed, dropped = self.training_labels.changed, len(self.training_labels.dropped)
            parts += f"; {self.relabel.file} changes {changed:,} training labels and leaves {dropped:,} samples out"
        if self.noisy_labels is None:
            return f"{parts}; labels as they are."
        asked, seed = self.noisy_labels.requested_rate, self.noisy_labels.seed
        wrong = f"{parts}; {self.noisy_labels.actual_rate:.2%} of the labels are wrong"
        return f"{wrong}." if asked is None else f"{wrong}, {asked:.2%} asked for (seed {seed})."

    @property
    def has_trusted(self) -> bool:
        """Whether, after ``setup``, there are trusted samples."""
        return self._trusted is not None or len(self.trusted_index) > 0

    @property
    def trusted_noisy_labels(self) -> Tensor | None:
        """Noisy labels of the trusted samples, in their order, which they do not carry; None where none was drawn."""
        if self.noisy_labels is None or self._trusted is not None:
            return None
        return self.noisy_labels.labels[self.trusted_index]

    @property
    def summary(self) -> dict[str, Any]:
        """Sizes of the parts that are set up, the rates of wrong labels asked for and drawn, and T."""
        found: dict[str, Any] = {}
        if self._train is not None:
            found["train"] = len(self.train_index)
            found["validation"] = len(self.val_index if self._val is None else self._val[1])
            if num_trusted := len(self.trusted_index if self._trusted is None else self._trusted[1]):
                found["trusted"] = num_trusted
        if self._test is not None:
            found["test"] = len(self._test[1])
        if self.noisy_labels is not None:
            found["requested_rate"] = self.noisy_labels.requested_rate
            found["actual_rate"] = self.noisy_labels.actual_rate
            found["transition"] = self.noisy_labels.transition
        return found

    @property
    def transition(self) -> Tensor | None:
        """The true T as asked for, or as measured where the noise asks for none; None where it is not known."""
        return None if self.noisy_labels is None else self.noisy_labels.transition

    def train_dataloader(self) -> DataLoader[Any]:
        """Training samples with noisy labels, augmented, in an order set by seed and epoch."""
        return self._shuffled(self._training_view(self.train_index, self.augmentation))

    def fold_dataloader(self, index: Tensor) -> DataLoader[Any]:
        """Some of the training samples, as :meth:`train_dataloader` gives all.

        Args:
            index: Their places in :meth:`load_train`, int64 of shape ``(M,)``.
        """
        return self._shuffled(self._training_view(index, self.augmentation))

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation samples with noisy labels, or the labels of :meth:`load_val` as they are, in order."""
        if self._val is not None:
            self._val = self._on_device(self._val)
            return self._shared(self._whole_view(self._val))
        return self._shared(self._noisy_view(self.val_index))

    def test_dataloader(self) -> DataLoader[Any]:
        """Test samples with clean labels, in order."""
        if not self.has_test:
            raise BadValue(
                f"{type(self).__name__} was given no test set: set {self.test_argument} (--data.{self.test_argument})."
            )
        if self._evaluates:
            self._read_test()
        self._test = self._on_device(self._test)
        return self._shared(self._whole_view(self._test))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The samples of :meth:`load_predict`, in order, their labels -1 where not known; else the test samples."""
        if self._evaluates:
            self._read_predict()
        if self._predict is None:
            self.test_dataloader()  # reads them, or says why not
        part = self._on_device(self._predict or self._test)
        return self._loader(self._whole_view(part))

    def estimation_dataloader(self) -> DataLoader[Any]:
        """Training and validation samples with noisy labels, not augmented, in the order of :meth:`load_train`.

        The labels are the given ones, and no sample is left out, whatever ``relabel`` says.
        """
        dropped = self.train_index[:0] if self.training_labels is None else self.training_labels.dropped
        return self._loader(self._noisy_view(torch.cat([self.train_index, dropped, self.val_index]).sort().values))

    def trusted_dataloader(self) -> DataLoader[Any]:
        """Trusted samples with their right labels, not augmented, in order."""
        return self._loader(self._trusted_view())

    def trusted_train_dataloader(self) -> DataLoader[Any]:
        """Trusted samples with their right labels, augmented, in an order set by seed and epoch."""
        return self._shuffled(self._trusted_view(self.augmentation))

    def joint_dataloader(self) -> DataLoader[Any]:
        """The samples of :meth:`train_dataloader` and of :meth:`trusted_train_dataloader` in one epoch, shuffled.

        Batches are ``(inputs, labels, index, trusted)``: the places of the samples in :meth:`load_train`, those of
        :meth:`load_trusted` after it; and whether each is trusted, so that its label is right.
        """
        noisy, trusted = self.train_dataloader().dataset, self.trusted_train_dataloader().dataset
        assert isinstance(noisy, LabelledView)
        assert isinstance(trusted, LabelledView)
        return self._shuffled(JointView(noisy, trusted, apart=self._trusted is not None))

    def _noisy_view(self, index: Tensor, augmentation: Augmentation | None = None) -> LabelledView:
        self._train = self._on_device(self._train)
        return self._view(self._train[0], self._given_labels, index, augmentation)

    def _training_view(self, index: Tensor, augmentation: Augmentation | None = None) -> LabelledView:
        if self.training_labels is None:
            return self._noisy_view(index, augmentation)
        self._train = self._on_device(self._train)
        return self._view(self._train[0], self.training_labels.labels, index, augmentation)

    def _trusted_view(self, augmentation: Augmentation | None = None) -> LabelledView:
        if self._trusted is not None:
            self._trusted = self._on_device(self._trusted)
            return self._whole_view(self._trusted, augmentation)
        self._train = self._on_device(self._train)
        if not len(self.trusted_index):
            raise BadValue(
                f"{type(self).__name__} has no trusted samples: give trusted (--data.trusted), their places or how "
                "many to draw of each class."
            )
        inputs, labels = self._train
        return self._view(inputs, labels, self.trusted_index, augmentation)

    def _whole_view(self, part: tuple[Inputs, Tensor], augmentation: Augmentation | None = None) -> LabelledView:
        inputs, labels = part
        return self._view(inputs, labels, torch.arange(len(labels)), augmentation)

    def _on_device(self, part: tuple[Inputs, Tensor] | None) -> tuple[Inputs, Tensor]:
        """Bring inputs held in memory to the GPU, if the trainer has one, to stay there."""
        if part is None:
            raise NotReady(f"{type(self).__name__} is not set up for this yet: call setup() first.")
        inputs, labels = part
        if isinstance(inputs, Tensor) and self.trainer is not None:
            device = self.trainer.strategy.root_device
            inputs = inputs.to(device) if device.type == "cuda" else inputs
        return inputs, labels

    def _view(
        self, inputs: Inputs, labels: Tensor, index: Tensor, augmentation: Augmentation | None = None
    ) -> LabelledView:
        return LabelledView(inputs, labels, index, self.transform, augmentation, self.seed, self.with_index)

    def _shuffled(self, view: LabelledView | JointView) -> DataLoader[Any]:
        trainer = self.trainer
        if trainer is None:
            return self._loader(view, EpochSampler(view, self.seed))
        sampler = EpochSampler(view, self.seed, num_replicas=trainer.world_size, rank=trainer.global_rank)
        # workers read ahead before Lightning sets the epoch of a resumed run
        sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(view, sampler)

    def _shared(self, view: LabelledView) -> DataLoader[Any]:
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return self._loader(view)
        return self._loader(view, ShareSampler(view, num_replicas=trainer.world_size, rank=trainer.global_rank))

    def _loader(
        self, view: LabelledView | JointView, sampler: EpochSampler | ShareSampler | None = None
    ) -> DataLoader[Any]:
        in_memory = view.in_memory
        if in_memory:  # Lightning would advise workers, which only slow such data down
            warnings.filterwarnings("ignore", ".*does not have many workers which may be a bottleneck.*")
        return DataLoader(
            dataset=view,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=0 if in_memory else self.num_workers,
            collate_fn=_as_is,
            pin_memory=not in_memory and torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # leaves the global stream to the network
        )


def _as_is(batch: Any) -> Any:
    return batch
