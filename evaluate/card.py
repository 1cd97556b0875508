"""A model card in Hugging Face's form: the evaluation block, what changed against FP32, limits and fairness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipq.errors import ResultsError
from clipq.evaluate.headline import AXES, headline, title
from clipq.evaluate.judgement import judge_row
from clipq.evaluate.markdown import plain
from clipq.files import write_atomic
from clipq.record import Measurement, Record

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Tasks by the names of Hugging Face's hub.
_CLASSIFICATION = ("zero-shot-image-classification", "Zero-Shot Image Classification")
_RETRIEVAL = ("image-text-to-text", "Image-Text Retrieval")


def choose_record(records: Sequence[Record], bundle: str | None) -> Record:
    """The deployed candidate of that name, or the only one; raises ResultsError where that leaves a choice or none."""
    working = [record for record in records if not record.failed and not record.twin]
    if bundle is not None:
        found = [record for record in working if record.bundle.name == bundle]
        if not found:
            raise ResultsError(f"--bundle {bundle}: the results have {', '.join(one.bundle.name for one in working)}")
        if len(found) > 1:
            raise ResultsError(f"{bundle} was evaluated in {', '.join(one.runtime for one in found)}; keep one record")
        return found[0]
    candidates = [record for record in working if record.bundle.name != record.reference and not record.simulated]
    if len(candidates) != 1:
        names = ", ".join(record.bundle.name for record in candidates) or "none"
        raise ResultsError(f"choose an engine with --bundle; deployed candidates: {names}")
    return candidates[0]


def write_card(record: Record, target: Path) -> Path:
    """Write the card; names of views, groups and bundles stand in it as plain text."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        model_name=record.bundle.name,
        tags=["clip", "zero-shot-image-classification", "onnx", "quantized", record.bundle.recipe, "clipq"],
        pipeline_tag="zero-shot-image-classification",
        eval_results=_eval_results(record),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(record)}", ignore_metadata_errors=False)
    write_atomic(target, str(card))
    return target


def _eval_results(record: Record) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    found = []
    for axis, rows in headline(record).items():
        task = _RETRIEVAL if axis == "retrieval" else _CLASSIFICATION
        for row in rows:
            found.append(
                EvalResult(
                    task_type=task[0],
                    task_name=task[1],
                    dataset_type=row.view,
                    dataset_name=" ".join(part for part in (row.view, row.group) if part),
                    metric_type=row.metric,
                    metric_name=title(row),
                    metric_value=round(row.value, 6),
                )
            )
    if not found:
        raise ResultsError(f"{record.name} has no measurement that a card could report")
    return found


def _body(record: Record) -> str:
    bundle = record.bundle
    lines = [
        f"# {plain(bundle.name)}",
        "",
        f"{_code(bundle.checkpoint)}, quantized by {_code(bundle.recipe)}, measured in {_code(record.runtime)}"
        + (" by **simulated** quantization: no engine of this precision ran." if record.simulated else "."),
        "",
        "## What changed against the reference",
        "",
        f"Reference: {plain(record.reference or 'none')}. Differences are paired, with 95 % bootstrap intervals; "
        "percent and points for fractions. *better* and *worse*: the interval leaves out 0; *same*: it lies within "
        "± 1 point.",
        "",
        "| axis | metric | value | difference | verdict | n |",
        "|---|---|---:|---:|---|---:|",
    ]
    axes = headline(record)
    for axis, rows in axes.items():
        for row in rows:
            cells = (AXES[axis], title(row), _value(row), _delta(row), _verdict(row), str(row.n))
            lines.append("| " + " | ".join(map(plain, cells)) + " |")
    lines += ["", "## Precision", ""]
    lines += [
        f"- {plain(census.tower)} tower: recipe {_code(census.recipe)}, verdict {plain(census.verdict)}, "
        f"{100 * census.integer_share:.0f} % of the matrix-multiply work in integers ({plain(census.evidence)})"
        for census in record.census
    ] or ["Not measured: which kernels ran."]
    lines += ["", "## Fairness", ""]
    lines += _fairness(record)
    lines += ["", "## Limitations", ""]
    missing = [AXES[axis] for axis in AXES if axis not in axes]
    lines += [f"- Not measured: {', '.join(missing)}."] if missing else []
    lines += [] if record.latency else ["- Not measured: latency and memory."]
    skipped = sum(len(view.skipped) for view in record.views)
    lines += [f"- {skipped} images could not be decoded and were left out."] if skipped else []
    lines += [
        "- Intervals cover the sampling of images, not the choice of data sets, prompts or calibration images.",
        f"- Zero-shot prompts: {plain(', '.join(sorted({view.templates for view in record.views if view.templates})))}."
        " Another prompt set gives other figures.",
        "- Figures hold for this runtime and machine; another runtime may round differently.",
        "",
        "## Provenance",
        "",
        f"- Bundle SHA-256 {_code(bundle.digest)}",
        f"- Measured {plain(record.created)} on {plain(str(record.environment['cpu']))}"
        + (f", {plain(record.environment['gpu']['name'])}" if "gpu" in record.environment else ""),
    ]
    for view in record.views:
        lines.append(
            f"- {plain(view.name)} ({plain(view.role)}): {view.n} images, content SHA-256 {_code(view.digest)}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in record.environment["packages"].items())
    return "\n".join([*lines, f"- {plain(versions)}"]) + "\n"


def _fairness(record: Record) -> list[str]:
    rows = [row for row in record.measurements if row.metric == "acc1" and "=" in row.group]
    if not rows:
        return ["No groups were measured: nothing is known about differences between them."]
    lines = ["| set | group | top-1 | difference | n |", "|---|---|---:|---:|---:|"]
    for row in rows:
        cells = (row.view, row.group, _value(row), _delta(row), str(row.n))
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    return lines


def _value(row: Measurement) -> str:
    factor, digits = (100, 1) if row.unit == "fraction" else (1, 3)
    if row.low is None or row.high is None:
        return f"{factor * row.value:.{digits}f}"
    return f"{factor * row.value:.{digits}f} [{factor * row.low:.{digits}f}, {factor * row.high:.{digits}f}]"


def _delta(row: Measurement) -> str:
    if row.delta is None or row.delta_low is None or row.delta_high is None:
        return ""
    factor, digits = (100, 1) if row.unit == "fraction" else (1, 3)
    bounds = f"[{factor * row.delta_low:+.{digits}f}, {factor * row.delta_high:+.{digits}f}]"
    return f"{factor * row.delta:+.{digits}f} {bounds}"


def _verdict(row: Measurement) -> str:
    return "" if row.delta is None else judge_row(row)


def _code(text: str) -> str:
    """Untrusted text as code: nothing in it ends the code or the line."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
