"""Calibration of p(clean | x) by noisy labels: how probable T makes them says how sure a network may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor

from noisylightning.errors import BadValue
from noisylightning.functional.bootstrap import part_of
from noisylightning.functional.exact_sums import from_fixed, to_fixed
from noisylightning.functional.probabilities import check_noisy_labels, not_finite
from noisylightning.tensors import log_softmax
from noisylightning.transition import Transition, as_transition

_FLOOR = -50.0  # of log p, so that it can be scaled
_PRIOR = 10.0  # samples' worth of being as the network says
_ENTRIES = 2**22  # of the logits that it is fitted to at most
_ITERATIONS = 30
_ROWS = 2**16  # samples at a time
_UNIT = 2.0**10  # of log-likelihoods, whose exact sum must stay small


@dataclass(frozen=True)
class VectorScaling:
    r"""Scores of each class stretched and shifted: :math:`z'_i = e^{s_i} z_i + b_i` (Guo et al. 2017).

    Scores are centred, so that those of a sample sum to zero.

    Args:
        log_scale: s, float64 of shape ``(C,)``.
        bias: b, float64 of shape ``(C,)``.

    Example:
        >>> flatter = VectorScaling(torch.full((2,), -0.7), torch.zeros(2))
        >>> flatter(torch.tensor([[0.0, 4.0]])).softmax(dim=1)
        tensor([[0.1206, 0.8794]])
    """

    log_scale: Tensor
    bias: Tensor

    @classmethod
    def identity(cls, num_classes: int) -> VectorScaling:
        """Return the one that leaves everything as it is."""
        return cls(torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the calibrated logits, of shape and dtype of the given ones, at least float32."""
        log_scale, bias = self.log_scale.to(logits.device), self.bias.to(logits.device)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return torch.cat([(_centred(rows) * log_scale.exp() + bias).to(dtype) for rows in logits.split(_ROWS)])


def calibrate(
    logits: Tensor,
    noisy_labels: Tensor,
    transition: Tensor | Transition,
    index: Tensor | None = None,
    start: VectorScaling | None = None,
    fixed: Sequence[int] = (),
) -> VectorScaling:
    r"""Find the scaling of a network's predictions that makes its noisy labels most probable by T.

    It maximises :math:`\sum_x \log (p'(x) T)_y`, p' being the softmax of the scaled logits, less
    :math:`5 (|s|^2 + |b|^2)`, so that few samples change little. Sums are exact, so it is the same in any order.

    Args:
        logits: Scores of the clean classes, shape ``(N, C)``, of a network that was trained without these samples.
        noisy_labels: Their labels, integers of shape ``(N,)``.
        transition: T, ``(C, C)``.
        index: Places of the samples in their data set, shape ``(N,)``: beyond 4 million entries a part of the samples
            that goes by it speaks for all.
        start: Where to begin; by default what leaves everything as it is.
        fixed: Classes whose scores stay as they are.

    Returns:
        The scaling.

    Raises:
        ValueError: If shapes do not go together, a score is NaN, or a label is none, or impossible by T.

    Example:
        >>> labels = torch.arange(1000) % 2
        >>> sure = 9.0 * torch.nn.functional.one_hot(labels, 2)  # but right in four of five only
        >>> sure[::5] = sure[::5].flip(1)
        >>> calibrate(sure, labels, torch.eye(2))(sure).softmax(dim=1).amax()
        tensor(0.8230)
    """
    transition = as_transition(transition, copy=False)
    num_classes = transition.num_classes
    check_noisy_labels(noisy_labels, len(logits), num_classes)
    finite = logits.amax(dim=1).isfinite()
    if not finite.all():
        raise not_finite(~finite)
    parts = -(-logits.numel() // _ENTRIES)
    if parts > 1:
        places = torch.arange(len(logits), device=logits.device) if index is None else index
        chosen = part_of(places, parts) == 0
        logits, noisy_labels = logits[chosen], noisy_labels[chosen]
    scores = _centred(logits)
    log_columns = transition.label_columns(noisy_labels).double().log()
    empty = log_columns.amax(dim=1) == -torch.inf
    if empty.any():
        raise BadValue(
            f"A sample is labelled {int(noisy_labels[empty][0])}, which no class is by T: start from a T without zeros"
            " in that column."
        )

    free = torch.ones(num_classes, dtype=torch.bool)
    free[list(fixed)] = False
    free = torch.cat([free, free])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_scale, bias = torch.from_numpy(parameters).to(scores).chunk(2)
        scale = log_scale.exp()
        prior = log_softmax(scores * scale + bias)
        joint = prior + log_columns
        log_likelihood = joint.logsumexp(dim=1)
        slope = prior.exp() - (joint - log_likelihood[:, None]).exp()  # of each sample's loss by its logits
        value = -from_fixed(to_fixed(log_likelihood / _UNIT).sum()) * _UNIT
        by_scale = from_fixed(to_fixed(slope * scores).sum(dim=0)) * scale
        by_bias = from_fixed(to_fixed(slope).sum(dim=0))
        gradient = torch.cat([by_scale + _PRIOR * log_scale, by_bias + _PRIOR * bias]) * free.to(scores)
        value = value + _PRIOR / 2 * float(np.square(parameters).sum())
        return float(value) / len(scores), gradient.cpu().numpy() / len(scores)

    start = start or VectorScaling.identity(num_classes)
    begin = (torch.cat([start.log_scale, start.bias]).cpu() * free).numpy()
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    return VectorScaling(*torch.from_numpy(found.x).chunk(2))


def _centred(logits: Tensor) -> Tensor:
    log_p = log_softmax(logits.double()).clamp_min(_FLOOR)
    return log_p - log_p.mean(dim=1, keepdim=True)
