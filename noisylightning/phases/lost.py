"""Classes that training loses: of two that are labelled alike one may take all samples of both."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from noisylightning import internals
from noisylightning.errors import UserError
from noisylightning.estimators import within_fit
from noisylightning.functional.names import exchangeable
from noisylightning.functional.verdict import lost_classes
from noisylightning.models import head_of
from noisylightning.module import network_with_head
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


def find_lost(fit: Fit, predict: within_fit.Predict) -> list[int]:
    """Return which classes the network takes for others labelled alike, by the data that T is estimated on.

    A collective: every process calls it, and gets the same answer.

    Args:
        fit: The fit, with T-hat in its memory.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``.
    """
    assert fit.memory.transition is not None
    loader = within_fit.estimation_loader(fit.trainer, fit.module)
    own = within_fit.collect(fit.trainer, fit.module, loader, predict, fit.num_classes)
    counts = torch.stack(
        [seen.bincount(minlength=fit.num_classes) for seen in (own.noisy_labels, own.logits.argmax(1))]
    )
    shares, predicted = fit.trainer.strategy.reduce(counts.to(fit.module.device), reduce_op="sum").cpu()
    return list(lost_classes(fit.memory.transition, shares, predicted))


def draw_head(fit: Fit) -> None:
    """Draw the weights of the head anew, the same on every process.

    Args:
        fit: The fit, at the beginning of an epoch; the draw depends on its seed and the epoch.

    Raises:
        ValueError: If the network has no ``nn.Linear``, and names no head.
    """
    assert fit.memory.seed is not None
    head = head_of(*network_with_head(fit.module))
    internals.set_random_state(fit.trainer, fit.memory.seed)
    for layer in _drawn(head):
        layer.reset_parameters()  # type: ignore[operator]
    head.load_state_dict(fit.trainer.strategy.broadcast(internals.snapshot(head)))


def can_draw_head(module: LightningModule) -> bool:
    """Tell whether a module has a head whose weights can be drawn anew.

    Args:
        module: The module.
    """
    try:
        return bool(_drawn(head_of(*network_with_head(module))))
    except UserError:
        return False


def _drawn(head: nn.Module) -> list[nn.Module]:
    return [layer for layer in head.modules() if callable(getattr(layer, "reset_parameters", None))]
