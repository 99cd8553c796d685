"""What all corrections share: a base loss and T."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noisylightning.errors import BadValue, NotReady
from noisylightning.functional.checks import check_inputs
from noisylightning.functional.forward import noisy_log_posterior
from noisylightning.losses import CrossEntropy, Loss
from noisylightning.transition import (
    DenseTransition,
    IdentityForTrusted,
    SparseTransition,
    Transition,
    as_transition,
    validate_transition,
)
from noisylightning.transition.trusted import check_trusted


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
            :class:`~noisylightning.transition.DenseTransition`), the path of a ``.npy``, ``.csv`` or ``.npz`` file, or
            a :class:`~noisylightning.transition.Transition`; a sparse tensor becomes a
            :class:`~noisylightning.transition.SparseTransition`.
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

    @property
    def class_conditional(self) -> Transition | None:
        """T, where one was given and it is the same for every sample, but not the identity.

        None without a T, as long as T awaits an estimate, and where it is the identity or depends on the sample.
        """
        transition = self.T
        if transition is None or not self.has_transition or transition.waits or transition.is_identity:
            return None
        return transition if transition.is_class_conditional else None

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

    def set_transition(
        self, transition: Tensor, details: Mapping[str, Tensor] | None = None, learn: bool = True
    ) -> None:
        """Put the values of T in, in place; a T that learns learns on from there.

        Args:
            transition: T, row-stochastic, shape ``(C, C)``; a sparse one where the correction holds a sparse T, or as
                yet none.
            details: What an estimator found beside it, for a T that has a use for it.
            learn: Whether a T that learns goes on from there; else it stays until it is set again.

        Raises:
            TypeError: T is no floating tensor, or the correction holds a T that cannot take its values.
            ValueError: T is not row-stochastic, or not of this number of classes.
        """
        if self.T is None:
            self._begin_like(transition)
        mine = self.known_transition()
        if learn:
            mine.start_from(transition)
        else:
            mine.hold(transition)
        if details:
            mine.take_details(details)
        self.has_transition = True

    def _begin_like(self, transition: Tensor) -> None:
        if isinstance(transition, Tensor) and transition.layout != torch.strided:
            self.T = SparseTransition(transition)
            return
        validate_transition(transition)
        self.initialize(len(transition))

    def require_transition(self) -> None:
        """Raise unless a T was given, or none is used: with the identity a correction is its base loss under its name.

        Raises:
            RuntimeError: No T was given.
        """
        if self.uses_transition and (not self.has_transition or self.known_transition().waits):
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

    def transition_at(self, features: Tensor | None, index: Tensor | None, trusted: Tensor | None = None) -> Transition:
        """The T of these samples; arguments as in :meth:`forward`."""
        transition = self.known_transition()
        if trusted is not None and not transition.is_identity and bool(trusted.any()):
            of_batch = IdentityForTrusted(transition, trusted)
            others = of_batch.index_of_others
            if not len(others) or transition.is_class_conditional:
                return of_batch
            of_others = (None if given is None else given.index_select(0, others) for given in (features, index))
            return IdentityForTrusted(self.transition_at(*of_others), trusted)
        if transition.needs_features and features is None:
            raise NotReady(
                f"{type(transition).__name__} depends on the sample, so the correction needs its features: call "
                "correction(logits, target, index, features)."
            )
        return transition.at(features, index)

    def noisy_log_posterior(
        self,
        logits: Tensor,
        index: Tensor | None = None,
        features: Tensor | None = None,
        trusted: Tensor | None = None,
    ) -> Tensor:
        """``log p T``: what the network says about the *noisy* label; ``log p`` of a trusted sample.

        Args:
            logits: Scores, shape ``(N, C, d1, ...)``.
            index: As in :meth:`forward`.
            features: As in :meth:`forward`.
            trusted: As in :meth:`forward`.

        Returns:
            Shape ``(N, C, d1, ...)``.
        """
        return noisy_log_posterior(logits, self.transition_at(features, index, trusted))

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        index: Tensor | None = None,
        features: Tensor | None = None,
        trusted: Tensor | None = None,
    ) -> Tensor:
        """The corrected loss.

        Args:
            logits: Scores, shape ``(C,)`` or ``(N, C, d1, ...)``; ``softmax(logits)`` is p(clean | x).
            target: Noisy labels: class indices ``()`` or ``(N, d1, ...)``, or probabilities shaped as ``logits``.
            index: Positions of the samples in the data set, shape ``()`` or ``(N,)``: for a base loss or a T that asks.
            features: What the network knows of each sample, shape ``(D,)`` or ``(N, D)``: for a T that asks.
            trusted: Samples whose labels are known to be right, bool of shape ``()`` or ``(N,)``: their loss is the one
                with the identity in T's place, which is the base loss. A batch without any has the loss that it has
                where this is left out, to the last bit.

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
            trusted = None if trusted is None else trusted.reshape(-1)
            return self.forward(
                logits[None], target[None], index, None if features is None else features[None], trusted
            ).reshape(())
        loss = self.loss
        labels, mask = loss.check_and_mask(logits, target)
        if trusted is not None:
            check_trusted(trusted, len(logits))
        transition = self.transition_at(features, index, trusted)
        transition.check_logits(logits)
        extra = (index,) if loss.needs_index and index is not None else ()
        if self.is_base_loss(transition):
            value = loss.reduce(loss.values(logits, loss.weighted(labels), *extra), labels, mask)
        else:
            value = self.corrected(logits, labels, mask, transition, *extra)
        penalty = transition.penalty(logits) if self.training else None
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
