"""Rows of results.csv about the engine itself: latency, throughput, size, memory, integer share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipq.bundle import TOWERS
from clipq.evaluate.bench.bench import SubjectBench
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.metrics.statistics import percentile_draws
from clipq.evaluate.results.record import Measurement

PERCENTILES = (50, 90, 99)


def bench_measurements(
    subject: Subject, benches: Mapping[str, SubjectBench], reference: Subject | None
) -> list[Measurement]:
    """A subject's rows of latency, throughput, size, memory and integer share."""
    mine = benches[subject.label]
    other = None if reference is None or reference.label == subject.label else benches[reference.label]
    label = reference.label if reference is not None and other is not None else ""

    def row(**values: Any) -> Measurement:
        return Measurement(**vars(subject.columns), **values)

    rows = []
    timed = [
        (metric, getattr(latency, field), latency, getattr(other.latency[index], field) if other else ())
        for index, latency in enumerate(mine.latency)
        for metric, field in (("latency_ms", "milliseconds"), ("device_latency_ms", "device_milliseconds"))
        if getattr(latency, field)
    ]
    for metric, times, latency, others in timed:
        place = {"view": f"tower:{latency.tower}", "group": f"batch={latency.batch}", "n": len(times)}
        for q in PERCENTILES:
            draws = percentile_draws(times, q)
            low, high = draws.percentile_interval()
            delta: dict[str, Any] = {}
            if others:
                difference = draws - percentile_draws(others, q, seed=1)
                bounds = difference.percentile_interval()
                delta = {
                    "reference": label, "delta": difference.value, "delta_low": bounds[0], "delta_high": bounds[1],
                    "p_value": difference.p_value(),
                }  # fmt: skip
            rows.append(
                row(
                    metric=f"{metric}.p{q}",
                    unit="ms",
                    value=draws.value,
                    low=low,
                    high=high,
                    **place,
                    **delta,
                )
            )
            if q == 50 and metric == "latency_ms":
                scale = 1e3 * latency.batch
                rows.append(
                    row(
                        metric="throughput", unit="samples/s", value=scale / draws.value,
                        low=scale / high, high=scale / low, **place,
                    )
                )  # fmt: skip
    manifest = subject.bundle.manifest
    for tower in TOWERS:
        rows.append(
            row(view=f"tower:{tower}", metric="file_bytes", unit="bytes", value=manifest.tower(tower).bytes, n=1)
        )
        for metric, unit, taken in (
            ("peak_rss_bytes", "bytes", mine.peak_rss_bytes),
            ("gpu_bytes", "bytes", mine.gpu_bytes),
            ("joules_per_sample", "J", mine.joules_per_sample),
        ):
            if tower in taken:
                rows.append(row(view=f"tower:{tower}", metric=metric, unit=unit, value=taken[tower], n=1))
    for census in mine.census:
        rows.append(
            row(view=f"tower:{census.tower}", metric="integer_share", unit="fraction", value=census.integer_share, n=1)
        )
        if subject.bundle.built_for is not None:
            share = census.reformat_share
            rows.append(row(view=f"tower:{census.tower}", metric="reformat_share", unit="fraction", value=share, n=1))
    total = sum(manifest.tower(tower).bytes for tower in TOWERS)
    rows.append(row(view="", metric="file_bytes", unit="bytes", value=total, n=1))
    return rows
