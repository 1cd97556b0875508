"""What was found out about one engine, as its record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from clipq.bundle import TOWERS
from clipq.data.source import split_source
from clipq.engines.cuda import current_gpu
from clipq.environment import environment
from clipq.evaluate.axes.measure import Findings
from clipq.evaluate.bench.bench import SubjectBench
from clipq.evaluate.bench.rows import bench_measurements
from clipq.evaluate.cells.subjects import Cohort, Subject
from clipq.evaluate.results.estimates import measurements
from clipq.evaluate.results.record import AttackRecord, BundleRecord, Measurement, Record
from clipq.evaluate.settings import Settings
from clipq.evaluate.suites.plan import Plan
from clipq.evaluate.suites.schema import Suite
from clipq.given import without_folders


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
            file_bytes=sum(manifest.tower(tower).size for tower in TOWERS),
            plans={
                name: built.model_dump(mode="json")
                for name in TOWERS
                if (built := manifest.tower(name).plan) is not None
            },
        ),
        runtime=subject.runtime,
        simulated=columns.simulated,
        twin=subject.simulated,
        failed=evaluated.cohort.failed.get(subject.label, ""),
        reference=reference.bundle.name if reference else "",
        arguments_given=evaluated.given,
        arguments_resolved={
            **_asked(plan.suite), "runtime": settings.runtime,
            "threads": settings.threads, "batch": settings.batch, "cuda_graphs": subject.graphs,
        },
        environment={**environment(), **({"gpu": asdict(current_gpu())} if subject.device == "cuda" else {})},
        views=tuple(evaluated.findings_of(subject).views),
        attacks=_attacks(plan),
        latency=bench.latency if bench else (),
        census=bench.census if bench else (),
        gpu=bench.gpu if bench else None,
        measurements=tuple(_rows(subject, evaluated)),
        deployed_minus_simulated=tuple(_rows_against_twin(subject, evaluated)),
    )  # fmt: skip


def _asked(suite: Suite) -> dict[str, Any]:
    """A suite as it was resolved; its paths without the folders of this machine."""
    asked = suite.model_dump(mode="json", by_alias=True)
    for entry in asked["view"]:
        before, path, after = split_source(entry["source"])
        entry["source"] = f"{before}{without_folders(path)}{after}"
        entry["label_map"] = entry["label_map"] and without_folders(entry["label_map"])
    for entry in asked["transfer"]:
        entry["source"] = without_folders(entry["source"])
    return asked


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
    if subject.simulated or twin.label not in evaluated.findings:
        return []
    mine = evaluated.findings_of(subject)
    unpaired = [one for one in mine.estimates if not one.paired]
    return measurements(columns, unpaired + mine.against_twin, twin, evaluated.findings[twin.label].estimates)


def _attacks(plan: Plan) -> tuple[AttackRecord, ...]:
    transfers = [
        AttackRecord(
            view=planned.name,
            kind="transfer",
            method=planned.attack.manifest.method,
            epsilons=planned.attack.manifest.epsilons,
            n=len(planned.clean.samples),
            options=planned.attack.manifest.options,
            digest=planned.attack.manifest.pixels_sha256,
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
        )
        for planned in plan.squares
    ]
    return (*transfers, *squares)
