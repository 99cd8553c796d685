"""Predictions of samples by networks that were trained without them, within a fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset

from noisylightning import internals
from noisylightning.errors import BadType, BadValue
from noisylightning.estimators import within_fit
from noisylightning.functional.bootstrap import part_of
from noisylightning.phases.base import Fit, Phase
from noisylightning.predictions import Predictions
from noisylightning.predictions.collect import places
from noisylightning.predictions.gather import gather_rows

Chooses = Callable[[Tensor], Tensor]
"""Says of samples, by their places in the training data, which are taken."""


@dataclass
class Plan:
    """How T-hat is refined, shared by the phases that do it.

    Attributes:
        folds: Number of parts K of the data, each of which a network is trained without; None for 2 where there are
            rounds, and none where there are not.
        rounds: How often every T-hat is put into the loss and refined; None for what the estimator asks for.
        round_epochs: Epochs of a round; None for a fifth of stage one's.
        asked: The rounds that the estimator asks for.

    Raises:
        ValueError: If an argument is out of bounds.
    """

    folds: int | None = None
    rounds: int | None = None
    round_epochs: int | None = None
    asked: int = 0

    def __post_init__(self) -> None:
        for name, least in (("folds", 2), ("rounds", 0), ("round_epochs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadValue(f"{name} must be at least {least}, got {value}.")

    @property
    def num_rounds(self) -> int:
        """The rounds that there will be."""
        return self.asked if self.rounds is None else self.rounds

    @property
    def num_folds(self) -> int:
        """The parts that there will be; 0 for none."""
        return self.folds or (2 if self.num_rounds else 0)

    def refines(self, fit: Fit) -> bool:
        """Whether this fit can have rounds: not where no loss takes T, nor in a ``fast_dev_run``."""
        return bool(self.num_rounds and fit.memory.correction is not None and not internals.dev_batches(fit.trainer))

    def epochs(self, fit: Fit) -> int:
        """Epochs of a network in a round."""
        return self.round_epochs or max(1, fit.memory.stage_one_epochs // 5)

    def first_epochs(self, fit: Fit) -> int:
        """Epochs of a network that rounds begin from; of one that only predicts, as many as stage one has."""
        return 2 * self.epochs(fit) if self.refines(fit) else fit.memory.stage_one_epochs


class FoldsPhase(Phase):
    """Train K networks with T = identity, each without one of K parts of the data, and let it predict that part.

    Each begins from the fit's first weights, with an optimizer and a schedule of its own. The predictions, those of all
    processes, go into ``fit.memory.out_of_fold``, the weights into ``fit.memory.fold_weights``. The fit becomes longer
    by the epochs of this phase, each of which takes (K - 1)/K of the data.

    Args:
        plan: How many parts and epochs.
        predict: Maps ``(module, batch)`` to ``(logits, noisy labels)``.

    Raises:
        ValueError: From the fit, if the training data cannot be parted.
    """

    name = "folds"
    is_stage = False

    def __init__(self, plan: Plan, predict: within_fit.Predict) -> None:
        self.plan = plan
        self.predict = predict
        self._source: Any = None  # of the whole training data
        self._begun = 0  # networks
        self._from = 0  # the epoch at which the last of them began
        self._stopped = False

    @property
    def folds(self) -> int:
        """Number of parts."""
        return self.plan.num_folds

    def epochs(self, fit: Fit) -> int:
        """Epochs of each network."""
        return self.plan.first_epochs(fit)

    @property
    def _fold(self) -> int:
        return (self._begun - 1) % self.folds

    def is_skipped(self, fit: Fit) -> bool:
        """Whether there is nothing to do: by the plan, or since a ``fast_dev_run`` has no epochs for it."""
        return not self.folds or bool(internals.dev_batches(fit.trainer))

    def needs_whole_epochs(self, fit: Fit) -> bool:
        """Whether networks are trained."""
        return not self.is_skipped(fit)

    def setup(self, fit: Fit) -> None:
        """Remember where the training data comes from."""
        self._source = internals.training_source(fit.trainer)

    def prepare(self, fit: Fit) -> None:
        """Keep the weights that networks begin from."""
        if not self.is_skipped(fit) and fit.memory.initial is None:
            fit.memory.initial = internals.snapshot(fit.module)

    def rehearse(self, fit: Fit) -> None:
        """Part the data, and let the network predict a first batch."""
        if self.is_skipped(fit):
            return
        training = fold_loader(fit.trainer, self._source, self._only(0, held_out=False))
        first = within_fit.estimation_loader(fit.trainer, fit.module, True, self._only(0, held_out=True))
        require_one_order(training.dataset, first.dataset)
        within_fit.collect(fit.trainer, fit.module, first, self.predict, fit.num_classes)

    def begin(self, fit: Fit) -> None:
        """Begin the next network; in a ``fast_dev_run`` the one at hand stands in for all."""
        if self.is_skipped(fit):
            if self.folds:
                fit.memory.out_of_fold = [self._predictions(fit, None)]
            return
        self._begun += 1
        try:
            self._begin_network(fit)
        except BaseException:
            self._begun -= 1
            raise
        self._from, self._stopped = fit.trainer.current_epoch, False

    def _begin_network(self, fit: Fit) -> None:
        assert fit.memory.initial is not None
        fit.module.load_state_dict(fit.memory.initial)
        rank_zero_info(
            f"Part {self._fold + 1} of {self.folds}: training on the others with T = identity, {self.epochs(fit)}"
            " epochs."
        )
        self._restart(fit)

    def _restart(self, fit: Fit) -> None:
        assert fit.memory.start is not None
        internals.train_on(fit.trainer, self._loader(fit))
        internals.restart(fit.trainer, fit.module, fit.memory.start, replaces=fit.has_discarded)

    def take_up(self, fit: Fit) -> None:
        """Take the parts that the running network trains on up again."""
        if not self.is_skipped(fit):
            internals.train_on(fit.trainer, self._loader(fit))

    def _loader(self, fit: Fit) -> DataLoader[Any]:
        return fold_loader(fit.trainer, self._source, self._only(self._fold, held_out=False))

    def _only(self, fold: int, held_out: bool) -> Chooses:
        return partial(_in_part, fold=fold, folds=self.folds, held_out=held_out)

    def span(self, fit: Fit) -> tuple[int, int]:
        """Return the epochs of a network; of none, what is left of the fit."""
        return fit.rest() if self.is_skipped(fit) else (self.epochs(fit), -1)

    def extra_epochs(self, fit: Fit) -> int:
        """Return the epochs of a network."""
        return 0 if self.is_skipped(fit) else self.epochs(fit)

    def is_over(self, fit: Fit) -> bool:
        """Tell whether the running network has had its epochs."""
        over = self._stopped or fit.trainer.current_epoch >= self._from + self.epochs(fit)
        return self.is_skipped(fit) or (over and not fit.within_epoch)

    def hears_stop(self, fit: Fit) -> bool:
        """Take early stopping's request to stop as the end of the running network."""
        self._stopped = True
        return True

    def end(self, fit: Fit) -> None:
        """Let the network predict the part that it has not seen."""
        if self.is_skipped(fit):
            return
        memory, fold = fit.memory, self._fold
        memory.out_of_fold[fold:] = [self._predictions(fit, self._only(fold, held_out=True))]
        memory.fold_weights[fold:] = [internals.snapshot(fit.module)]
        if not self.repeats(fit):
            internals.train_on(fit.trainer, self._source)

    def repeats(self, fit: Fit) -> bool:
        """Tell whether another network is to be trained."""
        return not self.is_skipped(fit) and self._begun < self.folds

    def _predictions(self, fit: Fit, only: Chooses | None) -> dict[str, Tensor]:
        internals.share_buffers(fit.trainer, fit.module)
        loader = within_fit.estimation_loader(fit.trainer, fit.module, only=only)
        own = within_fit.collect(fit.trainer, fit.module, loader, self.predict, fit.num_classes)
        columns = {name: getattr(own, name) for name in ("index", "logits", "noisy_labels")}
        parts = list(gather_rows(columns))
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in columns}

    # Resuming

    @property
    def config(self) -> dict[str, Any]:
        """The plan."""
        return {name: getattr(self.plan, name) for name in ("folds", "rounds", "round_epochs")}

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        return {"begun": self._begun, "from": self._from, "stopped": self._stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this up."""
        self._begun, self._from, self._stopped = state["begun"], state["from"], state["stopped"]


def whole(parts: list[dict[str, Tensor]]) -> Predictions:
    """Join the predictions of all parts, in the order of their ``index``; every sample was held out."""
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = columns["index"].argsort()
    joined = Predictions(columns["logits"][order], columns["noisy_labels"][order], columns["index"][order])
    return replace(joined, held_out=torch.ones(len(joined), dtype=torch.bool))


def _in_part(index: Tensor, fold: int, folds: int, held_out: bool) -> Tensor:
    return (part_of(index, folds) == fold) == held_out


def fold_loader(trainer: Trainer, source: Any, only: Chooses) -> DataLoader[Any]:
    """Return a training loader of some of the training data.

    Args:
        trainer: The trainer of the fit.
        source: Where the fit takes its training loader from.
        only: Says of samples, by their places in the training data, which are taken.

    Raises:
        TypeError: If the training data is no single loader of a map-style data set.
        ValueError: If its samples are drawn in a way that parts of it would not keep.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if source is data and hasattr(data, "fold_dataloader"):
        trained_on = getattr(data, "train_index", None)
        if trained_on is None:
            trained_on, _ = places(None, data.train_dataloader().dataset)
        made: DataLoader[Any] = data.fold_dataloader(trained_on[only(trained_on)])
        return made
    loader = internals.training_loader(source)
    advice = "choose an estimator without folds, such as AnchorEstimator"
    if not isinstance(loader, DataLoader):
        raise BadType(
            f"Folds are parts of one DataLoader's data set, but the training data is a {type(loader).__name__}:"
            f" {advice}."
        )
    shuffles = isinstance(loader.sampler, RandomSampler)
    if not _draws_each_once(loader):
        drawing = loader.sampler if loader.batch_size is not None else loader.batch_sampler
        raise BadValue(
            f"Folds cannot keep how {type(drawing).__name__} draws samples: give the data module a"
            f" fold_dataloader(index), the training loader of the samples at index, or {advice}."
        )
    index, _ = places(None, loader.dataset)
    return DataLoader(
        Subset(loader.dataset, only(index).nonzero().flatten().tolist()),
        batch_size=loader.batch_size,
        shuffle=shuffles,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
    )


def _draws_each_once(loader: DataLoader[Any]) -> bool:
    """Whether an epoch has each sample once, in order or shuffled, as an epoch of a part will have its samples."""
    sampler = loader.sampler
    shuffled = type(sampler) is RandomSampler and not sampler.replacement
    whole = len(sampler) == len(loader.dataset) if shuffled else type(sampler) is SequentialSampler  # type: ignore[arg-type]
    return loader.batch_size is not None and whole


def require_one_order(training: Any, estimation: Any) -> None:
    """Raise where nothing says which training sample an estimation sample is: held out would then mean nothing.

    Args:
        training: The data set of a fold, as :func:`fold_loader` makes it.
        estimation: The data set that T is estimated on.

    Raises:
        ValueError: If they may be in different orders.
    """
    if not isinstance(training, Subset) or hasattr(estimation, "index"):
        return
    if len(training.dataset) != len(estimation):  # type: ignore[arg-type]
        raise BadValue(
            f"There are {len(training.dataset)} training samples and {len(estimation)} that T is estimated on, and"  # type: ignore[arg-type]
            " nothing says which are which: let estimation_dataloader() give the training samples in order, or its"
            " data set an attribute index, their places in the training data."
        )
