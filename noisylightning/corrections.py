"""Corrections: modules that carry T and turn a base loss into one that may be trained on noisy labels."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisylightning.errors import BadType, BadValue, NotReady
from noisylightning.functional.backward import inverse_rows, settled_backward_cross_entropy
from noisylightning.functional.checks import check_inputs, check_transition
from noisylightning.functional.forward import label_log_likelihood, noisy_log_posterior, settled_forward_cross_entropy
from noisylightning.kernels.cross_entropy import LARGEST_EXPONENT
from noisylightning.losses import CrossEntropy, LikelihoodLoss, Loss
from noisylightning.tensors import log_softmax, pick
from noisylightning.transition import Transition, invert_transition, load_transition, validate_transition


class Correction(nn.Module):
    """What all corrections share: a base loss, and T in the buffer :attr:`transition`, the identity until it is set.

    Called as ``correction(logits, target)``, with the shapes of :func:`torch.nn.functional.cross_entropy`; class
    weights, ``ignore_index`` and ``reduction`` are settings of the base loss. With T the identity every correction is
    its base loss, in value and gradient. A subclass defines :meth:`corrected`.

    Args:
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, the path of a
            ``.npy`` or ``.csv`` file that holds one, or a structured T.
        num_classes: The number of classes C. If neither it nor T is given, :meth:`initialize` says it later.
        loss: The base loss. Default: cross-entropy.

    Raises:
        TypeError: T is none of these.
        ValueError: T is not row-stochastic, or not of ``num_classes`` classes.
    """

    transition: Tensor | Transition | None

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        self.loss = CrossEntropy() if loss is None else loss
        if isinstance(transition, str | Path):
            transition = load_transition(transition)
        if isinstance(transition, Transition):
            self.transition = transition
        elif transition is None:
            self.register_buffer("transition", None if num_classes is None else _identity(num_classes))
        else:
            validate_transition(transition, num_classes)
            self.register_buffer("transition", _by_columns(transition.detach().clone()))
        self.register_load_state_dict_post_hook(_refresh)
        if num_classes is not None:
            self.initialize(num_classes)

    @property
    def num_classes(self) -> int | None:
        """The number of classes C, or None as long as nobody said it."""
        transition = self.transition
        if isinstance(transition, Tensor):
            return len(transition)
        return None if transition is None else transition.num_classes

    def initialize(self, num_classes: int) -> None:
        """Give an uninitialised correction its number of classes, with T the identity; else check that it agrees.

        Args:
            num_classes: The number of classes C.

        Raises:
            ValueError: The correction is for another number of classes.
        """
        if self.num_classes is None:
            self.transition = _identity(num_classes)
            self.refresh()
        elif self.num_classes != num_classes:
            raise BadValue(
                f"{type(self).__name__} is for {self.num_classes} classes but {num_classes} are asked for: give it the "
                "T of this data set."
            )

    def set_transition(self, transition: Tensor) -> None:
        """Put T into the buffer, in place.

        Args:
            transition: T, row-stochastic, shape ``(C, C)``.

        Raises:
            TypeError: T is no floating tensor, or the correction holds a structured T.
            ValueError: T is not row-stochastic, or not of this number of classes.
        """
        if isinstance(self.transition, Transition):
            raise BadType(
                f"this correction holds a {type(self.transition).__name__}, which a dense T cannot replace: create the "
                "correction with num_classes instead."
            )
        validate_transition(transition, self.num_classes)
        if self.transition is None:
            self.initialize(len(transition))
        assert isinstance(self.transition, Tensor)
        old = self.transition.clone()
        self.transition.copy_(transition.detach())
        try:
            self.refresh()
        except ValueError:
            self.transition.copy_(old)
            raise

    def refresh(self) -> None:
        """Bring what is derived from T up to date; called whenever T was set or loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}transition")
        if isinstance(saved, Tensor) and isinstance(self.transition, Tensor) and len(saved) != self.num_classes:
            raise BadValue(
                f"the checkpoint's T is for {len(saved)} classes but this {type(self).__name__} is for"
                f" {self.num_classes}: build the model for the number of classes that it was trained with."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def noisy_log_posterior(self, logits: Tensor) -> Tensor:
        """``log p T``: what the network says about the *noisy* label.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.

        Returns:
            Shape ``(N, C, d1, ...)``.
        """
        return noisy_log_posterior(logits, self.known_transition())

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """The corrected loss.

        Args:
            logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``; ``softmax(logits)`` is p(clean | x).
            target: Noisy labels: class indices ``()`` or ``(N, d1, ...)``, or probabilities shaped as ``logits``.
            index: Positions of the samples in the data set, shape ``()`` or ``(N,)``: for a base loss that asks.

        Returns:
            A scalar, or one value per target for ``reduction="none"``.

        Raises:
            RuntimeError: The correction does not know its number of classes yet.
            TypeError: A dtype that is neither a score, an index nor a probability.
            ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.
        """
        if logits.ndim == 1:
            check_inputs(logits, target)
            return self.forward(logits[None], target[None], None if index is None else index.reshape(-1)).reshape(())
        loss = self.loss
        labels, kept = loss.settle(logits, target)
        transition = self.transition
        if transition is not None:
            check_transition(transition, logits)
        extra = (index,) if loss.needs_index and index is not None else ()
        return self.corrected(logits, labels, kept, *extra)

    def corrected(self, logits: Tensor, labels: Tensor, kept: Tensor | None, *index: Tensor) -> Tensor:
        """The reduced corrected loss.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            labels: Class indices in range ``(N, d1, ...)``, none of them ignored, or probabilities ``(N, C, d1, ...)``.
            kept: Which labels count; None where all do.
            *index: What the base loss asks for beside.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no corrected(logits, labels): a correction must.")

    def known_transition(self) -> Tensor | Transition:
        """T; raises :class:`RuntimeError` as long as even its number of classes is unknown."""
        transition = self.transition
        if transition is None:
            raise NotReady(
                f"{type(self).__name__} does not know its number of classes: create it with num_classes or a "
                "transition, or call initialize(num_classes) first."
            )
        return transition


class NoCorrection(Correction):
    """The base loss as it is, whatever T may be: the baseline.

    Args:
        transition: As in :class:`Correction`; kept, not used.
        num_classes: As in :class:`Correction`; not needed.
        loss: The base loss. Default: cross-entropy.

    Example:
        >>> NoCorrection()(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """

    def noisy_log_posterior(self, logits: Tensor) -> Tensor:
        """``log p``: without a T the network speaks about noisy labels directly."""
        return log_softmax(logits)

    def corrected(self, logits: Tensor, labels: Tensor, kept: Tensor | None, *index: Tensor) -> Tensor:
        """The reduced base loss; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        return loss.reduce(loss.values(logits, loss.weighted(labels), *index), labels, kept)


class ForwardCorrection(Correction):
    """Forward correction: the base loss of the noisy posterior, ``l_y(p T)``.

    Patrini et al. (2017), Theorem 2: for a proper composite loss, minimised under the noisy distribution by the clean
    posterior. For a loss of the label's likelihood alone, such as cross-entropy, it reads one column of T per sample;
    for others, and soft targets, it needs all of ``p T``. A loss of scores z gets the scores ``log(e^z T)``.

    Args:
        transition: T, a path, or a structured T; see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy. One that is not proper composite warns.
        floor: ``(p T)_y`` below it counts as it, without gradient. Where column ``y`` of T is zero, so that T calls
            the label impossible, the default 0 gives cross-entropy an infinite loss.

    Example:
        >>> correction = ForwardCorrection(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.5990)
    """

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        floor: float = 0.0,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        if not 0 <= floor < 1:
            raise BadValue(f"floor must be a probability in [0, 1), got {floor}.")
        self.floor = floor
        if not self.loss.proper:
            warnings.warn(
                f"{type(self.loss).__name__} is not proper composite, so Theorem 2 of Patrini et al. (2017) does not "
                "hold for it: forward correction need not lead to the clean posterior.",
                stacklevel=2,
            )

    def corrected(self, logits: Tensor, labels: Tensor, kept: Tensor | None, *index: Tensor) -> Tensor:
        """The reduced base loss of ``p T``; arguments as in :meth:`Correction.corrected`."""
        transition, loss = self.known_transition(), self.loss
        soft = labels.is_floating_point()
        if type(loss) is CrossEntropy and not soft:  # which has a kernel of its own
            weight, reduction = loss.weight, loss.reduction
            return settled_forward_cross_entropy(logits, labels, kept, transition, weight, reduction, self.floor)
        if isinstance(loss, LikelihoodLoss) and not soft:
            values = loss.of_log_likelihood(label_log_likelihood(logits, labels, transition, self.floor))
        else:
            noisy_logits = noisy_log_posterior(logits, transition, floor=self.floor)
            if loss.of_scores:  # log(e^z T): the scores' level, which the posterior forgets
                noisy_logits = noisy_logits + logits.logsumexp(dim=1, keepdim=True)
            values = loss.values(noisy_logits, loss.weighted(labels), *index)
        return loss.reduce(values, labels, kept)


class BackwardCorrection(Correction):
    """Backward correction: ``(T^-1 l(p))_y``, unbiased for the clean loss.

    Patrini et al. (2017), Theorem 1: ``sum_j T[i, j] (T^-1 l)_j = l_i`` for every base loss. It is unbounded below
    and amplifies the loss, and its noise, by up to the condition number of T. Class weights belong to clean classes.

    Args:
        transition: T, a path, or a structured T; see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy.
        max_condition: Refuse a T whose condition number (infinity norm: the largest absolute row sum of ``T^-1``) is
            larger.

    Raises:
        ValueError: T is singular, or its condition number past ``max_condition``.

    Example:
        >>> correction = BackwardCorrection(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.0613)
    """

    inverse: Tensor | None

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        max_condition: float = 1e4,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        if not max_condition >= 1:
            raise BadValue(f"max_condition must be at least 1, that of the identity, got {max_condition}.")
        self.max_condition = max_condition
        self.register_buffer("inverse", None, persistent=False)
        self.refresh()

    def refresh(self) -> None:
        """Invert T anew."""
        if isinstance(self.transition, Transition):
            self.transition.factorize(self.max_condition)
        elif self.transition is not None:
            inverse = invert_transition(self.transition, self.max_condition)
            self.inverse = inverse if self.inverse is None else self.inverse.copy_(inverse)

    def corrected(self, logits: Tensor, labels: Tensor, kept: Tensor | None, *index: Tensor) -> Tensor:
        """The reduced combination of base losses; arguments as in :meth:`Correction.corrected`."""
        transition, loss = self.known_transition(), self.loss
        inverse = transition if self.inverse is None else self.inverse
        if type(loss) is CrossEntropy and not labels.is_floating_point():  # which has a kernel of its own
            return settled_backward_cross_entropy(logits, labels, kept, inverse, loss.weight, loss.reduction)
        weights = inverse_rows(labels, inverse, torch.promote_types(logits.dtype, torch.float32))
        return loss.reduce(loss.values(logits, loss.weighted(weights), *index), labels, kept, weighted=True)


class ImportanceReweighting(Correction):
    """Importance reweighting: ``beta l_y(p)`` with ``beta = p_y / (p T)_y``.

    Liu and Tao (2016), with T as in Xia et al. (2019, T-Revision): the ratio of the clean to the noisy posterior of
    the label turns the noisy risk into the clean one.

    Args:
        transition: T, a path, or a structured T; see :class:`Correction`.
        num_classes: The number of classes C.
        loss: The base loss. Default: cross-entropy.
        detach_weight: Whether beta is a constant for the gradient, as in T-Revision's first stage; its last stage
            differentiates it.

    Example:
        >>> correction = ImportanceReweighting(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
        >>> correction(torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([0, 1]))
        tensor(0.5028)
    """

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
        detach_weight: bool = True,
    ) -> None:
        super().__init__(transition, num_classes, loss)
        self.detach_weight = detach_weight

    def corrected(self, logits: Tensor, labels: Tensor, kept: Tensor | None, *index: Tensor) -> Tensor:
        """The reduced reweighted base loss; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        log_p = log_softmax(logits)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_weight):
            beta = self._importance(logits, log_p, labels)
        if labels.is_floating_point():
            return loss.reduce(loss.values(logits, loss.weighted(beta * labels), *index), labels, kept)
        if isinstance(loss, LikelihoodLoss):
            return loss.reduce(beta * loss.of_log_likelihood(pick(log_p, labels)), labels, kept)
        return loss.reduce(beta * loss.values(logits, labels, *index), labels, kept)

    def importance(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``p_y / (p T)_y`` of each label.

        At most ``1 / T[y, y]``; for a T that never keeps the label it may overflow, and is kept at ``e^80``.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            labels: Class indices in range ``(N, d1, ...)``, or probabilities ``(N, C, d1, ...)``: then for every label.

        Returns:
            Shape of ``labels``.
        """
        return self._importance(logits, log_softmax(logits), labels)

    def _importance(self, logits: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
        transition = self.known_transition()
        if labels.is_floating_point():
            log_ratio = log_p - noisy_log_posterior(logits, transition)
        else:
            log_ratio = pick(log_p, labels) - label_log_likelihood(logits, labels, transition)
        return log_ratio.clamp(max=LARGEST_EXPONENT).exp()


def _identity(num_classes: int) -> Tensor:
    if num_classes < 2:
        raise BadValue(f"a correction needs at least 2 classes, got num_classes={num_classes}.")
    return _by_columns(torch.eye(num_classes))


def _by_columns(transition: Tensor) -> Tensor:
    """T with its columns contiguous in memory: one column per sample is what the losses read."""
    return transition.t().contiguous().t()


def _refresh(correction: Correction, _: Any) -> None:
    correction.refresh()
