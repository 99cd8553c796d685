"""The handwritten digits that come with scikit-learn: real images, no download."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from noisylightning.data.base import NoisyDataModule
from noisylightning.transition import MNIST_FLIPS


class DigitsDataModule(NoisyDataModule):
    """1,797 real 8x8 grey images of digits; 360 of them, the same ones always, are the test set.

    Inputs are float images of shape (1, 8, 8) in [0, 1]. Asymmetric noise flips the digits that the paper flips in
    MNIST.

    Args:
        kwargs: What every data module takes, see :class:`NoisyDataModule`.

    Example:
        >>> data = DigitsDataModule()
        >>> data.setup()
        >>> data.summary
        {'train': 1293, 'validation': 144, 'test': 360}
    """

    num_classes = 10
    class_names = tuple("0123456789")
    flips = MNIST_FLIPS
    num_features = 64

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The 1,437 images that are not the test set's."""
        return self._part(0)

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The 360 test images, 34 to 37 a digit."""
        return self._part(1)

    @staticmethod
    def _part(part: int) -> tuple[Tensor, Tensor]:
        digits = load_digits()
        index = train_test_split(range(len(digits.target)), test_size=360, stratify=digits.target, random_state=0)[part]
        images = torch.from_numpy(digits.images[index]).to(torch.get_default_dtype()) / 16
        return images.unsqueeze(1), torch.from_numpy(digits.target[index])
