import csv
import gzip
import json
import lzma
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisylightning.data.noise import SymmetricNoise
from noisylightning.data.text import TextTableDataModule
from noisylightning.data.text_encoder import TextEncoder

pytest.importorskip("tokenizers")

TEXTS = ["The film was good, good!", "the FILM: bad", "It's a film"]


def one_sentence(info):
    message = str(info.value)
    assert "\n" not in message
    assert len(re.findall(r"\.(?=\s|$)", message)) == 1, message


# --- the encoder ------------------------------------------------------------------------------------------------------


def keras_words(text):
    """The words that the Keras functions of the paper's code find, written down from their documentation."""
    for character in '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n':
        text = text.replace(character, " ")
    return text.lower().split()


def keras_encode(train, texts, vocab_size, length):
    """Reference: frequency order, unknown 1, padding 0 on the left, the last ``length`` words."""
    counts = Counter(word for text in train for word in keras_words(text))
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - 2]
    index = {word: i for i, word in enumerate(kept, start=2)}
    rows = [[index.get(word, 1) for word in keras_words(text)][-length:] for text in texts]
    return [[0] * (length - len(row)) + row for row in rows]


ascii_text = st.text(st.characters(min_codepoint=9, max_codepoint=126, exclude_characters="\x0b\x0c\r\x1c\x1d\x1e\x1f"))
corpus = st.lists(ascii_text.filter(keras_words), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(train=corpus, test=corpus, vocab_size=st.integers(3, 12), length=st.integers(1, 8))
def test_encoder_agrees_with_an_independent_reference(train, test, vocab_size, length):
    encoder = TextEncoder(vocab_size=vocab_size, length=length).fit(train)
    assert encoder(test).tolist() == keras_encode(train, test, vocab_size, length)


def test_a_text_that_spells_a_special_token_is_text(tmp_path):
    encoder = TextEncoder(length=3).fit(["pad unk", "pad film"])
    encoder.save(tmp_path / "tokenizer.json")
    for each in (encoder, TextEncoder(vocabulary=tmp_path / "tokenizer.json", length=3)):
        assert each(["<pad>", "film <unk> <PAD>"]).tolist() == [[0, 0, 2], [3, 4, 2]]


def test_encoder_sides():
    text = ["film a b good"]
    rows = {
        (padding, truncation): TextEncoder(length=6, padding=padding, truncation=truncation).fit(text)
        for padding in ("left", "right")
        for truncation in ("left", "right")
    }
    for (padding, truncation), encoder in rows.items():
        short, long = encoder(["a b", "a b a b a b a good"]).tolist()
        a, b, good = (encoder.words().index(word) for word in ("a", "b", "good"))
        assert short == ([0] * 4 + [a, b] if padding == "left" else [a, b] + [0] * 4)
        assert long == ([a, b, a, b, a, good] if truncation == "left" else [a, b, a, b, a, b])


def test_vocabulary_is_bounded_and_most_frequent_first():
    encoder = TextEncoder(vocab_size=4).fit(TEXTS)
    assert encoder.words() == ["<pad>", "<unk>", "film", "good"]
    assert encoder.vocab_size == 4


def test_encoder_saved_and_loaded(tmp_path):
    encoder = TextEncoder(length=5).fit(TEXTS)
    encoder.save(tmp_path / "tokenizer.json")
    loaded = TextEncoder(vocabulary=tmp_path / "tokenizer.json", length=5)
    assert loaded.words() == encoder.words()
    assert loaded.vocab_size == len(encoder.words())
    assert torch.equal(loaded(TEXTS), encoder(TEXTS))
    from tokenizers import Tokenizer

    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXTS[0]).ids == encoder(TEXTS)[0].tolist()


def test_encoder_with_a_tokenizer_function(tmp_path):
    encoder = TextEncoder(tokenizer=lambda text: text.split("|"), length=3).fit(["New York|is|here", "New York|was"])
    assert "New York" in encoder.words()
    assert encoder(["was|New York"]).tolist() == [[0, encoder.words().index("was"), 2]]
    encoder.save(tmp_path / "v.json")
    with pytest.raises(ValueError, match="saved for a tokenizer function") as info:
        TextEncoder(vocabulary=tmp_path / "v.json")
    one_sentence(info)
    again = TextEncoder(lambda text: text.split("|"), tmp_path / "v.json", length=3)
    assert torch.equal(again(["was|New York"]), encoder(["was|New York"]))


def test_encoder_with_a_plain_mapping():
    encoder = TextEncoder(vocabulary={"<unk>": 0, "<pad>": 1, "film": 2, "good": 7}, length=4)
    assert encoder.vocab_size == 8  # an embedding must reach the largest index
    assert encoder(["Good film, mate"]).tolist() == [[1, 7, 2, 0]]


def test_torchtext_plugs_in_unchanged():
    torchtext = pytest.importorskip("torchtext")
    from torchtext.data.utils import get_tokenizer

    tokenizer = get_tokenizer("basic_english")
    vocab = torchtext.vocab.Vocab(Counter(word for text in TEXTS for word in tokenizer(text)), max_size=6)
    encoder = TextEncoder(tokenizer, vocab, length=9)
    assert encoder.vocab_size == len(vocab.itos) == 8
    texts = [*TEXTS, "Never seen: a film"]
    expected = [[vocab.stoi[word] for word in tokenizer(text)][-9:] for text in texts]
    pad = vocab.stoi["<pad>"]
    assert encoder(texts).tolist() == [[pad] * (9 - len(row)) + row for row in expected]


def test_hugging_face_tokenizer_file_plugs_in(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "film": 4, "good": 5, "##s": 6}
    model = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model.save(str(tmp_path / "tokenizer.json"))
    encoder = TextEncoder(vocabulary=tmp_path / "tokenizer.json", length=6, padding="right", truncation="right")
    assert encoder(["good films"]).tolist() == [[2, 5, 4, 6, 3, 0]]
    with pytest.raises(ValueError, match="brings its own tokenizer"):
        TextEncoder(str.split, tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocab_size": 2}, ValueError, "needs vocab_size >= 3"),
        ({"length": 0}, ValueError, "length >= 1"),
        ({"padding": "both"}, ValueError, "padding must be 'left' or 'right', got 'both'"),
        ({"vocabulary": {"<unk>": 0, "film": 1}}, ValueError, "no entry <pad>"),
        ({"vocabulary": {"<pad>": 0, "film": 1}}, ValueError, "no entry <unk>"),
        ({"vocabulary": 7}, TypeError, "must have stoi, be a mapping or a path, got int"),
        ({"vocabulary": "absent.json"}, FileNotFoundError, r"no vocabulary file absent\.json"),
    ],
)
def test_encoder_refuses(arguments, error, message):
    with pytest.raises(error, match=message) as info:
        TextEncoder(**arguments)
    one_sentence(info)


def test_encoder_refuses_texts_without_words_and_foreign_files(tmp_path):
    encoder = TextEncoder().fit(TEXTS)
    with pytest.raises(ValueError, match=r"Text 1 of 2 has no word: '\?!'") as info:
        encoder(["good", "?!"])
    one_sentence(info)
    with pytest.raises(RuntimeError, match="no vocabulary yet") as info:
        TextEncoder()(TEXTS)
    one_sentence(info)
    (tmp_path / "v.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        TextEncoder(vocabulary=tmp_path / "v.json")


def test_encoder_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"noisylightning\[text\]") as info:
        TextEncoder()
    one_sentence(info)


# --- tables of texts --------------------------------------------------------------------------------------------------

TRAIN = [(f"good fine film {i}", "pos") for i in range(20)] + [(f"bad awful film {i}", "neg") for i in range(20)]
TEST = [("fine, a surprise", "pos"), ("awful", "neg")]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def write_csv(path, rows, header=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def tables(tmp_path):
    return {
        "train_file": write_jsonl(tmp_path / "train.jsonl", TRAIN),
        "test_file": write_csv(tmp_path / "test.csv", TEST),
        "class_names": ["neg", "pos"],
    }


def build(tables, **arguments):
    return TextTableDataModule(**{**tables, "encoder": TextEncoder(length=6), **arguments})


def test_table_module(tables):
    data = build(tables, noise=SymmetricNoise(0.3), batch_size=8)
    assert (data.num_classes, data.class_names, data.vocab_size) == (2, ["neg", "pos"], 5000)
    data.setup()
    words, labels = next(iter(data.train_dataloader()))
    assert (words.shape, words.dtype, labels.shape) == ((8, 6), torch.int64, (8,))
    assert data.summary["train"] + data.summary["validation"] == 40
    words, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [1, 0]
    surprise = data.encoder.words().index
    assert words[0].tolist() == [0, 0, 0, surprise("fine"), 1, 1]  # "a" and "surprise" are in no training text


def test_class_names_and_test_set_may_be_left_out(tables):
    data = build(tables, class_names=None, test_file=None)
    assert (data.class_names, data.has_test) == (["neg", "pos"], False)
    data.setup()
    assert data.summary == {"train": 36, "validation": 4}
    with pytest.raises(ValueError, match="no test set"):
        data.test_dataloader()


def test_vocabulary_knows_no_test_text(tables):
    data = build(tables)
    data.setup()
    train_words = {word for text, _ in TRAIN for word in text.split()}
    assert set(data.encoder.words()) == train_words | {"<pad>", "<unk>"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".jsonl.gz", ".csv.xz"])
def test_formats_read_alike(tmp_path, tables, suffix):
    path = tmp_path / f"same{suffix}"
    if ".jsonl" in suffix:
        content = "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in TRAIN)
    else:
        content = "".join("\t".join(row) + "\n" if ".tsv" in suffix else ",".join(row) + "\n" for row in TRAIN)
        content = ("text\tlabel\n" if ".tsv" in suffix else "text,label\n") + content
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt") as file:
        file.write(content)
    reference, same = build(tables).read_texts("train"), build(tables, train_file=path).read_texts("train")
    assert same[0] == reference[0]
    assert torch.equal(same[1], reference[1])


def test_own_columns_and_numbers_as_labels(tmp_path, tables):
    path = write_csv(tmp_path / "own.csv", [("good, really", 1), ('a "bad"\nfilm', 0)], ("review", "stars"))
    data = build(tables, train_file=path, text_column="review", label_column="stars")
    assert data.read_texts("train")[0] == ["good, really", 'a "bad"\nfilm']
    assert data.read_texts("train")[1].tolist() == [1, 0]


def test_cache_gives_the_same_and_is_really_read(tmp_path, tables, monkeypatch):
    first = build(tables, cache_dir=tmp_path / "cache")
    first.prepare_data()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    second = build(tables, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(TextEncoder, "fit", None)
    second.setup()
    first.setup()
    for part in ("load_train", "load_test"):
        assert all(map(torch.equal, getattr(first, part)(), getattr(second, part)()))
    assert second.encoder.to_json() == first.encoder.to_json()


def test_cache_is_made_anew_for_other_texts_and_encoders(tmp_path, tables):
    cache = tmp_path / "cache"
    build(tables, cache_dir=cache).setup()
    build(tables, cache_dir=cache, encoder=TextEncoder(length=7)).setup()
    assert len(list(cache.iterdir())) == 2
    write_jsonl(tmp_path / "train.jsonl", [("entirely new", "pos"), *TRAIN])
    changed = build(tables, cache_dir=cache)
    changed.setup()
    assert "entirely" in changed.encoder.words()
    assert len(list(cache.iterdir())) == 3


def test_damaged_cache_is_named(tmp_path, tables):
    build(tables, cache_dir=tmp_path / "cache").setup()
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is damaged") as info:
        build(tables, cache_dir=tmp_path / "cache").setup()
    assert str(path) in str(info.value)
    with pytest.raises(ValueError, match="tokenizer functions apart") as info:
        build(tables, cache_dir=tmp_path / "cache", encoder=TextEncoder(str.split))
    one_sentence(info)


def test_checkpoint_carries_the_vocabulary(tmp_path, tables):
    data = build(tables)
    assert data.state_dict() == {}
    data.setup()
    state = data.state_dict()
    torch.save(state, tmp_path / "state.ckpt")
    data.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    other = build(tables, encoder=TextEncoder(vocab_size=4))
    other.setup()
    with pytest.raises(ValueError, match="another vocabulary") as info:
        other.load_state_dict(state)
    one_sentence(info)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"text,label\ngood,pos\n,neg\n", r"line 3, has an empty text"),
        ("t.csv", b"text,label\ngood,pos\n   ,neg\n", r"line 3, has an empty text"),
        ("t.csv", b"text,label\ngood,pos\nbad,\n", r"line 3, has no label"),
        ("t.csv", b"text,label\ngood,pos\nbad,nag\n", r"line 3, has the label 'nag', not among the classes neg, pos"),
        ("t.csv", b"text,label\ngood,pos\nbad,2\n", r"line 3, has the label '2'"),
        ("t.csv", b"text,class\ngood,pos\n", r"line 2, has no column 'label' \(it has text, class\)"),
        ("t.csv", b"text,label\ngood\n", r"line 2, has nothing in column 'label'"),
        ("t.csv", b"text,label\ngood,pos\nbad, very bad,neg\n", r"line 3, has more fields"),
        ("t.csv", b'text,label\n"good,pos\n', "cannot be read"),
        ("t.csv", b"text,label\ngood,pos\nb\xe9te,neg\n", "is not UTF-8"),
        ("t.csv", b"text,label\n", "holds no text"),
        ("t.csv", b"", "holds no text"),
        ("t.jsonl", b'{"text": "good", "label": "pos"}\n{"text": "bad"}\n', r"line 2, has no column 'label'"),
        ("t.jsonl", b'{"text": "good", "label": null}\n', r"line 1, has nothing in column 'label'"),
        ("t.jsonl", b'{"text": "good", "label": true}\n', r"has the label True"),
        ("t.jsonl", b'{"text": 7, "label": "pos"}\n', r"has 7 for a text"),
        ("t.jsonl", b'{"text": "good", "label"\n', "cannot be read"),
        ("t.jsonl", b"[]\n", "line 1, has no column 'text'"),
        ("t.jsonl.gz", gzip.compress(b'{"text": "good", "label": "pos"}\n' * 99, mtime=0)[:-9], "truncated or damaged"),
        ("t.jsonl.xz", lzma.compress(b'{"text": "good", "label": "pos"}\n' * 99)[:-9], "truncated or damaged"),
        ("t.jsonl.xz", b"not compressed", "truncated or damaged"),
        ("t.txt", b"good", r"must end in \.csv"),
    ],
)
def test_bad_tables(tmp_path, tables, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as info:
        build(tables, train_file=tmp_path / name).setup()
    assert str(tmp_path / name) in str(info.value)
    one_sentence(info)


def test_missing_table(tmp_path, tables):
    with pytest.raises(FileNotFoundError, match="There is no file") as info:
        build(tables, train_file=tmp_path / "absent.csv").setup()
    one_sentence(info)
