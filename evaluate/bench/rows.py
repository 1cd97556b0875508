"""Rows of results.csv about the engine itself: latency, throughput, size, memory, integer share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clipq.bundle import TOWERS
from clipq.evaluate.bench.bench import SubjectBench
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.metrics.statistics import percentile_draws
from clipq.evaluate.results.key import batch_group, tower_view
from clipq.evaluate.results.record import LatencyRecord, Measurement

PERCENTILES = (50, 90, 99)


def bench_measurements(
    subject: Subject, benches: Mapping[str, SubjectBench], reference: Subject | None
) -> list[Measurement]:
    """A subject's rows of latency, throughput, size, memory and integer share."""
    mine = benches[subject.label]
    known = reference is not None and reference.label in benches
    label = reference.label if reference is not None and known and reference.label != subject.label else ""
    other = {(one.tower, one.batch): one for one in benches[label].latency} if label else {}
    found = [
        *(row for one in mine.latency for row in _timed(one, other.get((one.tower, one.batch)), label)),
        *_weighed(subject, mine),
    ]
    return [subject.columns.row(**row) for row in found]


def _timed(latency: LatencyRecord, other: LatencyRecord | None, label: str) -> Iterator[dict[str, Any]]:
    """Percentiles of one tower at one batch size by every clock, with differences to the reference's; throughput."""
    for metric, field in (("latency_ms", "milliseconds"), ("device_latency_ms", "device_milliseconds")):
        times, others = getattr(latency, field), getattr(other, field, ())
        if not times:
            continue
        # By the device's clock nothing is timed twice.
        again, others_again = (
            one.again if one is not None and metric == "latency_ms" else () for one in (latency, other)
        )
        place = {
            "view": tower_view(latency.tower), "group": batch_group(latency.batch), "n": len(times),
            "busy": bool(latency.busy),
        }  # fmt: skip
        for q in PERCENTILES:
            draws = percentile_draws(times, q, again=again)
            low, high = draws.percentile_interval()
            delta: dict[str, Any] = {}
            if others:
                difference = draws - percentile_draws(others, q, seed=1, again=others_again)
                bounds = difference.percentile_interval()
                delta = {
                    "reference": label, "delta": difference.value, "delta_low": bounds[0], "delta_high": bounds[1],
                    "p_value": difference.p_value(),
                }  # fmt: skip
            yield {
                "metric": f"{metric}.p{q}", "unit": "ms", "value": draws.value, "low": low, "high": high, **place,
                **delta,
            }  # fmt: skip
            if q == 50 and metric == "latency_ms":
                scale = 1e3 * latency.batch
                yield {
                    "metric": "throughput", "unit": "samples/s", "value": scale / draws.value, "low": scale / high,
                    "high": scale / low, **place,
                }  # fmt: skip


def _weighed(subject: Subject, mine: SubjectBench) -> Iterator[dict[str, Any]]:
    """What has one value and no interval: size, memory, energy, shares of the work."""
    manifest = subject.bundle.manifest
    for tower in TOWERS:
        for metric, unit, taken in (
            ("file_bytes", "bytes", {tower: manifest.tower(tower).size}),
            ("peak_rss_bytes", "bytes", mine.peak_rss_bytes),
            ("gpu_bytes", "bytes", mine.gpu_bytes),
            ("joules_per_sample", "J", mine.joules_per_sample),
        ):
            if tower in taken:
                yield {"view": tower_view(tower), "metric": metric, "unit": unit, "value": taken[tower], "n": 1}
    for census in mine.census:
        shares = {"integer_share": census.integer_share}
        if subject.bundle.built_for is not None:
            shares["reformat_share"] = census.reformat_share
        for metric, share in shares.items():
            yield {"view": tower_view(census.tower), "metric": metric, "unit": "fraction", "value": share, "n": 1}
    yield {"view": "", "metric": "file_bytes", "unit": "bytes", "value": manifest.size, "n": 1}
