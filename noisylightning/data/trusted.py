"""Which samples have labels that are known to be right."""

import torch
from torch import Tensor

from noisylightning.data._random import seeded_generator
from noisylightning.errors import BadValue


def choose_trusted(trusted: int | list[int] | None, labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """Choose the trusted samples.

    Args:
        trusted: Their places, or how many to draw of each class; None for none.
        labels: Labels of all N samples, int64, shape (N,).
        num_classes: Number of classes C.
        seed: Seed of the draw.

    Returns:
        Their places in order, int64.

    Raises:
        ValueError: If a place is outside 0..N-1 or comes twice, or a class has not more samples than are to be drawn.

    Example:
        >>> choose_trusted([5, 2], torch.arange(6) % 2, num_classes=2, seed=0)
        tensor([2, 5])
        >>> (choose_trusted(1, torch.arange(6) % 2, num_classes=2, seed=0) % 2).sort().values
        tensor([0, 1])
    """
    if trusted is None:
        return torch.empty(0, dtype=torch.int64)
    if not isinstance(trusted, int):
        index = torch.tensor(trusted, dtype=torch.int64)
        wrong = [i for i in trusted if not 0 <= i < len(labels)]
        if wrong or len(index.unique()) < len(index):
            raise BadValue(
                f"trusted must name samples in 0..{len(labels) - 1}, each once, got "
                f"{wrong[0] if wrong else 'one twice'}: correct trusted (--data.trusted)."
            )
        return index.sort().values
    counts = torch.bincount(labels, minlength=num_classes)
    if not 0 < trusted < counts.min():
        raise BadValue(
            f"trusted={trusted} of each class cannot be drawn, the smallest class has {int(counts.min())} "
            "samples: set trusted (--data.trusted) to at least 1 and fewer than that."
        )
    order = torch.randperm(len(labels), generator=seeded_generator("trusted", seed))
    return torch.cat([order[labels[order] == c][:trusted] for c in range(num_classes)]).sort().values
