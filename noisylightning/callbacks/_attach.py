"""How a correction gets into a LightningModule that somebody else wrote."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisylightning.corrections import Correction, NoCorrection


def require_use_of_transition(module: nn.Module, name: str) -> None:
    """Stop unless the module has a correction at ``name`` that uses T, or a hook that takes T.

    Raises:
        ValueError: If it has neither.
    """
    found, owner = getattr(module, name, None), type(module).__name__
    if isinstance(found, NoCorrection):
        raise ValueError(
            f"{owner}.{name} is NoCorrection, so stage two would not use T: choose ForwardCorrection or another."
        )
    if not isinstance(found, Correction) and not callable(getattr(module, "on_transition_estimated", None)):
        raise ValueError(
            f"{owner} has no correction at {name!r}: pass correction=... and loss_attribute=..., the name of its"
            " criterion, or define on_transition_estimated(self, transition)."
        )


def attach(correction: Correction, module: nn.Module, name: str) -> Callable[[], bool]:
    """Let the module's criterion at ``name`` compute the correction.

    A criterion that is a module is not replaced, only its computation is: the module's checkpoints keep the form that
    its author gave them, and load where nobody knows of corrections.

    Returns:
        What tells whether the module has called it in training.

    Raises:
        ValueError: If the module calls nothing by that name.
    """
    criterion: Any = getattr(module, name, None)
    if not callable(criterion):
        raise ValueError(
            f"{type(module).__name__} has no criterion {name!r}: loss_attribute must name the attribute that it calls"
            " as (logits, labels)."
        )

    called = False

    def corrected(logits: Tensor, labels: Tensor, *index: Tensor) -> Tensor:
        nonlocal called
        called = called or torch.is_grad_enabled()  # so not in validation
        if next(correction.buffers(), logits).device != logits.device:  # the module moves without it
            correction.to(logits.device)
        return correction(logits, labels, *index)

    if isinstance(criterion, nn.Module):
        criterion.forward = corrected
    else:
        setattr(module, name, corrected)
    return lambda: called
