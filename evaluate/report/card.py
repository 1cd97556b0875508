"""A model card in Hugging Face's form: the evaluation block, what changed against FP32, limits and fairness."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from clipq.errors import ResultsError, one_line
from clipq.evaluate.report.markdown import plain
from clipq.evaluate.results import numbers
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.record import BundleRecord, Measurement, Record
from clipq.evaluate.verdicts.by_axis import findings
from clipq.evaluate.verdicts.headline import AXES, headline, title
from clipq.evaluate.verdicts.judgement import judge_row
from clipq.evaluate.verdicts.reference import STATES, reference_verdicts
from clipq.evaluate.verdicts.saturation import in_words
from clipq.files import write_atomic
from clipq.given import hint

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Tasks by the names of Hugging Face's hub.
_CLASSIFICATION = ("zero-shot-image-classification", "Zero-Shot Image Classification")
_RETRIEVAL = ("image-text-to-text", "Image-Text Retrieval")


def choose_engine(results: Results, bundle: str | None) -> Entry:
    """The deployed candidate of that name, or the only one; raises ResultsError where that leaves a choice or none.

    ``bundle`` is a bundle's name or, where it was evaluated in several places, the engine's: ``int8 (avx2)``.
    """
    working = [entry for entry in results.working() if not entry.record.is_side]
    if bundle is not None:
        found = [entry for entry in working if bundle in (entry.name, entry.record.bundle.name)]
        if not found:
            known = [entry.name for entry in working]
            raise ResultsError(f"--bundle {bundle}: the results have {', '.join(known)}{hint(bundle, known)}")
        if len(found) > 1:
            engines = " or ".join(f"'{entry.name}'" for entry in found)
            raise ResultsError(f"{bundle} was evaluated in several places; choose one with --bundle {engines}")
        return found[0]
    candidates = [entry for entry in working if entry.is_candidate and not entry.record.simulated]
    if len(candidates) != 1:
        there = ", ".join(entry.name for entry in candidates) or "none"
        raise ResultsError(f"choose an engine with --bundle; deployed candidates: {there}")
    return candidates[0]


def write_card(entry: Entry, target: Path) -> Path:
    """Write the card; names of views, groups and bundles stand in it as plain text.

    Raises ResultsError where ``target`` is a file that no card stands in.
    """
    from huggingface_hub import ModelCard, ModelCardData

    record = entry.record
    if target.is_file() and "\n- clipq\n" not in target.read_text(encoding="utf-8", errors="replace"):
        raise ResultsError(f"{target} exists and is no card that clipq wrote; choose another name with -o")
    data = ModelCardData(
        model_name=record.bundle.name,
        tags=["clip", "zero-shot-image-classification", *_form(record), record.bundle.recipe, "clipq"],
        pipeline_tag="zero-shot-image-classification",
        eval_results=_eval_results(record),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(entry)}", ignore_metadata_errors=False)
    write_atomic(target, str(card))
    return target


def _form(record: Record) -> tuple[str, ...]:
    """What the hub is told beside the recipe: whether it is an ONNX file, and quantized."""
    bundle = record.bundle
    if bundle.ran_on:
        return ()
    return ("onnx",) * (not bundle.plans) + ("quantized",) * (not bundle.scheme.is_fp32)


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


def _body(entry: Entry) -> str:
    record, bundle = entry.record, entry.record.bundle
    lines = [
        f"# {plain(bundle.name)}",
        "",
        _what(record),
        "",
        plain(f"{findings(entry)}.") if entry.is_candidate else "It is the reference, or was compared with none.",
        "",
        "## Is the reference right?",
        "",
        *_reference(entry),
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
            cells = (AXES[axis].title, title(row), numbers.value(row), numbers.delta(row), _verdict(row), str(row.n))
            lines.append("| " + " | ".join(map(plain, cells)) + " |")
    lines += ["", "## Precision", ""]
    lines += [
        f"- {plain(census.tower)} tower: recipe {_code(census.recipe)}, verdict {plain(census.verdict)}, "
        f"{100 * census.integer_share:.0f} % of the matrix-multiply work in integers ({plain(census.evidence)})"
        + (f"; on CPUs without VNNI {plain(in_words(census.saturation))}" if census.saturation else "")
        for census in record.census
    ] or ["Not measured: which kernels ran."]
    lines += ["", "## Fairness", ""]
    lines += _fairness(record)
    lines += ["", "## Limitations", "", *_limitations(entry, set(axes))]
    lines += [
        "",
        "## Provenance",
        "",
        f"- Bundle SHA-256 {_code(bundle.digest)}",
        f"- Recipe {_code(' '.join([bundle.recipe, *(f'{key}={value}' for key, value in bundle.options.items())]))}",
        *([] if bundle.adopted is None else [f"- {plain(bundle.adopted.in_words)}"]),
        *_calibration(bundle),
        f"- Measured {plain(record.created)} on {plain(str(record.environment['cpu']))}"
        + (f", {plain(record.environment['gpu']['name'])}" if "gpu" in record.environment else ""),
    ]
    for view in record.views:
        lines.append(
            f"- {plain(view.name)} ({plain(view.role)}): {view.n} images, content SHA-256 {_code(view.digest)}"
        )
    versions = ", ".join(f"{name} {version}" for name, version in record.environment["packages"].items())
    return "\n".join([*lines, f"- {plain(versions)}"]) + "\n"


def _reference(entry: Entry) -> list[str]:
    found = reference_verdicts([] if entry.reference is None else [entry.reference])
    return [f"{plain(one.engine)} {STATES[one.state]} **{one.state}**: {plain(one.reason)}." for one in found] or [
        "There is none."
    ]


def _what(record: Record) -> str:
    """Which engine it is, and where it ran."""
    bundle = record.bundle
    if bundle.ran_on:
        return f"{_code(bundle.checkpoint)}, run elsewhere: {_code(bundle.ran_on)}; what it answered was measured here."
    how = " by **simulated** quantization: no engine of this precision ran." if record.simulated else "."
    return f"{_code(bundle.checkpoint)}, {_made(bundle)}, measured in {_code(record.place)}{how}"


def _limitations(entry: Entry, axes: Set[str]) -> list[str]:
    record = entry.record
    missing = [axis.title for axis in AXES.values() if axis.name not in axes]
    lines = [f"- Not measured: {', '.join(missing)}."] if missing else []
    lines += [] if record.latency else ["- Not measured: latency and memory."]
    lines += [f"- {plain(note)}." for note in Results((entry,)).notes]
    for count, said in (
        (sum(len(view.skipped) for view in record.views), "{} images could not be decoded and were left out"),
        (sum(view.left_out_count for view in record.views), "{} files of the data sets are no samples: left out"),
        (sum(len(view.unverified) for view in record.views), "of {} files nobody can tell whether they are whole"),
    ):
        lines += [f"- {said.format(count)}."] if count else []
    templates = ", ".join(sorted({view.templates for view in record.views if view.templates}))
    return [
        *lines,
        "- Intervals cover the sampling of images, not the choice of data sets, prompts or calibration images.",
        f"- Zero-shot prompts: {plain(templates)}. Another prompt set gives other figures.",
        "- Figures hold for this runtime and machine; another runtime may round differently.",
    ]


def _made(bundle: BundleRecord) -> str:
    if bundle.adopted is None:
        return f"quantized by {_code(bundle.recipe)}"
    read = " by its own graph" if bundle.scheme.weight_bits else ""
    return f"as others made it ({bundle.scheme.widths}{read})"


def _calibration(bundle: BundleRecord) -> list[str]:
    found = bundle.calibration
    if not found:
        return []
    ranges = f"{found.get('images')} images and {found.get('texts')} texts, SHA-256 {_code(str(found.get('digest')))}"
    return [f"- Ranges measured on {ranges}"]


def _fairness(record: Record) -> list[str]:
    rows = [row for row in record.measurements if row.metric == "acc1" and row.key.part]
    if not rows:
        return ["No groups were measured: nothing is known about differences between them."]
    lines = ["| set | group | top-1 | difference | n |", "|---|---|---:|---:|---:|"]
    for row in rows:
        cells = (row.view, row.group, numbers.value(row), numbers.delta(row), str(row.n))
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    return lines


def _verdict(row: Measurement) -> str:
    return "" if row.delta is None else judge_row(row)


def _code(text: str) -> str:
    """Untrusted text as code: nothing in it ends the code or the line."""
    return f"`{' '.join(one_line(text).replace('`', chr(39)).split())}`"
