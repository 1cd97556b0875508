"""One evaluation: subjects × views to cells, cells to estimates, estimates to records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from clipq.bundle import TOWERS
from clipq.data.open import complaint
from clipq.errors import BundleError, DataError, EngineError, ResultsError
from clipq.evaluate.axes.measure import measure
from clipq.evaluate.bench.batch_size import measured_batch
from clipq.evaluate.bench.bench import BenchSettings, SubjectBench, bench
from clipq.evaluate.bench.earlier import with_earlier_speeds
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.fill import fill
from clipq.evaluate.cells.first_batch import FirstBatch
from clipq.evaluate.cells.subjects import Cohort, Subject, gather_cohort
from clipq.evaluate.recording import Evaluated, planned_record, record_of
from clipq.evaluate.results.basis import Foundations, differs
from clipq.evaluate.results.pairing import write_pairing
from clipq.evaluate.results.record import (
    Record,
    read_record,
    read_records,
    record_stem,
    stem_of,
    write_csv,
    write_record,
)
from clipq.evaluate.settings import METRIC_THREADS, Settings
from clipq.evaluate.suites.plan import Plan, open_plan
from clipq.evaluate.suites.schema import Suite
from clipq.progress import Progress


def evaluate(
    paths: Sequence[Path], suite: Suite, results: Path, settings: Settings, *, given: dict[str, Any], progress: Progress
) -> list[Record]:
    """Evaluate bundles by a suite; writes cells, records and ``results.csv``, returns the records.

    An engine that fails is named in its record and left out; raises EngineError where the reference fails.
    """
    sources = [DataError(f"--data {wrong}") for entry in suite.views if (wrong := complaint(entry.source)) is not None]
    cohort = gather_cohort(paths, settings, simulated=suite.simulated, reference=suite.reference, also=sources)
    progress.start("opening and checking the data", 0)
    plan = open_plan(suite, settings.fetch)
    return evaluate_plan(plan, cohort, results, settings, given=given, progress=progress)


def evaluate_plan(
    plan: Plan, cohort: Cohort, results: Path, settings: Settings, *, given: dict[str, Any], progress: Progress
) -> list[Record]:
    """``evaluate`` where subjects are gathered and the data is open already."""
    _refuse_other_questions(plan, cohort)
    _refuse_other_sizes(plan, cohort)
    refuse_other_data(plan, cohort, results)
    settings = settings.within(results)
    if settings.batch == "measure":
        settings = replace(settings, batch=measured_batch([one for one in cohort.subjects if one.is_timed], progress))
    with Embeddings(settings, plan.suite, progress) as embeddings:
        cohort = fill(plan, cohort, embeddings)
    _require_working(cohort)
    benches: dict[str, SubjectBench] = {}
    engines = [subject for subject in cohort.working if subject.is_timed]
    if plan.suite.latency is not None and engines:
        asked = BenchSettings(batches=plan.suite.latency.batches, repeats=plan.suite.latency.repeats)
        progress.start("latency, memory, kernels", len(TOWERS) + len(engines))
        real = FirstBatch(plan.views[0].view, embeddings) if plan.views else None
        base = cohort.reference if cohort.reference in engines else None
        benches = bench(engines, asked, results / "bench", lambda what: progress.advance(1), base, real)
    # Engines are opened once more where a cell is found damaged.
    with threadpool_limits(METRIC_THREADS, user_api="blas"), embeddings:
        findings = measure(plan, cohort, embeddings, results if settings.thumbnails else None, progress)
    evaluated = Evaluated(plan, cohort, replace(settings, batch=embeddings.batch.size), given, findings, benches)
    records = [record_of(subject, evaluated) for subject in cohort.subjects]
    if plan.suite.latency is None:
        records = [with_earlier_speeds(record, results) for record in records]
    for index, subject in enumerate(cohort.subjects):
        found = evaluated.findings_of(subject)
        records[index] = write_pairing(results, records[index], found.estimates, found.answers)
        write_record(results, records[index])
        if subject.cpu:
            # Of this engine on a CPU that nobody wrote down.
            (results / "records" / f"{_stem(subject, cpu='')}.json").unlink(missing_ok=True)
    write_rows(cohort, results)
    return records


def write_rows(cohort: Cohort, results: Path) -> None:
    """Write ``results.csv``: a cohort's engines in order, then those of earlier runs, which others see."""
    found = {record_stem(record): record for record in read_records(results)}
    mine = [found.pop(_stem(one)) for one in cohort.subjects]
    write_csv(results, [*mine, *found.values()])


def _stem(subject: Subject, cpu: str | None = None) -> str:
    """The name of an engine's files; ``cpu`` empty: as before schema 7, which did not say the CPU."""
    cpu = subject.cpu if cpu is None else cpu
    return stem_of(subject.bundle.name, subject.runtime, cpu, twin=subject.simulated)


def refuse_other_data(plan: Plan, cohort: Cohort, results: Path) -> None:
    """Raise ResultsError where the folder holds engines that are not evaluated anew, and were on other data.

    Engines of earlier runs stay in a folder and are read, reported and judged with the new ones: their reference, which
    is evaluated anew, would be that of other samples.
    """
    anew = {stem for one in cohort.subjects for stem in (_stem(one), _stem(one, cpu=""))}
    bundles = {one.bundle.name: one.bundle.digest for one in cohort.subjects}
    digests = {planned.view.name: planned.view.digest for planned in plan.views}
    asked = Foundations(planned_record(plan, cohort.subjects[0]), {}).whole
    for path in sorted((results / "records").glob("*.json")):
        if path.stem in anew:
            continue
        record = read_record(path)
        found = {view.name: view.digest for view in record.views}
        if record.failed:
            continue
        how = ""
        if found != digests:
            other = next((name for name in found if digests.get(name) != found[name]), None)
            how = f"on another {other!r}" if other else "on fewer views"
        elif record.reference_digest not in ("", bundles.get(record.reference, record.reference_digest)):
            how = f"with another {record.reference!r}"
        elif record.bundle.digest != bundles.get(record.bundle.name, record.bundle.digest):
            how = f"from another bundle {record.bundle.name!r}"
        elif what := differs(Foundations(record, {}).whole, asked):
            how = f"with a difference in the {what}"
        if how:
            raise ResultsError(
                f"{results} holds {record.name}, evaluated {how}: give another folder (-o, output=), evaluate it too, "
                f"or delete {path}"
            )


def _refuse_other_questions(plan: Plan, cohort: Cohort) -> None:
    """Raise BundleError for an engine that would be asked otherwise than the reference: by templates of its own.

    Raises DataError where an engine does not have the templates that are asked for.
    """
    # Engines made of one checkpoint have the same prompts, but for those that somebody wrote into one.
    distinct = {subject.bundle.manifest.prompts.sha256: subject for subject in reversed(cohort.subjects)}
    asked = {name: Foundations(planned_record(plan, subject), {}).whole for name, subject in distinct.items()}
    if cohort.reference is None:
        return
    theirs = asked[cohort.reference.bundle.manifest.prompts.sha256]
    for name, subject in distinct.items():
        if what := differs(asked[name], theirs):
            raise BundleError(
                f"{subject.bundle.name} and the reference {cohort.reference.bundle.name} would not be asked the same: "
                f"they differ in the {what}; give both one prompts.json, or evaluate them apart"
            )


def _refuse_other_sizes(plan: Plan, cohort: Cohort) -> None:
    """Raise DataError for a stored attack whose pixels an engine cannot be given: attacks are of one size."""
    for transfer in plan.transfers:
        for bundle in (subject.bundle for subject in cohort.subjects):
            if wrong := transfer.clean.unlike(bundle.manifest.preprocess):
                raise DataError(
                    f"{transfer.clean.source}: {wrong} of {bundle.name}: evaluate that apart, with an attack made of "
                    "its own checkpoint (clipq-export attack), or leave [[transfer]] out"
                )


def _require_working(cohort: Cohort) -> None:
    """Raise EngineError where the reference, or every engine, was given up."""
    reference = cohort.reference
    if reference is not None and reference.label in cohort.failed:
        raise EngineError(f"the reference {reference.label} failed: {cohort.failed[reference.label]}")
    if not cohort.working:
        raise EngineError("every engine failed: " + "; ".join(f"{k}: {v}" for k, v in cohort.failed.items()))
