"""Time the loaders against DataLoaders over torchvision's data sets with the same transforms.

    python benchmarks/data.py --data-dir FOLDER_WITH_CIFAR10_AND_MNIST

Samples a second of training batches, with random crops and flips where the data set has them, in turn within one
process; a row's ratio is to the fastest DataLoader of the same data. On a machine with a GPU also how long a training
step of the 32-layer network waits for its batch. Writes ``benchmarks/results/data.json`` and ``data.md``, and, where
the human labels of CIFAR-10N are in the folder, their measured T as ``cifar10n.md``.
"""

import argparse
import gzip
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from common import environment, write_json
from PIL import Image
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from noisylightning.atomic import written_whole
from noisylightning.data import (
    CIFAR10DataModule,
    HumanNoise,
    ImageFolderDataModule,
    MNISTDataModule,
    NoisyDataModule,
    measure_transition,
)
from noisylightning.data.locations import default_data_dir
from noisylightning.models import CIFARResNet

BATCH_SIZE = 128
TO_FLOAT = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True))


def samples_a_second(batches: Iterable[Any], max_batches: int) -> float:
    """Read batches and count, from the second on: the first pays for starting workers."""
    reader = iter(batches)
    next(reader)
    start = time.perf_counter()
    samples = sum(len(batch[1]) for batch in itertools.islice(reader, max_batches))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return samples / (time.perf_counter() - start)


def compare(paths: dict[str, Iterable[Any]], repeats: int, max_batches: int) -> dict[str, dict[str, float]]:
    """Measure every path in turn, several times, and relate the medians to the fastest DataLoader of torchvision's."""
    found: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(repeats + 1):
        for name, batches in paths.items():
            rate = samples_a_second(batches, max_batches)
            if repeat:  # the first is for warming up
                found[name].append(rate)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    baseline = max(rate for name, rate in medians.items() if name.startswith("torchvision"))
    return {name: {"samples_a_second": rate, "ratio": rate / baseline} for name, rate in medians.items()}


def torchvision_loaders(dataset: Any, workers: list[int]) -> dict[str, Iterable[Any]]:
    """DataLoaders as a script would write them."""
    return {
        f"torchvision, {num} workers": DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=num)
        for num in workers
    }


def ours(data: NoisyDataModule) -> Iterable[Any]:
    """Training batches of a data module."""
    data.setup("fit")
    return data.train_dataloader()


def cifar10(data_dir: Path, workers: list[int]) -> dict[str, Iterable[Any]]:
    """Crop, flip, normalise."""
    module = CIFAR10DataModule(data_dir=data_dir, batch_size=BATCH_SIZE)
    normalize = v2.Normalize([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *TO_FLOAT, normalize])
    dataset = datasets.CIFAR10(data_dir, transform=transform)
    return {"noisylightning": ours(module)} | torchvision_loaders(dataset, workers)


def mnist(data_dir: Path, workers: list[int]) -> dict[str, Iterable[Any]]:
    """Normalise."""
    module = MNISTDataModule(data_dir=data_dir, batch_size=BATCH_SIZE)
    raw = Path("MNIST") / "raw"
    with tempfile.TemporaryDirectory() as folder:  # torchvision reads the plain files only
        (Path(folder) / raw).mkdir(parents=True)
        for file in (data_dir / raw).iterdir():
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            (Path(folder) / raw / file.name.removesuffix(".gz")).write_bytes(content)
        dataset = datasets.MNIST(folder, transform=v2.Compose([*TO_FLOAT, v2.Normalize([0.1307], [0.3081])]))
    return {"noisylightning": ours(module)} | torchvision_loaders(dataset, workers)


def photos(folder: Path, data_dir: Path, workers: list[int]) -> dict[str, Iterable[Any]]:
    """JPEG files of 400 x 300 pixels: decode, scale to 256, cut out 224 at random, flip, normalise."""
    images = CIFAR10DataModule(data_dir=data_dir).load_test()[0][:1024]
    rows = ["image,label"]
    for i, image in enumerate(images):
        path = folder / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((400, 300), Image.Resampling.BICUBIC).save(path)
        rows.append(f"{i % 10}/{i}.jpg,{i % 10}")
    (folder / "labels.csv").write_text("\n".join(rows))
    found: dict[str, Iterable[Any]] = {}
    settings: dict[str, Any] = {"root": folder, "labels": folder / "labels.csv", "batch_size": BATCH_SIZE}
    for num in workers:
        module = ImageFolderDataModule(in_memory=False, num_workers=num, **settings)
        found[f"noisylightning, from files, {num} workers"] = ours(module)
    found["noisylightning, held in memory"] = ours(ImageFolderDataModule(**settings))
    normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    cut = (v2.Resize(256), v2.CenterCrop(256), v2.RandomCrop(224), v2.RandomHorizontalFlip())
    dataset = datasets.ImageFolder(folder, transform=v2.Compose([*cut, *TO_FLOAT, normalize]))
    return found | torchvision_loaders(dataset, workers)


def on_gpu(data: NoisyDataModule) -> Iterable[Any]:
    """Training batches of a data module from the GPU's memory."""
    data.trainer = Trainer(accelerator="gpu", devices=1, logger=False, enable_checkpointing=False)
    return ours(data)


def waiting(data_dir: Path, steps: int) -> dict[str, float]:
    """Seconds of a step of the 32-layer network on the GPU, with a batch at hand and with one from the loader."""
    batches = on_gpu(CIFAR10DataModule(data_dir=data_dir, batch_size=BATCH_SIZE))
    network = CIFARResNet(num_classes=10, depth=32).cuda()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    def seconds(source: Iterable[Any]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for images, labels in source:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    at_hand = [next(iter(batches))] * steps
    timed: dict[str, list[float]] = {"at_hand": [], "from_loader": []}
    for _ in range(6):
        timed["at_hand"].append(seconds(at_hand))
        timed["from_loader"].append(seconds(batch for batch, _ in zip(batches, range(steps), strict=False)))
    return {name: statistics.median(values[1:]) for name, values in timed.items()}


def human_transition(file: Path) -> str:
    """The T measured between clean labels and each set of human labels, as tables."""
    names = CIFAR10DataModule.class_names
    text = [
        "# CIFAR-10N: T measured between clean and human labels\n",
        "Rows are clean classes, columns human labels, entries percent; `python benchmarks/data.py` writes this.",
    ]
    for key in ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label"):
        clean, human = HumanNoise(file, key).read(10)
        wrong = (clean != human).double().mean().item()
        text += [f"\n## {key}, {wrong:.2%} wrong\n", f"| |{'|'.join(names)}|", "|---|" + "---:|" * 10]
        for name, row in zip(names, measure_transition(clean, human, 10).tolist(), strict=True):
            text.append(f"|{name}|{'|'.join(f'{100 * share:.1f}' for share in row)}|")
    return "\n".join(text) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    about = result["environment"]
    text = [
        "# Loaders side by side\n",
        f"`python benchmarks/data.py`, batches of {BATCH_SIZE}, {about['processor']}, {about['cores']} cores, "
        f"GPU: {about['gpu'] or 'none'}; torch {about['torch']}, torchvision {about['torchvision']}; other "
        f"jobs' load on the machine beforehand: {about['load_average_before']:.1f}. The ratio is to "
        "the fastest DataLoader over torchvision's data set.",
    ]
    for name, rows in result["loaders"].items():
        text += [f"\n## {name}\n", "|path|samples a second|ratio|", "|---|---:|---:|"]
        text += [f"|{path}|{row['samples_a_second']:,.0f}|{row['ratio']:.2f}|" for path, row in rows.items()]
    if step := result["gpu_step_seconds"]:
        share = 1 - step["at_hand"] / step["from_loader"]
        text.append(
            f"\nA training step of the 32-layer network on the GPU takes {1000 * step['at_hand']:.2f} ms with a batch "
            f"at hand and {1000 * step['from_loader']:.2f} ms with one from the loader: {share:.1%} of it waits."
        )
    else:
        text.append("\nNo GPU was there: how long a step waits on one was not measured.")
    return "\n".join(text) + "\n"


def main() -> None:
    """Run the comparison and write its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="default: $NOISYLIGHTNING_DATA")
    parser.add_argument("--mnist-dir", type=Path, default=None, help="where MNIST/raw is, if elsewhere")
    parser.add_argument("--human-file", type=Path, default=None, help="labels of CIFAR-10N, if elsewhere")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    workers = sorted({0, os.cpu_count() or 1})
    torch.set_num_threads(1)  # batches are too small for more, and on a busy machine threads wait for one another
    gpu = torch.cuda.is_available()
    load = os.getloadavg()[0]

    loaders: dict[str, dict[str, dict[str, float]]] = {}
    paths = cifar10(arguments.data_dir, workers)
    if gpu:
        paths["noisylightning, GPU"] = on_gpu(CIFAR10DataModule(data_dir=arguments.data_dir, batch_size=BATCH_SIZE))
    loaders["CIFAR-10: crop, flip, normalise"] = compare(paths, arguments.repeats, max_batches=150)
    paths = mnist(arguments.mnist_dir or arguments.data_dir, workers)
    loaders["MNIST: normalise"] = compare(paths, arguments.repeats, max_batches=150)
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), arguments.data_dir, workers)
        loaders["JPEG files of 400 x 300: decode, cut out 224, flip, normalise"] = compare(
            paths, arguments.repeats, max_batches=6
        )
    result = {
        "environment": environment() | {"load_average_before": load},
        "batch_size": BATCH_SIZE,
        "loaders": loaders,
        "gpu_step_seconds": waiting(arguments.data_dir, steps=200) if gpu else None,
    }
    write_json(arguments.output / "data.json", result)
    texts = {"data.md": markdown(result)}
    human_file = arguments.human_file or arguments.data_dir / "cifar10n.npz"
    if human_file.is_file():
        texts["cifar10n.md"] = human_transition(human_file)
    for name, text in texts.items():
        with written_whole(arguments.output / name) as temporary:
            temporary.write_text(text)
        print(text)


if __name__ == "__main__":
    main()
