"""What trusted samples say: which row of T-hat is of which class, and how well a network knows them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from noisylightning.estimators import within_fit
from noisylightning.functional.names import decide_names, exchangeable, name_rows
from noisylightning.phases.base import Fit

ASKED = 0.1  # as exchangeable's threshold: of which classes trusted labels are asked, for T-hat is only an estimate
_ALMOST_ZERO = 1e-6  # of T, whose logarithm is needed


@dataclass
class Answers:
    """What a network says of the trusted samples.

    Attributes:
        log_probs: Log-probabilities, shape ``(M, C)``, on the CPU.
        labels: The trusted labels, shape ``(M,)``.
    """

    log_probs: Tensor
    labels: Tensor

    def log_likelihood(self, order: Tensor | None = None) -> Tensor:
        """Log-probability of each trusted label, shape ``(M,)``, float64.

        Args:
            order: Of the network's classes; as they are where it is left out.
        """
        log_probs = self.log_probs if order is None else self.log_probs[:, order]
        lowest = torch.finfo(torch.float32).min / len(self.labels)  # so that log 0 can be summed and compared
        return log_probs.double().clamp_min(lowest).gather(1, self.labels[:, None])[:, 0]


def ask_trusted(fit: Fit, predict: within_fit.Predict) -> Answers | None:
    """Let the module, as it is, predict the trusted samples; None where there are none. Every process calls it.

    Args:
        fit: The fit.
        predict: Maps the module and a batch to logits and labels.
    """
    trusted = within_fit.trusted_predictions(fit.trainer, fit.module, predict, fit.num_classes)
    if trusted is None:
        return None
    assert trusted.clean_labels is not None
    known = trusted.clean_labels >= 0
    return Answers(trusted.log_probs[known].cpu(), trusted.clean_labels[known].cpu())


def name_classes(transition: Tensor, trusted: Answers | None, of_noisy_labels: bool = False) -> tuple[Tensor, bool]:
    """Return the order of the rows of T-hat, and whether trusted labels decide where the noisy ones cannot.

    Args:
        transition: T-hat, dense, ``(C, C)``.
        trusted: What a network says of the trusted samples, where there are any.
        of_noisy_labels: Whether it predicts noisy labels, as in stage one: each row of T-hat then says how probable
            such a prediction is for a sample of its class. Else its classes are those of T-hat's rows.
    """
    if trusted is None or not exchangeable(transition, ASKED):
        return name_rows(transition), False
    log_probs = trusted.log_probs
    if of_noisy_labels:
        log_rows = transition.to(log_probs).clamp_min(_ALMOST_ZERO).log()
        log_probs = (log_probs.exp() @ log_rows.t()).log_softmax(dim=1)
    groups = exchangeable(transition)
    decided = bool(groups) and all(torch.isin(trusted.labels, torch.tensor(group)).any() for group in groups)
    return decide_names(transition, log_probs, trusted.labels, ASKED), decided
