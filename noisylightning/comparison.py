"""Runs beside each other: what each has reached without clean labels, as a table, a picture and a file."""

import csv
import json
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, Literal, get_args

import rich.box
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from noisylightning.atomic import written_whole
from noisylightning.errors import BadValue, NoSuchFile

Score = Literal["val_accuracy", "clean_accuracy"]
"""What runs are ordered by; never by anything measured on clean test data."""

_TITLES = {"val_accuracy": "noisy val", "clean_accuracy": "clean estimate", "test_accuracy": "clean test"}
_AXES = {
    "val_accuracy": "noisy validation accuracy, %",
    "clean_accuracy": "clean accuracy, estimated, %",
    "test_accuracy": "clean test accuracy, %",
}
_REQUIRED = {"phase": str, "selected_by": str, "epoch": int, "loss": str}
_WITHOUT_EFFECT = (
    "ckpt_path",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.profiler",
)
_MOST_COLUMNS = 4  # of options that differ, in the table
_WIDEST = 28  # characters of a cell
_WIDTH_OF_A_FILE = 160  # columns, where no terminal says how many there are


@dataclass(frozen=True)
class Weights:
    """What one set of weights of a run has reached, as its ``summary.json`` says.

    Attributes:
        phase: The phase they were trained in.
        selected_by: The metric on noisy validation data that they were the best by, or ``"last"``.
        epoch: The epoch they are of.
        loss: The correction they were trained with, or the base loss where there was none.
        scores: ``val_accuracy``, ``clean_accuracy`` and ``test_accuracy``, those that are known.
        interval: The bounds of ``clean_accuracy``, where they are known.
    """

    phase: str
    selected_by: str
    epoch: int
    loss: str
    scores: dict[str, float]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Run:
    """A run's results and its configuration.

    Attributes:
        folder: Where it left them.
        weights: The last weights, and those that were selected, if they were; of the phase that the run ended in.
        options: The configuration, by options such as ``model.correction.loss``; None where none was saved.
    """

    folder: Path
    weights: tuple[Weights, ...]
    options: dict[str, str] | None

    @property
    def seeds(self) -> tuple[tuple[str, str], ...]:
        """The options that are seeds, with their values."""
        return tuple((name, value) for name, value in (self.options or {}).items() if _is_seed(name))

    @property
    def method(self) -> tuple[tuple[str, str], ...]:
        """All other options, with their values."""
        return tuple((name, value) for name, value in (self.options or {}).items() if not _is_seed(name))


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone, and one kind of weights of them.

    Attributes:
        runs: The runs, and of each its weights.
        options: Those in which the rows differ.
    """

    runs: tuple[tuple[Run, Weights], ...]
    options: dict[str, str] = field(default_factory=dict)

    def values(self, score: str) -> list[float]:
        """A score of each run; empty where it is not known."""
        return [weights.scores[score] for _, weights in self.runs if score in weights.scores]

    def mean(self, score: str) -> float | None:
        """The mean of a score; None where it is not known."""
        found = self.values(score)
        return statistics.fmean(found) if found else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The bounds of a single run's clean accuracy, where they are known."""
        return self.runs[0][1].interval if len(self.runs) == 1 else None


# Reading


def read_runs(places: Sequence[str | Path]) -> list[Run]:
    """Read what runs have left.

    Args:
        places: Of each a run's folder, its ``summary.json``, or a folder with runs in it, however deep.

    Returns:
        The runs, in that order, those of one folder by their paths.

    Raises:
        ValueError: If a run is named twice, or its files are not what this version writes.
        FileNotFoundError: If there is no summary at one of the places.
    """
    runs: dict[Path, tuple[Run, str | Path]] = {}
    for place in places:
        for summary in _summaries(Path(place)):
            folder = summary.parent.resolve()
            if folder in runs:
                raise BadValue(
                    f"the run {folder} is given twice, as {runs[folder][1]} and as {place}: name each run once."
                )
            runs[folder] = Run(folder, _read_summary(summary), _read_options(summary.with_name("config.yaml"))), place
    return [run for run, _ in runs.values()]


def _summaries(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise NoSuchFile(f"there is no {place}: name the folder of a run, which a fit's last line tells.")
    own = place / "summary.json"
    found = [own] if own.is_file() else sorted(place.rglob("summary.json"), key=_naturally)
    if not found:
        raise NoSuchFile(
            f"there is no summary.json in {place} or below it: a fit leaves one when it has ended; name its folder."
        )
    return found


def _naturally(path: Path) -> list[tuple[int, str]]:
    """Sort version_10 after version_9."""
    digits = "".join(char if char.isdigit() else f" {char} " for char in str(path)).split()
    return [(int(part), "") if part.isdigit() else (-1, part) for part in digits]


def _read_summary(path: Path) -> tuple[Weights, ...]:
    try:
        rows = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise BadValue(f"{path} is no JSON ({error}): name the summary.json that a fit has left.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadValue(f"{path} is no summary of a fit, which is a list of results: name another file.")
    for row in rows:
        for name, kind in _REQUIRED.items():
            if not isinstance(row.get(name), kind):
                raise BadValue(
                    f"{path} has {name}={row.get(name)!r} where a {kind.__name__} is needed: it is broken, or an older"
                    " version wrote it; run the fit again, or leave it out."
                )
    # A stage one before a correction is no end of the run.
    return tuple(_weights(row, path) for row in rows if row["phase"] == rows[-1]["phase"])


def _weights(row: dict[str, Any], path: Path) -> Weights:
    def number(name: str) -> float | None:
        value = row.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise BadValue(f"{path} has {name}={value!r}, which is no number: run the fit again, or leave it out.")
        return float(value)

    found = {name: number(name) for name in _TITLES}
    low, high = number("clean_accuracy_low"), number("clean_accuracy_high")
    return Weights(
        row["phase"],
        row["selected_by"],
        row["epoch"],
        row.get("correction") or row["loss"],
        {name: value for name, value in found.items() if value is not None},
        None if low is None or high is None else (low, high),
    )


def _read_options(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise BadValue(f"{path} is no YAML ({reason}): mend it, or take it away to compare without it.") from error
    if not isinstance(config, dict):
        raise BadValue(f"{path} is no configuration of a run: take it away to compare without it.")
    options: dict[str, str] = {}
    _flatten(config, "", options)
    return {name: value for name, value in sorted(options.items()) if not _has_no_effect(name)}


def _flatten(value: Any, name: str, options: dict[str, str]) -> None:
    """Write a configuration as options and texts: a class by its bare name, its arguments below it."""
    if isinstance(value, dict) and "class_path" in value:
        options[name] = str(value["class_path"]).rpartition(".")[2]
        _flatten(value.get("init_args") or {}, name, options)
    elif isinstance(value, dict) and (value or not name):
        for key, inner in value.items():
            _flatten(inner, f"{name}.{key}".lstrip("."), options)
    elif isinstance(value, list) and value and all(isinstance(each, dict) and "class_path" in each for each in value):
        names = [str(each["class_path"]).rpartition(".")[2] for each in value]
        options[name] = ", ".join(names)
        seen: Counter[str] = Counter()
        for each, own in zip(value, names, strict=True):
            seen[own] += 1
            _flatten(each.get("init_args") or {}, f"{name}.{own}" + (f"#{seen[own]}" if seen[own] > 1 else ""), options)
    else:
        options[name] = "none" if value is None else str(value)


def _has_no_effect(name: str) -> bool:
    return name.endswith(".dirpath") or any(name == own or name.startswith(f"{own}.") for own in _WITHOUT_EFFECT)


def _is_seed(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "seed_everything" or last == "seed" or last.endswith("_seed")


# Comparing


def compare_runs(runs: Sequence[Run], by: Score = "val_accuracy") -> list[Row]:
    """Order the weights that runs have left, without a look at clean test data.

    Runs whose configurations differ in seeds alone make one row, for the last weights and for each kind of selected
    ones. A run without a ``config.yaml`` stands alone.

    Args:
        runs: The runs, see :func:`read_runs`.
        by: ``"val_accuracy"``, noisy validation accuracy, or ``"clean_accuracy"``, the estimate of the clean one.

    Returns:
        The rows, the best first; those without the score last.

    Raises:
        ValueError: If ``by`` is neither, or no run has this score.
    """
    if by not in get_args(Score):
        raise BadValue(
            f"by (--by) must be one of {', '.join(get_args(Score))}, got {by!r}: runs are chosen without clean labels."
        )
    rows = _gathered(runs)
    if not any(row.values(by) for row in rows):
        why = {
            "val_accuracy": "a fit writes it where it has validation data",
            "clean_accuracy": "a fit writes it where T is known or estimated; order by val_accuracy (--by)",
        }
        raise BadValue(f"none of the {len(runs)} runs has {by} in its summary: {why[by]}.")

    def key(row: Row) -> tuple[float, float]:
        means = row.mean(by), row.mean("val_accuracy")
        first, second = (float("inf") if mean is None else -mean for mean in means)
        return first, second

    return sorted(rows, key=key)


def _gathered(runs: Sequence[Run]) -> list[Row]:
    groups: dict[tuple[Any, ...], list[tuple[Run, Weights]]] = {}
    for run in runs:
        for weights in run.weights:
            # Repetitions with the same seeds are no sample of runs, and what lacks a score has no part in its mean.
            kind = weights.phase, weights.selected_by == "last" or weights.selected_by, tuple(sorted(weights.scores))
            place = (run.folder,) if run.options is None else (run.method,)
            number = 0
            while any(other.seeds == run.seeds for other, _ in groups.get((*place, *kind, number), [])):
                number += 1
            groups.setdefault((*place, *kind, number), []).append((run, weights))
    differ = differing_options(runs)
    shown = {name: _without_common(name, [(run.options or {}).get(name, "-") for run in runs]) for name in differ}
    places = {run.folder: place for place, run in enumerate(runs)}
    return [
        Row(tuple(group), {name: shown[name][places[group[0][0].folder]] for name in differ})
        for group in groups.values()
    ]


def _without_common(name: str, values: list[str]) -> list[str]:
    """Leave out of lists of callbacks those that every run has, which may be long."""
    if name != "trainer.callbacks":
        return values
    lists = [Counter(value.split(", ")) for value in values]
    common = reduce(and_, lists)
    return [", ".join((each - common).elements()) or "-" for each in lists]


def differing_options(runs: Iterable[Run]) -> list[str]:
    """Return the options, seeds apart, in which runs differ that have them; of a class also whether it is there.

    Args:
        runs: The runs; those without a configuration are left out.

    Returns:
        Their names. Where a class differs, its arguments are named only if runs with the same class differ in them.
    """
    methods = [dict(run.method) for run in runs if run.options is not None]
    names = sorted(set().union(*methods))
    return [name for name in names if len({method[name] for method in methods if name in method}) > 1]


# Telling


def print_comparison(rows: Sequence[Row], test: bool = False) -> None:
    """Print the table.

    Args:
        rows: What :func:`compare_runs` returned.
        test: Whether to show accuracies on the clean test set too.
    """
    options = list(rows[0].options)
    shown = options if len(options) <= _MOST_COLUMNS else []
    columns: dict[str, list[str]] = {"run": run_names(rows)}
    if any(len(row.runs) > 1 for row in rows):
        columns["runs"] = [str(len(row.runs)) for row in rows]
    columns |= {short: [_cut(row.options[name]) for row in rows] for name, short in _short_names(shown).items()}
    losses = [row.runs[0][1].loss for row in rows]
    if "model.correction" not in shown and len(set(losses)) > 1:
        columns["loss"] = losses
    columns["weights"] = _choices(rows)
    scores = _scores(rows, test)
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title in columns:
        table.add_column(title, overflow="fold")
    for score in scores:
        table.add_column(_TITLES[score], justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        table.add_row(*(cells[place] for cells in columns.values()), *(_cell(row, score) for score in scores))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    console.print(table)
    for note in _notes(rows, shown):
        console.print(note, soft_wrap=True)


def run_names(rows: Sequence[Row]) -> list[str]:
    """Name each row by the folder of its first run, from where the folders of all part.

    Args:
        rows: The rows.

    Returns:
        A name for each.
    """
    folders = [run.folder for row in rows for run, _ in row.runs]
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    names = [row.runs[0][0].folder.relative_to(common).parts for row in rows]
    return ["/".join(part for part in parts if part != "lightning_logs") for parts in names]


def _choices(rows: Sequence[Row]) -> list[str]:
    """Say of each row which weights it is about."""
    selections = {row.runs[0][1].selected_by for row in rows} - {"last"}

    def words(selected_by: str) -> str:
        if selected_by == "last":
            return "last"
        return "best" if len(selections) == 1 else f"best {selected_by}"

    return [words(row.runs[0][1].selected_by) for row in rows]


def _scores(rows: Sequence[Row], test: bool) -> list[str]:
    return [score for score in _TITLES if (test or score != "test_accuracy") and any(row.values(score) for row in rows)]


def _cell(row: Row, score: str) -> str:
    values, mean = row.values(score), row.mean(score)
    if mean is None:
        return "-"
    text = f"{100 * mean:.2f}"
    if len(values) > 1:
        return f"{text} ± {100 * statistics.stdev(values):.2f}"
    if score == "clean_accuracy" and row.interval is not None:
        return f"{text} [{100 * row.interval[0]:.1f}, {100 * row.interval[1]:.1f}]"
    return text


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 4]} ..."


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Shorten options to as many last parts as tell them apart."""

    def ending(name: str, parts: int) -> str:
        return ".".join(name.split(".")[-parts:])

    found = {}
    for name in names:
        parts = 1
        while sum(ending(other, parts) == ending(name, parts) for other in names) > 1:
            parts += 1
        found[name] = ending(name, parts)
    return found


def _notes(rows: Sequence[Row], shown: Sequence[str]) -> list[str]:
    notes = ["Accuracies in %."]
    if any(len(row.runs) > 1 for row in rows):
        notes[0] = "Accuracies in %, mean ± standard deviation of runs that differ in their seeds alone."
    options = list(rows[0].options)
    if options and not shown:
        notes.append(f"The runs differ in {len(options)} options, which --output writes to compare.csv.")
    data = [name for name in options if f"{name}.".startswith("data.") and not name.endswith("batch_size")]
    if data:
        notes.append(
            f"Noisy accuracies compare on the same noisy labels alone, but the runs differ in {', '.join(data)}."
        )
    return notes


def write_comparison(rows: Sequence[Row], folder: str | Path, test: bool = False) -> None:
    """Write ``compare.csv``, a line for each set of weights of each run, and the picture ``compare.png``.

    Args:
        rows: What :func:`compare_runs` returned.
        folder: Where they go.
        test: Whether to write and draw accuracies on the clean test set too.
    """
    scores = _scores(rows, test)
    options = list(rows[0].options)
    bounds = ["clean_accuracy_low", "clean_accuracy_high"] if "clean_accuracy" in scores else []
    with (
        written_whole(Path(folder) / "compare.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["row", "run", "phase", "loss", "selected_by", "epoch", *scores, *bounds, "seeds", *options])
        for number, row in enumerate(rows):
            for run, weights in row.runs:
                found = [weights.scores.get(score, "") for score in scores]
                ends = (weights.interval or ("", "")) if bounds else ()
                seeds = "; ".join(f"{name}={value}" for name, value in run.seeds)
                about = [weights.phase, weights.loss, weights.selected_by, weights.epoch]
                writer.writerow([number, run.folder, *about, *found, *ends, seeds, *row.options.values()])
    with written_whole(Path(folder) / "compare.png") as path:
        draw_comparison(rows, scores).savefig(path, dpi=120)


def draw_comparison(rows: Sequence[Row], scores: Sequence[str]) -> Any:
    """Draw each run as a point, with the interval of its clean accuracy, and the mean ± sd of runs of one row.

    Args:
        rows: What :func:`compare_runs` returned.
        scores: The scores to draw, a panel for each.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure  # here: drawn where it is asked for alone

    shown = list(rows[0].options)[:_MOST_COLUMNS]
    labels = []
    for row, name, chosen in zip(rows, run_names(rows), _choices(rows), strict=True):
        several = f" ({len(row.runs)} runs)" if len(row.runs) > 1 else ""
        about = [f"{short} {_cut(row.options[option])}" for option, short in _short_names(shown).items()]
        labels.append(", ".join([name + several, *about, chosen]))
    room = 0.5 + 0.07 * max(map(len, labels))  # inches
    figure = Figure(figsize=(room + 3.0 * len(scores), 1.2 + 0.36 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for panel, score in zip(panels, scores, strict=True):
        for place, row in enumerate(rows):
            _draw_row(panel, place, row, score)
        panel.set_xlabel(_AXES[score])
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), labels, fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the best on top
    return figure


def _draw_row(panel: Any, place: int, row: Row, score: str) -> None:
    several = len(row.values(score)) > 1
    for number, (_, weights) in enumerate(row.runs):
        if score not in weights.scores:
            continue
        value = 100 * weights.scores[score]
        height = place + (0.5 * (number / (len(row.runs) - 1) - 0.5) if several else 0.0)
        color = "0.6" if several else "C0"
        if score == "clean_accuracy" and weights.interval is not None:
            low, high = (100 * bound for bound in weights.interval)
            panel.plot([low, high], [height, height], color=color, linewidth=1)
        panel.plot(value, height, "o", color=color, markersize=3 if several else 5)
    mean = row.mean(score)
    if several and mean is not None:
        spread = 100 * statistics.stdev(row.values(score))
        panel.errorbar(100 * mean, place, xerr=spread, fmt="o", color="C0", capsize=3, markersize=5)
