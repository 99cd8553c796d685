"""The one file that reaches inside Lightning's Trainer.

``tests/test_internals.py`` holds a canary for every behaviour relied on here, so that a Lightning release that
changes one is noticed there first. Callbacks and strategies are told apart by name: ``lightning.pytorch`` and
``pytorch_lightning`` hold two classes of each.
"""

import math
import random
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import wraps
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from noisylightning.errors import BadValue, NotReady

_REFUSED_STRATEGIES = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"}
_REFUSED_CALLBACKS = {"StochasticWeightAveraging", "BaseFinetuning", "ModelPruning"}


def _is_a(thing: object, names: set[str]) -> bool:
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def callbacks(trainer: Trainer) -> list[Any]:
    """Return the trainer's callbacks, the list itself."""
    found: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return found


def dev_batches(trainer: Trainer) -> int:
    """Return the number of batches of a ``fast_dev_run``; 0 where there is none."""
    return int(trainer.fast_dev_run)  # type: ignore[attr-defined]


def devices_of(trainer: Trainer) -> list[torch.device]:
    """Return the devices of this machine that the trainer was given; the CPU counts once."""
    root = trainer.strategy.root_device
    return [root] if root.type == "cpu" else [torch.device(root.type, i) for i in trainer.device_ids]


def data_attribute(trainer: Trainer, name: str) -> Any:
    """Return an attribute of the trainer's data module; None where either is missing."""
    return getattr(trainer.datamodule, name, None)  # type: ignore[attr-defined]


def standard_error_of(trainer: Trainer, transition: Tensor) -> Tensor | None:
    """Return the standard error of each entry of T, where a callback has estimated just this T and knows it."""
    for callback in callbacks(trainer):
        estimate, error = getattr(callback, "transition", None), getattr(callback, "standard_error", None)
        if isinstance(estimate, Tensor) and isinstance(error, Tensor) and estimate.layout == transition.layout:
            same = estimate.shape == transition.shape and torch.equal(transition.cpu(), estimate.to(transition.dtype))
            if same:  # a T that learns on has left T-hat
                return error
    return None


def refuse_unsupported(trainer: Trainer) -> None:
    """Stop on strategies and callbacks that a restart inside a fit would silently break."""
    if _is_a(trainer.strategy, _REFUSED_STRATEGIES):
        raise BadValue(
            f"EstimateTransitionCallback cannot restart a model sharded by {type(trainer.strategy).__name__}: train"
            " stage one by itself, write T with `noisylightning estimate`, and start a second fit with that T."
        )
    for callback in callbacks(trainer):
        if _is_a(callback, _REFUSED_CALLBACKS):
            raise BadValue(
                f"EstimateTransitionCallback cannot restart what {type(callback).__name__} changes in the model:"
                " run the two stages as two fits, with `noisylightning estimate` between them."
            )


def refuse_test_monitors(trainer: Trainer) -> None:
    """Stop on a callback or a schedule that would choose weights, epochs or rates by clean test data."""
    watching = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in callbacks(trainer)]
    for config in getattr(trainer.strategy, "lr_scheduler_configs", []):
        watching.append((type(config.scheduler).__name__, config.monitor if config.reduce_on_plateau else None))
    for name, monitor in watching:
        if isinstance(monitor, str) and is_of_test_data(monitor):
            raise BadValue(
                f"{name}(monitor={monitor!r}) would choose by clean test data, which is looked at once, at the end:"
                " choose by noisy validation data, monitor='val_loss' or monitor='val_accuracy' with mode='max'."
            )


def is_of_test_data(metric: str) -> bool:
    """Whether a metric is of the test set, by its name: ``test_accuracy``, ``correction_last/test_accuracy``."""
    words = re.split(r"[^a-z]+", metric.lower())
    return "test" in words and words[0] not in ("val", "train")


def ignores_missing_gradients(trainer: Trainer) -> bool:
    """Whether parameters may go without a gradient: on several processes DDP waits for all unless told not to."""
    settings = getattr(trainer.strategy, "_ddp_kwargs", None)
    return settings is None or bool(settings.get("find_unused_parameters"))


# Schedules


def double_length(trainer: Trainer) -> tuple[int | None, int | None]:
    """Give the fit twice its epochs and steps, and return the epochs and steps that it had; None is no limit."""
    loop = trainer.fit_loop
    epochs, steps = loop.max_epochs, loop.epoch_loop.max_steps
    assert epochs is not None
    if epochs == -1 and steps == -1:
        raise BadValue(
            "A fit without an end cannot be twice as long: give EstimateTransitionCallback stage_one_epochs or"
            " stage_one_steps, or the trainer max_epochs or max_steps."
        )
    loop.max_epochs = epochs if epochs == -1 else 2 * epochs
    loop.epoch_loop.max_steps = steps if steps == -1 else 2 * steps
    return None if epochs == -1 else epochs, None if steps == -1 else steps


def lengthen(trainer: Trainer, epochs: int, steps: int) -> None:
    """Give the fit so many more epochs and optimizer steps, where these are limited."""
    loop = trainer.fit_loop
    if loop.max_epochs not in (None, -1):
        loop.max_epochs += epochs
    if loop.epoch_loop.max_steps != -1:
        loop.epoch_loop.max_steps += steps


def steps_an_epoch(trainer: Trainer) -> int:
    """Return the number of optimizer steps of an epoch on the loader that the fit trains on now."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def plan_schedules(trainer: Trainer, span: Callable[[Trainer], tuple[int, int]]) -> None:
    """Build optimizers, now and at each restart, as if a phase of the fit were a fit of its own.

    While they are built ``max_epochs``, ``max_steps`` and ``estimated_stepping_batches`` speak of ``span(trainer)``,
    the epochs and steps of the phase, -1 for no limit.
    """
    build = trainer.strategy.setup_optimizers
    if getattr(build, "spans_a_phase", False):
        return

    def planned(trainer: Trainer) -> None:
        loop = trainer.fit_loop
        whole = loop.max_epochs, loop.epoch_loop.max_steps
        loop.max_epochs, loop.epoch_loop.max_steps = span(trainer)
        try:
            build(trainer)
        finally:
            loop.max_epochs, loop.epoch_loop.max_steps = whole

    planned.spans_a_phase = True  # type: ignore[attr-defined]
    trainer.strategy.setup_optimizers = planned  # type: ignore[method-assign]


def rest_of_the_fit(trainer: Trainer, end: int, within_epoch: bool = False) -> tuple[int, int]:
    """Return the epochs that are left before the epoch ``end``, and the optimizer steps; -1 is no limit."""
    steps = trainer.max_steps
    if steps == -1 and within_epoch:  # not a whole number of epochs
        estimated = trainer.estimated_stepping_batches
        steps = -1 if math.isinf(estimated) else int(estimated)
    return (
        end if end == -1 else end - trainer.current_epoch,
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
            stopper.wait_count >= stopper.patience
            or (stopper.stopped_epoch == trainer.current_epoch and stopper.stopping_reason_message is not None)
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


# Resuming


def begin_whole_epoch(trainer: Trainer) -> None:
    """Let a fit that resumes before an epoch's first batch train on all of it.

    Lightning would take it for that far as the epoch before was; call in ``on_train_start``.
    """
    if trainer.fit_loop.restarted_on_epoch_start:
        trainer.fit_loop.epoch_loop.restarting = False


# Randomness


def reseed(trainer: Trainer, seed: int) -> None:
    """Begin the epoch from a random state that depends on the seed, the epoch and the rank alone.

    That is what makes a run resumed at an epoch's end draw what the uninterrupted one drew.
    """
    set_random_state(trainer, seed)
    loop = trainer.fit_loop
    resuming = getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting
    if resuming and trainer.current_epoch > 0 and loop._data_fetcher is not None:
        # The iterator of a resumed fit's first epoch, which draws a seed, was made before this; others come after it.
        iter(loop._data_fetcher)


def set_random_state(trainer: Trainer, seed: int) -> None:
    """Set the random state to one that depends on the seed, the epoch and the rank alone."""
    entropy = np.random.SeedSequence([seed % 2**64, trainer.current_epoch, trainer.global_rank])
    state = entropy.generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002  (the global state is what user code draws from)
    torch.manual_seed(int(state[2]))


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
        "optimizers": [_state_of(optimizer) for optimizer in trainer.strategy.optimizers],
        "schedulers": [_state_of(config.scheduler) for config in trainer.strategy.lr_scheduler_configs],
    }


def restart(trainer: Trainer, module: LightningModule, state: dict[str, Any], replaces: bool = False) -> None:
    """Begin training anew inside a running fit, from the weights as they are.

    Args:
        trainer: The trainer of the fit.
        module: The module that it trains.
        state: What :func:`first_state` gave.
        replaces: Whether the best weights so far are of no more use, so that the next best ones replace their files.
    """
    module.zero_grad(set_to_none=True)
    _renew_optimizers(trainer, module, state)
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
        useless = dict(getattr(peer, "best_k_models", {})) if replaces else {}
        if first:
            peer.load_state_dict(first)
        if useless:
            _let_replace(peer, list(useless))


def _let_replace(checkpoints: Any, paths: list[str]) -> None:
    """Let a ModelCheckpoint take the files for its worst, which go when better ones are there."""
    worst = torch.tensor(math.inf if checkpoints.mode == "min" else -math.inf)
    checkpoints.best_k_models = dict.fromkeys(paths, worst)
    checkpoints.kth_best_model_path, checkpoints.kth_value = paths[0], worst


# Optimizers. A module may hold one and return it at each call of configure_optimizers: its first state is put back.


def held_optimizers(module: LightningModule) -> list[Optimizer]:
    """Return the optimizers among the module's attributes, or one level inside them, before it is asked for any."""
    found = []
    for value in vars(module).values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [item for item in inside if isinstance(item, Optimizer)]
    return found


def require_restorable(trainer: Trainer, module: LightningModule, held: list[Optimizer]) -> None:
    """Stop, before the first step, on a held optimizer whose first state could not be put back later."""
    own = {id(parameter) for parameter in module.parameters()}
    for optimizer in trainer.strategy.optimizers:
        if not _has(held, optimizer):
            continue
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        strange = sum(id(parameter) not in own for parameter in trained)
        if strange:
            raise BadValue(
                f"{type(module).__name__} holds one {type(optimizer).__name__}, {strange} of whose {len(trained)}"
                " parameters are not the module's, so no stage could begin them again: make the optimizer in"
                " configure_optimizers."
            )
        _put_back(module, optimizer, _state_of(optimizer))


def _renew_optimizers(trainer: Trainer, module: LightningModule, state: dict[str, Any]) -> None:
    strategy = trainer.strategy
    firsts = list(zip(strategy.optimizers, state["optimizers"], strict=False))
    scheduler_firsts = [
        (config.scheduler, first)
        for config, first in zip(strategy.lr_scheduler_configs, state["schedulers"], strict=False)
    ]
    strategy.setup_optimizers(trainer)
    kept = [(optimizer, first) for optimizer, first in firsts if _has(strategy.optimizers, optimizer)]
    if not kept:
        return
    for optimizer, first in kept:
        _put_back(module, optimizer, _before_schedules(first))
    strategy.setup_optimizers(trainer)  # for schedulers made anew, which read the optimizer's rates
    schedulers: list[Any] = [config.scheduler for config in strategy.lr_scheduler_configs]
    for scheduler, first in scheduler_firsts:
        if _has(schedulers, scheduler):
            _put_back(module, scheduler, first)
    new = [scheduler for scheduler in schedulers if not _has([old for old, _ in scheduler_firsts], scheduler)]
    for optimizer, first in kept:
        if not _has([scheduler.optimizer for scheduler in new], optimizer):
            _put_back(module, optimizer, first)


def _has(things: Iterable[object], thing: object) -> bool:
    return any(item is thing for item in things)


def _state_of(thing: Any) -> dict[str, Any] | None:
    try:
        return deepcopy(thing.state_dict())
    except Exception:  # no matter where a new one is made at each restart
        return None


def _before_schedules(first: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return an optimizer's state as it was before schedulers came, which keep its rate as ``initial_lr``."""
    first = deepcopy(first)
    for group in [] if first is None else first["param_groups"]:
        group["lr"] = group.pop("initial_lr", group["lr"])
    return first


def _put_back(module: LightningModule, thing: Any, first: dict[str, Any] | None) -> None:
    try:
        if first is None:
            raise TypeError("it has no state_dict that can be copied")
        thing.load_state_dict(deepcopy(first))
    except Exception as error:
        raise NotReady(
            f"{type(module).__name__}.configure_optimizers returns one {type(thing).__name__} at every call, whose"
            f" first state cannot be put back ({error}): make a new one at each call (in LightningCLI, take an"
            " OptimizerCallable)."
        ) from error


# Training steps


def before_training_steps(module: LightningModule, change: Callable[[Any], Any]) -> Callable[[], None]:
    """Let the module's training steps take ``change(batch)`` in the place of each batch.

    It is called after every hook that comes before a step: the phase that the step belongs to has begun.

    Returns:
        What undoes it.
    """
    changes: list[Callable[[Any], Any]] | None = getattr(module.training_step, "changes", None)
    if changes is None:
        changes = _wrap_training_step(module)
    changes.append(change)

    def undo() -> None:
        if change in changes:
            changes.remove(change)
            if not changes:
                module.training_step.unwrap()  # type: ignore[attr-defined]

    return undo


def _wrap_training_step(module: LightningModule) -> list[Callable[[Any], Any]]:
    step, own = module.training_step, "training_step" in vars(module)  # torch.compile leaves one there
    changes: list[Callable[[Any], Any]] = []

    @wraps(step)  # Lightning looks at its arguments
    def changed(batch: Any, *rest: Any) -> Any:
        for change in changes:
            batch = change(batch)
        return step(batch, *rest)

    def unwrap() -> None:
        if own:
            module.training_step = step  # type: ignore[method-assign]
        else:
            del module.training_step

    changed.changes, changed.unwrap = changes, unwrap  # type: ignore[attr-defined]
    module.training_step = changed  # type: ignore[method-assign]
    return changes


# Data


def training_source(trainer: Trainer) -> Any:
    """Return what the fit was given to take its training loader from: a module, a data module or a loader."""
    loop: Any = trainer.fit_loop
    all_others = loop.epoch_loop.val_loop._data_source.instance
    # A data module gives every loader; a callback may have put another for training in its place.
    return all_others if _is_a(all_others, {"LightningDataModule"}) else loop._data_source.instance


def training_loader(source: Any) -> Any:
    """Return the training loader of what :func:`training_source` gave, as its author made it."""
    return source.train_dataloader() if hasattr(source, "train_dataloader") else source


def train_on(trainer: Trainer, loader: Any) -> None:
    """Let the rest of the fit train on another loader; call as it is set up, or before an epoch's first batch."""
    loop: Any = trainer.fit_loop
    loop._data_source.instance = loader
    if loop._combined_loader is None:  # the fit looks at its source later
        return
    loop._combined_loader = None
    loop.setup_data()
    for flat in loop._combined_loader.flattened:
        sampler: Any = getattr(flat, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(loop.epoch_progress.current.processed)
