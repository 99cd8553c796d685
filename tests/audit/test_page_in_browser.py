"""The page as a browser shows it; skipped where there is no Chromium."""

import csv
import io
import math
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from test_page import HOSTILE, errors_of, hostile_table, picture, random_table

from noisylightning.audit import AuditTable, write_page, write_table
from noisylightning.data import Relabel

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look with (apt-get install chromium)")

NAMES = ["cat", "dog", "eel", "fox"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def shown(browser, tmp_path):
    """Write a page and open it."""

    def show(table: AuditTable, **others):
        write_page(table, tmp_path / "audit.html", **others)
        return browser.page((tmp_path / "audit.html").as_uri())

    return show


def named_table(num: int = 300) -> AuditTable:
    return random_table(num, class_names=NAMES, samples=tuple(f"text {i % 7}, sample {i}" for i in range(num)))


def count(page) -> int:
    return int(page.run("document.getElementById('count').textContent").split()[0].replace(",", ""))


def text(page, element: str) -> str:
    return page.run(f"document.getElementById('{element}').textContent")


def read(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content, newline="")))


def test_filters_and_threshold_choose_what_is_shown(shown):
    table = named_table()
    pairs = torch.full((4, 4), 20.0).fill_diagonal_(0)
    with shown(table, errors=errors_of(pairs), title="Pets") as page:
        assert (text(page, "title"), page.run("document.title")) == ("Pets", "Pets")
        assert "About 240 (239 to 241) of 300 labels" in text(page, "told")
        for threshold in (0.0, 0.2, 0.5, 0.97):
            rows = table.wrong >= threshold
            page.run(f"$('slider').value = {threshold}; $('slider').oninput()")
            assert count(page) == rows.sum()
            assert f"about {math.floor(float(table.wrong[rows].sum()) + 0.5)} of them wrong" in text(page, "count")
        page.run("$('reset').click()")
        page.run('document.querySelector(\'[data-given="1"][data-suggested="2"]\').click()')
        rows = (table.noisy_labels == 1) & (table.labels == 2)
        assert count(page) == rows.sum() > 0
        assert "Given dog, in truth eel: about 20 (20 to 21)" in text(page, "pair-told")
        page.run("filter({...START, threshold: 0, search: 'TEXT 3'})")
        assert count(page) == sum(sample.startswith("text 3,") for sample in table.samples)
        page.run(f"filter({{search: '#{int(table.index[123])}'}})")
        assert count(page) == 1
        assert text(page, "cards").startswith(table.samples[123])
        page.run("filter({search: 'nowhere'})")
        assert count(page) == 0
        assert not page.run("$('empty').hidden")
        assert not page.faults()
        assert [url.split(":")[0] for url in page.requested()] == ["file"]  # the page itself and nothing else


def test_marks_by_keys_and_buttons_stay_and_download(browser, shown, tmp_path):
    table = named_table()
    order = table.ranked.tolist()
    with shown(table) as page:
        page.press("k", "d", "r", "ArrowRight", "d")  # 0, 1, 2 and 4: each goes on to the next
        page.press("ArrowLeft", "ArrowLeft", "ArrowLeft", "r", "r")  # 2: the same mark again takes it away
        page.press("k", "z", "ArrowRight", "k")  # 3, not after all, and 5
        page.press("n", "d", "p")  # the first of the second page
        other = next(c for c in range(4) if c not in (table.noisy_labels[order[0]], table.labels[order[0]]))
        page.press("c")
        page.run(f"$('choice-search').value = '{NAMES[other]}'; $('choice-search').oninput()")
        page.run("$('choice').querySelector('form').requestSubmit()")
        saved = page.run("$('download').click(); csv()")
        page_size = page.run("PAGE")
        file = browser.wait_for("Browser.downloadProgress", state="completed")["filePath"]
        assert page.run("keepNow(); isKept")
        assert not page.faults()
    content = Path(file).read_bytes().decode()
    assert file.endswith("audit_marked.csv")
    assert content == saved
    rows = read(content)
    write_table(table, tmp_path / "audit.csv", marks=[""] * len(table))
    expected = read((tmp_path / "audit.csv").read_text(encoding="utf-8"))
    for found, plain in zip(rows, expected, strict=True):
        assert list(found) == list(plain)
        assert (found["index"], found["sample"], found["noisy_name"]) == tuple(
            plain[name] for name in ("index", "sample", "noisy_name")
        )
        if found is not rows[0]:
            for name in ("wrong", "label_prob", "label"):
                assert float(found[name]) == float(plain[name])
    assert (rows[0]["mark"], rows[0]["name"], float(rows[0]["label_prob"])) == ("relabel", NAMES[other], 1)
    marks = {row: found["mark"] for row, found in enumerate(rows) if found["mark"]}
    assert marks == {0: "relabel", 1: "drop", 2: "relabel", 4: "drop", 5: "keep", page_size: "drop"}
    given = torch.zeros(600, dtype=torch.int64).index_put((table.index,), table.noisy_labels)
    training = Relabel(file, threshold=1).apply(given, table.index, num_classes=4)
    assert training.dropped.tolist() == table.index[sorted(order[row] for row in (1, 4, page_size))].tolist()
    assert training.labels[table.index[order[0]]] == other
    assert training.labels[table.index[order[2]]] == table.labels[order[2]]
    with shown(table) as page:  # closed, written and opened anew
        assert page.run("csv()") == content
        assert text(page, "tally-drop") == "3 drop"
        page.run("filter({threshold: 0, marked: 'marked'})")
        assert count(page) == 6
    relabelled = AuditTable.from_probs(torch.eye(4)[torch.arange(300) % 4], table.noisy_labels, NAMES)
    with shown(relabelled) as page:  # other places
        assert page.run("tally()['']") == 300


def test_all_that_is_shown_is_marked_at_once_and_back(shown):
    table = named_table(310)  # no other test's marks
    with shown(table) as page:
        page.run("filter({threshold: 0})")
        page.run("document.querySelector('[data-bulk=relabel]').click()")
        same = int((table.labels == table.noisy_labels).sum())
        assert f"{310 - same} samples marked relabel; {same} left alone" in text(page, "said")
        page.run("filter({threshold: 0.5, given: 2, marked: 'unmarked'}); filter({threshold: 0})")
        unmarked = count(page)
        assert unmarked == ((table.labels == table.noisy_labels) & (table.noisy_labels == 2)).sum() > 0
        page.press("d")  # what is marked leaves the unmarked, and the next takes its place
        assert count(page) == unmarked - 1
        page.run("document.querySelector('[data-bulk=keep]').click()")
        assert count(page) == 0
        page.press("z", "z", "z")
        assert text(page, "tally-relabel") == text(page, "tally-drop").replace("drop", "relabel") == "0 relabel"
        assert page.run("$('undo').disabled")
        assert not page.faults()


def test_hostile_text_is_shown_and_not_run(shown):
    table = hostile_table()
    with shown(table, title=HOSTILE[1]) as page:
        page.run("filter({threshold: 0})")
        assert page.run("document.title") == HOSTILE[1]
        assert page.run("[...document.querySelectorAll('.text')].map((node) => node.textContent)") == list(HOSTILE)
        page.press("c")
        assert not page.run("document.querySelectorAll('script:not([type]), img, a').length - 1")
        rows = read(page.run("csv()"))
        for row, sample in zip(rows[:-1], HOSTILE, strict=False):
            assert row["sample"] == row["name"] == ("'" if sample.startswith("=") else "") + sample
        assert page.run("['+1', '-1', '@a', '\\ta', ' =1', 'a=1', ''].map(cell)") == [
            "'+1", "'-1", "'@a", "'\ta", "' =1", "a=1", "",
        ]  # fmt: skip
        assert not page.faults()
        page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\">')")
        assert "Content Security Policy" in page.browser.wait_for("Log.entryAdded")["entry"]["text"]


def test_pictures_are_decoded_and_further_rows_show_their_names(shown):
    table = named_table(130)

    def pictures(places):
        return [picture("PNG" if i % 2 else "JPEG") for i in range(len(places))]

    limit = 35 * (len(picture()) + len(picture("JPEG")))
    with shown(table, thumbnails=pictures, thumbnail_bytes=limit) as page:
        page.run("filter({threshold: 0})")
        decoded = "Promise.all([...document.images].map((image) => image.decode())).then((all) => all.length)"
        assert page.run(decoded) == 60
        page.press("n")
        assert page.run(decoded) == 10
        assert page.run("document.querySelectorAll('.card').length") == 60
        assert "text" in page.run("document.querySelectorAll('.picture')[30].textContent")
        assert "the first 70 have pictures" in text(page, "told")
        assert not page.faults()


def test_a_hundred_thousand_samples_of_many_classes_open(shown):
    num, generator = 100_000, torch.Generator().manual_seed(0)
    labels, suggested = torch.randint(100, (2, num), generator=generator)
    wrong = torch.rand(num, generator=generator, dtype=torch.float64)
    names = tuple(f"class {c}" for c in range(100))
    samples = tuple(f"folder/image_{i:06}.jpg" for i in range(num))
    table = AuditTable(torch.arange(num), labels, wrong, suggested, wrong, names, samples)
    with shown(table) as page:
        assert count(page) == (wrong >= 0.5).sum()
        page.run("filter({threshold: 0, search: '_0777'})")
        assert count(page) == 100
        page.run("filter({search: ''}); document.querySelector('[data-bulk=drop]').click(); keepNow()")
        assert page.run("isKept && tally().drop") == num
        assert page.run("document.querySelectorAll('.card').length") == 30  # of the others there is nothing to draw
        assert page.run("document.querySelectorAll('*').length") < 5000
        assert len(page.run("csv()").splitlines()) == num + 1
        assert page.run("$('pairs').querySelectorAll('button').length") == 400
        assert not page.faults()
