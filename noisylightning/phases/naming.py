"""Which row of T-hat is of which class, where trusted samples tell and noisy labels do not."""

import torch
from torch import Tensor

from noisylightning.estimators import within_fit
from noisylightning.functional.names import decide_names, exchangeable, name_rows
from noisylightning.phases.base import Fit

_ALMOST_ZERO = 1e-6  # of T, whose logarithm is needed


def name_classes(
    fit: Fit, transition: Tensor, predict: within_fit.Predict, of_noisy_labels: bool = False
) -> tuple[Tensor, bool]:
    """Return the order of the rows of T-hat, and whether trusted labels decide where the noisy ones cannot.

    Args:
        fit: The fit, whose module has the weights that are to be asked.
        transition: T-hat, dense, ``(C, C)``.
        predict: Maps the module and a batch to logits and labels.
        of_noisy_labels: Whether the module predicts noisy labels, as in stage one: each row of T-hat then says how
            probable such a prediction is for a sample of its class. Else its classes are those of T-hat's rows.
    """
    groups = exchangeable(transition)
    if not groups:
        return name_rows(transition), False
    trusted = within_fit.trusted_predictions(fit.trainer, fit.module, predict, fit.num_classes)
    if trusted is None:
        return name_rows(transition), False
    assert trusted.clean_labels is not None
    known = trusted.clean_labels >= 0
    labels, log_probs = trusted.clean_labels[known].cpu(), trusted.log_probs[known].cpu()
    if of_noisy_labels:
        log_rows = transition.to(log_probs).clamp_min(_ALMOST_ZERO).log()
        log_probs = (log_probs.exp() @ log_rows.t()).log_softmax(dim=1)
    decided = all(torch.isin(labels, torch.tensor(group)).any() for group in groups)
    return decide_names(transition, log_probs, labels), decided
