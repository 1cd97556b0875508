"""What is wrong with a record that has the right fields: numbers that cannot be, and rows of which two say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from clipq.evaluate.metrics.table import METRICS, metric_of

# Of record.py, which asks for complaints as it reads.
Record: TypeAlias = Any
Measurement: TypeAlias = Any

# Cosines of 32-bit embeddings end beside 1.
_TOLERANCE = 1e-5


def complaint(record: Record) -> str:
    """The first thing that is wrong with a record, else nothing."""
    for name in ("measurements", "deployed_minus_simulated"):
        for said in _of_rows(record, getattr(record, name)):
            return f"{name}: {said}"
    if said := _of_machine(record) or _of_bundle(record):
        return said
    views = [view.name for view in record.views]
    for view in record.views:
        if view.n < 1 and not (record.failed or record.unanswered):
            return f"view {view.name!r} has n = {view.n}"
        # All or, before schema 6, none: what is not said is not held against a record.
        for name in ("labels", "classes", "templates") if view.classes and view.digests else ():
            if name not in view.digests:
                return f"view {view.name!r}: digests: there is none of its {name}"
    return "" if len(set(views)) == len(views) else "two views have one name"


def _of_rows(record: Record, rows: Sequence[Measurement]) -> Iterator[str]:
    seen = set()
    for row in rows:
        key = row.key
        where = f"{row.metric} of {row.view!r}" + (f", {row.group!r}" if row.group else "")
        if (row.bundle, row.runtime, row.cpu) != (record.bundle.name, record.runtime, record.cpu):
            yield f"{where} is of {row.bundle} on {row.runtime} {row.cpu}".rstrip()
        if key in seen:
            yield f"{where} is there twice"
        seen.add(key)
        said = _of_name(row.metric) or key.complaint() or _of_numbers(row)
        if said:
            yield f"{where} {said}"


def _of_machine(record: Record) -> str:
    environment, given = record.environment, record.arguments_resolved.get("corruptions") or []
    for name in ("cpu", "cores", "system", "python", "packages"):
        if name not in environment:
            return f"environment: there is no {name!r}"
    if not isinstance(environment["packages"], dict):
        return "environment: packages are no table"
    if "gpu" in environment and not (isinstance(environment["gpu"], dict) and "name" in environment["gpu"]):
        return "environment: the gpu has no name"
    if not isinstance(given, list) or any(not isinstance(one, dict) or "of" not in one for one in given):
        return "arguments_resolved: corruptions are no tables with 'of'"
    for one in record.latency:
        times = one.milliseconds + one.device_milliseconds + one.again
        if not one.milliseconds or one.batch < 1 or not all(0 < time < math.inf for time in times):
            return f"latency: of the {one.tower} tower at batch {one.batch} there are no times above 0"
        if one.again and len(one.again) != len(one.milliseconds):
            return f"latency: of the {one.tower} tower at batch {one.batch} the second copy was timed in other turns"
    return ""


def _of_bundle(record: Record) -> str:
    bundle = record.bundle
    if bundle.file_bytes < 1 and not (record.failed or bundle.ran_on):
        return f"bundle: has file_bytes = {bundle.file_bytes}"
    if bundle.calibration is not None and not {"images", "texts", "digest"} <= set(bundle.calibration):
        return "bundle: calibration does not say images, texts and digest"
    for attack in record.attacks:
        if not attack.epsilons:
            return f"attack {attack.view!r} has no strength"
    for view in record.views:
        if any(len(one.edges) < 2 for one in view.histograms):
            return f"view {view.name!r} has a histogram without bins"
    return ""


def _of_name(metric: str) -> str:
    known = metric_of(metric)
    forms = known.forms or ("",)
    fits = known.name in METRICS and metric.removeprefix(known.name) in forms
    return "" if fits else "is no metric that this clipq knows"


def _of_numbers(row: Measurement) -> str:
    metric = metric_of(row.metric)
    low, high = metric.low, metric.high
    if (low is not None and row.value < low - _TOLERANCE) or (high is not None and row.value > high + _TOLERANCE):
        return f"is {row.value:g}, outside of its range"
    # A drop from nothing, divided by nothing, has no end below; no value at all is written as NaN.
    if row.value == math.inf or (row.value == -math.inf and low is not None):
        return "is infinite"
    if row.n < 1 and not math.isnan(row.value):
        return f"has n = {row.n}"
    for name, one, other in (("interval", row.low, row.high), ("difference", row.delta_low, row.delta_high)):
        if one is not None and other is not None and one > other:
            return f"has an empty {name}: {one:g} to {other:g}"
    if row.p_value is not None and not (math.isnan(row.p_value) or 0 <= row.p_value <= 1 + _TOLERANCE):
        return f"has p = {row.p_value:g}"
    return ""
