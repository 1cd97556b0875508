"""One evaluation: subjects × views to cells, cells to measurements, measurements to records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clipq.bundle import TOWERS, TowerName
from clipq.engines.base import Array
from clipq.errors import DataError
from clipq.evaluate.bench import BenchSettings, SubjectBench, bench, bench_measurements
from clipq.evaluate.cells import BATCH, CHUNK, Cell, ImageJob, fill_image_cells, fill_text_cell, open_cell, unit
from clipq.evaluate.measure import Answers, measure_view, reliability
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.subjects import Subject, gather_subjects
from clipq.evaluate.views import OnBadImage, View, open_view
from clipq.evaluate.zeroshot import TemplateSet, choose_templates, predict
from clipq.files import sha256_bytes
from clipq.progress import Progress
from clipq.record import BundleRecord, Measurement, Record, ViewRecord, environment, write_csv, write_record
from clipq.tokenizer import TextTokenizer

CLASSES_PER_CHUNK = 16


@dataclass(frozen=True)
class Settings:
    """What an evaluation was asked to do, defaults resolved."""

    data: tuple[str, ...]
    runtime: str = "ort-cpu"
    reference: str | None = None
    simulated: bool = False
    templates: str | None = None
    on_bad_image: OnBadImage = "error"
    bins: int = BINS
    seed: int = 0
    threads: int = 0
    bench: BenchSettings | None = field(default_factory=BenchSettings)


@dataclass(frozen=True)
class _ViewAnswers:
    record: ViewRecord
    answers: Answers
    groups: dict[str, Any]


def evaluate(
    paths: Sequence[Path], settings: Settings, results: Path, *, given: dict[str, Any], progress: Progress
) -> list[Record]:
    """Evaluate bundles on views; writes cells, records and ``results.csv`` below ``results``, returns the records."""
    subjects, reference = gather_subjects(
        paths,
        runtime=settings.runtime,
        threads=settings.threads,
        simulated=settings.simulated,
        reference=settings.reference,
    )
    views = _open_views(settings, subjects)
    measured: dict[str, list[_ViewAnswers]] = {subject.label: [] for subject in subjects}
    for view in views:
        for subject, answered in zip(subjects, _answer(view, subjects, settings, results, progress), strict=True):
            measured[subject.label].append(answered)
    benches: dict[str, SubjectBench] = {}
    if settings.bench is not None:
        progress.start("benchmarks", len(TOWERS) + len(subjects))
        benches = bench(subjects, settings.bench, results / "bench", lambda what: progress.advance(1))
    progress.start("metrics and intervals", len(subjects))
    records = []
    for subject in subjects:
        records.append(_record(subject, subjects, reference, measured, benches, settings, given))
        progress.advance(1)
    for record in records:
        write_record(results, record)
    write_csv(results, records)
    return records


def _open_views(settings: Settings, subjects: Sequence[Subject]) -> list[View]:
    views = [open_view(spec) for spec in settings.data]
    names = [view.name for view in views]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two views are called {name!r}; name them: --data NAME=SOURCE")
    for view in views:
        choose_templates(view, subjects[0].bundle, settings.templates)
    return views


def _answer(
    view: View, subjects: Sequence[Subject], settings: Settings, results: Path, progress: Progress
) -> list[_ViewAnswers]:
    """Fill the cells of a view for all subjects and read the predictions off them."""
    digest = view.digest()
    templates = choose_templates(view, subjects[0].bundle, settings.templates)
    classes = [_class_embeddings(view, subject, templates, results, progress) for subject in subjects]
    cells = [_image_cell(view, digest, subject, results) for subject in subjects]
    # Towers that several bundles share (--towers image, or the reference's twin) are embedded once.
    unique = {
        cell.folder: ImageJob(cell, _opener(subject, "image")) for cell, subject in zip(cells, subjects, strict=True)
    }
    missing = sum(len(job.cell.missing()) for job in unique.values()) * CHUNK
    if missing:
        progress.start(f"{view.name}: images", min(missing, len(unique) * len(view.samples)))
    fill_image_cells(
        view, list(unique.values()), subjects[0].bundle.manifest.preprocess, settings.on_bad_image, progress.advance
    )
    return [
        _read(view, digest, subject, templates, cell, text, settings)
        for subject, cell, text in zip(subjects, cells, classes, strict=True)
    ]


def _read(
    view: View, digest: str, subject: Subject, templates: TemplateSet, cell: Cell, classes: Array, settings: Settings
) -> _ViewAnswers:
    rows, features, skipped = cell.load()
    if skipped and settings.on_bad_image == "error":
        name, reason = next(iter(skipped.items()))
        raise DataError(f"{view.name}: {name}: {reason}; mend it, or leave such files out with --on-bad-image skip")
    if len(rows) == 0:
        raise DataError(f"{view.source}: none of its {len(view.samples)} images can be decoded")
    embeddings = unit(features)
    labels = np.array([sample.label for sample in view.samples])[rows]
    manifest = subject.bundle.manifest
    predictions = predict(embeddings, classes, labels, logit_scale=manifest.logit_scale, logit_bias=manifest.logit_bias)
    record = ViewRecord(
        name=view.name,
        source=view.source,
        digest=digest,
        n=len(rows),
        classes=len(view.class_names),
        templates=templates.name,
        template_count=len(templates.templates),
        skipped=skipped,
        reliability=reliability(predictions, settings.bins),
    )
    return _ViewAnswers(record, Answers(subject.columns, predictions, embeddings), _groups(view, rows))


def _groups(view: View, rows: Array) -> dict[str, Any]:
    """Which rows belong to each ``column=value``."""
    samples = [view.samples[row] for row in rows]
    columns = list(samples[0].groups)
    members = {}
    for column in columns:
        values = np.array([sample.groups[column] for sample in samples])
        for value in sorted(set(values.tolist())):
            members[f"{column}={value}"] = values == value
    return members


def _image_cell(view: View, digest: str, subject: Subject, results: Path) -> Cell:
    identity = {
        **subject.identity("image"),
        "view": digest,
        "preprocess": subject.bundle.manifest.preprocess.model_dump(mode="json"),
        "batch": BATCH,
    }
    return open_cell(results / "cells", identity, len(view.samples), CHUNK)


def _class_embeddings(view: View, subject: Subject, templates: TemplateSet, results: Path, progress: Progress) -> Array:
    prompts = templates.prompts(view.class_names)
    per_class = len(templates.templates)
    entry = subject.bundle.manifest.tokenizer
    identity = {
        **subject.identity("text"),
        "tokenizer": [entry.sha256, entry.cleaning, entry.context_length],
        "prompts": sha256_bytes("\n".join(prompts).encode()),
        "templates": per_class,
        "batch": BATCH,
    }
    cell = open_cell(results / "cells", identity, len(view.class_names), CLASSES_PER_CHUNK)
    missing = cell.missing()
    if missing:
        progress.start(f"{view.name}: class prompts, {subject.label}", len(missing) * CLASSES_PER_CHUNK)
        tokenizer = TextTokenizer(subject.bundle)

        def tokens(start: int, stop: int) -> Array:
            return tokenizer(prompts[start * per_class : stop * per_class])

        fill_text_cell(cell, _opener(subject, "text"), tokens, per_class, progress.advance)
    return cell.load()[1]


def _opener(subject: Subject, tower: TowerName) -> Callable[[], Any]:
    return lambda: subject.open(tower)


def _record(
    subject: Subject,
    subjects: Sequence[Subject],
    reference: Subject | None,
    measured: dict[str, list[_ViewAnswers]],
    benches: dict[str, SubjectBench],
    settings: Settings,
    given: dict[str, Any],
) -> Record:
    twin = next((other for other in subjects if subject.bundle == other.bundle and other.simulated), None)
    measurements: list[Measurement] = []
    against_twin: list[Measurement] = []
    for position, answered in enumerate(measured[subject.label]):
        base = None if reference is None else measured[reference.label][position].answers

        def measure(against: Answers | None, answered: _ViewAnswers = answered) -> list[Measurement]:
            return measure_view(
                answered.record.name, answered.answers, against, answered.groups, bins=settings.bins, seed=settings.seed
            )

        measurements += measure(base)
        if twin is not None and not subject.simulated:
            against_twin += measure(measured[twin.label][position].answers)
    if benches:
        measurements += bench_measurements(subject, benches, reference)
    manifest = subject.bundle.manifest
    return Record(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=BundleRecord(
            name=subject.bundle.name,
            digest=subject.bundle.digest,
            checkpoint=manifest.checkpoint.name,
            recipe=manifest.recipe.name,
            options=manifest.recipe.options,
            towers=manifest.recipe.towers,
            calibration=manifest.recipe.calibration,
            file_bytes=sum(manifest.tower(tower).bytes for tower in TOWERS),
        ),
        runtime=subject.runtime,
        simulated=subject.simulated,
        reference=reference.bundle.name if reference else "",
        arguments_given=given,
        arguments_resolved=_plain(settings),
        environment=environment(),
        views=tuple(answered.record for answered in measured[subject.label]),
        latency=benches[subject.label].latency if benches else (),
        census=benches[subject.label].census if benches else (),
        measurements=tuple(measurements),
        deployed_minus_simulated=tuple(against_twin),
    )


def _plain(settings: Settings) -> dict[str, Any]:
    resolved = dict(vars(settings))
    resolved["bench"] = None if settings.bench is None else dict(vars(settings.bench))
    return resolved
