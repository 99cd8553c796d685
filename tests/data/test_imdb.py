import json
import lzma
import os
import re
from pathlib import Path

import pytest
import torch

from noisylightning.data.imdb import IMDBDataModule
from noisylightning.data.noise import AsymmetricNoise
from noisylightning.data.text_encoder import TextEncoder

pytest.importorskip("tokenizers")


class SmallIMDB(IMDBDataModule):
    reviews_per_class = 6


def one_sentence(info):
    message = str(info.value)
    assert "\n" not in message
    assert len(re.findall(r"\.(?=\s|$)", message)) == 1, message


def review(part, label, i):
    return f"A {'great' if label else 'dull'} film<br /><br />number {i} of {part}"


@pytest.fixture
def folder(tmp_path):
    """Reviews in the folders and file names of the original."""
    for part in ("train", "test"):
        for label, name in enumerate(("neg", "pos")):
            (tmp_path / "aclImdb" / part / name).mkdir(parents=True)
            for i in range(6):
                path = tmp_path / "aclImdb" / part / name / f"{2 * i}_{1 + 8 * label}.txt"
                path.write_text(review(part, label, i), encoding="utf-8")
    (tmp_path / "aclImdb" / "train" / "unsup").mkdir()
    (tmp_path / "aclImdb" / "train" / "unsup" / "0_0.txt").write_text("neither here nor there")
    return tmp_path


@pytest.fixture
def table(tmp_path):
    rows = [
        {"split": part, "label": label, "id": i, "rating": 1 + 8 * label, "text": review(part, label, i)}
        for part in ("train", "test")
        for label in (0, 1)
        for i in range(6)
    ]
    folder = tmp_path / "table"
    folder.mkdir()
    with lzma.open(folder / "imdb.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_folder_and_table_read_alike(folder, table):
    for part in ("train", "test"):
        first, second = (SmallIMDB(place).read_texts(part) for place in (folder, table))
        assert first[0] == second[0]
        assert first[1].tolist() == second[1].tolist() == [0] * 6 + [1] * 6


def test_files_come_in_the_order_of_their_numbers(folder):
    texts, _ = SmallIMDB(folder).read_texts("train")
    assert [text.split()[-3] for text in texts[:6]] == ["0", "1", "2", "3", "4", "5"]  # 10_1.txt after 2_1.txt


def test_module(table):
    data = SmallIMDB(table, encoder=TextEncoder(length=12), val_fraction=0.25, batch_size=4)
    assert (data.num_classes, data.class_names) == (2, ["negative", "positive"])
    data.setup()
    assert data.summary == {"train": 9, "validation": 3, "test": 12}
    words, labels = next(iter(data.test_dataloader()))
    assert words.shape == (4, 12)
    assert labels.tolist() == [0] * 4
    assert "test" not in data.encoder.words()


def test_paper_noise(table):
    data = SmallIMDB(table, noise=AsymmetricNoise(0.4), encoder=TextEncoder(length=12))
    data.setup("fit")
    torch.testing.assert_close(data.transition, torch.tensor([[0.95, 0.05], [0.4, 0.6]]))


def test_missing_data(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="neither aclImdb nor imdb") as info:
        SmallIMDB(tmp_path / "nowhere").setup()
    one_sentence(info)
    for path in (folder / "aclImdb" / "test" / "pos").iterdir():
        path.unlink()
    (folder / "aclImdb" / "test" / "pos").rmdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*pos; unpack"):
        SmallIMDB(folder).setup()


def test_incomplete_data(folder, table):
    (folder / "aclImdb" / "train" / "neg" / "4_1.txt").unlink()
    with pytest.raises(ValueError, match="has 5 negative train reviews instead of 6; fetch it again") as info:
        SmallIMDB(folder).setup()
    one_sentence(info)
    with pytest.raises(ValueError, match="has 6 negative train reviews instead of 12,500") as info:
        IMDBDataModule(table).setup()
    one_sentence(info)


def test_truncated_table(table):
    path = table / "imdb.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="truncated or damaged") as info:
        SmallIMDB(table).setup()
    one_sentence(info)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"caf\xe9", r"4_9\.txt is not UTF-8 \(byte 3\)"), (b"", r"4_9\.txt has an empty text"), (b" \n", "empty text")],
)
def test_bad_reviews(folder, content, message):
    (folder / "aclImdb" / "train" / "pos" / "4_9.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        SmallIMDB(folder).setup()
    one_sentence(info)


def test_foreign_file_names(folder):
    (folder / "aclImdb" / "train" / "pos" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is not called <number>_<rating>\.txt") as info:
        SmallIMDB(folder).setup()
    assert "\n" not in str(info.value)


@pytest.mark.skipif("NOISYLIGHTNING_DATA" not in os.environ, reason="NOISYLIGHTNING_DATA names no folder of data")
def test_real_imdb():
    place = Path(os.environ["NOISYLIGHTNING_DATA"])
    if not any((place / name).exists() for name in ("aclImdb", "imdb.jsonl", "imdb.jsonl.xz")):
        pytest.skip(f"{place} holds no IMDB")
    data = IMDBDataModule(place)
    texts, labels = data.read_texts("train")
    assert (len(texts), labels.bincount().tolist()) == (25_000, [12_500, 12_500])
    encoder = TextEncoder().fit(texts)
    assert encoder.words()[2:9] == ["the", "and", "a", "of", "to", "is", "br"]  # as the list that Keras publishes
    assert len(encoder.words()) == 5000
    assert encoder(texts[:100]).shape == (100, 400)
