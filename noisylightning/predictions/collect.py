"""Run a network over the data that T is estimated on, within a fit."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from tqdm import tqdm

from noisylightning.errors import BadType, BadValue
from noisylightning.predictions.record import Predictions

Predict = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""Maps a module and a batch to ``(logits, noisy labels)``."""

Features = Callable[[int | None], Tensor]
"""Gives the features of the forward pass that was last, for a number of samples."""

_PROGRESS_AFTER_SECONDS = 2.0


def _estimation_source(trainer: Trainer, module: LightningModule) -> tuple[DataLoader[Any], bool]:
    """Return the loader whose data T is estimated on, and whether it was made for that."""
    owners: list[Any] = [trainer.datamodule, module]  # type: ignore[attr-defined]
    sources = [owner for owner in owners if hasattr(owner, "estimation_dataloader")]
    loader: Any = sources[0].estimation_dataloader() if sources else trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise BadType(
            f"T is estimated over one DataLoader, but the training data is a {type(loader).__name__}:"
            " give the data module an estimation_dataloader()."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise BadType(
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


def estimation_loader(
    trainer: Trainer, module: LightningModule, rehearsal: bool = False, only: Callable[[Tensor], Tensor] | None = None
) -> DataLoader[Any]:
    """Return this process's share of the estimation data: in order, nothing padded, nothing twice.

    The data is what ``estimation_dataloader()`` of the data module or the module gives, else the training data set. A
    rehearsal takes its first batch.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        rehearsal: Whether the first batch will do.
        only: Says of the samples, by their places in the training data, which are taken; by default all are.
    """
    loader, _ = _estimation_source(trainer, module)
    chosen: Sequence[int] = range(len(cast(Sized, loader.dataset)))
    if only is not None:
        index, _ = places(trainer.datamodule, loader.dataset)  # type: ignore[attr-defined]
        chosen = only(index).nonzero().flatten().tolist()
    total, world = len(chosen), trainer.world_size
    if total < world:
        raise BadValue(f"T cannot be estimated from {total} examples on {world} processes: use fewer processes.")
    return _over(loader, chosen[trainer.global_rank :: world], rehearsal)


def trusted_loader(trainer: Trainer, rehearsal: bool = False, at_least_one: bool = False) -> DataLoader[Any] | None:
    """Return this process's share of the trusted samples: in order, nothing padded, nothing twice.

    Args:
        trainer: The trainer of the fit.
        rehearsal: Whether it is the first batch only.
        at_least_one: Whether a process whose share would be empty gets the first sample.

    Returns:
        The loader over the data module's trusted samples; None where it has none.
    """
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    if not has_trusted(datamodule):
        return None
    loader = datamodule.trusted_dataloader()
    share = range(trainer.global_rank, len(cast(Sized, loader.dataset)), trainer.world_size)
    return _over(loader, share or range(1) if at_least_one else share, rehearsal)


def has_trusted(datamodule: Any) -> bool:
    """Whether a data module, or None, has samples whose labels are known to be right."""
    return hasattr(datamodule, "trusted_dataloader") and getattr(datamodule, "has_trusted", True)


def _over(loader: DataLoader[Any], share: Sequence[int], rehearsal: bool) -> DataLoader[Any]:
    """A loader like another, over some of its samples."""
    size = loader.batch_size
    if size is None and loader.batch_sampler is not None:
        size = getattr(loader.batch_sampler, "batch_size", 1)
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


@contextmanager
def inference(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Within a fit, let the module predict: random states and every submodule's training flag stay as they were."""
    training_flags = [(child, child.training) for child in module.modules()]
    module.eval()
    trainer.validating = True  # transfer hooks that augment while `trainer.training` must not
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        trainer.training = True
        for child, flag in training_flags:
            child.training = flag


def predictions(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    predict: Predict,
    num_classes: int,
    features: Features | None = None,
) -> Iterator[Predictions]:
    """Yield what the network predicts on the loader of :func:`estimation_loader`; run it under :func:`inference`.

    The bare module runs, not its DDP wrapper. A sample's ``index`` is its place in the training data, or -1 where
    ``predict`` gives more or fewer rows than a batch has samples.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts.
        loader: Where the samples come from.
        predict: Maps the module and a batch to logits and noisy labels.
        num_classes: The number of classes C that the logits must have.
        features: What :func:`~noisylightning.models.record_features` gives, where features are asked for.

    Yields:
        The predictions, some batches at a time.

    Raises:
        TypeError: If ``predict`` returns anything else than two tensors.
        ValueError: If the logits have another shape, or the predictions are none.
    """
    index, held_out = places(trainer.datamodule, loader.dataset)  # type: ignore[attr-defined]
    outputs = _outputs(trainer, module, loader, predict, num_classes, features)
    for logits, noisy_labels, drawn, *recorded in _merged(outputs):
        known = drawn >= 0
        yield Predictions(
            logits,
            noisy_labels,
            index=torch.where(known, index[drawn], -1).to(logits.device),
            held_out=(known & held_out[drawn]).to(logits.device),
            features=recorded[0] if recorded else None,
        )


def predictions_of_trusted(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    predict: Predict,
    num_classes: int,
    features: Features | None = None,
) -> Iterator[Predictions]:
    """Yield what the network predicts on the loader of :func:`trusted_loader`, clean labels beside it.

    Args:
        trainer: The trainer of the fit.
        module: The module that predicts; run it under :func:`inference`.
        loader: Where the trusted samples come from, with their clean labels.
        predict: Maps the module and a batch to logits and the batch's labels.
        num_classes: The number of classes C that the logits must have.
        features: As in :func:`predictions`.

    Yields:
        The predictions; a noisy label is -1 where the data module does not know it.

    Raises:
        TypeError: As :func:`predictions` does; or if ``predict`` does not give one row a sample.
    """
    if not len(cast(Sized, loader.sampler)):
        return
    index, noisy_labels = trusted_places(
        trainer.datamodule,  # type: ignore[attr-defined]
        loader.dataset,
        _estimation_source(trainer, module)[0].dataset,
    )
    for logits, clean_labels, drawn, *recorded in _merged(
        _outputs(trainer, module, loader, predict, num_classes, features)
    ):
        if (drawn < 0).any():
            raise BadType("predict must give one row for each trusted sample of a batch.")
        yield Predictions(
            logits,
            noisy_labels[drawn].to(logits.device),
            index=index[drawn].to(logits.device),
            held_out=torch.ones(len(logits), dtype=torch.bool, device=logits.device),
            clean_labels=clean_labels,
            features=recorded[0] if recorded else None,
        )


def trusted_places(datamodule: Any, dataset: Any, estimated_on: Any) -> tuple[Tensor, Tensor]:
    """Say of each trusted sample where it stands, and which noisy label it had.

    Args:
        datamodule: The data module.
        dataset: The data set of its ``trusted_dataloader()``, of N samples.
        estimated_on: The data set of its ``estimation_dataloader()``.

    Returns:
        ``index``, shape ``(N,)``: the place in the training data, or, for a trusted set of its own, the places after
        it. The noisy labels, shape ``(N,)``, -1 where they are not known.
    """
    drawn = getattr(datamodule, "trusted_index", None)
    if isinstance(drawn, Tensor) and len(drawn) == len(dataset):
        index = drawn.cpu()
    else:
        index = torch.arange(len(dataset)) + 1 + int(places(datamodule, estimated_on)[0].max())
    noisy_labels = getattr(datamodule, "trusted_noisy_labels", None)
    return index, torch.full_like(index, -1) if noisy_labels is None else noisy_labels.cpu()


def places(datamodule: Any, dataset: Any) -> tuple[Tensor, Tensor]:
    """Say of each sample of a data set where it stands in the training data, and whether it is held out.

    Views of ours leave samples out and say by their ``index`` which they have; any other data set is the whole. What a
    data module's ``train_index`` does not name is held out; where there is none, nothing is.

    Args:
        datamodule: The data module, or None.
        dataset: The map-style data set, of N samples.

    Returns:
        ``index`` and ``held_out`` as in :class:`Predictions`, shape ``(N,)``.
    """
    index, trained_on = getattr(dataset, "index", None), getattr(datamodule, "train_index", None)
    if not (isinstance(index, Tensor) and index.shape == (len(dataset),) and index.dtype == torch.int64):
        index = torch.arange(len(dataset))
    index = index.cpu()
    if not isinstance(trained_on, Tensor):
        return index, torch.zeros(len(index), dtype=torch.bool)
    trained_on = trained_on.cpu()
    held_out = torch.ones(1 + int(torch.cat([index, trained_on]).max()), dtype=torch.bool)  # isin() would sort
    held_out[trained_on] = False
    return index, held_out[index]


def known_of(datamodule: Any, dataset: Any) -> frozenset[str]:
    """What a pass can know beyond predictions and labels, as :attr:`Predictions.known` says it.

    The pass goes over a data set and, for an estimator that needs clean labels, over the trusted samples.
    """
    found = {"features"} | ({"clean_labels"} if has_trusted(datamodule) else set())
    return frozenset(found | {"held_out"} if places(datamodule, dataset)[1].any() else found)


def _outputs(
    trainer: Trainer,
    module: LightningModule,
    loader: DataLoader[Any],
    predict: Predict,
    num_classes: int,
    features: Features | None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield logits, noisy labels, the samples' places in the data set and features if asked for, batch by batch."""
    quiet = trainer.progress_bar_callback is None or not trainer.is_global_zero
    transfer = _transfer(trainer, module)
    shares = torch.tensor(cast(Sequence[int], loader.sampler)).split(loader.batch_size or 1)
    batches = tqdm(loader, "Estimating T", disable=quiet, leave=False, delay=_PROGRESS_AFTER_SECONDS)
    for batch, drawn in zip(batches, shares, strict=True):
        batch = transfer(trainer.precision_plugin.convert_input(batch))
        with trainer.precision_plugin.forward_context():
            found = predict(module, batch)
        if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], Tensor):
            raise BadType(
                "predict must return the logits and the noisy labels of a batch, (logits, labels), two tensors; got"
                f" {_kinds(found)}."
            )
        logits, noisy_labels = found
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise BadValue(f"T is estimated from logits of shape (N, {num_classes}), but the network gave {got}.")
        if len(drawn) != len(logits):
            drawn = torch.full((len(logits),), -1)
        recorded = () if features is None else (_wide(features(len(logits))),)
        yield _wide(logits), noisy_labels.to(logits.device), drawn, *recorded


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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


def _merged(batches: Iterator[tuple[Tensor, ...]], enough: int = 2**17) -> Iterator[tuple[Tensor, ...]]:
    """Join small batches of logits and what goes with them: an update costs as much as a small network."""
    aside: list[tuple[Tensor, ...]] = []
    numel = 0
    for batch in batches:
        aside.append(batch)
        numel += batch[0].numel()
        if numel >= enough:
            yield tuple(map(torch.cat, zip(*aside, strict=True)))
            aside, numel = [], 0
    if aside:
        yield tuple(map(torch.cat, zip(*aside, strict=True)))
