"""What is measured on noisy labels over an epoch of training or validation."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from noisylightning.corrections import Correction
from noisylightning.metrics.memorisation import Memorisation

MOST_COUNTED_CLASSES = 2048
"""Up to so many classes a validation estimates the accuracy on clean labels, from C x C counts."""

_MOST_CLASSES = 1000  # beyond which the shares of the classes, solved for by T at each epoch's end, take too long


class NoisyMetrics(nn.Module):
    """Loss and accuracy on noisy labels over an epoch, and what T makes of them.

    Of samples that are known to be trusted only the loss is measured.

    Steps only put their outputs aside, and a few of them are measured at once: on a small network measuring each by
    itself would cost a third of the step.

    Args:
        correction: How T enters the loss.
        memorisation: What counts the wrong labels that are learnt by heart, where that is asked for.
        counts: What counts (noisy label, predicted clean class), see :func:`pair_counts`.

    Attributes:
        with_trusted: Whether batches told which samples are trusted, since it was last set to False.
    """

    ENOUGH = 2**17  # logits put aside before they are measured

    def __init__(
        self,
        correction: Correction,
        memorisation: Memorisation | None = None,
        counts: MulticlassConfusionMatrix | None = None,
    ) -> None:
        super().__init__()
        self.loss = MeanMetric(nan_strategy="disable")  # a NaN loss must show
        self.accuracy = MeanMetric()
        self.memorisation = memorisation
        self.counts = counts
        self._correction = (correction,)  # in a tuple, so that it is no part of the metrics
        self._aside: list[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]] = []
        self._numel = 0
        self.with_trusted = False

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor, of_samples: dict[str, Tensor]) -> None:
        """Put a batch's mean loss, logits, labels, and what a T of the sample asks for, aside."""
        if self._aside:
            _, _, others, of_others = self._aside[-1]
            # class indices do not go with soft labels
            if others.dtype != labels.dtype or of_others.keys() != of_samples.keys():
                self.measure()
        of_samples = {name: value.detach() for name, value in of_samples.items()}
        self._aside.append((loss.detach(), logits.detach(), labels, of_samples))
        self._numel += logits.numel()
        if self._numel >= self.ENOUGH:
            self.measure()

    @torch.no_grad()
    def measure(self) -> None:
        """Bring the metrics up to date."""
        if self._aside:
            (correction,) = self._correction
            losses, logits, labels, of_samples = zip(*self._aside, strict=True)
            # One value a sample: with "disable" torchmetrics 1.9 takes no notice of weights.
            sizes = torch.tensor([len(batch) for batch in labels], device=losses[0].device)
            self.loss.update(torch.stack(losses).repeat_interleave(sizes))
            whole = {name: torch.cat([batch[name] for batch in of_samples]) for name in of_samples[0]}
            scores, given = torch.cat(logits), torch.cat(labels)
            if "trusted" in whole:
                self.with_trusted = True
                noisy = ~whole.pop("trusted")
                scores, given = scores[noisy], given[noisy]
                whole = {name: value[noisy] for name, value in whole.items()}
            # of soft labels the most probable one
            observed = given.argmax(dim=1) if given.is_floating_point() else given
            correct = correction.noisy_log_posterior(scores, **whole).argmax(dim=1) == observed
            self.accuracy.update(correct.float())
            predicted, labelled = countable(scores, given)
            if self.counts is not None:
                self.counts.update(predicted, labelled)
            transition = correction.class_conditional if scores.shape[1] <= _MOST_CLASSES else None
            if self.memorisation is not None and transition is not None and len(labelled):
                self.memorisation.update(scores, labelled, transition)
        self._aside, self._numel = [], 0


def pair_counts(num_classes: int, correction: Correction) -> MulticlassConfusionMatrix | None:
    """Make what counts (noisy label, predicted clean class); None where there is no T, or too many classes."""
    if not correction.uses_transition or num_classes > MOST_COUNTED_CLASSES:
        return None
    return MulticlassConfusionMatrix(num_classes, ignore_index=correction.loss.ignore_index, validate_args=False)


def countable(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return predicted clean classes and noisy labels of which T says something, ``(N,)``.

    None of soft labels, nor where a sample has many labels that depend on each other.
    """
    if labels.is_floating_point() or logits.ndim != 2:
        return labels.new_empty(0, dtype=torch.long), labels.new_empty(0, dtype=torch.long)
    return logits.argmax(dim=1), labels
