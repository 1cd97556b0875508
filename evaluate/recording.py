"""What was found out about one engine, as its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from clipq.bundle import TOWERS, Bundle
from clipq.engines.cuda import current_gpu
from clipq.environment import environment
from clipq.evaluate.axes.measure import Findings
from clipq.evaluate.bench.bench import SubjectBench
from clipq.evaluate.bench.rows import bench_measurements
from clipq.evaluate.cells.subjects import Cohort, Subject, unlike
from clipq.evaluate.results.estimates import measurements
from clipq.evaluate.results.key import condition_group, corrupted_view
from clipq.evaluate.results.record import AttackRecord, BundleRecord, Measurement, Record, ViewRecord
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan
from clipq.evaluate.suites.suite import written_down
from clipq.evaluate.suites.templates import asked_on


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that is over: what was asked of which engines and how, and what came out, by label.

    ``settings`` have the batch that the evaluation ended with; ``given`` are the command's arguments.
    """

    plan: Plan
    cohort: Cohort
    settings: Settings
    given: dict[str, Any]
    findings: Mapping[str, Findings]
    benches: Mapping[str, SubjectBench]

    def findings_of(self, subject: Subject) -> Findings:
        """What was found out about an engine; of one that was given up, nothing."""
        return self.findings.get(subject.label, Findings())


def record_of(subject: Subject, evaluated: Evaluated) -> Record:
    """Everything found out about one engine, with what it was asked and where it ran."""
    plan, settings, reference = evaluated.plan, evaluated.settings, evaluated.cohort.reference
    bench = evaluated.benches.get(subject.label)
    columns, manifest = subject.columns, subject.bundle.manifest
    return Record(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=BundleRecord(
            name=subject.bundle.name,
            digest=subject.bundle.digest,
            checkpoint=manifest.checkpoint.name,
            recipe=manifest.recipe.name,
            scheme=manifest.recipe.scheme,
            options=manifest.recipe.options,
            towers=manifest.recipe.towers,
            calibration=ranges.model_dump() if (ranges := manifest.recipe.calibration) is not None else None,
            # Of answers it is no engine's size.
            file_bytes=manifest.size if subject.runs_here else 0,
            ran_on=subject.bundle.ran_on,
            plans={
                name: built.model_dump(mode="json")
                for name in TOWERS
                if (built := manifest.tower(name).plan) is not None
            },
            hints=() if columns.simulated else tuple(one for one in manifest.hints if one.is_about(subject.device)),
            adopted=manifest.adopted,
        ),
        runtime=subject.runtime,
        cpu=columns.cpu,
        simulated=columns.simulated,
        twin=subject.simulated,
        failed=evaluated.cohort.failed.get(subject.label, ""),
        reference=reference.bundle.name if reference else "",
        reference_digest=reference.bundle.digest if reference else "",
        unlike_reference=unlike(subject.bundle, reference.bundle) if reference else (),
        arguments_given=evaluated.given,
        arguments_resolved={
            **written_down(plan.suite), "runtime": settings.runtime,
            "threads": settings.threads, "cpu_precision": settings.cpu_precision, "as_cpu": subject.as_cpu,
            "batch": settings.batch, "cuda_graphs": subject.graphs,
        },
        environment={**environment(), **({"gpu": asdict(current_gpu())} if subject.device == "cuda" else {})},
        views=tuple(evaluated.findings_of(subject).views),
        unanswered=evaluated.findings_of(subject).unanswered,
        attacks=attacks_of(plan, subject.bundle),
        latency=bench.latency if bench else (),
        census=bench.census if bench else (),
        gpu=bench.gpu if bench else None,
        measurements=tuple(_rows(subject, evaluated)),
        deployed_minus_simulated=tuple(_rows_against_twin(subject, evaluated)),
    )  # fmt: skip


def planned_record(plan: Plan, subject: Subject) -> Record:
    """What the record of a subject is going to say of what it was asked: known before an image is decoded."""
    suite, bundle = plan.suite, subject.bundle
    views = tuple(
        ViewRecord(
            name=planned.view.name,
            source=planned.view.source,
            role=planned.entry.role,
            baseline="" if planned.baseline is None else planned.baseline.name,
            digest=planned.view.digest,
            digests=asked_on(planned.view, bundle, suite),
            n=0,
            skipped={},
            smallest_group=planned.entry.smallest_group if planned.entry.groups else None,
        )
        for planned in plan.views
    )
    conditions = tuple(
        subject.columns.row(
            view=corrupted_view(one.clean.name), group=condition_group(*drawn), metric="corruption_acc1",
            unit="fraction", value=math.nan, n=0,
        )
        for one in plan.corruptions
        for drawn in one.corrupted
    )  # fmt: skip
    return Record.model_construct(
        views=views,
        attacks=attacks_of(plan, bundle),
        arguments_resolved=written_down(suite),
        measurements=conditions,
    )


def _rows(subject: Subject, evaluated: Evaluated) -> list[Measurement]:
    """What goes into results.csv: the engine's own numbers, with differences to the reference."""
    reference = evaluated.cohort.reference
    base = None if reference is None else reference.columns
    theirs = [] if reference is None else evaluated.findings_of(reference).estimates
    rows = measurements(subject.columns, evaluated.findings_of(subject).estimates, base, theirs)
    if subject.label in evaluated.benches:
        rows += bench_measurements(subject, evaluated.benches, reference)
    return rows


def _rows_against_twin(subject: Subject, evaluated: Evaluated) -> list[Measurement]:
    """The same numbers with differences to the bundle's simulated twin, if that was evaluated too."""
    columns, twin = subject.columns, subject.columns.twin
    if subject.is_side or twin.label not in evaluated.findings:
        return []
    mine = evaluated.findings_of(subject)
    unpaired = [one for one in mine.estimates if not one.paired]
    return measurements(columns, unpaired + mine.against_twin, twin, evaluated.findings[twin.label].estimates)


def attacks_of(plan: Plan, bundle: Bundle) -> tuple[AttackRecord, ...]:
    """The attacks that a bundle is asked to stand."""
    transfers = [
        AttackRecord(
            view=planned.name,
            kind="transfer",
            method=planned.attack.manifest.method,
            epsilons=planned.attack.manifest.epsilons,
            n=len(planned.clean.samples),
            options=planned.attack.manifest.options,
            digest=planned.attack.manifest.pixels_sha256,
            digests=asked_on(planned.clean, bundle, plan.suite),
        )
        for planned in plan.transfers
    ]
    squares = [
        AttackRecord(
            view=planned.view.name,
            kind="square",
            method="square",
            epsilons=planned.entry.epsilons,
            n=len(planned.view.samples),
            options={"queries": planned.entry.queries},
            digest=planned.view.digest,
            digests=asked_on(planned.view, bundle, plan.suite),
        )
        for planned in plan.squares
        if not bundle.ran_on
    ]
    return (*transfers, *squares)
