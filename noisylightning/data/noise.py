"""Label noise: what corrupts clean labels.

Labels are corrupted once, all at once, from an explicit seed. The noisy label of a sample is therefore a function of
the seed and of the sample's place in the data set, never of the batch, worker or rank that reads it.

Throughout, ``T[i, j] = p(noisy = j | clean = i)``: rows sum to one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from noisylightning.data.view import Inputs
from noisylightning.errors import BadType, BadValue
from noisylightning.transition import from_flips, load_transition, pairflip, symmetric, validate_transition


def check_labels(labels: Tensor, num_classes: int, what: str = "labels", every_class: bool = True) -> Tensor:
    """Check that labels are class numbers and that every class occurs.

    Args:
        labels: Integer tensor of shape (N,).
        num_classes: Number of classes C.
        what: What to call the labels in an error.
        every_class: Whether a class without a sample is an error.

    Returns:
        The labels as an int64 tensor.

    Raises:
        TypeError: If the labels are not integers.
        ValueError: If the shape is not (N,), a label is outside 0..C-1, or a class has no sample.

    Example:
        >>> check_labels(torch.tensor([0, 1, 1], dtype=torch.uint8), 2)
        tensor([0, 1, 1])
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BadType(f"{what} must be integers in 0..{num_classes - 1}, got {labels.dtype}: convert them first.")
    if labels.ndim != 1 or len(labels) == 0:
        raise BadValue(f"{what} must have shape (N,) with N > 0, got {tuple(labels.shape)}; pass one label a sample.")
    labels = labels.to(torch.int64)
    outside = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise BadValue(
            f"{what} must lie in 0..{num_classes - 1}, got {int(labels[first])} at sample {first}; "
            "correct the labels, or class_names (--data.class_names) or num_classes."
        )
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten()
    if every_class and len(empty):
        raise BadValue(
            f"{what} hold no sample of class {int(empty[0])} (of {num_classes} classes); "
            "drop the class or add samples of it."
        )
    return labels


def measure_transition(clean: Tensor, noisy: Tensor, num_classes: int) -> Tensor:
    """The T found between clean and noisy labels by counting.

    Args:
        clean: Clean labels, int64, shape (N,); every class occurs.
        noisy: Noisy labels, int64, shape (N,).
        num_classes: Number of classes C.

    Returns:
        T of shape (C, C): row i holds the shares of the noisy labels among the samples of clean class i.

    Example:
        >>> measure_transition(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
        tensor([[0.5000, 0.5000],
                [0.0000, 1.0000]])
    """
    counts = torch.bincount(clean * num_classes + noisy, minlength=num_classes**2).view(num_classes, num_classes)
    return (counts.to(torch.float64) / counts.sum(dim=1, keepdim=True)).to(torch.get_default_dtype())


class LabelNoise(ABC):
    """What corrupts labels.

    A subclass draws all noisy labels at once in :meth:`corrupt` and says in :meth:`transition` which T it asks for.

    Attributes:
        rate: The rate asked for, as the noise's own definition counts it; None where it asks for none.
    """

    rate: float | None = None

    def __repr__(self) -> str:
        arguments = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(arguments)})"

    @abstractmethod
    def transition(self, num_classes: int) -> Tensor | None:
        """The T that this noise asks for.

        Args:
            num_classes: Number of classes C.

        Returns:
            T of shape (C, C), or None where the noise is no function of the class alone.
        """

    @abstractmethod
    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Draw one noisy label for each clean one.

        Args:
            labels: Clean labels, int64, shape (N,).
            num_classes: Number of classes C.
            generator: CPU generator, the only source of chance.
            inputs: The N inputs, for noise that depends on them.

        Returns:
            Noisy labels, int64, shape (N,).
        """


def sample_noisy_labels(labels: Tensor, transition: Tensor, generator: torch.Generator) -> Tensor:
    """Draw y' ~ T[y] for every label y by inverting the row's distribution function.

    Args:
        labels: Clean labels, int64, shape (N,).
        transition: Row-stochastic T of shape (C, C).
        generator: CPU generator.

    Returns:
        Noisy labels, int64, shape (N,).

    Example:
        >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sample_noisy_labels(torch.tensor([0, 1, 1]), swap, torch.Generator().manual_seed(0))
        tensor([1, 0, 0])
    """
    cdf = transition.to("cpu", torch.float64).cumsum(dim=1)
    cdf = cdf / cdf[:, -1:]  # so that u < 1 never falls beyond the last class
    u = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    noisy = torch.empty_like(labels)
    for c in range(len(cdf)):  # by class: no (N, C) tensor, which a thousand classes could not afford
        of_class = (labels == c).nonzero().flatten()
        noisy[of_class] = torch.searchsorted(cdf[c], u[of_class], right=True)
    return noisy


class ClassConditionalNoise(LabelNoise):
    """Noise whose T is all there is to it: ``y' ~ T[y]``, whatever the input."""

    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Draw y' ~ T[y], see :meth:`LabelNoise.corrupt`."""
        transition = self.transition(num_classes)
        assert transition is not None
        return sample_noisy_labels(labels, transition, generator)


class SymmetricNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes one of the other C - 1, all equally likely.

    Args:
        rate: Share of labels made wrong, in [0, 1].

    Example:
        >>> SymmetricNoise(0.2).transition(3)
        tensor([[0.8000, 0.1000, 0.1000],
                [0.1000, 0.8000, 0.1000],
                [0.1000, 0.1000, 0.8000]])
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        return symmetric(num_classes, self.rate)


class PairFlipNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes the next class, the last the first.

    Args:
        rate: Share of labels made wrong, in [0, 1].

    Example:
        >>> PairFlipNoise(0.4).transition(3)
        tensor([[0.6000, 0.4000, 0.0000],
                [0.0000, 0.6000, 0.4000],
                [0.4000, 0.0000, 0.6000]])
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        return pairflip(num_classes, self.rate)


class AsymmetricNoise(ClassConditionalNoise):
    """With probability ``rate`` a label becomes the class that its own is mistaken for.

    Args:
        rate: Probability of the flip for the classes in the map, in [0, 1]; other classes stay clean.
        flips: ``{class: mistaken for}`` or ``{class: {mistaken for: weight}}``. None takes the map that the paper
            gives for the data set, see :meth:`NoisyDataModule.asymmetric_transition`.

    Example:
        >>> AsymmetricNoise(0.3, flips={0: 1}).transition(2)
        tensor([[0.7000, 0.3000],
                [0.0000, 1.0000]])
    """

    def __init__(self, rate: float, flips: dict[int, int | dict[int, float]] | None = None) -> None:
        self.rate = rate
        self.flips: Mapping[int, int | Mapping[int, float]] | None = flips

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        assert self.rate is not None
        if self.flips is None:
            raise BadValue(
                "AsymmetricNoise(flips=None) takes the flips of a known data set, and this data has none of its own; "
                "give flips (--data.noise.flips), for example {0: 1}."
            )
        return from_flips(num_classes, self.flips, self.rate)


class TransitionNoise(ClassConditionalNoise):
    """Noise by a given T, for example one measured elsewhere.

    Args:
        transition: T of shape (C, C), row-stochastic, or the path of a ``.npy`` or ``.csv`` file that holds it.

    Example:
        >>> TransitionNoise(torch.tensor([[0.9, 0.1], [0.2, 0.8]])).transition(2)
        tensor([[0.9000, 0.1000],
                [0.2000, 0.8000]])
    """

    def __init__(self, transition: str | Path | Tensor) -> None:
        self._transition = transition if isinstance(transition, Tensor) else load_transition(transition)

    def transition(self, num_classes: int) -> Tensor:
        """The T that this noise asks for, see :meth:`LabelNoise.transition`."""
        validate_transition(self._transition, num_classes=num_classes)
        return self._transition


class InstanceDependentNoise(LabelNoise):
    """Labels that the input itself makes hard: part-dependent noise (Xia et al. 2020, algorithm 2).

    A sample is mislabelled with a probability of its own, q ~ N(rate, 0.1^2) cut to [0, 1], and the wrong class follows
    softmax(x W[y]) without the own one, x standardised and W[y] standard normal. No T describes it; the one measured is
    reported.

    Args:
        rate: Mean share of labels made wrong, in [0, 1].

    Raises:
        ValueError: If the rate is outside [0, 1].

    Example:
        >>> clean = torch.arange(1000) % 3
        >>> inputs = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
        >>> noisy = InstanceDependentNoise(0.3).corrupt(clean, 3, torch.Generator().manual_seed(0), inputs)
        >>> round((noisy != clean).float().mean().item(), 1)
        0.3
    """

    spread = 0.1
    batch_size = 1024

    def __init__(self, rate: float) -> None:
        if not 0 <= rate <= 1:
            raise BadValue(f"the rate must lie in [0, 1], got {rate}: set rate (--data.noise.rate).")
        self.rate: float = rate

    def transition(self, num_classes: int) -> None:
        """None: the noise is no function of the class alone."""

    def corrupt(
        self, labels: Tensor, num_classes: int, generator: torch.Generator, inputs: Inputs | None = None
    ) -> Tensor:
        """Draw noisy labels from the inputs, see :meth:`LabelNoise.corrupt`."""
        if inputs is None:
            raise BadValue("InstanceDependentNoise needs the inputs, and none were given: pass inputs.")
        wrong = self._wrong_rates(len(labels), generator)
        u = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        noisy = torch.empty_like(labels)
        num_features = inputs[torch.tensor([0])].numel()
        for c in range(num_classes):  # W of all classes at once, (C, D, C), would not fit for large images
            weights = torch.randn(num_features, num_classes, generator=generator)
            for index in (labels == c).nonzero().flatten().split(self.batch_size):
                x = inputs[index].flatten(1).to("cpu", torch.float32)
                x = x - x.mean(dim=1, keepdim=True)
                x = torch.nn.functional.normalize(x) * num_features**0.5  # mean 0 and variance 1
                noisy[index] = self._draw(x @ weights, c, wrong[index], u[index])
        return noisy

    def _wrong_rates(self, num: int, generator: torch.Generator) -> Tensor:
        """The truncated normal by its inverse distribution function."""
        low, high = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - self.rate) / self.spread)
        u = low + (high - low) * torch.rand(num, generator=generator, dtype=torch.float64)
        return (self.rate + self.spread * torch.special.ndtri(u)).clamp(0, 1)

    @staticmethod
    def _draw(scores: Tensor, own: int, wrong: Tensor, u: Tensor) -> Tensor:
        scores = scores.double()
        scores[:, own] = -torch.inf
        shares = scores.softmax(dim=1) * wrong.unsqueeze(1)
        shares[:, own] = 1 - wrong
        cdf = shares.cumsum(dim=1)
        return torch.searchsorted(cdf / cdf[:, -1:], u.unsqueeze(1), right=True).squeeze(1)
