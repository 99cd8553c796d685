"""What every estimator of T shares: a metric fed with predictions and noisy labels that computes T-hat."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from noisylightning.errors import BadValue
from noisylightning.functional.bootstrap import standard_deviation
from noisylightning.plotting import draw_transition
from noisylightning.predictions.record import Predictions

LARGEST_KEPT = 2**27
"""Probabilities that an estimator keeps at most, 512 MiB in float32, where it can do with two passes instead."""


class TransitionEstimator(Metric):
    """Base class of the estimators of T, T[i, j] = p(noisy = j | clean = i).

    An estimator is a :class:`torchmetrics.Metric`: feed it batch by batch, on one process or on many, and ``compute``
    gives the same T-hat. Subclasses write :meth:`_accumulate` and ``compute``, best as a thin shell over a pure
    function; :class:`~noisylightning.predictions.Predictions` has checked what comes in.

    ``update`` with every batch is always enough. Some estimators keep the predictions then, and need little memory
    where they see the same batches twice: first :meth:`survey` with each, :meth:`end_survey`, then ``update`` with
    each. :func:`passes` does that where :meth:`wants_survey` says so; T-hat has the same bits either way.

    Args:
        num_classes: Number of classes C, at least 2.
        replicates: Number of bootstrap replicates that standard errors are computed from; 0 for none.
        **kwargs: Passed on to :class:`torchmetrics.Metric` (``compute_on_cpu=True`` keeps large states off the GPU, for
            one process: NCCL gathers from GPUs).

    Attributes:
        needs: What the estimator needs beyond probabilities and noisy labels: of ``"features"``, ``"clean_labels"``
            and ``"held_out"``, predictions of samples that the network was trained without.
        takes_annotators: Whether it reads the labels of several annotators, ``(N, annotators)``, in place of one each.
        rounds: How often a fit that says nothing else is to refine T-hat with networks that are trained with it.

    Raises:
        ValueError: If ``num_classes`` is below 2, or ``replicates`` is 1 or negative, or not 0 for an estimator that
            computes no standard errors.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    needs: ClassVar[frozenset[str]] = frozenset()
    takes_annotators: ClassVar[bool] = False
    rounds: ClassVar[int] = 0

    class_counts: Tensor

    def __init__(self, num_classes: int, replicates: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise BadValue(f"num_classes must be at least 2, got {num_classes}.")
        if replicates < 0 or replicates == 1:
            raise BadValue(f"replicates must be 0, for no standard errors, or at least 2, got {replicates}.")
        if replicates and type(self)._replicated is TransitionEstimator._replicated:
            raise BadValue(f"{type(self).__name__} computes no standard errors: pass replicates=0.")
        self.num_classes = num_classes
        self.replicates = replicates
        self.add_state("class_counts", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def wants_survey(self, num_examples: int) -> bool:
        """Whether for so many samples, of all processes, the estimator would rather see them twice."""
        return False

    def survey(self, batch: Predictions) -> None:
        """Take in one batch of a first pass; arguments and errors as in :meth:`update`."""
        self._check(batch)
        self._survey(batch)

    def _survey(self, batch: Predictions) -> None:
        """Add one batch to the states of the first pass."""
        raise BadValue(f"{type(self).__name__} takes one pass over the predictions: call update alone.")

    def end_survey(self) -> None:
        """Conclude the first pass; every process must call it."""
        with self.sync_context(self.dist_sync_fn, self.process_group, self._to_sync, self._should_unsync):
            self._conclude()

    def _conclude(self) -> None:
        """Keep, as plain attributes, what the second pass needs; the states are those of all processes."""

    def update(self, batch: Predictions) -> None:
        """Take in one batch.

        Args:
            batch: Predictions for C classes, with one noisy label a sample, unless it ``takes_annotators``, and all
                that the estimator ``needs``.

        Raises:
            ValueError: If it has another number of classes, several labels a sample, or lacks something.
        """
        self._check(batch)
        labels = batch.noisy_labels
        if labels.ndim == 2 or batch.clean_labels is not None:
            labels = labels[labels >= 0]
        self.class_counts += torch.bincount(labels, minlength=self.num_classes)
        self._accumulate(batch)

    def _check(self, batch: Predictions) -> None:
        name = type(self).__name__
        if batch.num_classes != self.num_classes:
            raise BadValue(
                f"{name} expects probabilities of shape (N, {self.num_classes}), got {tuple(batch.logits.shape)}:"
                " make the network's outputs and num_classes agree."
            )
        labels = batch.noisy_labels
        if self.takes_annotators != (labels.ndim == 2):
            raise BadValue(
                f"{name} reads the labels of several annotators, got one a sample: give noisy_labels (N, annotators)."
                if self.takes_annotators
                else f"{name} takes one noisy label a sample, got {labels.shape[1]}: choose one annotator's, or their"
                " majority, or CrowdEstimator."
            )
        if self.needs:  # a batch may by chance hold no sample that was held out, or is trusted
            check_needs(self, batch.known | {"held_out", "clean_labels"})
        if labels.ndim == 1 and batch.clean_labels is not None and "clean_labels" not in self.needs:
            unlabelled = int((labels < 0).sum())
            if unlabelled:
                raise BadValue(
                    f"{name} reads noisy labels, but {unlabelled} samples have a clean label only: leave them out, or"
                    " choose TrustedDataEstimator."
                )

    def _accumulate(self, batch: Predictions) -> None:
        """Add one batch to the states."""
        raise NotImplementedError

    def details(self) -> dict[str, Tensor]:
        """Return what it has found beside T-hat, by name, for a T that takes it; mostly nothing."""
        return {}

    def standard_error(self) -> Tensor | None:
        """Return the standard error of each entry of T-hat, ``(C, C)``, over samples drawn anew.

        None without replicates. What a bootstrap does not see, such as a network that is wrong, it does not count.
        """
        if not self.replicates:
            return None
        self.sync(self.dist_sync_fn, self.process_group, self._to_sync)
        try:
            return standard_deviation(self._replicated()).float()
        finally:  # torchmetrics' own context leaves the states of all processes behind where something is raised
            self.unsync(self._is_synced and self._should_unsync)

    def _replicated(self) -> Tensor:
        """Return T-hat of each replicate, ``(replicates, C, C)``; the states are those of all processes."""
        raise NotImplementedError

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Draw T-hat as a heat map.

        Args:
            val: The matrix to draw, ``(C, C)``; ``compute()`` where it is left out.
            ax: The axes to draw on; new ones where they are left out.

        Returns:
            The figure and its axes.
        """
        return draw_transition(self.compute() if val is None else val, ax=ax)


def passes(estimator: TransitionEstimator, num_examples: int) -> Iterator[Callable[[Predictions], None]]:
    """Yield for each pass over the predictions, of one or two, what takes in its batches.

    Args:
        estimator: A new estimator.
        num_examples: Number of samples, of all processes.

    Yields:
        A function of a batch; all batches must go through it before the next is asked for, on every process.

    Example:
        >>> from noisylightning import AnchorEstimator
        >>> predictions = Predictions(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1, 1]))
        >>> estimator = AnchorEstimator(2, quantile=None)
        >>> for take in passes(estimator, len(predictions)):
        ...     for batch in predictions.split(2):
        ...         take(batch)
        >>> estimator.compute().diagonal()
        tensor([0.7311, 0.9526])
    """
    if estimator.wants_survey(num_examples):
        yield estimator.survey
        estimator.end_survey()
    yield estimator.update


EstimatorFactory: TypeAlias = Callable[[int], TransitionEstimator]
"""Makes an estimator from the number of classes: an estimator's class, or a partial of one."""

_HOW_TO_GIVE = {
    "features": "collect them with the predictions",
    "clean_labels": "give trusted labels, or a file of predictions with clean_labels",
    "held_out": "hold out validation data (val_fraction), or give a file of predictions with held_out",
}


def check_needs(estimator: TransitionEstimator | type[TransitionEstimator], available: frozenset[str]) -> None:
    """Raise unless all that an estimator needs beyond probabilities and noisy labels is there.

    Args:
        estimator: The estimator, or its class.
        available: What is there: of ``"features"``, ``"clean_labels"`` and ``"held_out"``.

    Raises:
        ValueError: If something is missing.

    Example:
        >>> class Needy(TransitionEstimator):
        ...     needs = frozenset({"clean_labels"})
        >>> check_needs(Needy, frozenset({"features"}))
        Traceback (most recent call last):
        ...
        noisylightning.errors.BadValue: Needy needs clean_labels, which these predictions do not have: give ...
    """
    missing = sorted(estimator.needs - available)
    if missing:
        name = estimator.__name__ if isinstance(estimator, type) else type(estimator).__name__
        raise BadValue(
            f"{name} needs {' and '.join(missing)}, which these predictions do not have:"
            f" {'; '.join(_HOW_TO_GIVE[need] for need in missing)}; or choose another estimator."
        )
