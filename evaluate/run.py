"""One evaluation: subjects × views to cells, cells to estimates, estimates to records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from clipq.bundle import TOWERS
from clipq.errors import EngineError
from clipq.evaluate.axes.measure import Found, Measuring
from clipq.evaluate.bench.batch_size import measured_batch
from clipq.evaluate.bench.bench import BenchSettings, SubjectBench, bench
from clipq.evaluate.cells.cells import BatchSize
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square_cells import attack_all
from clipq.evaluate.cells.storage import Storage
from clipq.evaluate.cells.subjects import Subject, gather_subjects
from clipq.evaluate.recording import record_of
from clipq.evaluate.results.pairing import write_pairing
from clipq.evaluate.results.record import (
    Record,
    write_csv,
    write_record,
)
from clipq.evaluate.settings import Where
from clipq.evaluate.suites.plan import (
    Plan,
    open_plan,
)
from clipq.evaluate.suites.schema import Suite
from clipq.progress import Progress

# Of linear algebra, whatever the machine has: on another number of threads sums end in other digits.
METRIC_THREADS = 2


def evaluate(
    paths: Sequence[Path], suite: Suite, where: Where, *, given: dict[str, Any], progress: Progress
) -> list[Record]:
    """Evaluate bundles by a suite; writes cells, records and ``results.csv``, returns the records.

    An engine that fails is named in its record and left out; raises EngineError where the reference fails.
    """
    subjects, reference = gather_subjects(
        paths,
        runtime=where.runtime,
        threads=where.threads,
        simulated=suite.simulated,
        reference=suite.reference,
        graphs=where.graphs,
    )
    progress.start("opening and checking the data", 0)
    return evaluate_plan(open_plan(suite, where.cache), subjects, reference, where, given=given, progress=progress)


def evaluate_plan(
    plan: Plan,
    subjects: Sequence[Subject],
    reference: Subject | None,
    where: Where,
    *,
    given: dict[str, Any],
    progress: Progress,
) -> list[Record]:
    """``evaluate`` where subjects are gathered and the data is open already."""
    suite = plan.suite
    with Embeddings(
        where.cells or Storage(str(where.results / "cells")),
        suite.templates,
        suite.on_bad_image,
        suite.seed,
        progress=progress,
        cache=where.pixels,
        batch=BatchSize(where.batch or measured_batch(subjects, progress), automatic=where.auto_batch),
        failed=dict(where.failed),
    ) as embeddings:
        for view in plan.classified_views():
            embeddings.templates_of(view, subjects[0])
        _fill(plan, subjects, embeddings)
        squares = attack_all(plan, subjects, embeddings)
    working = [subject for subject in subjects if subject.label not in embeddings.failed]
    if reference is not None and reference.label in embeddings.failed:
        raise EngineError(f"the reference {reference.label} failed: {embeddings.failed[reference.label]}")
    if not working:
        raise EngineError("every engine failed: " + "; ".join(f"{k}: {v}" for k, v in embeddings.failed.items()))
    benches: dict[str, SubjectBench] = {}
    if suite.latency is not None:
        settings = BenchSettings(batches=suite.latency.batches, repeats=suite.latency.repeats)
        progress.start("latency, memory, kernels", len(TOWERS) + len(working))
        benches = bench(working, settings, where.results / "bench", lambda what: progress.advance(1))
    pictures = where.results if where.thumbnails else None
    with threadpool_limits(METRIC_THREADS, user_api="blas"):
        found = Measuring(plan, working, reference, embeddings, squares, pictures).measure(progress)
    records = [record_of(subject, reference, found, benches, embeddings, plan, where, given) for subject in subjects]
    for subject, record in zip(subjects, records, strict=True):
        write_record(where.results, record)
        mine = found.get(subject.label, Found())
        write_pairing(where.results, record, mine.estimates, mine.answers)
    write_csv(where.results, records)
    return records


def _fill(plan: Plan, subjects: Sequence[Subject], embeddings: Embeddings) -> None:
    """Embed everything that the plan asks for; texts engine by engine, for one text tower is open at a time."""
    for subject in subjects:
        for view in plan.classified_views():
            embeddings.fill_classes(view, [subject])
        for view in plan.captioned_views():
            embeddings.fill_captions(view, [subject])
    for view in plan.image_views():
        embeddings.fill_images(view, subjects)
