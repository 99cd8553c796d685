"""Classes that training loses: of two that are labelled alike one may take all samples of both."""

import torch
from torch import Tensor

from noisylightning import internals
from noisylightning.estimators import within_fit
from noisylightning.functional.names import exchangeable
from noisylightning.functional.verdict import lost_classes
from noisylightning.models.head import head_of
from noisylightning.phases.base import Fit

_MOST_CLASSES = 200  # whose predictions of all samples are small


def can_be_lost(transition: Tensor) -> list[int]:
    """Return the classes of which one may take the samples of another: those that T-hat hardly tells apart.

    Args:
        transition: T-hat, ``(C, C)``.
    """
    if len(transition) > _MOST_CLASSES:
        return []
    return [i for group in exchangeable(transition.to_dense()) for i in group]


def find_lost(fit: Fit, predict: within_fit.Predict, classes: list[int]) -> list[int]:
    """Return which of some classes the network hardly ever predicts, by the data that T is estimated on.

    A collective: every process calls it, and gets the same answer.

    Args:
        fit: The fit, with T-hat in its memory.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``.
        classes: The classes.
    """
    assert fit.memory.transition is not None
    loader = within_fit.estimation_loader(fit.trainer, fit.module)
    own = within_fit.collect(fit.trainer, fit.module, loader, predict, fit.num_classes)
    counts = torch.stack(
        [seen.bincount(minlength=fit.num_classes) for seen in (own.noisy_labels, own.logits.argmax(1))]
    )
    shares, predicted = fit.trainer.strategy.reduce(counts.to(fit.module.device), reduce_op="sum").cpu()
    lost = lost_classes(fit.memory.transition, shares, predicted)
    return [i for i in classes if i in lost]


def draw_head(fit: Fit) -> None:
    """Draw the weights of the last layer anew, the same on every process.

    Args:
        fit: The fit, at the beginning of an epoch; the draw depends on its seed and the epoch.

    Raises:
        ValueError: If the network has no ``nn.Linear``.
    """
    assert fit.memory.seed is not None
    head = head_of(fit.module)
    internals.set_random_state(fit.trainer, fit.memory.seed)
    head.reset_parameters()  # type: ignore[operator]
    head.load_state_dict(fit.trainer.strategy.broadcast(internals.snapshot(head)))
