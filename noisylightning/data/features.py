"""Features that an encoder has made once, with all that a data module has."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.noisy_labels import NoisyLabels
from noisylightning.data.view import Augmentation, Inputs, LabelledView, ViewsAtRandom
from noisylightning.errors import BadValue
from noisylightning.feature_files import FeatureFolder

CLEAN = "clean"
"""The name of the labels that no noise has touched, beside those of the sets of noisy labels."""


class FeaturesDataModule(NoisyDataModule):
    """A folder of features that ``noisylightning features`` has written.

    It has the parts, the classes, the paper's flips and the noisy labels of the data that the features are of, and
    needs that data no more. Inputs are features of shape (D,). Files are read from the disk as they are used.

    Args:
        folder: The folder.
        labels: Which of the folder's noisy labels, where it has any: a name, for example ``worse`` of CIFAR-10N, or
            ``clean`` for none of them; by default those that the data had when the features were made. A ``noise`` or a
            ``noisy_labels_file`` takes their place.
        standardize: Whether features are centred on the mean of the training samples, and scaled by one factor so that
            their variances are 1 on average: one learning rate then suits all encoders, and which samples are near to
            each other does not change.
        augment: Whether training sees one of the stored views of a sample at random, where the folder has views.
        trusted: See :class:`NoisyDataModule`; by default the places that the data trusted, an empty list for none.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Attributes:
        manifest: What the folder holds, see :class:`~noisylightning.feature_files.Manifest`.
        num_features: Number of features D, known before ``setup``.

    Raises:
        FileNotFoundError: If the folder holds no features.
        ValueError: If they are half-written or damaged, or there are no labels of that name.
    """

    test_argument: ClassVar[str] = "folder"

    def __init__(
        self,
        folder: str | Path,
        labels: str | None = None,
        standardize: bool = True,
        augment: bool = True,
        trusted: int | list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(trusted=trusted, **kwargs)
        self.folder = FeatureFolder(folder)
        self.folder.require_complete()
        self.manifest = self.folder.manifest
        self.class_names: Sequence[str] = self.manifest.class_names
        self.num_classes = len(self.class_names)
        self.num_features = self.manifest.width
        self.has_test = "test" in self.manifest.parts
        known = (*self.manifest.noisy_labels, CLEAN)
        if labels is not None and labels not in known:
            raise BadValue(
                f"{folder} has no labels {labels!r}, only {', '.join(known)}: set labels (--data.labels) to one of"
                " them."
            )
        if labels not in (None, CLEAN) and (self.noise is not None or self.noisy_labels_file is not None):
            raise BadValue(
                f"labels={labels!r} are noisy, and noise upon them has no T: leave labels (--data.labels) or noise"
                " (--data.noise, --data.noisy_labels_file) out."
            )
        self.labels = labels
        self.augment = augment
        if self.trusted is None and self.folder.has("trusted_index"):
            self.trusted = self.folder.array("trusted_index").tolist()
        if standardize:
            self._mean, variances = torch.from_numpy(self.folder.array("statistics"))
            self._scale = 1 / float(variances.mean().sqrt() or 1)
            self.transform = self._standardized
        else:
            self.transform = Tensor.float
        self._views: Tensor | None = None

    def _standardized(self, features: Tensor) -> Tensor:
        return features.float().sub_(self._mean.to(features.device)).mul_(self._scale)

    def load_train(self) -> tuple[Tensor, Tensor]:
        """Features of the samples for training and validation."""
        return self._part("train")

    def load_test(self) -> tuple[Tensor, Tensor]:
        """Features of the test samples."""
        return self._part("test")

    def load_val(self) -> tuple[Tensor, Tensor] | None:
        """Features of the data's own validation set, where it has one."""
        return self._part("val") if "val" in self.manifest.parts else None

    def load_trusted(self) -> tuple[Tensor, Tensor] | None:
        """Features of the data's own trusted set, where it has one."""
        return self._part("trusted") if "trusted" in self.manifest.parts else None

    def load_predict(self) -> tuple[Tensor, Tensor] | None:
        """Features of samples to predict, where there are any."""
        return self._part("predict") if "predict" in self.manifest.parts else None

    def _part(self, part: str) -> tuple[Tensor, Tensor]:
        return self.folder.features(part), torch.from_numpy(self.folder.array(f"{part}_labels"))

    def sample_names(self) -> list[str] | None:
        """File names or texts of the training samples, where the data knew them."""
        path = self.folder.path / "names.json"
        if not path.exists():
            return None
        names: list[str] = json.loads(path.read_text(encoding="utf-8"))
        return names

    def split(self, num: int) -> tuple[Tensor, Tensor]:
        """The data's own split, where it had one; else at random, see :meth:`NoisyDataModule.split`."""
        if not self.folder.has("val_index"):
            return super().split(num)
        val = torch.from_numpy(self.folder.array("val_index"))
        everything = torch.arange(num)
        return everything[~torch.isin(everything, val)], val

    def asymmetric_transition(self, rate: float) -> Tensor:
        """The T of ``AsymmetricNoise(rate)`` that the paper gives for the data, see :class:`NoisyDataModule`."""
        if not self.folder.has("asymmetric"):
            return super().asymmetric_transition(rate)
        at_zero, at_one = torch.from_numpy(self.folder.array("asymmetric")).double()
        return (at_zero + rate * (at_one - at_zero)).to(torch.get_default_dtype())  # it is linear in the rate

    def noisy_label_sets(self, inputs: Inputs | None, labels: Tensor) -> dict[str, NoisyLabels]:
        """The folder's noisy labels, see :meth:`NoisyDataModule.noisy_label_sets`."""
        return {
            name: NoisyLabels.load(self.folder.path / f"noisy_labels_{name}.npz", labels)
            for name in self.manifest.noisy_labels
        }

    def _noisy_labels_of(self, inputs: Inputs, labels: Tensor) -> NoisyLabels | None:
        drawn = super()._noisy_labels_of(inputs, labels)
        names = self.manifest.noisy_labels
        if drawn is not None or self.labels == CLEAN or not names:
            return drawn
        name = names[0] if self.labels is None else self.labels
        return NoisyLabels.load(self.folder.path / f"noisy_labels_{name}.npz", labels)

    def _training_view(self, index: Tensor, augmentation: Augmentation | None = None) -> LabelledView:
        view = super()._training_view(index, augmentation)
        if not (self.augment and self.manifest.num_views):
            return view
        if self._views is None:
            stored, _ = self._on_device((self.folder.features("views"), view.labels))
            assert isinstance(stored, Tensor)
            self._views = stored
        return ViewsAtRandom(self._views, view.labels, index, self.transform, self.seed, self.with_index)

    def state_dict(self) -> dict[str, Any]:
        """What the features are of, for the checkpoint, beside what every data module puts there."""
        return super().state_dict() | {"features": self._identity()}

    def _identity(self) -> dict[str, str]:
        manifest = self.manifest
        return {
            "encoder": manifest.encoder,
            "weights": manifest.weights,
            "transform": manifest.transform,
            "train": manifest.parts["train"].inputs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a checkpoint was made with this encoder's features, and that a resumed fit has the same samples.

        Args:
            state_dict: What :meth:`state_dict` gave.

        Raises:
            ValueError: If it was not.
        """
        super().load_state_dict(state_dict)
        theirs, own = state_dict.get("features", {}), self._identity()
        resumes = self.trainer is not None and self.trainer.state.fn == "fit"
        for what in ("encoder", "weights", "transform", *(["train"] if resumes else [])):
            if what in theirs and theirs[what] != own[what]:
                meant = "training samples" if what == "train" else what
                raise BadValue(
                    f"The checkpoint was made on features of {theirs['encoder']} with another {meant} than those in"
                    f" {self.folder.path}, of {own['encoder']}: set folder (--data.folder) to the ones that it was made"
                    " on."
                )
