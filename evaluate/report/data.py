"""The report's numbers as the page's script reads them: every measurement once, by columns, compressed."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from clipq.evaluate.metrics.statistics import percentile_draws
from clipq.evaluate.metrics.table import metric_of, title_of
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.record import Measurement, ReliabilityBin, ViewRecord
from clipq.evaluate.verdicts.judgement import judge_row

# A gallery that is looked at, and a page that opens at once.
MOST_FLIPS = 2_000
MOST_PHOTO_BYTES = 900_000
MOST_THUMBNAIL_BYTES = 50_000

_JUDGED = {"better": 1, "worse": -1, "same": 0, "unknown": 0}

Columns = Sequence[tuple[str, Key]]


@dataclass
class PageData:
    """What the page holds besides its text; ``table`` notes a table and returns its number."""

    results: Results
    images: bool
    tables: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[Key, int] = field(default_factory=dict)
    flips_left_out: int = 0

    def __post_init__(self) -> None:
        for entry in self.results.entries:
            for key in entry.rows:
                self.keys.setdefault(key, len(self.keys))

    def table(self, label: str, columns: Columns) -> int | None:
        """A table of all engines that have one of these measurements; None where no engine has any."""
        known = [(title, self.keys[key]) for title, key in columns if key in self.keys]
        if not known:
            return None
        self.tables.append({"label": label, "columns": known})
        return len(self.tables) - 1

    def encode(self) -> str:
        """Base64 of gzipped JSON: it holds nothing that could end the script element it stands in."""
        entries = self.results.entries
        index_of = {entry: index for index, entry in enumerate(entries)}
        sizes = self._sizes()
        photos: dict[str, str] = {}
        data = {
            "engines": [_engine(entry, index_of) for entry in entries],
            "keys": self._described_keys(sizes),
            "measured": [self._measured(entry, sizes) for entry in entries],
            "tables": self.tables,
            "bins": [_by_view(entry, lambda view: _bins(view.reliability)) for entry in entries],
            "histograms": [_by_view(entry, _histogram) for entry in entries],
            "costs": costs(entries),
            "flips": self._flips(photos),
            "photos": photos,
            "charts": json.loads((resources.files("clipq.evaluate.report") / "charts.json").read_text("utf-8")),
        }
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        # Without a time in it the same results give the same page.
        return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()

    def _sizes(self) -> dict[Key, int]:
        """The usual n of each measurement: engines mostly see the same samples."""
        counts: dict[Key, Counter[int]] = {}
        for entry in self.results.entries:
            for key, row in entry.rows.items():
                counts.setdefault(key, Counter())[row.n] += 1
        return {key: found.most_common(1)[0][0] for key, found in counts.items()}

    def _described_keys(self, sizes: dict[Key, int]) -> list[list[Any]]:
        """Each number's view, group and metric, what the metric is called, its unit, its better side, and the usual n.

        What view and group say comes in columns of its own, so that the page takes no string apart: whether it is of a
        whole view, the part of a view, and the severity of a corruption.
        """
        units: dict[Key, str] = {}
        for entry in self.results.entries:
            for key, row in entry.rows.items():
                units.setdefault(key, row.unit)
        return [
            [*key, title_of(key.metric), units[key], metric_of(key.metric).higher_is_better, sizes[key], *_said(key)]
            for key in self.keys
        ]

    def _measured(self, entry: Entry, sizes: dict[Key, int]) -> dict[str, list[Any]]:
        """An engine's measurements by columns: alike neighbours compress best."""
        rows = list(entry.rows.items())
        judged = [_JUDGED[judge_row(row)] for _, row in rows]
        survivors = self.results.survivors
        return {
            "key": [self.keys[key] for key, _ in rows],
            "n": [0 if row.n == sizes[key] else row.n for key, row in rows],
            "judged": judged,
            "survives": [int((entry.name, key) in survivors) for key, _ in rows],
            "value": [_rounded(row.value, row) for _, row in rows],
            "low": [_rounded(row.low, row) for _, row in rows],
            "high": [_rounded(row.high, row) for _, row in rows],
            "delta": [_rounded(row.delta, row) for _, row in rows],
            "delta_low": [_rounded(row.delta_low, row) for _, row in rows],
            "delta_high": [_rounded(row.delta_high, row) for _, row in rows],
            "p": [_short(row.p_value, 2) for _, row in rows],
        }

    def _flips(self, photos: dict[str, str]) -> list[list[Any]]:
        """Lost and gained samples, view by view; photos as long as there is room."""
        found: list[list[Any]] = []
        used = 0
        order = {name: index for index, name in enumerate(self.results.views)}
        rows = [
            (index, view.name, flip, entry)
            for index, entry in enumerate(self.results.entries)
            for view in entry.record.views
            for flip in view.flips
        ]
        rows.sort(key=lambda row: order[row[1]])
        self.flips_left_out = max(0, len(rows) - MOST_FLIPS)
        for index, view, flip, entry in rows[:MOST_FLIPS]:
            photo = flip.thumbnail.rpartition("/")[2]
            if self.images and photo not in photos and used < MOST_PHOTO_BYTES:
                content = _thumbnail(entry.folder, flip.thumbnail)
                if content:
                    photos[photo] = base64.b64encode(content).decode()
                    used += len(content)
            answers = [flip.reference, _short(flip.reference_confidence), flip.candidate, _short(flip.confidence)]
            shown = photo if photo in photos else ""
            found.append([index, view, int(flip.gained), flip.sample, flip.label, *answers, shown])
        return found


def costs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What engines cost, each a title and [value, low, high] per engine: latency as a ratio to the reference, sizes."""
    series: dict[str, list[Any]] = {}

    def note(title: str, index: int, *values: float) -> None:
        series.setdefault(title, [None] * len(entries))[index] = [_short(value) for value in values]

    for index, entry in enumerate(entries):
        if entry.record.is_side or entry.record.bundle.ran_on:
            continue
        # Of what a busy machine took nobody shall draw a front.
        for latency in (one for one in entry.record.latency if not one.busy):
            place = f"{latency.tower} tower, batch {latency.batch}"
            base = entry.timed_beside(latency)
            if base is None:
                p50 = percentile_draws(latency.milliseconds, 50, again=latency.again)
                note(f"p50 ms, {place}", index, p50.value, *p50.percentile_interval())
            else:
                note(f"p50 ÷ reference's, {place}", index, *latency.over(base))
        size = entry.record.bundle.file_bytes / 1e6
        note("file MB, both towers", index, size, size, size)
        for key, row in entry.rows.items():
            metric, tower = metric_of(key.metric), key.tower
            if tower and metric.section == "costs":
                unit, value = ("MB", row.value / 1e6) if metric.unit == "bytes" else (metric.unit, row.value)
                note(f"{metric.title} {unit}, {tower} tower", index, value, value, value)
    return [{"title": title, "values": values} for title, values in series.items()]


def _said(key: Key) -> tuple[bool, str, int]:
    of_data = bool(key.view) and not key.tower
    return of_data and not key.part and key.condition is None, key.part, key.condition[1] if key.condition else 0


def _engine(entry: Entry, index_of: dict[Entry, int]) -> dict[str, Any]:
    record, scheme = entry.record, entry.record.bundle.scheme
    return {
        "name": entry.name, "recipe": record.bundle.recipe, "runtime": record.place, "twin": record.twin,
        "simulated": record.simulated, "bits": scheme.weight_bits, "widths": scheme.widths, "method": scheme.method,
        "towers": record.bundle.scope,
        "reference": -1 if entry.reference is None else index_of.get(entry.reference, -1),
    }  # fmt: skip


def _thumbnail(folder: Path, name: str) -> bytes:
    """A thumbnail's content, empty where there is none.

    Records and folders may be others' work: no path or link of theirs leads out of the folder, and only a small WebP is
    a thumbnail.
    """
    path = folder / name
    if not name or not path.is_file() or not path.resolve().is_relative_to(folder.resolve() / "thumbnails"):
        return b""
    content = path.read_bytes() if path.stat().st_size <= MOST_THUMBNAIL_BYTES else b""
    return content if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else b""


def _by_view(entry: Entry, describe: Any) -> dict[str, Any]:
    found = {view.name: describe(view) for view in entry.record.views}
    return {name: described for name, described in found.items() if described}


def _bins(bars: Sequence[ReliabilityBin]) -> list[list[float | None]]:
    return [[_short(x, 3) for x in (one.lower, one.upper)] + [one.n] +
            [_short(x, 4) for x in (one.confidence, one.accuracy, one.low, one.high)] for one in bars]  # fmt: skip


def _histogram(view: ViewRecord) -> list[Any]:
    if not view.histograms:
        return []
    found = next((one for one in view.histograms if one.score == "mcm"), view.histograms[0])
    return [found.score, _short(found.edges[0], 8), _short(found.edges[-1], 8), found.inside, found.outside]


def _rounded(number: float | None, row: Measurement) -> float | None:
    """As the page shows it, rounded once: rounded again there it would differ from the sentences."""
    if number is None or not math.isfinite(number):
        return None
    if row.unit == "fraction" and row.metric != "cosine":
        return round(float(f"{100 * number:.1f}") / 100, 3)
    return float(f"{number:.4f}" if row.metric == "cosine" else f"{number:.3f}")


def _short(number: float | None, digits: int = 5) -> float | None:
    """A number as far as anyone reads it; None for what is not a number, which JSON cannot say."""
    return None if number is None or not math.isfinite(number) else float(f"{number:.{digits}g}")
