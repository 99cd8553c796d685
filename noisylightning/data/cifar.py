"""CIFAR-10 and CIFAR-100, from the original files, with their human labels (CIFAR-10N and CIFAR-100N)."""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from noisylightning.data.base import NoisyDataModule
from noisylightning.data.human import HumanNoise, read_human_labels
from noisylightning.data.image import Normalize, RandomCropFlip
from noisylightning.data.locations import default_data_dir
from noisylightning.data.noisy_labels import NoisyLabels
from noisylightning.data.view import Inputs
from noisylightning.errors import BadValue, NoSuchFile
from noisylightning.transition import CIFAR10_FLIPS, CIFAR100_SUPERCLASSES, cifar100_flips


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers, and runs nothing else that a pickle may ask for."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        # how numpy's own reduce names an array's constructor, before and since version 2
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Python 3 writes bytes so for Python 2
        ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._allowed[module, name]


def read_array_pickle(path: Path) -> dict[bytes, Any]:
    """Read a dictionary of arrays from a pickle without running what else is in it.

    Args:
        path: A pickle as the authors of CIFAR wrote them.

    Returns:
        Its content; the keys are bytes.

    Raises:
        ValueError: If the file is truncated, no dictionary, or asks for anything but arrays and plain containers.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    # a damaged pickle fails in as many ways as there are opcodes
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadValue(f"{path} is truncated, corrupt or no pickle of arrays ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise BadValue(f"{path} holds a {type(content).__name__}, not the dictionary it should: fetch it again.")
    return content


class CIFAR10DataModule(NoisyDataModule):
    """CIFAR-10: 50,000 colour images in 10 classes to train and validate, 10,000 to test.

    Inputs are normalised float images of shape (3, 32, 32), kept in memory as uint8; training images are padded by 4
    pixels, cropped and mirrored at random.

    Args:
        data_dir: Folder that holds ``cifar-10-batches-py``; by default what the environment variable
            ``NOISYLIGHTNING_DATA`` names, else ``data``.
        download: Whether to fetch files that are missing.
        augment: Whether to crop and mirror training images.
        verify: Whether the files must be the published ones, byte for byte.
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Raises:
        FileNotFoundError: At ``setup``, if a file is not there.
        ValueError: At ``setup``, if one is not what was published.

    Example:
        >>> from noisylightning.data import SymmetricNoise
        >>> CIFAR10DataModule(noise=SymmetricNoise(0.2)).class_names[3]
        'cat'
    """

    num_classes = 10
    class_names: Sequence[str] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    flips = CIFAR10_FLIPS
    num_features = 3072
    transform = Normalize(mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616])
    dataset: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10  # knows the names and checksums of the files
    label_key: ClassVar[bytes] = b"labels"

    def __init__(
        self,
        data_dir: str | Path | None = None,
        download: bool = False,
        augment: bool = True,
        verify: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.data_dir = default_data_dir() if data_dir is None else Path(data_dir)
        self.download = download
        self.verify = verify
        if augment:
            self.augmentation = RandomCropFlip(size=32, padding=4)

    def prepare_data(self) -> None:
        """Fetch the files where that is asked for, on one process."""
        if self.download:
            self.dataset(self.data_dir, download=True)

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The 50,000 training images."""
        return self._part(self.dataset.train_list)

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The 10,000 test images."""
        return self._part(self.dataset.test_list)

    def _part(self, files: list[list[str]]) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for name, md5 in files:
            path = self._checked_file(name, md5)
            content = read_array_pickle(path)
            try:
                images.append(torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32))
                labels.append(torch.tensor(content[self.label_key]))
            except (KeyError, TypeError, RuntimeError) as error:
                raise BadValue(f"{path} does not hold images and labels ({error}): fetch it again.") from error
        return torch.cat(images), torch.cat(labels)

    def _checked_file(self, name: str, md5: str) -> Path:
        path = self.data_dir / self.dataset.base_folder / name
        if not path.is_file():
            raise NoSuchFile(
                f"no {name} in {path.parent}: set data_dir or NOISYLIGHTNING_DATA to the folder that holds "
                f"{self.dataset.base_folder} (--data.data_dir), or download=True (--data.download true)."
            )
        if self.verify:
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
            if found != md5:
                raise BadValue(
                    f"{path} is not the published file, its md5 is {found} and not {md5}: fetch it again, or set "
                    "verify=False (--data.verify false) to take it as it is."
                )
        return path


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100: 50,000 colour images in 100 classes to train and validate, 10,000 to test.

    All else is as in :class:`CIFAR10DataModule`; the folder is ``cifar-100-python``. Asymmetric noise takes each class
    for the next one in its superclass.
    """

    num_classes = 100
    class_names = tuple(sorted(name for five in CIFAR100_SUPERCLASSES.values() for name in five))
    flips = cifar100_flips()
    transform = Normalize(mean=[0.5071, 0.4865, 0.4409], std=[0.2673, 0.2564, 0.2762])
    dataset = datasets.CIFAR100
    label_key = b"fine_labels"


class CIFAR10NDataModule(CIFAR10DataModule):
    """CIFAR-10N: CIFAR-10 with labels that people gave to the training images (Wei et al. 2022).

    Args:
        labels: Which of them: the majority of three people (9 % wrong), one person (17 to 18 %), or any wrong one of
            the three (40 %).
        human_file: ``CIFAR-10_human.pt`` or an ``.npz`` of the same arrays; by default ``cifar10n.npz`` or
            ``CIFAR-10_human.pt`` in ``data_dir``.
        data_dir: See :class:`CIFAR10DataModule`.
        kwargs: What :class:`CIFAR10DataModule` takes, but for ``noise``.
    """

    label_sets: ClassVar[tuple[str, ...]] = ("aggre", "random1", "random2", "random3", "worse")

    def __init__(
        self,
        labels: Literal["aggre", "random1", "random2", "random3", "worse"] = "worse",
        human_file: str | Path | None = None,
        data_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        self.labels = labels
        self.human_file = human_file or _find(data_dir, "cifar10n.npz", "CIFAR-10_human.pt")
        super().__init__(data_dir=data_dir, noise=HumanNoise(self.human_file, _key_of(labels)), **kwargs)

    def noisy_label_sets(self, inputs: Inputs | None, labels: Tensor) -> dict[str, NoisyLabels]:
        """All five sets of labels, see :meth:`NoisyDataModule.noisy_label_sets`."""
        there = read_human_labels(self.human_file)
        others = (name for name in self.label_sets if name != self.labels and _key_of(name) in there)
        return {
            name: NoisyLabels.draw(
                HumanNoise(self.human_file, _key_of(name)), labels, self.num_classes, self.noise_seed
            )
            for name in (self.labels, *others)
        }


class CIFAR100NDataModule(CIFAR100DataModule):
    """CIFAR-100N: CIFAR-100 with labels that people gave to the training images, 40 % wrong (Wei et al. 2022).

    Args:
        human_file: ``CIFAR-100_human.pt`` or an ``.npz`` of the same arrays; by default ``cifar100n.npz`` or
            ``CIFAR-100_human.pt`` in ``data_dir``.
        data_dir: See :class:`CIFAR10DataModule`.
        kwargs: What :class:`CIFAR100DataModule` takes, but for ``noise``.
    """

    def __init__(self, human_file: str | Path | None = None, data_dir: str | Path | None = None, **kwargs: Any) -> None:
        noise = HumanNoise(human_file or _find(data_dir, "cifar100n.npz", "CIFAR-100_human.pt"), "noisy_label")
        super().__init__(data_dir=data_dir, noise=noise, **kwargs)


def _key_of(labels: str) -> str:
    """The name of a set of labels in the published file."""
    return f"random_label{labels[-1]}" if labels.startswith("random") else f"{labels}_label"


def _find(data_dir: str | Path | None, *names: str) -> Path:
    """The first of the names that is there, or the first of all, for the error to name."""
    folder = default_data_dir() if data_dir is None else Path(data_dir)
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
