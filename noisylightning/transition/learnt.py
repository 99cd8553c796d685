"""T learnt with the network: row-stochastic whatever its parameters are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisylightning.errors import BadValue
from noisylightning.tensors import class_last
from noisylightning.transition.base import Transition
from noisylightning.transition.check import check_condition, condition_number, validate_transition
from noisylightning.transition.simplex import project_to_simplex


class LearntTransition(Transition):
    """T learnt with the network: the softmax of free scores, row by row, so that every row is a distribution.

    Without an estimate it is learnt from the first step. With one, two stages: :meth:`await_estimate` makes it the
    identity, whose correction is the base loss to the last bit, and :meth:`start_from` lets it learn on from T-hat.

    A T can drift far before the network has converged. ``pull`` holds it by
    ``pull * sum_ij T0_ij log(T0_ij / T_ij) / C``, T0 being what it began from.

    A softmax has no zeros: an entry that T-hat calls impossible begins at the smallest normal number of its dtype,
    1e-38 in float32, and as its gradient is as small, it stays there. A T that learns is singular only by accident;
    no parametrisation here excludes it.

    Args:
        num_classes: The number of classes C.
        random_share: Without an estimate T begins as if this share of the labels were drawn at random, each class
            alike: ``(1 - random_share) I + random_share / C``; strictly between 0 and 1.
        pull: The weight of the divergence from what T began from, not negative.

    Raises:
        ValueError: Fewer than two classes, or an argument out of bounds.

    Example:
        >>> transition = LearntTransition(2, random_share=0.4)
        >>> transition.to_dense()
        tensor([[0.8000, 0.2000],
                [0.2000, 0.8000]], grad_fn=<SoftmaxBackward0>)
        >>> transition.start_from(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
        >>> transition.to_dense()
        tensor([[0.9000, 0.1000],
                [0.3000, 0.7000]], grad_fn=<SoftmaxBackward0>)
    """

    start: Tensor
    held: Tensor

    is_held: bool = False
    """Whether T stays what it began from, and does not learn."""

    def __init__(self, num_classes: int, random_share: float = 0.5, pull: float = 0.0) -> None:
        super().__init__(num_classes)
        if not 0 < random_share < 1:
            raise BadValue(f"random_share must lie strictly between 0 and 1, got {random_share}.")
        if not pull >= 0:
            raise BadValue(f"pull must not be negative, got {pull}.")
        self.random_share, self.pull = random_share, pull
        start = (1 - random_share) * torch.eye(num_classes) + random_share / num_classes
        self.scores = nn.Parameter(torch.empty(num_classes, num_classes))
        self.register_buffer("start", start)
        self.register_buffer("held", torch.zeros(()))  # 0 or 1: averages of weights take no bool
        self.start_from(start)

    def learnt(self) -> Tensor:
        """T as the scores say, ``(C, C)``; what :meth:`to_dense` gives unless T is held."""
        return self.scores.softmax(dim=1)

    def scores_of(self, transition: Tensor) -> Tensor:
        """Scores for which :meth:`learnt` is this T, ``(C, C)``.

        Args:
            transition: Row-stochastic, ``(C, C)``, of the scores' dtype; :attr:`start` is the same already.

        Raises:
            ValueError: There are none.
        """
        return transition.clamp(min=torch.finfo(transition.dtype).tiny).log()

    def to_dense(self) -> Tensor:
        """T, shape ``(C, C)``; the identity as long as it waits for an estimate."""
        return self.start if self.is_held else self.learnt()

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether it is the identity because no estimate has come yet."""
        return self.is_identity

    def await_estimate(self) -> None:
        """Be the identity, and do not learn, until :meth:`start_from`."""
        self.hold(torch.eye(self.num_classes))

    @torch.no_grad()
    def hold(self, transition: Tensor) -> None:
        """Be this T, and do not learn, until :meth:`start_from`; arguments as there."""
        self._check(transition)
        self.start.copy_(transition)
        self.held.fill_(1)
        self.notice_identity()

    def notice_identity(self) -> None:
        """Bring :attr:`is_held` and :attr:`is_identity` up to date; a T that learns is never taken for the identity."""
        self.is_held = not self.held.is_meta and bool(self.held)
        self.is_identity = self.is_held and torch.equal(self.start, torch.eye(self.num_classes).to(self.start))

    @torch.no_grad()
    def start_from(self, estimate: Tensor) -> None:
        """Begin from an estimated T; one that is refused leaves T as it was.

        Args:
            estimate: Row-stochastic, shape ``(C, C)``.

        Raises:
            TypeError: It is no floating tensor.
            ValueError: It is not row-stochastic, not of this number of classes, cannot be inverted as asked, or is
                none that this kind of T can be.
        """
        self._check(estimate)
        start = estimate.to(self.start)
        scores = self.scores_of(start)
        self.start.copy_(start)
        self.scores.copy_(scores)
        self.held.zero_()
        self.notice_identity()

    def _check(self, transition: Tensor) -> None:
        validate_transition(transition, self.num_classes)
        if self.max_condition is not None:
            check_condition(float(condition_number(transition)), self.max_condition)

    def penalty(self, logits: Tensor) -> Tensor | None:
        """What pulls T to what it began from; while T is held, a zero that depends on the scores.

        Processes that train together wait for a gradient of every parameter. The zero gives one that moves none.

        Args:
            logits: The network's scores of the batch, ``(N, C, d1, ...)``.
        """
        if self.is_held:
            return 0 * self.scores.sum()
        if not self.pull:
            return None
        log_learnt = self.learnt().clamp(min=torch.finfo(self.start.dtype).tiny).log()
        divergence = torch.special.xlogy(self.start, self.start) - self.start * log_learnt
        return self.pull * divergence.sum() / self.num_classes

    def extra_repr(self) -> str:
        """The number of classes, the start and the pull."""
        return f"num_classes={self.num_classes}, random_share={self.random_share}, pull={self.pull}"


class NoiseAdaptation(LearntTransition):
    """The noise-adaptation layer: a softmax layer behind the network's, trained with it.

    Goldberger and Ben-Reuven (ICLR 2017), the simple variant, ``T[i] = softmax(scores[i])``. It goes with
    :class:`~noisylightning.ForwardCorrection`. Nothing but its start, and ``pull``, names the classes.

    Args:
        num_classes: The number of classes C.
        random_share: Without an estimate, the share of labels drawn at random that T begins with.
        pull: The weight of the divergence from what T began from.

    Example:
        >>> NoiseAdaptation(3).to_dense().sum(dim=1).detach()
        tensor([1., 1., 1.])
    """


class VolumeMinimization(LearntTransition):
    """VolMinNet: of all T that explain the noisy labels, the one of least volume.

    Each class keeps its label more often than it gets any other. Li et al. (ICML 2021): ``T_ij`` is proportional to
    ``sigmoid(scores_ij)`` off the diagonal and to one on it, and ``volume_weight * log |det T|`` is added to the loss.
    It goes with :class:`~noisylightning.ForwardCorrection`.

    Args:
        num_classes: The number of classes C.
        random_share: Without an estimate, the share of labels drawn at random that T begins with. The paper's first
            scores, -2 for ten classes and -4.5 for a hundred, are 0.57 and 0.53.
        pull: The weight of the divergence from what T began from.
        volume_weight: What ``log |det T|`` counts, not negative.

    Raises:
        ValueError: An argument is out of bounds; from :meth:`start_from`, if by T-hat a class gets another label
            as often as its own.

    Example:
        >>> VolumeMinimization(2, random_share=0.4).to_dense().detach()
        tensor([[0.8000, 0.2000],
                [0.2000, 0.8000]])
    """

    def __init__(
        self, num_classes: int, random_share: float = 0.5, pull: float = 0.0, volume_weight: float = 1e-4
    ) -> None:
        super().__init__(num_classes, random_share, pull)
        if not volume_weight >= 0:
            raise BadValue(f"volume_weight must not be negative, got {volume_weight}.")
        self.volume_weight = volume_weight

    def learnt(self) -> Tensor:
        """T, ``(C, C)``: one on the diagonal, between zero and one off it, and then each row divided by its sum."""
        own = torch.eye(self.num_classes, dtype=torch.bool, device=self.scores.device)
        weights = torch.where(own, 1, self.scores.sigmoid())
        return weights / weights.sum(dim=1, keepdim=True)

    def scores_of(self, transition: Tensor) -> Tensor:
        """Scores for which :meth:`learnt` is this T; raises :class:`ValueError` where its diagonal does not lead."""
        diagonal = transition.diagonal()
        others = transition - torch.diag_embed(diagonal)
        lead = diagonal - others.amax(dim=1)
        if not lead.is_meta and bool((lead <= 0).any()):
            row = int(lead.argmin())
            label = int(others[row].argmax())
            raise BadValue(
                f"by T-hat class {row} is labelled {label} as often as {row} ({float(others[row, label]):.3f} and"
                f" {float(diagonal[row]):.3f}), which the T of VolumeMinimization cannot be: use NoiseAdaptation or"
                " TransitionRevision, or another estimator."
            )
        return (others / diagonal[:, None]).clamp(min=torch.finfo(transition.dtype).tiny).logit()

    def penalty(self, logits: Tensor) -> Tensor | None:
        """The logarithm of the volume, and what :class:`LearntTransition` adds."""
        pulled = super().penalty(logits)
        if self.is_held:
            return pulled
        with torch.autocast(self.scores.device.type, enabled=False):
            volume = self.volume_weight * self.learnt().double().slogdet().logabsdet.to(self.start.dtype)
        return volume if pulled is None else volume + pulled


class TransitionRevision(LearntTransition):
    """T-Revision: the estimate and a slack that is learnt, ``T-hat + dT``, brought back among the row-stochastic T.

    Xia et al. (NeurIPS 2019), where nothing keeps the rows distributions; here each is the distribution nearest to it.
    ``scores`` are dT: T begins from T-hat exactly, zeros included. It goes with
    :class:`~noisylightning.ImportanceReweighting`, which moves dT through its weight.

    Args:
        num_classes: The number of classes C.
        random_share: Without an estimate, the share of labels drawn at random that T begins with.
        pull: The weight of the divergence from what T began from.

    Example:
        >>> transition = TransitionRevision(2)
        >>> transition.start_from(torch.tensor([[1.0, 0.0], [0.3, 0.7]]))
        >>> transition.to_dense().detach()
        tensor([[1.0000, 0.0000],
                [0.3000, 0.7000]])
    """

    def learnt(self) -> Tensor:
        """T, ``(C, C)``: the row-stochastic matrix nearest to what it began from and the slack together."""
        return project_to_simplex(self.start + self.scores)

    def scores_of(self, transition: Tensor) -> Tensor:
        """No slack."""
        return torch.zeros_like(transition)


class TotalVariation(LearntTransition):
    """T as a softmax of scores, learnt beside a network whose predictions are kept far apart.

    Zhang et al. (ICML 2021), the variant that learns T by gradient: ``separation`` times the mean total variation
    distance between p of two samples, ``sum_i |p_i - p'_i| / 2``, is taken from the loss. The pairs are neighbours in
    the batch, which are random ones where the loader shuffles. It goes with :class:`~noisylightning.ForwardCorrection`.

    Args:
        num_classes: The number of classes C.
        random_share: Without an estimate, the share of labels drawn at random that T begins with.
        pull: The weight of the divergence from what T began from.
        separation: What the distance counts, not negative.

    Raises:
        ValueError: An argument is out of bounds.

    Example:
        >>> transition = TotalVariation(2)
        >>> transition.penalty(torch.tensor([[99.0, -99.0], [-99.0, 99.0]]))
        tensor(-0.1000)
    """

    def __init__(self, num_classes: int, random_share: float = 0.5, pull: float = 0.0, separation: float = 0.1) -> None:
        super().__init__(num_classes, random_share, pull)
        if not separation >= 0:
            raise BadValue(f"separation must not be negative, got {separation}.")
        self.separation = separation

    def penalty(self, logits: Tensor) -> Tensor | None:
        """Minus the mean distance between neighbours in the batch, and what :class:`LearntTransition` adds."""
        pulled = super().penalty(logits)
        if self.is_held:
            return pulled
        p = class_last(logits).softmax(dim=1)
        distance = (p - p.roll(1, dims=0)).abs().sum(dim=1).mean() / 2
        return -self.separation * distance if pulled is None else pulled - self.separation * distance
