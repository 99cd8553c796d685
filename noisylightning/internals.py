"""The one file that reaches inside Lightning's Trainer.

``tests/test_internals.py`` holds a canary for every behaviour relied on here, so that a Lightning release that
changes one is noticed there first. Callbacks and strategies are told apart by name: ``lightning.pytorch`` and
``pytorch_lightning`` hold two classes of each.
"""

import math
import random
from collections.abc import Callable, Iterator, Sized
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from tqdm import tqdm

from noisylightning.estimators import TransitionEstimator

Predict = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""Maps a module and a batch to ``(logits, noisy labels)``."""

_REFUSED_STRATEGIES = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}
_REFUSED_CALLBACKS = {"StochasticWeightAveraging", "BaseFinetuning", "ModelPruning"}
_PROGRESS_AFTER_SECONDS = 2.0


def _is_a(thing: object, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def callbacks(trainer: Trainer) -> list[Any]:
    """Return the trainer's callbacks, the list itself."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def dev_batches(trainer: Trainer) -> int:
    """Return the number of batches of a ``fast_dev_run``; 0 where there is none."""
    return int(trainer.fast_dev_run)  # type: ignore[attr-defined]


def data_attribute(trainer: Trainer, name: str) -> Any:
    """Return an attribute of the trainer's data module; None where either is missing."""
    return getattr(trainer.datamodule, name, None)  # type: ignore[attr-defined]


def refuse_unsupported(trainer: Trainer) -> None:
    """Stop on strategies and callbacks that a restart inside a fit would silently break."""
    if _is_a(trainer.strategy, _REFUSED_STRATEGIES):
        raise ValueError(
            f"EstimateTransitionCallback cannot restart a model sharded by {type(trainer.strategy).__name__}: train"
            " stage one by itself, write T with `noisylightning estimate`, and start a second fit with that T."
        )
    for callback in callbacks(trainer):
        if _is_a(callback, _REFUSED_CALLBACKS):
            raise ValueError(
                f"EstimateTransitionCallback cannot restart what {type(callback).__name__} changes in the model:"
                " run the two stages as two fits, with `noisylightning estimate` between them."
            )


# Schedules


def double_length(trainer: Trainer) -> tuple[int | None, int | None]:
    """Give the fit twice its epochs and steps, and return the epochs and steps that it had; None is no limit."""
    loop = trainer.fit_loop
    epochs, steps = loop.max_epochs, loop.epoch_loop.max_steps
    assert epochs is not None
    if epochs == -1 and steps == -1:
        raise ValueError(
            "A fit without an end cannot be twice as long: give EstimateTransitionCallback stage_one_epochs or"
            " stage_one_steps, or the trainer max_epochs or max_steps."
        )
    loop.max_epochs = epochs if epochs == -1 else 2 * epochs
    loop.epoch_loop.max_steps = steps if steps == -1 else 2 * steps
    return None if epochs == -1 else epochs, None if steps == -1 else steps


def plan_schedules(trainer: Trainer) -> None:
    """Build optimizers, now and at each restart, as if a phase of the fit were a fit of its own.

    While they are built ``max_epochs``, ``max_steps`` and ``estimated_stepping_batches`` speak of the phase that the
    callbacks' ``schedule_span(trainer)`` tell, the last of them that knows: epochs and steps, -1 for no limit.
    """
    build = trainer.strategy.setup_optimizers
    if getattr(build, "spans_a_phase", False):
        return

    def planned(trainer: Trainer) -> None:
        spans = [peer.schedule_span(trainer) for peer in callbacks(trainer) if hasattr(peer, "schedule_span")]
        loop = trainer.fit_loop
        whole = loop.max_epochs, loop.epoch_loop.max_steps
        loop.max_epochs, loop.epoch_loop.max_steps = next((span for span in reversed(spans) if span), whole)
        try:
            build(trainer)
        finally:
            loop.max_epochs, loop.epoch_loop.max_steps = whole

    planned.spans_a_phase = True  # type: ignore[attr-defined]
    trainer.strategy.setup_optimizers = planned  # type: ignore[method-assign]


def rest_of_the_fit(trainer: Trainer, within_epoch: bool = False) -> tuple[int, int]:
    """Return the epochs and optimizer steps that are left, up to fine-tuning where it comes; -1 is no limit."""
    ends = [peer.from_epoch for peer in callbacks(trainer) if _is_a(peer, {"FineTuneOnTrusted"}) and not peer.began]
    assert trainer.max_epochs is not None
    last = min([*ends, trainer.max_epochs]) if trainer.max_epochs != -1 else min(ends, default=-1)
    steps = trainer.max_steps
    if steps == -1 and within_epoch:  # not a whole number of epochs
        estimated = trainer.estimated_stepping_batches
        steps = -1 if math.isinf(estimated) else int(estimated)
    return (
        last if last == -1 else last - trainer.current_epoch,
        steps if steps == -1 else steps - trainer.global_step,
    )


def listen_for_early_stopping(trainer: Trainer, heard: Callable[[Trainer], None]) -> None:
    """Call ``heard(trainer)`` when early stopping asks to stop, before the loop obeys it and checkpoints are saved."""
    present = callbacks(trainer)
    stoppers = [callback for callback in present if _is_a(callback, {"EarlyStopping"})]
    if not stoppers or any(type(callback).__name__ == "_StopListener" for callback in present):
        return

    def fired() -> bool:
        """Tell early stopping's request from a timer's or a signal's."""
        return trainer.should_stop and any(
            stopper.wait_count >= stopper.patience or stopper.stopped_epoch == trainer.current_epoch > 0
            for stopper in stoppers
        )

    base: Any = next(kind for kind in type(stoppers[0]).__mro__ if kind.__name__ == "EarlyStopping")

    # An EarlyStopping only so that Lightning runs it among the callbacks that monitor a metric, right after the last.
    class _StopListener(base):
        def setup(self, *args: Any, **kwargs: Any) -> None:
            pass

        def on_validation_end(self, *args: Any) -> None:
            if fired():
                heard(trainer)

        on_train_epoch_end = on_validation_end

        def state_dict(self) -> dict[str, Any]:
            return {}

    last = max(index for index, callback in enumerate(present) if callback in stoppers)
    present.insert(last + 1, _StopListener(monitor="none"))


# Randomness


def reseed(trainer: Trainer, seed: int) -> None:
    """Begin the epoch from a random state that depends on the seed, the epoch and the rank alone.

    That is what makes a run resumed at an epoch's end draw what the uninterrupted one drew.
    """
    entropy = np.random.SeedSequence([seed % 2**64, trainer.current_epoch, trainer.global_rank])
    state = entropy.generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002  (the global state is what user code draws from)
    torch.manual_seed(int(state[2]))
    loop = trainer.fit_loop
    resuming = getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting
    if resuming and trainer.current_epoch > 0 and loop._data_fetcher is not None:
        # The iterator of a resumed fit's first epoch, which draws a seed, was made before this; others come after it.
        iter(loop._data_fetcher)


# Restarting


def _peers(trainer: Trainer) -> list[Any]:
    judges = {"EarlyStopping", "ModelCheckpoint"}
    return [peer for peer in callbacks(trainer) if _is_a(peer, judges)]


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Copy a module's state to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else deepcopy(value)
        for name, value in module.state_dict().items()
    }


def share_buffers(trainer: Trainer, module: nn.Module) -> None:
    """Give every process rank 0's buffers, as checkpoints hold them.

    Between two forward passes of DDP each process has batch statistics of its own.
    """
    if trainer.world_size > 1:
        parameters = {name for name, _ in module.named_parameters()}
        buffers = {name: value for name, value in snapshot(module).items() if name not in parameters}
        module.load_state_dict(trainer.strategy.broadcast(buffers), strict=False)


def judged_weights(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Copy the weights that validation judges: the average where WeightAveraging keeps one."""
    for callback in callbacks(trainer):
        if _is_a(callback, {"WeightAveraging"}):
            return snapshot(callback._average_model.module)
    return snapshot(module)


def first_state(trainer: Trainer) -> dict[str, Any]:
    """Return what a restart needs beside weights, taken before training begins."""
    return {
        "precision": dict(trainer.precision_plugin.state_dict()),
        "peers": {peer.state_key: deepcopy(peer.state_dict()) for peer in _peers(trainer)},
    }


def restart(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    """Begin training anew inside a running fit, from the weights as they are."""
    module.zero_grad(set_to_none=True)
    before = list(trainer.strategy.optimizers)
    trainer.strategy.setup_optimizers(trainer)
    if any(old is new for old in before for new in trainer.strategy.optimizers):
        raise RuntimeError(
            f"{type(module).__name__}.configure_optimizers returned stage one's optimizer again, with its state:"
            " make a new one at each call (in LightningCLI, take an OptimizerCallable)."
        )
    trainer.precision_plugin.load_state_dict(state["precision"])
    for callback in callbacks(trainer):
        if _is_a(callback, {"WeightAveraging"}):
            callback._average_model.module.load_state_dict(module.state_dict())
            callback._average_model.n_averaged.zero_()
    for peer in _peers(trainer):
        first = deepcopy(state["peers"].get(peer.state_key, {}))
        for kept in ("last_model_path", "dirpath"):  # the same files are written on, in the folder of this run
            if kept in first:
                first[kept] = getattr(peer, kept)
        if first:
            peer.load_state_dict(first)


# Data


def train_on(trainer: Trainer, loader: Any) -> None:
    """Let the rest of the fit train on another loader; call before an epoch's first batch."""
    loop: Any = trainer.fit_loop
    loop._data_source.instance = loader
    loop._combined_loader = None
    loop.setup_data()
    for flat in loop._combined_loader.flattened:
        sampler: Any = getattr(flat, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(loop.epoch_progress.current.processed)


# Estimating


def _estimation_source(trainer: Trainer, module: LightningModule) -> tuple[DataLoader[Any], bool]:
    """Return the loader whose data T is estimated on, and whether it was made for that."""
    owners: list[Any] = [trainer.datamodule, module]  # type: ignore[attr-defined]
    sources = [owner for owner in owners if hasattr(owner, "estimation_dataloader")]
    loader: Any = sources[0].estimation_dataloader() if sources else trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"T is estimated over one DataLoader, but the training data is a {type(loader).__name__}:"
            " give the data module an estimation_dataloader()."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"T cannot be estimated over the iterable {type(loader.dataset).__name__}, whose samples have no index:"
            " give the data module an estimation_dataloader() over a map-style data set."
        )
    return loader, bool(sources)


def warn_of_randomness(trainer: Trainer, module: LightningModule) -> None:
    """Warn where the estimation data may be shuffled or augmented."""
    loader, made_for_it = _estimation_source(trainer, module)
    name = type(loader.dataset).__name__
    variations = [getattr(loader.dataset, attribute, None) for attribute in ("transform", "augmentation")]
    if not made_for_it:
        rank_zero_warn(
            f"T is estimated on {name}, the training data set, with whatever augmentation it applies: give the data"
            " module an estimation_dataloader() without any.",
        )
        return
    if not isinstance(loader.sampler, SequentialSampler) and loader.batch_sampler is not None:
        rank_zero_warn(
            f"estimation_dataloader() draws from {type(loader.sampler).__name__}; T is estimated over its data set in"
            " order, each example once."
        )
    if "Random" in repr(variations):
        rank_zero_warn(
            f"estimation_dataloader() reads a {name} that varies its inputs at random: give one without augmentation."
        )


def estimation_loader(trainer: Trainer, module: LightningModule, rehearsal: bool = False) -> DataLoader[Any]:
    """Return this process's share of the estimation data: in order, nothing padded, nothing twice.

    The data is what ``estimation_dataloader()`` of the data module or the module gives, else the training data set. A
    rehearsal takes its first batch.
    """
    loader, _ = _estimation_source(trainer, module)
    total, world = len(cast(Sized, loader.dataset)), trainer.world_size
    if total < world:
        raise ValueError(f"T cannot be estimated from {total} examples on {world} processes: use fewer processes.")
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:
        size = getattr(loader.batch_sampler, "batch_size", 1)
    share = range(trainer.global_rank, total, world)
    return DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=share[: size or 1] if rehearsal else share,
        num_workers=0 if rehearsal else loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=0 if rehearsal else loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=None if rehearsal else loader.multiprocessing_context,
    )


def estimate(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
) -> Tensor:
    """Run the network over the loader and return T-hat on the CPU, the same bits on every process."""
    feed(trainer, module, loader, estimator, predict)
    transition: Tensor = trainer.strategy.broadcast(estimator.compute().cpu())
    return transition


def feed(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    estimator: TransitionEstimator,
    predict: Predict,
) -> None:
    """Run the network over the loader, and the estimator over its predictions.

    The bare module runs, not its DDP wrapper; random states and every submodule's training flag are left as they were.
    An error on one process ends them all.
    """
    estimator.to(module.device)
    training_flags = [(child, child.training) for child in module.modules()]
    module.eval()
    trainer.validating = True  # transfer hooks that augment while `trainer.training` must not
    failure: Exception | None = None
    try:
        with isolate_rng(), torch.no_grad():
            # Every process updates at least once: a list state that stays empty cannot be gathered.
            estimator.update(*_no_examples(estimator.num_classes, module.device))
            for logits, noisy_labels in _merged(_predictions(trainer, module, loader, predict, estimator.num_classes)):
                estimator.update(logits.softmax(dim=1), noisy_labels)
    except Exception as error:
        failure = error
    finally:
        trainer.training = True
        for child, flag in training_flags:
            child.training = flag
    # The collectives that follow are reached by all processes or by none.
    if not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
        raise failure or RuntimeError("T could not be estimated: another process failed; see its message.")


def _no_examples(num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.empty(0, num_classes, device=device), torch.empty(0, dtype=torch.long, device=device)


def _predictions(
    trainer: Trainer, module: LightningModule, loader: DataLoader[Any], predict: Predict, num_classes: int
) -> Iterator[tuple[Tensor, Tensor]]:
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    transfer = _transfer(trainer, module)
    for batch in tqdm(loader, "Estimating T", disable=quiet, leave=False, delay=_PROGRESS_AFTER_SECONDS):
        batch = transfer(trainer.precision_plugin.convert_input(batch))
        with trainer.precision_plugin.forward_context():
            found = predict(module, batch)
        if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], Tensor):
            raise TypeError(
                "predict must return the logits and the noisy labels of a batch, (logits, labels), two tensors; got"
                f" {_kinds(found)}."
            )
        logits, noisy_labels = found
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"T is estimated from logits of shape (N, {num_classes}), but the network gave {got}.")
        yield logits if logits.dtype == torch.float64 else logits.float(), noisy_labels.to(logits.device)


def _kinds(found: Any) -> str:
    parts = ", ".join(type(part).__name__ for part in found) if isinstance(found, tuple | list) else ""
    return f"({parts})" if parts else f"a {type(found).__name__}"


def _transfer(trainer: Trainer, module: LightningModule) -> Callable[[Any], Any]:
    """Return what brings a batch to the network's device, as the loops of the trainer do it.

    Hooks that nobody wrote are left out: calling them costs as much as a small network.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    owners = [module] if data is None else [module, data]
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    if any(_overrides(owner, hook, "DataHooks") for owner in owners for hook in hooks) or _overrides(
        trainer.strategy, "batch_to_device", "Strategy"
    ):
        return lambda batch: trainer.strategy.batch_to_device(module._on_before_batch_transfer(batch))
    device = trainer.strategy.root_device
    return lambda batch: move_data_to_device(batch, device)


def _overrides(thing: object, method: str, base: str) -> bool:
    origin = next(kind for kind in type(thing).__mro__ if kind.__name__ == base)
    return getattr(getattr(thing, method), "__func__", None) is not getattr(origin, method)


def _merged(parts: Iterator[tuple[Tensor, Tensor]], enough: int = 2**17) -> Iterator[tuple[Tensor, Tensor]]:
    """Join small batches, whose update would cost as much as a small network."""
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    numel = 0
    for some_logits, some_labels in parts:
        logits.append(some_logits)
        labels.append(some_labels)
        numel += some_logits.numel()
        if numel >= enough:
            yield torch.cat(logits), torch.cat(labels)
            logits, labels, numel = [], [], 0
    if logits:
        yield torch.cat(logits), torch.cat(labels)
