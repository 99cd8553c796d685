"""Build transition matrices: ``T[i, j] = p(noisy = j | clean = i)``, rows sum to one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from noisylightning.errors import BadValue

MNIST_FLIPS: dict[int, int] = {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}
"""Digits that look alike, as Patrini et al. (2017) flip them."""

CIFAR10_FLIPS: dict[int, int] = {2: 0, 3: 5, 4: 7, 5: 3, 9: 1}
"""Bird to airplane, cat and dog to one another, deer to horse, truck to automobile (Patrini et al. 2017)."""

CIFAR100_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""The 20 superclasses of CIFAR-100; the labels are the alphabetical order of the 100 class names."""


def symmetric(num_classes: int, rate: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of symmetric noise: a label is wrong with probability ``rate``, and then any other one alike.

    Args:
        num_classes: The number of classes C, at least 2.
        rate: The probability of a wrong label, in [0, 1]. At ``(C - 1) / C`` labels carry nothing.
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(C, C)``.

    Raises:
        ValueError: Fewer than two classes, or a rate outside [0, 1].

    Example:
        >>> symmetric(3, 0.2)
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]])
    """
    _check(num_classes, rate)
    transition = torch.full((num_classes, num_classes), rate / (num_classes - 1), dtype=dtype)
    return transition.fill_diagonal_(1 - rate)


def pairflip(num_classes: int, rate: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of pair-flip noise: class ``i`` turns into ``i + 1`` (the last into the first) with probability ``rate``.

    Args:
        num_classes: The number of classes C, at least 2.
        rate: The probability of a wrong label, in [0, 1].
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(C, C)``.

    Raises:
        ValueError: Fewer than two classes, or a rate outside [0, 1].

    Example:
        >>> pairflip(3, 0.45)
        tensor([[0.5500, 0.4500, 0.0000],
                [0.0000, 0.5500, 0.4500],
                [0.4500, 0.0000, 0.5500]])
    """
    return from_flips(num_classes, {i: (i + 1) % num_classes for i in range(num_classes)}, rate, dtype=dtype)


def from_flips(
    num_classes: int,
    flips: Mapping[int, int | Mapping[int, float]],
    rate: float,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """T of class-dependent noise, from a map of which class is mistaken for which.

    Args:
        num_classes: The number of classes C, at least 2.
        flips: For each class that is ever mislabelled, the class it turns into, or several with relative weights.
        rate: The probability of a wrong label for each class in ``flips``, in [0, 1]; the others are always right.
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(C, C)``.

    Raises:
        ValueError: A class out of range, one that turns into itself, a weight that is not positive, or a rate
            outside [0, 1].

    Example:
        >>> from_flips(3, {0: 1, 2: {0: 1, 1: 3}}, rate=0.4)
        tensor([[0.6000, 0.4000, 0.0000],
                [0.0000, 1.0000, 0.0000],
                [0.1000, 0.3000, 0.6000]])
    """
    _check(num_classes, rate)
    transition = torch.eye(num_classes, dtype=torch.float64)
    for clean, noisy in flips.items():
        shares = noisy if isinstance(noisy, Mapping) else {noisy: 1.0}
        for label in (clean, *shares):
            if not 0 <= label < num_classes:
                raise BadValue(f"flips name class {label} but there are {num_classes}: use 0 to {num_classes - 1}.")
        if clean in shares:
            raise BadValue(f"flips turn class {clean} into itself: leave it out, what stays right is 1 - rate.")
        if not shares or not all(0 < share < float("inf") for share in shares.values()):
            raise BadValue(f"the weights of the flips of class {clean} must be positive, got {dict(shares)}.")
        transition[clean, clean] = 1 - rate
        for label, share in shares.items():
            transition[clean, label] = rate * share / sum(shares.values())
    return transition.to(dtype or torch.get_default_dtype())


def mnist_asymmetric(rate: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of the MNIST noise of Patrini et al. (2017), section 5: 2 to 7, 3 to 8, 5 and 6 to one another, 7 to 1.

    Args:
        rate: The probability of a wrong label for those digits, in [0, 1].
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(10, 10)``.

    Raises:
        ValueError: A rate outside [0, 1].

    Example:
        >>> mnist_asymmetric(0.6)[7, :3]
        tensor([0.0000, 0.6000, 0.0000])
    """
    return from_flips(10, MNIST_FLIPS, rate, dtype=dtype)


def cifar10_asymmetric(rate: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of the CIFAR-10 noise of Patrini et al. (2017), section 5, by :data:`CIFAR10_FLIPS`.

    Args:
        rate: The probability of a wrong label for those classes, in [0, 1].
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(10, 10)``.

    Raises:
        ValueError: A rate outside [0, 1].

    Example:
        >>> cifar10_asymmetric(0.2)[9, :3]
        tensor([0.0000, 0.2000, 0.0000])
    """
    return from_flips(10, CIFAR10_FLIPS, rate, dtype=dtype)


def cifar100_flips(*, superclasses: bool = True) -> dict[int, int]:
    """Each CIFAR-100 class to the next of its five, the fifth to the first.

    Args:
        superclasses: Whether the fives are the true superclasses, or consecutive label ids, which is what the code of
            Patrini et al. (2017) did and which mixes superclasses.

    Returns:
        Clean class to noisy class, in the standard (alphabetical) order of the labels.

    Example:
        >>> cifar100_flips()[4]  # a beaver is taken for a dolphin
        30
        >>> cifar100_flips(superclasses=False)[4]
        0
    """
    if superclasses:
        label = {name: i for i, name in enumerate(sorted(sum(CIFAR100_SUPERCLASSES.values(), ())))}
        fives = [sorted(label[name] for name in names) for names in CIFAR100_SUPERCLASSES.values()]
    else:
        fives = [list(range(first, first + 5)) for first in range(0, 100, 5)]
    return {clean: noisy for five in fives for clean, noisy in zip(five, five[1:] + five[:1], strict=True)}


def cifar100_asymmetric(rate: float, superclasses: bool = True, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of the CIFAR-100 noise of Patrini et al. (2017), section 5: each class to the next within its superclass.

    Args:
        rate: The probability of a wrong label, in [0, 1].
        superclasses: Whether to use the true superclasses; see :func:`cifar100_flips`.
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(100, 100)``.

    Raises:
        ValueError: A rate outside [0, 1].

    Example:
        >>> cifar100_asymmetric(0.4)[4, 30]
        tensor(0.4000)
    """
    return from_flips(100, cifar100_flips(superclasses=superclasses), rate, dtype=dtype)


def binary_asymmetric(rate: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """T of the two-class text noise of Patrini et al. (2017), section 5: 1 to 0 at ``rate``, 0 to 1 at 0.05.

    Args:
        rate: The probability that label 1 turns into 0, in [0, 1].
        dtype: Default: torch's default dtype.

    Returns:
        Row-stochastic T, shape ``(2, 2)``.

    Raises:
        ValueError: A rate outside [0, 1].

    Example:
        >>> binary_asymmetric(0.3)
        tensor([[0.9500, 0.0500],
                [0.3000, 0.7000]])
    """
    _check(2, rate)
    return torch.tensor([[0.95, 0.05], [rate, 1 - rate]], dtype=dtype)


def _check(num_classes: int, rate: float) -> None:
    if num_classes < 2:
        raise BadValue(f"label noise needs at least 2 classes, got {num_classes}.")
    if not 0 <= rate <= 1:
        raise BadValue(f"the noise rate is a probability in [0, 1], got {rate}.")
