"""Corrections: modules that carry T and turn a base loss into one that may be trained on noisy labels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisylightning.errors import BadType, BadValue, NotReady
from noisylightning.functional.backward import inverse_rows, masked_backward_cross_entropy
from noisylightning.functional.checks import check_inputs
from noisylightning.functional.forward import label_log_likelihood, masked_forward_cross_entropy, noisy_log_posterior
from noisylightning.functional.posterior import importance_ratio
from noisylightning.losses import CrossEntropy, LikelihoodLoss, Loss
from noisylightning.tensors import log_softmax, pick
from noisylightning.transition import DenseTransition, Transition, as_transition, validate_transition


class Correction(nn.Module):
    """What all corrections share: a base loss, and T in :attr:`T`, the identity until it is set.

    Called as ``correction(logits, target)``, with the shapes of :func:`torch.nn.functional.cross_entropy`; class
    weights, ``ignore_index`` and ``reduction`` are settings of the base loss. With T the identity every correction is
    its base loss, to the last bit. A subclass defines :meth:`corrected`.

    In a state dict T goes by the name ``transition``: a dense one is that tensor, of another one ``transition.rate``
    and the like are the parts.

    Args:
        transition: T, row-stochastic, ``T[i, j] = p(noisy = j | clean = i)``: a tensor ``(C, C)``, which is copied,
            an :class:`torch.nn.Parameter`, which is kept and trained (see
            :class:`~noisylightning.transition.DenseTransition`), the path of a ``.npy`` or ``.csv`` file, or a
            :class:`~noisylightning.transition.Transition`.
        num_classes: The number of classes C. If neither it nor T is given, :meth:`initialize` says it later.
        loss: The base loss. Default: cross-entropy.

    Raises:
        TypeError: T is none of these.
        ValueError: T is not row-stochastic, or not of ``num_classes`` classes.
    """

    uses_transition: ClassVar[bool] = True
    """Whether the correction uses T at all."""

    T: Transition | None
    """What computes with T; None as long as the number of classes is unknown."""

    has_transition: bool
    """Whether a T was ever given: to the constructor, by :meth:`set_transition`, or by loading a state."""

    def __init__(
        self,
        transition: Tensor | Transition | str | Path | None = None,
        num_classes: int | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        self.loss = CrossEntropy() if loss is None else loss
        self.has_transition = transition is not None
        if transition is not None:
            self.T = as_transition(transition, num_classes)
        else:
            self.T = None if num_classes is None else _identity(num_classes)
        self.register_state_dict_post_hook(_name_transition)
        self.register_load_state_dict_pre_hook(_find_transition)

    @property
    def transition(self) -> Tensor | None:
        """T written out, ``(C, C)``; None as long as the number of classes is unknown."""
        return None if self.T is None else self.T.to_dense()

    @property
    def num_classes(self) -> int | None:
        """The number of classes C, or None as long as nobody said it."""
        return None if self.T is None else self.T.num_classes

    @property
    def needs_features(self) -> bool:
        """Whether T depends on the samples' features, which are then to be passed beside the logits."""
        transition = self.T  # once: a module's lookups cost, and every step asks
        return transition is not None and transition.needs_features

    def initialize(self, num_classes: int) -> None:
        """Give an uninitialised correction its number of classes, with T the identity; else check that it agrees.

        Args:
            num_classes: The number of classes C.

        Raises:
            ValueError: The correction is for another number of classes.
        """
        if self.num_classes is None:
            self._begin(num_classes)
        elif self.num_classes != num_classes:
            raise BadValue(
                f"{type(self).__name__} is for {self.num_classes} classes but {num_classes} are asked for: give it the "
                "T of this data set."
            )

    def _begin(self, num_classes: int) -> None:
        self.T = _identity(num_classes)

    def set_transition(self, transition: Tensor) -> None:
        """Put the values of T in, in place.

        Args:
            transition: T, row-stochastic, shape ``(C, C)``.

        Raises:
            TypeError: T is no floating tensor, or the correction holds a T that is not dense.
            ValueError: T is not row-stochastic, or not of this number of classes.
        """
        if self.T is None:
            validate_transition(transition)
            self.initialize(len(transition))
        self.known_transition().start_from(transition)
        self.has_transition = True

    def require_transition(self) -> None:
        """Raise unless a T was given, or none is used: with the identity a correction is its base loss under its name.

        Raises:
            RuntimeError: No T was given.
        """
        if self.uses_transition and not self.has_transition:
            raise NotReady(
                f"{type(self).__name__} was given no T, without which it corrects nothing: pass it transition=..."
                " (--model.correction.transition FILE), or add an EstimateTransitionCallback, or a"
                " KnownTransitionCallback, to the trainer's callbacks."
            )

    def known_transition(self) -> Transition:
        """T; raises :class:`RuntimeError` as long as even its number of classes is unknown."""
        transition = self.T
        if transition is None:
            raise NotReady(
                f"{type(self).__name__} does not know its number of classes: create it with num_classes or a "
                "transition, or call initialize(num_classes) first."
            )
        return transition

    def transition_at(self, features: Tensor | None, index: Tensor | None) -> Transition:
        """The T of these samples; arguments as in :meth:`forward`."""
        transition = self.known_transition()
        if transition.needs_features and features is None:
            raise NotReady(
                f"{type(transition).__name__} depends on the sample, so the correction needs its features: call "
                "correction(logits, target, index, features)."
            )
        return transition.at(features, index)

    def noisy_log_posterior(
        self, logits: Tensor, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """``log p T``: what the network says about the *noisy* label.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            index: As in :meth:`forward`.
            features: As in :meth:`forward`.

        Returns:
            Shape ``(N, C, d1, ...)``.
        """
        return noisy_log_posterior(logits, self.transition_at(features, index))

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """The corrected loss.

        Args:
            logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``; ``softmax(logits)`` is p(clean | x).
            target: Noisy labels: class indices ``()`` or ``(N, d1, ...)``, or probabilities shaped as ``logits``.
            index: Positions of the samples in the data set, shape ``()`` or ``(N,)``: for a base loss or a T that asks.
            features: What the network knows of each sample, shape ``(D,)`` or ``(N, D)``: for a T that asks.

        Returns:
            A scalar, or one value per target for ``reduction="none"``. In training mode a T that learns adds its
            penalty.

        Raises:
            RuntimeError: The correction does not know its number of classes yet, or T lacks the features that it needs.
            TypeError: A dtype that is neither a score, an index nor a probability.
            ValueError: Shapes that do not go together, a label out of range, or a soft target not summing to one.
        """
        if logits.ndim == 1:
            check_inputs(logits, target)
            index = None if index is None else index.reshape(-1)
            return self.forward(
                logits[None], target[None], index, None if features is None else features[None]
            ).reshape(())
        loss = self.loss
        labels, mask = loss.check_and_mask(logits, target)
        transition = self.transition_at(features, index)
        transition.check_logits(logits)
        extra = (index,) if loss.needs_index and index is not None else ()
        if self.is_base_loss(transition):
            return loss.reduce(loss.values(logits, loss.weighted(labels), *extra), labels, mask)
        value = self.corrected(logits, labels, mask, transition, *extra)
        penalty = transition.penalty() if self.training else None
        return value if penalty is None else value + penalty

    def is_base_loss(self, transition: Transition) -> bool:
        """Whether with this T the correction is its base loss, which is then computed as it is, to the last bit."""
        return transition.is_identity

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced corrected loss.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            labels: Class indices in range ``(N, d1, ...)``, none of them ignored, or probabilities ``(N, C, d1, ...)``.
            mask: Which labels count; None where all do.
            transition: The T of these samples.
            *index: What the base loss asks for beside.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no corrected(logits, labels): a correction must.")


class NoCorrection(Correction):
    """The base loss as it is: the baseline. It carries no T.

    Args:
        num_classes: The number of classes C; not needed.
        loss: The base loss. Default: cross-entropy.

    Example:
        >>> NoCorrection()(torch.zeros(1, 4), torch.tensor([2]))
        tensor(1.3863)
    """

    uses_transition: ClassVar[bool] = False

    def __init__(self, num_classes: int | None = None, loss: Loss | None = None) -> None:
        super().__init__(loss=loss)
        self._num_classes = num_classes

    @property
    def num_classes(self) -> int | None:
        """The number of classes C, or None as long as nobody said it."""
        return self._num_classes

    def _begin(self, num_classes: int) -> None:
        self._num_classes = num_classes

    def set_transition(self, transition: Tensor) -> None:
        """Refuse: there is nothing that would use it.

        Raises:
            TypeError: Always.
        """
        raise BadType("NoCorrection uses no T: choose ForwardCorrection or another correction.")

    def noisy_log_posterior(
        self, logits: Tensor, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """``log p``: without a T the network speaks about noisy labels directly."""
        return log_softmax(logits)

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """The base loss; arguments as in :meth:`Correction.forward`."""
        return self.loss(logits, target, *((index,) if self.loss.needs_index and index is not None else ()))


class ForwardCorrection(Correction):
    """Forward correction: the base loss of the noisy posterior, ``l_y(p T)``.

    Patrini et al. (2017), Theorem 2: for a proper composite loss, minimised under the noisy distribution by the clean
    posterior. For a loss of the label's likelihood alone, such as cross-entropy, it reads one column of T per sample;
    for others, and soft targets, it needs all of ``p T``. A loss of scores z gets the scores ``log(e^z T)``.

    Args:
        transition: T, see :class:`Correction`.
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

    def is_base_loss(self, transition: Transition) -> bool:
        """Whether T is the identity, and no floor lies under the likelihood."""
        return transition.is_identity and self.floor == 0

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced base loss of ``p T``; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        soft = labels.is_floating_point()
        if loss.is_cross_entropy and not soft:
            weight, reduction = loss.weight, loss.reduction
            return masked_forward_cross_entropy(logits, labels, mask, transition, weight, reduction, self.floor)
        if isinstance(loss, LikelihoodLoss) and loss.of_likelihood and not soft:
            values = loss.of_log_likelihood(label_log_likelihood(logits, labels, transition, self.floor))
        else:
            noisy_logits = noisy_log_posterior(logits, transition, floor=self.floor)
            if loss.of_scores:  # log(e^z T): the scores' level, which the posterior forgets
                noisy_logits = noisy_logits + logits.logsumexp(dim=1, keepdim=True)
            values = loss.values(noisy_logits, loss.weighted(labels), *index)
        return loss.reduce(values, labels, mask)


class BackwardCorrection(Correction):
    """Backward correction: ``(T^-1 l(p))_y``, unbiased for the clean loss.

    Patrini et al. (2017), Theorem 1: ``sum_j T[i, j] (T^-1 l)_j = l_i`` for every base loss. It is unbounded below
    and amplifies the loss, and its noise, by up to the condition number of T. Class weights belong to clean classes.

    Args:
        transition: T, see :class:`Correction`.
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
        if self.T is not None:
            self.T.factorize(max_condition)

    def _begin(self, num_classes: int) -> None:
        super()._begin(num_classes)
        self.known_transition().factorize(self.max_condition)

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced combination of base losses; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        if loss.is_cross_entropy and not labels.is_floating_point():
            return masked_backward_cross_entropy(logits, labels, mask, transition, loss.weight, loss.reduction)
        weights = inverse_rows(labels, transition, torch.promote_types(logits.dtype, torch.float32))
        return loss.reduce(loss.values(logits, loss.weighted(weights), *index), labels, mask, weighted=True)


class ImportanceReweighting(Correction):
    """Importance reweighting: ``beta l_y(p)`` with ``beta = p_y / (p T)_y``.

    Liu and Tao (2016), with T as in Xia et al. (2019, T-Revision): the ratio of the clean to the noisy posterior of
    the label turns the noisy risk into the clean one.

    Args:
        transition: T, see :class:`Correction`.
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

    def corrected(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, transition: Transition, *index: Tensor
    ) -> Tensor:
        """The reduced reweighted base loss; arguments as in :meth:`Correction.corrected`."""
        loss = self.loss
        log_p = log_softmax(logits)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_weight):
            beta = importance_ratio(logits, log_p, labels, transition)
        if labels.is_floating_point():
            return loss.reduce(loss.values(logits, loss.weighted(beta * labels), *index), labels, mask)
        if isinstance(loss, LikelihoodLoss) and loss.of_likelihood:
            return loss.reduce(beta * loss.of_log_likelihood(pick(log_p, labels)), labels, mask)
        return loss.reduce(beta * loss.values(logits, labels, *index), labels, mask)


def _identity(num_classes: int) -> Transition:
    if num_classes < 2:
        raise BadValue(f"a correction needs at least 2 classes, got num_classes={num_classes}.")
    return DenseTransition(torch.eye(num_classes))


def _name_transition(correction: Correction, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Write T under the name ``transition``, a T of one matrix as that itself."""
    for key in [key for key in state if key.startswith(f"{prefix}T.")]:
        name = key.removeprefix(f"{prefix}T.")
        state[f"{prefix}transition" + ("" if name == "matrix" else f".{name}")] = state.pop(key)


def _find_transition(correction: Correction, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Read T from where :func:`_name_transition` wrote it, if it is of the correction's kind and size."""
    name, owner = f"{prefix}transition", type(correction).__name__
    keys = [key for key in state if key == name or key.startswith(f"{name}.")]
    saved = {key.removeprefix(f"{name}.") if key != name else "matrix": state.pop(key) for key in keys}
    if not saved or not correction.uses_transition:  # a NoCorrection used to carry a T
        return
    if correction.T is None and "matrix" in saved:
        correction.initialize(len(saved["matrix"]))
    transition = correction.known_transition()
    if saved.keys() != transition.state_dict().keys():
        raise BadValue(
            f"the checkpoint's T is made of {', '.join(saved)}, but this {owner}'s {type(transition).__name__} is made "
            f"of {', '.join(transition.state_dict())}: build the model with the T that it was trained with."
        )
    if "matrix" in saved and len(saved["matrix"]) != transition.num_classes:
        raise BadValue(
            f"the checkpoint's T is for {len(saved['matrix'])} classes but this {owner} is for"
            f" {transition.num_classes}: build the model for the number of classes that it was trained with."
        )
    state.update({f"{prefix}T.{part}": value for part, value in saved.items()})
    correction.has_transition = True
