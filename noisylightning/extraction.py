"""Features once: an encoder goes over all parts of a data module and leaves a folder of features."""

import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from noisylightning.allocator import kept_for_reuse
from noisylightning.atomic import written_whole
from noisylightning.data.base import NoisyDataModule
from noisylightning.data.crowd import CrowdDataModule
from noisylightning.data.image_files import ImageFilesDataModule, ImageSource
from noisylightning.data.noise import check_labels
from noisylightning.data.text import NoisyTextDataModule
from noisylightning.data.trusted import choose_trusted
from noisylightning.data.view import Inputs, LabelledView
from noisylightning.encoders import Encoder, load_encoder
from noisylightning.encoders.encoder import bytes_of, described
from noisylightning.errors import BadType, BadValue
from noisylightning.feature_files import FeatureFolder, Manifest

PARTS = ("train", "val", "trusted", "test", "predict")
_SECONDS_BETWEEN_SAVES = 2.0
_SECONDS_BETWEEN_LINES = 30.0  # in a log file, where there is no bar
_ROWS = 2**14  # at once, where features are only read
_BATCHES_OF_TEXTS = 8  # that are sorted by length together, so that little is padded


def extract_features(
    datamodule: NoisyDataModule,
    encoder: Encoder | str,
    output: str | Path = "features",
    views: int = 0,
    batch_size: int = 64,
    devices: Sequence[torch.device] | None = None,
    progress: bool = False,
) -> Manifest:
    """Run an encoder over all parts of a data module, once, and leave a folder of features.

    A run that was killed goes on where it was; one that is complete is only checked, and its labels written anew.
    :class:`~noisylightning.data.FeaturesDataModule` serves the folder.

    Args:
        datamodule: The data. Its noise and its trusted places go into the folder, too.
        encoder: The encoder, or its name, see :func:`~noisylightning.encoders.load_encoder`.
        output: The folder.
        views: Number V of augmented views of each training sample, by the data module's augmentation, beside the plain
            one.
        batch_size: Samples in a batch.
        devices: Where to run, a copy of the encoder on each; by default all GPUs, or else the CPU.
        progress: Whether to show a bar, or in a log file a line every half minute.

    Returns:
        What the folder holds.

    Raises:
        TypeError: If the data module is none of ours, or the encoder does not take its samples.
        ValueError: If the folder holds features of other data or of another encoder, the encoder gives no vectors, or
            a sample cannot be read.

    Example:
        >>> import tempfile
        >>> from noisylightning.data import DigitsDataModule, FeaturesDataModule
        >>> folder = tempfile.mkdtemp()
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
        >>> extract_features(DigitsDataModule(), Encoder(network), folder).parts["train"].rows
        1437
        >>> data = FeaturesDataModule(folder)
        >>> data.num_features, data.num_classes
        (5, 10)
    """
    _check_data(datamodule, views, batch_size)
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, takes="texts" if isinstance(datamodule, NoisyTextDataModule) else "images")
    if isinstance(datamodule, ImageFilesDataModule):
        datamodule.in_memory = False  # each image is read once
        if encoder.takes == "images" and encoder.image_size is not None:
            size, resize = encoder.image_size
            datamodule.scale_to(size, max(resize, size * 8 // 7) if views else resize)  # windows want a margin
    datamodule.prepare_data()
    read = {part: found for part in PARTS if (found := datamodule.read_part(part)) is not None}
    labels = {part: _checked_labels(datamodule, part, found) for part, (_, found) in read.items()}
    sources = {part: _Source(samples, encoder, datamodule) for part, (samples, _) in read.items()}
    if views:
        sources["views"] = _Source(read["train"][0], encoder, datamodule, views)
    folder = FeatureFolder.begin(
        output,
        Manifest(
            encoder.name,
            encoder.weights_checksum(),
            encoder.described(),
            width=encoder(sources["train"].read(0, min(2, sources["train"].rows))).shape[1],
            data=type(datamodule).__name__,
        ),
    )
    for part, source in sources.items():
        folder.add(part, source.rows, source.checksum)
    replicas = [encoder.replica(device) for device in devices or available_devices()]
    for part, source in sources.items():
        _encode(folder, part, source, replicas, batch_size, datamodule.num_workers, progress)
    _write_labels(folder, datamodule, read["train"][0], labels)
    rows = ", ".join(f"{record.rows:,} {part}" for part, record in folder.manifest.parts.items())
    rank_zero_info(f"{rows}: {folder.manifest.width} features each by {encoder.name}, left in {folder.path}.")
    return folder.manifest


def available_devices() -> list[torch.device]:
    """All GPUs, or else the CPU."""
    if torch.cuda.is_available():
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]


def _check_data(datamodule: Any, views: int, batch_size: int) -> None:
    name = type(datamodule).__name__
    if not isinstance(datamodule, NoisyDataModule):
        raise BadType(
            f"Features are made of a data module of noisylightning, not of a {name}: give it to WrappedDataModule."
        )
    if isinstance(datamodule, CrowdDataModule):
        raise BadValue(
            f"{name} has answers in the place of labels, which a folder of features does not hold: encode its inputs by"
            " ArrayDataModule, and give CrowdDataModule the features."
        )
    if datamodule.relabel is not None:
        raise BadValue("relabel (--data.relabel) changes labels, not features: give it to FeaturesDataModule.")
    if views and datamodule.augmentation is None:
        raise BadValue(f"{name} does not vary its samples, so there are no views of them: leave views (--views) out.")
    if views < 0 or batch_size < 1:
        raise BadValue(f"views must be at least 0 and batch_size 1, got {views} and {batch_size}: correct them.")


def _checked_labels(datamodule: NoisyDataModule, part: str, labels: Tensor) -> Tensor:
    """Check labels before anything takes long."""
    if part != "predict":
        name = f"{type(datamodule).__name__}'s {part} labels"
        return check_labels(labels, datamodule.num_classes, name, every_class=part in ("train", "trusted"))
    return labels


class _Source:
    """The samples of a part in order; of ``views``, all samples in their first view, then in their second and so on."""

    def __init__(
        self, samples: Inputs | Sequence[str], encoder: Encoder, data: NoisyDataModule, views: int = 0
    ) -> None:
        self.num = len(samples)
        self.rows = self.num * (views or 1)
        self.checksum = _checksum(samples)
        self._texts = list(samples) if isinstance(samples, list | tuple) else None
        if views:
            varied = f"{self.checksum} {views} {described(data.augmentation)} {data.seed}"
            self.checksum = hashlib.sha256(varied.encode()).hexdigest()
        if self._texts is None:
            self._views = [
                LabelledView(
                    samples,  # type: ignore[arg-type]
                    labels=torch.zeros(self.num, dtype=torch.int64),
                    index=torch.arange(self.num),
                    transform=None if encoder.takes == "images" else data.transform,
                    augmentation=data.augmentation if views else None,
                    seed=data.seed,
                )
                for _ in range(views or 1)
            ]
            for epoch, view in enumerate(self._views):  # a view is what training would see in that epoch
                view.epoch = epoch

    def batches(self, done: int, batch_size: int) -> Iterator[tuple[int, int]]:
        """First and last row of each batch that is left; none holds samples of two views."""
        while done < self.rows:
            end = min(done + batch_size, (done // self.num + 1) * self.num)
            yield done, end
            done = end

    @property
    def holds_texts(self) -> bool:
        return self._texts is not None

    def read(self, begin: int, end: int) -> Any:
        if self._texts is not None:
            return self._texts[begin:end]
        view = self._views[begin // self.num]
        return view.__getitems__(list(range(begin % self.num, begin % self.num + end - begin)))[0]


def _checksum(samples: Inputs | Sequence[str]) -> str:
    """SHA-256 of samples: of the texts, of a tensor's values, of image files, or of what is read."""
    digest = hashlib.sha256(f"{len(samples)}\n".encode())
    if isinstance(samples, list | tuple):
        for text in samples:
            digest.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    elif isinstance(samples, ImageSource):
        digest.update(f"{samples.size}\n".encode())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for begin in range(0, len(samples), 256):  # of all at once the pool would hold all in memory
                for content in pool.map(samples.content, range(begin, min(begin + 256, len(samples)))):
                    digest.update(f"{len(content)}\n".encode())
                    digest.update(content)
    else:
        for index in torch.arange(len(samples)).split(1024):
            values = samples[index]
            digest.update(f"{values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(bytes_of(values))
    return digest.hexdigest()


def _encode(
    folder: FeatureFolder,
    part: str,
    source: _Source,
    replicas: Sequence[Encoder],
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> None:
    """Encode what is left of a part."""
    done = folder.manifest.parts[part].done
    if done == source.rows:
        return
    if done:
        rank_zero_info(f"{folder.path} has {done:,} of {source.rows:,} rows of {part}: going on from there.")
    shows_bar = progress and sys.stderr.isatty()
    saved = told = time.monotonic()
    bar = tqdm(total=source.rows, initial=done, desc=f"Features of {part}", disable=not shows_bar, leave=False)
    with bar, kept_for_reuse():
        for features in _features(source, done, replicas, batch_size, num_workers):
            folder.write(part, features)
            bar.update(len(features))
            now = time.monotonic()
            if now - saved >= _SECONDS_BETWEEN_SAVES:
                folder.save()
                saved = now
            if progress and not shows_bar and now - told >= _SECONDS_BETWEEN_LINES:
                rank_zero_info(f"Features of {part}: {folder.manifest.parts[part].done:,} of {source.rows:,} rows.")
                told = now
    folder.save()


def _features(
    source: _Source, done: int, replicas: Sequence[Encoder], batch_size: int, num_workers: int
) -> Iterator[Tensor]:
    """Yield the features of batches in order, while threads read ahead and each replica encodes a batch."""
    free: SimpleQueue[Encoder] = SimpleQueue()
    for replica in replicas:
        free.put(replica)
    num_readers = num_workers or min(os.cpu_count() or 1, 8)
    readers, runners = ThreadPoolExecutor(num_readers), ThreadPoolExecutor(len(replicas))
    # What the main thread frees can be kept for reuse.
    alone = len(replicas) == 1 and all(parameter.is_cpu for parameter in replicas[0].parameters())

    def encode(read: Future[Any]) -> Tensor:
        replica = free.get()
        try:
            samples = read.result()
            found = _by_length(replica, samples, batch_size) if isinstance(samples, list) else replica(samples)
            return found.cpu()
        finally:
            free.put(replica)

    waiting: deque[Callable[[], Tensor]] = deque()
    try:
        for begin, end in source.batches(done, batch_size * (_BATCHES_OF_TEXTS if source.holds_texts else 1)):
            read = readers.submit(source.read, begin, end)
            waiting.append(partial(encode, read) if alone else runners.submit(encode, read).result)
            if len(waiting) > num_readers + len(replicas):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
    finally:  # an error, or an interrupt, waits for no other batch
        for pool in (runners, readers):
            pool.shutdown(cancel_futures=True)


def _by_length(encoder: Encoder, texts: list[str], batch_size: int) -> Tensor:
    """Encode texts in batches of texts of like length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = [[texts[i] for i in order[begin : begin + batch_size]] for begin in range(0, len(texts), batch_size)]
    return torch.cat([encoder(part) for part in parts])[torch.tensor(order).argsort()]


def _write_labels(
    folder: FeatureFolder, data: NoisyDataModule, inputs: Inputs | Sequence[str], labels: dict[str, Tensor]
) -> None:
    """Write all that a data module has beside its inputs."""
    train = labels["train"]
    for part, values in labels.items():
        folder.put(f"{part}_labels", values)
    texts = isinstance(inputs, list | tuple)
    sets = data.noisy_label_sets(None if texts else inputs, train)  # type: ignore[arg-type]
    for name, noisy in sets.items():
        noisy.save(folder.path / f"noisy_labels_{name}.npz")
    trusted = None if data.trusted is None else choose_trusted(data.trusted, train, data.num_classes, data.seed)
    folder.put("trusted_index", trusted)
    _, val = data.split(len(train))
    at_random = torch.equal(val, NoisyDataModule.split(data, len(train))[1])
    folder.put("val_index", None if at_random else val)
    try:
        folder.put("asymmetric", torch.stack([data.asymmetric_transition(rate) for rate in (0.0, 1.0)]))
    except BadValue:  # the paper gives none
        folder.put("asymmetric", None)
    folder.put("statistics", _statistics(folder.features("train")))
    names = data.sample_names()
    path = folder.path / "names.json"
    if names is None:
        path.unlink(missing_ok=True)
    else:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(list(names), ensure_ascii=False), encoding="utf-8")
    folder.update(class_names=list(map(str, data.class_names)), noisy_labels=list(sets), complete=True)


def _statistics(features: Tensor) -> Tensor:
    """Mean and variance of each feature, float32 of shape ``(2, D)``."""
    chunks = range(0, len(features), _ROWS)
    mean = torch.stack([features[i : i + _ROWS].double().sum(dim=0) for i in chunks]).sum(dim=0) / len(features)
    squares = [(features[i : i + _ROWS].double() - mean).square().sum(dim=0) for i in chunks]
    return torch.stack([mean, torch.stack(squares).sum(dim=0) / len(features)]).float()
