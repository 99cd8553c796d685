"""How many wrong labels a network has learnt by heart, as a metric."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from noisylightning.errors import BadValue, NotReady
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.memorisation import (
    accuracy_ceiling,
    loss_floor,
    memorised_share,
    wrong_label_probability,
)
from noisylightning.transition import Transition, as_transition


class Memorisation(Metric):
    """What share of the wrong labels a network has learnt by heart, and what T allows to one that has learnt none.

    See :func:`~noisylightning.functional.memorised_share`. Feed it the samples that the network is trained on, with its
    scores while it trains. The sums are exact: the same bits for any batches, order and number of processes.

    Args:
        num_classes: Number of classes C.
        **kwargs: Passed on to :class:`torchmetrics.Metric`.

    Example:
        >>> T = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> labels, clean = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]), torch.arange(8) // 4
        >>> metric = Memorisation(2)
        >>> metric.update(50.0 * torch.eye(2)[clean], labels, T)  # it knows the classes
        >>> metric.compute()["memorised"].abs().round(decimals=5)
        tensor(0.)
        >>> metric.reset()
        >>> metric.update(50.0 * torch.eye(2)[labels], labels, T)  # it knows the labels
        >>> metric.compute()["memorised"].round(decimals=5)
        tensor(1.)
    """

    full_state_update = False
    wrong: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.add_state("wrong", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self._last: tuple[Transition, ...] = ()  # T of the last update; in a tuple, so that it is no part of the metric

    def update(self, logits: Tensor, noisy_labels: Tensor, transition: Tensor | Transition) -> None:
        """Take a batch in.

        Args:
            logits: Scores of the clean classes, shape ``(N, C)``.
            noisy_labels: The labels they were trained on, ``(N,)``; one that is no class, as -100, does not count.
            transition: T, row-stochastic, shape ``(C, C)``; one for all samples.

        Raises:
            ValueError: If T depends on the sample, or shapes do not go together.
        """
        transition = as_transition(transition, self.num_classes, copy=False)
        if not transition.is_class_conditional:
            raise BadValue(
                f"a {type(transition).__name__} depends on the sample, but what is memorised is counted by one T: give"
                " its mean, transition.to_dense()."
            )
        labelled = (noisy_labels >= 0) & (noisy_labels < self.num_classes)
        labels = noisy_labels[labelled]
        wrong = wrong_label_probability(logits[labelled], labels, transition)
        self.wrong = self.wrong + to_fixed(wrong).sum()
        self.counts = self.counts + labels.bincount(minlength=self.num_classes)
        self._last = (transition,)

    def compute(self) -> dict[str, Tensor]:
        """Return ``memorised``, ``accuracy_ceiling`` and ``loss_floor``, float32 scalars.

        Raises:
            RuntimeError: If there was no label.
        """
        if not self._last or not bool(self.counts.sum() > 0):
            raise NotReady("Memorisation has seen no label: call update(logits, noisy_labels, transition) first.")
        transition = self._last[0].to_dense()
        found = {
            "memorised": memorised_share(from_fixed(self.wrong), transition, self.counts),
            "accuracy_ceiling": accuracy_ceiling(transition, self.counts),
            "loss_floor": loss_floor(transition, self.counts),
        }
        return {name: value.float().to(self.counts.device) for name, value in found.items()}
