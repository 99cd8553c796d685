"""Small data in the layout of the originals, for the tests that train from configuration files."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def write_mnist(root: Path, name: str = "MNIST", num: int = 80) -> None:
    """Files in MNIST's own format, under ``name/raw``."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        labels = (np.arange(num) % 10).astype(np.uint8)
        images = random.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{what}-ubyte").write_bytes(head + array.tobytes())


def write_labelme(root: Path, num: int = 60) -> None:
    """Features of ``num`` images a part, and the answers of 59 annotators to those that train."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "valid", "test"):
        arrays[f"y_{part}"] = (np.arange(num) % 8).astype(np.int8)
        arrays[f"x_{part}"] = random.random((num, 512)).astype(np.float16)
    right = random.random((num, 59)) < 0.7
    answers = np.where(right, arrays["y_train"][:, None], random.integers(0, 8, (num, 59)))
    np.savez(root / "labelme_crowd.npz", answers=answers.astype(np.int8), **arrays)


def write_cifar10(root: Path, num: int = 40) -> None:
    """Five training batches and a test batch of ``num`` images each, and the human labels of CIFAR-10N."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images = random.integers(0, 256, (num, 3072), dtype=np.uint8)
        content = {b"data": images, b"labels": [i % 10 for i in range(num)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    clean = np.tile(np.arange(num) % 10, 5)
    human = np.where(random.random(len(clean)) < 0.4, (clean + 1) % 10, clean)
    keys = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")
    np.savez(root / "cifar10n.npz", clean_label=clean, **dict.fromkeys(keys, human))


def write_cifar100(root: Path, num: int = 200) -> None:
    """A training and a test file of ``num`` images each, and the human labels of CIFAR-100N."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    labels = [i % 100 for i in range(num)]
    for name in ("train", "test"):
        images = random.integers(0, 256, (num, 3072), dtype=np.uint8)
        content = {b"data": images, b"fine_labels": labels, b"coarse_labels": [0] * num}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    np.savez(root / "cifar100n.npz", clean_label=labels, noisy_label=[(i + i // 100) % 100 for i in range(num)])


def write_imdb(root: Path, num: int = 8) -> None:
    """``num`` reviews of each class and part, a file each."""
    for part in ("train", "test"):
        for name, word in (("neg", "dull"), ("pos", "great")):
            folder = root / "aclImdb" / part / name
            folder.mkdir(parents=True)
            for i in range(num):
                (folder / f"{i}_{9 if name == 'pos' else 2}.txt").write_text(f"A {word} film, number {i}")


def write_images(root: Path, names: list[str]) -> None:
    """Images of noise, each at its own name under ``root``."""
    random = np.random.default_rng(0)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(path)


def write_own_images(root: Path, num: int = 200) -> None:
    """A folder of images and two tables: ``num`` that train, with labels of any quality, and 20 that test."""
    for table, count in (("labels.csv", num), ("checked.csv", 20)):
        names = [f"{table[0]}{i}.png" for i in range(count)]
        write_images(root, names)
        rows = [f"{name},{['ant', 'bee', 'cat'][i % 3]}" for i, name in enumerate(names)]
        (root / table).write_text("\n".join(["image,label", *rows]) + "\n")


def write_own_table(root: Path, num: int = 60) -> None:
    """Two tables of three features and labels of three classes: ``train.csv`` and ``test.csv``."""
    random = np.random.default_rng(0)
    for name in ("train.csv", "test.csv"):
        rows = [f"{x},{y},{z},{['ant', 'bee', 'cat'][i % 3]}" for i, (x, y, z) in enumerate(random.random((num, 3)))]
        (root / name).write_text("\n".join(["height,weight,age,label", *rows]) + "\n")


def write_own_text(root: Path, num: int = 30) -> None:
    """Two tables of texts and labels of three classes: ``train.csv`` and ``test.csv``."""
    for name in ("train.csv", "test.csv"):
        rows = [f"a text of {label} number {i},{label}" for i in range(num // 3) for label in ("ant", "bee", "cat")]
        (root / name).write_text("\n".join(["text,label", *rows]) + "\n")


def write_clothing1m(root: Path, per_class: int = 3) -> None:
    """The official key lists and label files, and images of noise."""
    tables: dict[str, list[str]] = {"noisy": [], "clean": []}
    for part in ("noisy_train", "clean_train", "clean_val", "clean_test"):
        keys = [f"images/{part}/{i}.jpg" for i in range(14 * per_class)]
        write_images(root, keys)
        (root / f"{part}_key_list.txt").write_text("\n".join(keys))
        tables[part.split("_")[0]] += [f"{key} {i % 14}" for i, key in enumerate(keys)]
    for kind, lines in tables.items():
        (root / f"{kind}_label_kv.txt").write_text("\n".join(lines))
