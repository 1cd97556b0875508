"""The report's charts as Vega-Lite specifications."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from clipq.record import Record, ViewRecord

# Okabe and Ito's palette: distinguishable with every common colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#B8A600")


def trade_off(records: Sequence[Record], view: str) -> dict[str, Any] | None:
    """Accuracy against image-tower latency at the largest batch, as a ratio to the reference; None if not timed."""
    if not records[0].latency:
        return None
    batch = max(row.batch for row in records[0].latency)
    medians = {record.name: _median(record, batch) for record in records}
    base = medians.get(records[0].reference)
    rows = []
    for record in records:
        accuracy = next(row for row in record.measurements if (row.view, row.group, row.metric) == (view, "", "acc1"))
        rows.append(
            {
                "engine": record.name,
                "recipe": record.bundle.recipe + (" (simulated)" if record.simulated else ""),
                "latency": medians[record.name] / base if base else medians[record.name],
                "accuracy": accuracy.value,
                "low": accuracy.low,
                "high": accuracy.high,
                "MB": round(record.bundle.file_bytes / 1e6, 2),
            }
        )
    title = (
        f"image tower, batch {batch}: p50 ÷ reference's p50 (smaller is faster)"
        if base
        else f"image tower, batch {batch}: p50 ms"
    )
    source = alt.Chart(alt.Data(values=rows))
    x = alt.X("latency:Q", title=title, scale=alt.Scale(zero=False, nice=True))
    colour = alt.Color(
        "recipe:N",
        scale=alt.Scale(range=list(PALETTE)),
        legend=alt.Legend(title=None, orient="bottom", columns=3, symbolOpacity=1),
    )
    tooltip = ["engine:N", alt.Tooltip("accuracy:Q", format=".1%"), alt.Tooltip("latency:Q", format=".2f"), "MB:Q"]
    bars = source.mark_rule(strokeWidth=2, opacity=0.6).encode(
        x=x,
        y=alt.Y("low:Q", title="top-1 accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
        y2="high:Q",
        color=colour,
    )
    points = source.mark_point(size=110, filled=True, opacity=1).encode(
        x=x, y="accuracy:Q", color=colour, shape=alt.Shape("recipe:N", legend=None), tooltip=tooltip
    )
    return _spec((bars + points).properties(width="container", height=320))


def reliability(candidate: Record, reference: Record | None, view: str) -> dict[str, Any]:
    """Accuracy over confidence in bins, the candidate's as bars, the reference's as a line; the diagonal is ideal."""
    layers = [
        alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], color="#888888")
        .encode(x=alt.X("x:Q", title="confidence"), y=alt.Y("y:Q", title="accuracy"))
    ]
    scale = alt.Scale(domain=[0, 1])
    axis = alt.Axis(format="%", tickCount=5)
    bars = [row.model_dump() | {"engine": candidate.name} for row in _bins(candidate, view)]
    layers.append(
        alt.Chart(alt.Data(values=bars))
        .mark_bar(color=PALETTE[0], opacity=0.75, stroke=PALETTE[0])
        .encode(
            x=alt.X("lower:Q", scale=scale, axis=axis, title="confidence"),
            x2="upper:Q",
            y=alt.Y("accuracy:Q", scale=scale, axis=axis, title="accuracy"),
            y2=alt.datum(0),
            tooltip=[
                "engine:N",
                "n:Q",
                alt.Tooltip("confidence:Q", format=".3f"),
                alt.Tooltip("accuracy:Q", format=".3f"),
            ],
        )
    )
    layers.append(
        alt.Chart(alt.Data(values=[bar | {"middle": (bar["lower"] + bar["upper"]) / 2} for bar in bars]))
        .mark_rule(color="#555555")
        .encode(x="middle:Q", y="low:Q", y2="high:Q")
    )
    if reference is not None and reference.name != candidate.name:
        line = [row.model_dump() | {"engine": reference.name} for row in _bins(reference, view)]
        layers.append(
            alt.Chart(alt.Data(values=line))
            .mark_line(point=alt.OverlayMarkDef(color=PALETTE[5], filled=True, size=30), color=PALETTE[5])
            .encode(
                x="confidence:Q",
                y="accuracy:Q",
                tooltip=[
                    "engine:N",
                    "n:Q",
                    alt.Tooltip("confidence:Q", format=".3f"),
                    alt.Tooltip("accuracy:Q", format=".3f"),
                ],
            )
        )
    return _spec(alt.layer(*layers).properties(width=190, height=190))


def histogram(view: ViewRecord, score: str) -> dict[str, Any]:
    """How an outlier score is distributed in and out of distribution, as parts of each population."""
    found = next(one for one in view.histograms if one.score == score)
    rows = [
        {"score": left, "to": right, "part": count / sum(counts), "population": population}
        for population, counts in (("in-distribution", found.inside), (view.name, found.outside))
        for left, right, count in zip(found.edges, found.edges[1:], counts, strict=False)
    ]
    return _spec(
        alt.Chart(alt.Data(values=rows))
        .mark_area(interpolate="step-after", opacity=0.45, line=True)
        .encode(
            x=alt.X("score:Q", title=f"outlier score ({score})", scale=alt.Scale(zero=False)),
            y=alt.Y("part:Q", title="part of the images", stack=None, axis=alt.Axis(format="%")),
            color=alt.Color(
                "population:N", scale=alt.Scale(range=[PALETTE[0], PALETTE[5]]),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
            tooltip=["population:N", alt.Tooltip("score:Q", format=".4f"), alt.Tooltip("part:Q", format=".1%")],
        )
        .properties(width=200, height=150)
    )  # fmt: skip


def severity(records: Sequence[Record], view: str) -> dict[str, Any]:
    """Top-1 accuracy over severity, averaged over corruptions, clean images at 0; one line per engine."""
    rows = []
    for record in records:
        found: dict[int, list[float]] = {}
        for row in record.measurements:
            if row.view == view and row.metric == "corruption_acc1" and row.group:
                found.setdefault(int(row.group.split("/")[1]), []).append(row.value)
            elif row.view == view and row.metric == "clean_acc1" and not row.group:
                found[0] = [row.value]
        rows += [{"engine": record.name, "severity": s, "accuracy": float(np.mean(v))} for s, v in found.items()]
    return _spec(
        _lines(rows, "severity:O", "severity (0: clean)", "accuracy:Q", "top-1, mean over corruptions").properties(
            width="container", height=280
        )
    )


def bits(records: Sequence[Record]) -> dict[str, Any] | None:
    """Accuracy and ECE over the weights' bits of simulated recipes, a line per activation width; None without them."""
    rows = []
    for record in records:
        found = re.fullmatch(r"simulated-w(\d)a(\d)", record.bundle.recipe)
        inside = next((view.name for view in record.views if view.role == "in-distribution"), None)
        if found and inside is not None and not record.failed:
            for metric in ("acc1", "ece"):
                row = next(r for r in record.measurements if (r.view, r.group, r.metric) == (inside, "", metric))
                kind = f"{metric}, activations {found.group(2)} bits"
                rows.append({"engine": kind, "bits": int(found.group(1)), "value": row.value})
    if len({row["bits"] for row in rows}) < 2:
        return None
    lines = _lines(rows, "bits:O", "bits of the weights", "value:Q", "fraction").properties(
        width="container", height=280
    )
    return _spec(lines)


def _lines(rows: list[dict[str, Any]], x: str, x_title: str, y: str, y_title: str) -> Any:
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X(x, title=x_title, axis=alt.Axis(labelAngle=0)),
            y=alt.Y(y, title=y_title, axis=alt.Axis(format="%")),
            color=alt.Color(
                "engine:N",
                scale=alt.Scale(range=list(PALETTE)),
                legend=alt.Legend(title=None, orient="bottom", columns=3),
            ),
            tooltip=["engine:N", x, alt.Tooltip(y, format=".1%")],
        )
    )


def _bins(record: Record, view: str) -> Any:
    return next(entry.reliability for entry in record.views if entry.name == view)


def _median(record: Record, batch: int) -> float:
    return float(
        np.median(next(row.milliseconds for row in record.latency if (row.tower, row.batch) == ("image", batch)))
    )


def _spec(chart: Any) -> dict[str, Any]:
    spec: dict[str, Any] = chart.to_dict()
    # The page chooses the theme (light or dark); altair's default config would override it.
    spec.pop("config", None)
    return spec
