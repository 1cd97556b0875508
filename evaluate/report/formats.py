"""The report in other forms: Markdown for people, JSON and CSV for machines, PDF for the archive."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipq import __version__
from clipq.errors import ClipqError
from clipq.evaluate.report.markdown import plain
from clipq.evaluate.report.page import render, write_report
from clipq.evaluate.results import strict_json
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.record import CSV_COLUMNS, csv_cells, csv_text
from clipq.evaluate.verdicts.by_axis import MARKS, axis_verdicts, sentence
from clipq.evaluate.verdicts.headline import AXES
from clipq.evaluate.verdicts.reference import STATES, reference_verdicts
from clipq.evaluate.verdicts.regularities import find_regularities
from clipq.files import write_atomic

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")


def write(results: Results, form: str, target: Path, *, images: bool) -> Path:
    """Write the report as ``html``, ``md``, ``json``, ``csv`` or ``pdf``."""
    if form == "html":
        return write_report(results, target, images=images)
    if form == "pdf":
        write_atomic(target, _pdf(render(results, images=images)))
    else:
        write_atomic(target, {"md": as_markdown, "json": as_json, "csv": as_csv}[form](results.working()))
    return target


def as_markdown(results: Results) -> str:
    """What is known of the reference, verdicts, the table of axes, regularities."""
    found = [(entry, axis_verdicts(entry)) for entry in results.candidates]
    lines = [f"# {plain(', '.join(dict.fromkeys(e.record.bundle.checkpoint for e in results.entries)))}", ""]
    checked = reference_verdicts(results.entries)
    lines += [
        f"- Reference {plain(one.engine)} {STATES[one.state]} **{one.state}**: {plain(one.reason)}." for one in checked
    ]
    lines += [f"- {plain(sentence(entry))}" for entry, _ in found]
    lines += [f"- {plain(note)}" for note in results.notes]
    lines += [f"- **{plain(entry.name)} failed:** {plain(entry.record.failed)}" for entry in results.failed]
    if found:
        lines += [
            "",
            "| engine | " + " | ".join(axis.title for axis in AXES.values()) + " |",
            "|---" * (len(AXES) + 1) + "|",
        ]
        for entry, axes in found:
            cells = [f"{MARKS[one.verdict]} {one.text}" for one in axes.values()]
            lines.append("| " + " | ".join(map(plain, [entry.name, *cells])) + " |")
        lines += ["", "▲ better, ▼ worse: the 95 % interval of the paired difference leaves out 0. = same: it lies "
                  "within ± 1 point and is none of these. ? unknown."]  # fmt: skip
    regularities, looked_at = find_regularities(results)
    if looked_at:
        lines += ["", f"Regularities that survive Holm's correction, of {looked_at} looked at:", ""]
        lines += [f"- {plain(one.text)} (p = {one.p_value:.2g})" for one in regularities] or ["- none"]
    return "\n".join([*lines, "", f"clipq {__version__}"]) + "\n"


def as_json(results: Results) -> str:
    """What is known of the references, verdicts, regularities and every measurement."""
    regularities, looked_at = find_regularities(results)
    engines: list[dict[str, Any]] = []
    for entry in results.entries:
        axes = axis_verdicts(entry) if entry.is_candidate else {}
        engines.append(
            {
                "name": entry.name,
                "digest": entry.record.bundle.digest,
                "verdict": sentence(entry) if entry.is_candidate else "",
                "axes": {axis: {"verdict": one.verdict, "text": one.text} for axis, one in axes.items()},
                "record": entry.record.model_dump(mode="json"),
            }
        )
    whole = {
        "clipq": __version__,
        "references": [asdict(one) | {"reason": one.reason} for one in reference_verdicts(results.entries)],
        "engines": engines,
        "notes": results.notes,
        "failed": {entry.name: entry.record.failed for entry in results.failed},
        "regularities": [asdict(one) | {"text": one.text} for one in regularities],
        "regularities_looked_at": looked_at,
    }
    return strict_json.dumps(whole) + "\n"


def as_csv(results: Results) -> str:
    """The rows of every ``results.csv``, with the name that the report gives the engine in front."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("engine", *CSV_COLUMNS))
    for entry in results.entries:
        for row in entry.record.measurements:
            writer.writerow((csv_text(entry.name), *csv_cells(row)))
    return stream.getvalue()


def _pdf(page: str) -> bytes:
    """The page with everything opened, printed."""
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser is None:
        raise ClipqError(f"--format pdf needs a Chromium on the PATH ({', '.join(CHROMIUM)}); html prints as well")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", "--no-first-run"]
        flags += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=60000", f"--print-to-pdf={target}"]
        try:
            done = subprocess.run(
                [browser, *flags, f"{source.as_uri()}#print"], capture_output=True, text=True, timeout=300, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ClipqError(f"{browser} did not print the report within 300 s; print the html by hand") from error
        if done.returncode != 0 or not target.is_file():
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ClipqError(f"{browser} could not print the report: {said}")
        return target.read_bytes()
