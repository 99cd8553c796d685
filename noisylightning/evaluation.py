"""Accuracies outside the Trainer's loops: nothing is logged, and each sample counts once on any number of processes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from noisylightning.metrics.noisy import countable, pair_counts
from noisylightning.models import record_features
from noisylightning.module import NoisyLabelClassifier
from noisylightning.predictions.gather import gather_rows
from noisylightning.predictions.record import Predictions
from noisylightning.transition import Transition


def measure(
    trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule, transition: Transition | None = None
) -> dict[str, float]:
    """Measure a model, as it is, on noisy validation data and on the clean test set.

    The model is in evaluation and on the trainer's device; the trainer's ``limit_val_batches`` and
    ``limit_test_batches`` hold. A collective: every process calls it.

    Args:
        trainer: The trainer of the model's fit, which says where and in what precision to compute.
        model: The model.
        data: The data module, set up.
        transition: T that the accuracy on clean labels is estimated with where the model has none.

    Returns:
        ``val_accuracy``, ``test_accuracy`` and ``test_balanced_accuracy``, those that there is data for; where T is
        known also ``val_clean_accuracy``, ``val_clean_accuracy_low`` and ``val_clean_accuracy_high``.
    """

    def accuracy(average: Any) -> MulticlassAccuracy:
        return MulticlassAccuracy(model.num_classes, average=average, validate_args=False)

    found: dict[str, float] = {}
    if trainer.limit_val_batches and _defines(data, "val_dataloader"):
        metrics = nn.ModuleList([noisy := accuracy("micro")])
        counts = pair_counts(model.num_classes, model.correction)
        if counts is not None:
            metrics.append(counts)

        def validate(batch: Any) -> None:
            logits, of_samples = model.logits_of(batch)
            noisy.update(model.correction.noisy_log_posterior(logits, **of_samples), batch[1])
            if counts is not None:
                counts.update(*countable(logits, batch[1]))

        _run(trainer, model, _limited(_share(data.val_dataloader()), trainer.limit_val_batches), validate, metrics)
        found["val_accuracy"] = float(noisy.compute())
        clean = None if counts is None else model.estimate_clean_accuracy(counts.compute(), transition)
        if clean is not None:
            bounds = zip(("", "_low", "_high"), (clean.value, *clean.interval()), strict=True)
            found |= {f"val_clean_accuracy{name}": float(value.float()) for name, value in bounds}
    if trainer.limit_test_batches and _defines(data, "test_dataloader") and getattr(data, "has_test", True):
        tests = MetricCollection({"test_accuracy": accuracy("micro"), "test_balanced_accuracy": accuracy("macro")})

        def test(batch: Any) -> None:
            tests.update(model(batch[0]), batch[1])

        _run(trainer, model, _limited(_share(data.test_dataloader()), trainer.limit_test_batches), test, tests)
        found |= {name: float(value) for name, value in tests.compute().items()}
    return found


@torch.no_grad()
def validation_predictions(
    trainer: Trainer, model: NoisyLabelClassifier, data: LightningDataModule
) -> Predictions | None:
    """Return what the model, as it is, says of the noisy validation data, with features; see :func:`measure`.

    Args:
        trainer: The trainer of the model's fit.
        model: The model; features are what goes into the last ``nn.Linear`` of its backbone.
        data: The data module, set up.

    Returns:
        Scores of the clean classes, noisy labels and features of all samples, in their order, the same on every
        process; None where there is no validation data, or its samples cannot be told apart.

    Raises:
        ValueError: If the backbone has no such layer.
    """
    if not trainer.limit_val_batches or not _defines(data, "val_dataloader"):
        return None
    loader = _share(data.val_dataloader())
    places = getattr(loader, "sampler", None) if trainer.world_size > 1 else None
    if trainer.world_size > 1 and not isinstance(places, list):
        return None  # each process reads it as it comes
    logits, labels, features = [], [], []
    with record_features(model.backbone) as recorded:
        for batch in _batches(trainer, model, _limited(loader, trainer.limit_val_batches)):
            with trainer.precision_plugin.forward_context():
                found = model(batch[0])
            logits.append(found.float().cpu())
            labels.append(batch[1].cpu())
            features.append(recorded(len(found)).float().cpu())
    if not labels or any(part.ndim != 1 or part.is_floating_point() for part in labels):
        return None
    num = sum(map(len, labels))
    index = torch.arange(num) if places is None else torch.tensor(places[:num])
    share = {
        "index": index,
        "logits": torch.cat(logits),
        "noisy_labels": torch.cat(labels),
        "features": torch.cat(features),
    }
    parts = list(gather_rows(share))
    whole: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in share}
    return Predictions(**whole, held_out=torch.ones(len(whole["index"]), dtype=torch.bool))  # checked on all alike


def _batches(trainer: Trainer, model: NoisyLabelClassifier, batches: Iterable[Any]) -> Iterator[Any]:
    """Bring batches to the model's device, as the trainer's loops do."""
    for batch in batches:
        batch = trainer.precision_plugin.convert_input(batch)
        yield trainer.strategy.batch_to_device(model._on_before_batch_transfer(batch))


def _defines(data: LightningDataModule, loader: str) -> bool:
    base = next(kind for kind in type(data).__mro__ if kind.__name__ == "DataHooks")
    return getattr(type(data), loader) is not getattr(base, loader)


@torch.no_grad()
def _run(
    trainer: Trainer,
    model: NoisyLabelClassifier,
    batches: Iterable[Any],
    step: Callable[[Any], None],
    metrics: nn.Module,
) -> None:
    metrics.to(trainer.strategy.root_device)
    for batch in _batches(trainer, model, batches):
        with trainer.precision_plugin.forward_context():
            step(batch)


def _share(loader: Any) -> Any:
    """Return what this process reads of a loader: nothing padded, nothing twice.

    Samplers that pad are set aside; any other says which samples there are. What is no DataLoader over a map-style
    data set cannot be shared out, and each process reads it as it comes.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size() if distributed else 1
    if world == 1 or not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    batched = loader.batch_sampler is not None
    if isinstance(loader.sampler, DistributedSampler):
        places: list[int] = list(range(len(loader.dataset)))  # type: ignore[arg-type]
    else:  # sorted: where the order is random, processes disagree about it
        places = sorted(chain.from_iterable(loader.batch_sampler) if batched else loader.sampler)  # type: ignore[arg-type]
    return DataLoader(
        loader.dataset,
        batch_size=getattr(loader.batch_sampler, "batch_size", 1) if batched else None,
        sampler=places[torch.distributed.get_rank() :: world],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
    )


def _limited(loader: Any, limit: int | float) -> Iterable[Any]:
    """Apply a trainer's limit: a number of batches, or a share of them."""
    if isinstance(limit, float):
        return loader if limit == 1.0 else islice(loader, int(limit * len(loader)))
    return islice(loader, limit)
