import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from noisylightning.audit import AuditTable, write_page
from noisylightning.audit.page import json_in_html
from noisylightning.functional.audit import ExpectedErrors

HOSTILE = (
    "<script>document.title = 'broken'</script>",
    "</script><script>document.title = 'broken'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title = 'broken'\">",
    "\"quoted\", 'twice'\nand \\ on \u2028 and \u2029 lines",
    "{{data}} {{title}} $& \\1",
    "=HYPERLINK(\"http://example.org\", \"a\")",
    "\ud800 half a character",
)  # fmt: skip


def hostile_table() -> AuditTable:
    num = len(HOSTILE)
    probs = torch.full((num, num), 0.2 / (num - 1))
    probs.fill_diagonal_(0.8)
    return AuditTable.from_probs(probs, torch.arange(num).roll(1), HOSTILE, samples=HOSTILE)


def random_table(num: int = 50, num_classes: int = 4, **others) -> AuditTable:
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(num, num_classes, generator=generator, dtype=torch.float64).pow(4)
    labels = torch.randint(num_classes, (num,), generator=generator)
    index = torch.randperm(2 * num, generator=generator)[:num].sort().values
    return AuditTable.from_probs(probs / probs.sum(dim=1, keepdim=True), labels, index=index, **others)


def errors_of(pairs: torch.Tensor) -> ExpectedErrors:
    total = float(pairs.sum() - pairs.trace())
    return ExpectedErrors(total, total - 1, total + 1, pairs, pairs - 0.5, pairs + 0.5)


def picture(kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, kind)
    return file.getvalue()


class Scripts(HTMLParser):
    """What a browser would take for scripts, and the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.kinds: list[str | None] = []
        self.contents: list[str] = []
        self.tags: list[str] = []
        self.title = self.within = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.within = tag
        if tag == "script":
            self.kinds.append(dict(attrs).get("type"))
            self.contents.append("")

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.contents[-1] += data
        elif self.within == "title":
            self.title += data


def read_page(path: Path) -> tuple[dict, list, Scripts]:
    found = Scripts(path.read_text(encoding="utf-8"))
    return json.loads(found.contents[0]), json.loads(found.contents[1]), found


def numbers(text: str, dtype: str) -> list:
    return np.frombuffer(base64.b64decode(text), dtype).tolist()


def test_the_page_holds_the_table_from_the_most_to_the_least_probably_wrong(tmp_path):
    table = random_table(samples=[f"image {i}" for i in range(50)])
    write_page(table, tmp_path / "audit.html")
    data, pictures, _ = read_page(tmp_path / "audit.html")
    order = table.ranked
    assert numbers(data["wrong"], "<f8") == table.wrong[order].tolist() == sorted(table.wrong.tolist(), reverse=True)
    assert numbers(data["index"], "<f8") == table.index[order].tolist()
    assert numbers(data["noisyLabels"], "<i4") == table.noisy_labels[order].tolist()
    assert numbers(data["labels"], "<i4") == table.labels[order].tolist()
    assert numbers(data["labelProbs"], "<f8") == table.label_probs[order].tolist()
    assert data["samples"] == [table.samples[row] for row in order.tolist()]
    assert (data["named"], data["total"], pictures) == (False, None, [])


def test_without_expected_numbers_pairs_are_counted(tmp_path):
    table = random_table()
    write_page(table, tmp_path / "audit.html")
    counted = {(given, label): count for given, label, count, *_ in read_page(tmp_path / "audit.html")[0]["pairs"]}
    for given_label in range(4):
        for label in range(4):
            rows = (table.noisy_labels == given_label) & (table.labels == label)
            assert counted.get((given_label, label), 0) == (0 if given_label == label else rows.sum())


def test_expected_numbers_have_their_intervals(tmp_path):
    pairs = torch.tensor([[50.0, 3.0], [7.0, 40.0]], dtype=torch.float64)
    write_page(random_table(num_classes=2), tmp_path / "audit.html", errors=errors_of(pairs))
    data = read_page(tmp_path / "audit.html")[0]
    assert data["total"] == [10, 9, 11]
    assert data["pairs"] == [[0, 1, 7, 6.5, 7.5], [1, 0, 3, 2.5, 3.5]]  # given, in truth


def test_hostile_text_stays_text(tmp_path):
    write_page(hostile_table(), tmp_path / "audit.html", title=HOSTILE[1])
    data, _, found = read_page(tmp_path / "audit.html")
    assert found.kinds == ["application/json", "application/json", None]
    assert "img" not in found.tags
    assert found.title == data["title"] == HOSTILE[1]
    assert set(data["samples"]) == set(data["classNames"]) == set(HOSTILE)


@given(st.text(st.characters(exclude_categories=())))
def test_json_in_html_is_json_without_markup(text):
    found = json_in_html([text])
    assert json.loads(found) == [text]
    assert found.isascii()
    assert not re.search("[<>&]", found)


def test_the_policy_lets_the_one_script_run_and_nothing_load(tmp_path):
    write_page(random_table(), tmp_path / "audit.html")
    text = (tmp_path / "audit.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in re.search("script-src.*?;", policy)[0]
    assert not re.search(r"(?:src|href)=", text.replace("script-src", "").replace("base-uri", ""))


def test_marks_belong_to_places_labels_and_classes_whatever_is_thought_of_them(tmp_path):
    def checksum(table: AuditTable) -> str:
        write_page(table, tmp_path / "audit.html")
        return read_page(tmp_path / "audit.html")[0]["checksum"]

    labels, names = torch.tensor([0, 1, 1]), ["cat", "dog"]
    probs = torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]])
    first = checksum(AuditTable.from_probs(probs, labels, names))
    assert first == checksum(AuditTable.from_probs(probs.flip(0), labels, names, samples=["a", "b", "c"]))
    assert first != checksum(AuditTable.from_probs(probs, labels.flip(0), names))
    assert first != checksum(AuditTable.from_probs(probs, labels, ["dog", "cat"]))
    assert first != checksum(AuditTable.from_probs(probs, labels, names, index=torch.tensor([0, 1, 3])))


def test_pictures_are_of_the_first_rows_as_far_as_they_fit(tmp_path):
    table, asked = random_table(), []

    def pictures(places):
        for place in places.tolist():
            asked.append(place)
            yield picture("PNG" if place % 2 else "JPEG")

    limit = 5 * len(picture()) + 5 * len(picture("JPEG"))
    write_page(table, tmp_path / "audit.html", thumbnails=pictures, thumbnail_bytes=limit)
    found = [base64.b64decode(text) for text in read_page(tmp_path / "audit.html")[1]]
    assert 0 < len(found) < 50
    assert sum(map(len, found)) <= limit
    assert asked == table.index[table.ranked].tolist()[: len(found) + 1]  # no more are made than need be
    assert found == [picture("PNG" if place % 2 else "JPEG") for place in asked[:-1]]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (lambda places: [b"<svg onload=...>"] * len(places), "sample 12 is neither PNG nor JPEG: give one of them"),
        (lambda places: [picture()] * 3, "There are 3 pictures of 50 samples"),
        (lambda places: [picture()] * 51, "more pictures than the 50 places"),
    ],
)
def test_wrong_pictures_are_refused(tmp_path, pictures, message):
    table = random_table()
    message = message.replace("12", str(int(table.index[table.ranked][0])))
    with pytest.raises(ValueError, match=message):
        write_page(table, tmp_path / "audit.html", thumbnails=pictures)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shown_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is an \.html file, got .*audit\.csv"):
        write_page(random_table(), tmp_path / "audit.csv")
    with pytest.raises(ValueError, match="errors are of 2 classes and the table is of 4: give both of one audit"):
        write_page(random_table(), tmp_path / "audit.html", errors=errors_of(torch.eye(2)))
    many = AuditTable(*(torch.zeros(0, dtype=d) for d in (torch.int64,) * 2 + (torch.float64, torch.int64, torch.float64)), tuple(map(str, range(32769))))  # fmt: skip # noqa: E501
    with pytest.raises(ValueError, match="at most 32,768 classes, got 32,769"):
        write_page(many, tmp_path / "audit.html")


def test_the_template_is_part_of_the_package():
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"audit/page.html"' in re.search(r"\[tool\.setuptools\.package-data\]\n(.*)", settings)[1]
