"""What the callback does to a LightningModule that somebody else wrote: it brings the correction in, first of all."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from noisylightning.corrections import Correction
from noisylightning.errors import BadValue


def require_use_of_transition(module: nn.Module, name: str) -> None:
    """Stop unless the module has a correction at ``name`` that uses T, or a hook that takes T.

    Raises:
        ValueError: If it has neither.
    """
    found, owner = getattr(module, name, None), type(module).__name__
    if isinstance(found, Correction) and not found.uses_transition:
        raise BadValue(
            f"{owner}.{name} is {type(found).__name__}, so stage two would not use T: choose ForwardCorrection or"
            " another."
        )
    if not isinstance(found, Correction) and not callable(getattr(module, "on_transition_estimated", None)):
        raise BadValue(
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
        raise BadValue(
            f"{type(module).__name__} has no criterion {name!r}: loss_attribute must name the attribute that it calls"
            " as (logits, labels)."
        )

    _warn_of_lost_settings(criterion, correction, f"{type(module).__name__}.{name}")
    called = False

    def corrected(input: Tensor, target: Tensor, *index: Tensor) -> Tensor:  # names by which torch's losses are called
        nonlocal called
        called = called or torch.is_grad_enabled()  # so not in validation
        tensors = chain(correction.parameters(), correction.buffers())
        if next(tensors, input).device != input.device:  # the module moves without it
            correction.to(input.device)
        return correction(input, target, *index)

    if isinstance(criterion, nn.Module):
        criterion.forward = corrected
    else:
        setattr(module, name, corrected)
    return lambda: called


def refuse_misfits(module: nn.Module) -> None:
    """Let the module refuse a checkpoint of another network in one sentence, where torch would list every tensor."""
    module.register_load_state_dict_pre_hook(_compare_shapes)


def _compare_shapes(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    owners = [name for name, child in module.named_modules() if isinstance(child, Correction)]
    themselves = tuple(f"{name}.transition.".removeprefix(".") for name in owners)  # a T of parts checks them itself
    for name, value in module.state_dict().items():
        if name.startswith(themselves):
            continue
        saved = state.get(prefix + name)
        if not isinstance(saved, Tensor) or not isinstance(value, Tensor) or is_lazy(value):
            continue
        if saved.shape != value.shape and saved.numel() and value.numel():  # what is empty has yet to get its size
            raise BadValue(
                f"The checkpoint's {name} has shape {tuple(saved.shape)}, but {type(module).__name__}'s has"
                f" {tuple(value.shape)}: build the network, and its number of classes, as when it was saved."
            )


def _warn_of_lost_settings(criterion: object, correction: Correction, name: str) -> None:
    """Say which settings of torch's cross-entropy the correction, which takes its place, does not have."""
    if not isinstance(criterion, nn.CrossEntropyLoss) or not correction.loss.is_cross_entropy:
        return  # another base loss was chosen on purpose
    plain = nn.CrossEntropyLoss()
    for setting in ("weight", "ignore_index", "reduction", "label_smoothing"):
        asked, default = getattr(criterion, setting), getattr(plain, setting)
        here = getattr(correction.loss, setting, default)
        if asked is not default and asked != default and (here is default or here == default):
            rank_zero_warn(
                f"{name} has {setting}={asked}, which the {type(correction).__name__} that takes its place does not:"
                " give it a base loss that has, CrossEntropy(weight=...) or LabelSmoothing(rate=...) for example."
            )
