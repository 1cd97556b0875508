"""Records to ``report.html``: tables with intervals, charts, the proof of precision, provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipq import __version__
from clipq.evaluate.bench import breaks_promise
from clipq.evaluate.metrics import CLASSIFICATION
from clipq.evaluate.report import charts
from clipq.files import write_atomic
from clipq.record import Measurement, Record

TABLE_METRICS = (
    "acc1",
    "ece",
    "confidence_gap",
    "nll",
    "brier",
    "aurc",
    "acc5",
    "mean_per_class_recall",
    "ece_adaptive",
    "mce",
)
COMPARED = ("agreement", "flips_lost", "flips_gained", "cosine")
SIMULATION_METRICS = ("acc1", "ece", "confidence_gap", "agreement", "cosine")


def write_report(records: Sequence[Record], target: Path) -> Path:
    """Write the page; everything a user or a data set named is escaped."""
    environment = Environment(
        loader=PackageLoader("clipq.evaluate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(**_context(list(records)))
    write_atomic(target, html)
    return target


def _context(records: list[Record]) -> dict[str, Any]:
    import vl_convert

    # The stub calls the snippet mandatory; without one the bundle is the three libraries themselves.
    library = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    reference = next((record for record in records if record.name == records[0].reference), None)
    specs: list[dict[str, Any]] = []

    def chart(spec: dict[str, Any]) -> int:
        specs.append(spec)
        return len(specs) - 1

    views = []
    for view in records[0].views:
        trade_off = charts.trade_off(records, view.name)
        views.append(
            {
                "record": view,
                "rows": [_view_row(record, view.name) for record in records],
                "trade_off": None if trade_off is None else chart(trade_off),
                "reliability": [
                    (record.name, chart(charts.reliability(record, reference, view.name))) for record in records
                ],
                "bins": [
                    (record.name, next(entry.reliability for entry in record.views if entry.name == view.name))
                    for record in records
                ],
                "groups": _groups(records, view.name),
            }
        )
    return {
        "version": __version__,
        "records": records,
        "reference": reference,
        "is_demo": records[0].bundle.checkpoint == "demo",
        "metrics": [CLASSIFICATION[name] for name in TABLE_METRICS],
        "views": views,
        "engines": _engines(records, reference),
        "kernels": [(record, census) for record in records for census in record.census],
        "broken": [
            (record, census)
            for record in records
            for census in record.census
            if breaks_promise(census, simulated=record.simulated)
        ],
        "simulation": _simulation(records),
        "comparisons": sum(row.delta is not None for record in records for row in record.measurements),
        "specs": _script_json(specs),
        "library": Markup(library.replace("</script", "<\\/script")),
    }


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _view_row(record: Record, view: str) -> dict[str, Any]:
    rows = {row.metric: row for row in record.measurements if row.view == view and not row.group}
    cells = [_cell(rows[name]) for name in TABLE_METRICS]
    compared = [_cell(rows[name]) if name in rows else None for name in COMPARED]
    p_value = rows["acc1"].p_value
    return {"record": record, "cells": cells, "compared": compared, "p": "" if p_value is None else f"{p_value:.2g}"}


def _cell(row: Measurement) -> dict[str, str]:
    """A value, its difference to the reference, and whether that is better, worse or open, by the interval."""
    percent = row.unit == "fraction"
    factor, digits = (100, 1) if percent else (1, 3)
    sign = "+" if row.metric == "confidence_gap" else ""
    value = f"{row.value * factor:{sign}.{digits}f}"
    interval = (
        ""
        if row.low is None or row.high is None
        else f"[{row.low * factor:.{digits}f}, {row.high * factor:.{digits}f}]"
    )
    if row.metric == "cosine":
        value, interval = f"{row.value:.4f}", ""
    delta, verdict = "", ""
    if row.delta is not None and row.delta_low is not None and row.delta_high is not None:
        low, high = (f"{bound * factor:+.{digits}f}" for bound in (row.delta_low, row.delta_high))
        delta = f"{row.delta * factor:+.{digits}f} [{low}, {high}]"
        verdict = _verdict(row)
    return {"value": value, "interval": interval, "delta": delta, "verdict": verdict}


def _verdict(row: Measurement) -> str:
    assert row.delta_low is not None and row.delta_high is not None
    metric = CLASSIFICATION.get(row.metric)
    if metric is None or metric.higher_is_better is None or row.delta_low <= 0 <= row.delta_high:
        return ""
    return "better" if (row.delta_low > 0) == metric.higher_is_better else "worse"


def _groups(records: list[Record], view: str) -> list[dict[str, Any]]:
    names = dict.fromkeys(
        (row.group, row.n) for row in records[0].measurements if row.view == view and row.metric == "acc1" and row.group
    )
    table = []
    for group, n in names:
        cells = []
        for record in records:
            row = next(r for r in record.measurements if (r.view, r.group, r.metric) == (view, group, "acc1"))
            cells.append(_cell(row))
        table.append({"group": group, "n": n, "cells": cells})
    return table


def _engines(records: list[Record], reference: Record | None) -> list[dict[str, Any]]:
    table = []
    for record in records:
        rows = []
        for index, latency in enumerate(record.latency):
            p50 = float(np.median(latency.milliseconds))
            ratio = p50 / float(np.median(reference.latency[index].milliseconds)) if reference is not None else None
            measured = {
                row.metric: row.value
                for row in record.measurements
                if row.view == f"tower:{latency.tower}" and row.group in ("", f"batch={latency.batch}")
            }
            rows.append({"latency": latency, "ratio": ratio, "measured": measured})
        table.append({"record": record, "rows": rows})
    return table


def _simulation(records: list[Record]) -> list[dict[str, Any]]:
    table = []
    for record in records:
        for view in record.views:
            rows = {
                row.metric: row for row in record.deployed_minus_simulated if row.view == view.name and not row.group
            }
            if rows:
                table.append(
                    {
                        "name": record.name,
                        "view": view.name,
                        "cells": [_cell(rows[name]) for name in SIMULATION_METRICS],
                    }
                )
    return table
