"""What was found out about one engine, as its record."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from clipq.bundle import TOWERS
from clipq.engines.cuda import current_gpu
from clipq.environment import environment
from clipq.evaluate.axes.measure import Found
from clipq.evaluate.bench.bench import SubjectBench
from clipq.evaluate.bench.rows import bench_measurements
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.results.estimates import measurements
from clipq.evaluate.results.record import (
    AttackRecord,
    BundleRecord,
    Record,
)
from clipq.evaluate.settings import Where
from clipq.evaluate.suites.plan import (
    Plan,
)


def record_of(
    subject: Subject,
    reference: Subject | None,
    found: dict[str, Found],
    benches: dict[str, SubjectBench],
    embeddings: Embeddings,
    plan: Plan,
    where: Where,
    given: dict[str, Any],
) -> Record:
    """Everything found out about one engine, with what it was asked and where it ran."""
    failed = embeddings.failed.get(subject.label, "")
    mine = found.get(subject.label, Found())
    base = [] if reference is None else found[reference.label].estimates
    columns = subject.columns
    rows = measurements(columns, mine.estimates, None if reference is None else reference.columns, base)
    if benches and not failed:
        rows += bench_measurements(subject, benches, reference)
    against_twin = []
    twin = columns.twin
    if not subject.simulated and twin.label in found:
        against_twin = measurements(
            columns,
            [one for one in mine.estimates if not one.paired] + mine.against_twin,
            twin,
            found[twin.label].estimates,
        )
    manifest = subject.bundle.manifest
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
            calibration=manifest.recipe.calibration,
            file_bytes=sum(manifest.tower(tower).bytes for tower in TOWERS),
            plans={
                name: built.model_dump(mode="json")
                for name in TOWERS
                if (built := manifest.tower(name).plan) is not None
            },
        ),
        runtime=subject.runtime,
        simulated=columns.simulated,
        twin=subject.simulated,
        failed=failed,
        reference=reference.bundle.name if reference else "",
        arguments_given=given,
        arguments_resolved={
            **plan.suite.model_dump(mode="json", by_alias=True), "runtime": where.runtime, "threads": where.threads,
            "batch": embeddings.batch.size, "cuda_graphs": subject.graphs,
        },
        environment={**environment(), **({"gpu": asdict(current_gpu())} if subject.device == "cuda" else {})},
        views=tuple(mine.views),
        attacks=_attacks(plan),
        latency=benches[subject.label].latency if subject.label in benches else (),
        census=benches[subject.label].census if subject.label in benches else (),
        gpu=benches[subject.label].gpu if subject.label in benches else None,
        measurements=tuple(rows),
        deployed_minus_simulated=tuple(against_twin),
    )  # fmt: skip


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
