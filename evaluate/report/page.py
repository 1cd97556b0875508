"""Records to ``report.html``: tables with intervals, charts, the proof of precision, provenance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipq import __version__
from clipq.evaluate.bench import breaks_promise
from clipq.evaluate.metrics import CLASSIFICATION, orientation
from clipq.evaluate.metrics.ood import SCORES
from clipq.evaluate.report import charts
from clipq.evaluate.report.summary import Column, Key, summary_columns
from clipq.evaluate.statistics import holm
from clipq.files import write_atomic
from clipq.record import Measurement, Record, ViewRecord

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
    "ece_classwise",
    "mce",
)
COMPARED = {
    "agreement": "same top-1",
    "flips_lost": "flips lost",
    "flips_gained": "flips gained",
    "cosine": "embedding cosine",
}
TUNED = {
    "ece_untuned": "ECE as shipped",
    "ece_tuned": "ECE after tuning",
    "logit_scale_tuned": "tuned logit scale",
}
SHIFT = {"relative_drop.acc1": "relative drop", "effective_robustness.acc1": "effective robustness"}
GAPS = {
    "group_gap.acc1": "gap (max − min)",
    "group_std.acc1": "standard deviation",
    "group_worst.acc1": "worst group",
    "group_ratio.acc1": "ratio (min ÷ max)",
    "equalized_odds_difference": "equalized-odds difference",
}
DETECTION = {
    "auroc": "AUROC",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95_id_positive": "FPR@95, ID positive",
    "fpr95_ood_positive": "FPR@95, OOD positive",
}
SIMULATION_METRICS = ("acc1", "ece", "confidence_gap", "agreement", "cosine")


@dataclass(frozen=True)
class Table:
    """One row per engine, one column per measurement."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[dict[str, str] | None, ...]], ...]


def write_report(records: Sequence[Record], target: Path) -> Path:
    """Write the page; everything a user or a data set named is escaped."""
    environment = Environment(
        loader=PackageLoader("clipq.evaluate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(**_Page(records).context())
    write_atomic(target, html)
    return target


class _Page:
    """The template's values."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.failed = [record for record in records if record.failed]
        self.records = [record for record in records if not record.failed]
        self.reference = next((r for r in self.records if r.bundle.name == r.reference and not r.twin), None)
        self.rows: dict[str, dict[Key, Measurement]] = {
            record.name: {(row.view, row.group, row.metric): row for row in record.measurements}
            for record in self.records
        }
        self.specs: list[dict[str, Any]] = []
        compared = [
            (record.name, (row.view, row.group, row.metric), row.p_value)
            for record in self.records
            for row in record.measurements
            if row.p_value is not None and not row.view.startswith("tower:")
        ]
        kept = holm([p for _, _, p in compared])
        self.survives = {(name, key) for (name, key, _), survived in zip(compared, kept, strict=True) if survived}
        self.comparisons = len(compared)

    def context(self) -> dict[str, Any]:
        import vl_convert

        # The stub calls the snippet mandatory; without one the bundle is the three libraries themselves.
        library = vl_convert.javascript_bundle()  # type: ignore[call-arg]
        first = self.records[0]
        keys = set(self.rows[first.name])
        return {
            "version": __version__,
            "records": self.records,
            "failed": self.failed,
            "reference": self.reference,
            "is_demo": first.bundle.checkpoint == "demo",
            "summary": self.table("", summary_columns(first, keys)),
            "views": [self.classified(view) for view in first.views if view.classes],
            "ood": [self.detection(view) for view in first.views if view.histograms],
            "ood_averages": self.detection_averages(),
            "corruptions": [
                self.corruptions(view) for view in dict.fromkeys(row[0] for row in keys if row[2] == "clean_acc1")
                if any(row[0] == view and row[2] == "corruption_acc1" for row in keys)
            ],
            "attacks": [self.attack(attack) for attack in first.attacks],
            "retrieval": [self.retrieval(view) for view in first.views if view.role == "retrieval"],
            "bits": self.bits(),
            "engines": self.engines(),
            "gpus": sorted({r.environment["gpu"]["name"] for r in self.records if "gpu" in r.environment}),
            "kernels": [(record, census) for record in self.records for census in record.census],
            "broken": [
                (record, census)
                for record in self.records
                for census in record.census
                if breaks_promise(census, simulated=record.simulated)
            ],
            "simulation": self.simulation(),
            "comparisons": self.comparisons,
            "survivors": len(self.survives),
            "specs": _script_json(self.specs),
            "library": Markup(library.replace("</script", "<\\/script")),
        }  # fmt: skip

    def chart(self, spec: dict[str, Any]) -> int:
        self.specs.append(spec)
        return len(self.specs) - 1

    def table(self, title: str, columns: Sequence[Column]) -> Table:
        rows = tuple((record.name, tuple(self.cell(record.name, key) for _, key in columns)) for record in self.records)
        return Table(title, tuple(name for name, _ in columns), rows)

    def cell(self, name: str, key: Key) -> dict[str, str] | None:
        row = self.rows[name].get(key)
        return None if row is None else _cell(row, survives=(name, key) in self.survives)

    def classified(self, view: ViewRecord) -> dict[str, Any]:
        name = view.name

        def columns(titles: dict[str, str], group: str = "") -> list[Column]:
            known = self.rows[self.records[-1].name].keys() | self.rows[self.records[0].name].keys()
            return [
                (title, (name, group, metric)) for metric, title in titles.items() if (name, group, metric) in known
            ]

        metrics = {metric: CLASSIFICATION[metric].title for metric in TABLE_METRICS}
        trade_off = charts.trade_off(self.records, name)
        candidates = [record for record in self.records if not record.twin]
        gap_columns = [
            key[1] for key in self.rows[self.records[0].name] if key[0] == name and key[2] == "group_gap.acc1"
        ]
        return {
            "record": view,
            "metrics": self.table("", columns(metrics)),
            "compared": self.table("Agreement with the reference", columns(COMPARED)),
            "tuned": self.table("Logit-scale tuning", columns(TUNED)),
            "shift": self.table(f"Shift from {view.baseline}", columns(SHIFT)),
            "verdicts": self.verdicts(name),
            "trade_off": None if trade_off is None else self.chart(trade_off),
            "reliability": [
                (record.name, self.chart(charts.reliability(record, self.reference, name))) for record in candidates
            ],
            "bins": [
                (record.name, next(entry.reliability for entry in record.views if entry.name == name))
                for record in candidates
            ],
            "groups": self.groups(view),
            "gaps": [self.table(column, columns(GAPS, column)) for column in gap_columns],
        }

    def verdicts(self, view: str) -> dict[str, list[str]]:
        """Which engines are over- and which underconfident, by the interval of confidence − accuracy."""
        found: dict[str, list[str]] = {}
        for record in self.records:
            row = self.rows[record.name][view, "", "confidence_gap"]
            if row.low is None or row.high is None or row.low <= 0 <= row.high:
                found.setdefault("neither over- nor underconfident beyond the interval", []).append(record.name)
            else:
                found.setdefault("overconfident" if row.low > 0 else "underconfident", []).append(record.name)
        return found

    def groups(self, view: ViewRecord) -> list[dict[str, Any]]:
        first = self.rows[self.records[0].name]
        return [
            {
                "group": group,
                "n": row.n,
                "small": view.smallest_group is not None and row.n < view.smallest_group,
                "cells": [self.cell(record.name, (view.name, group, "acc1")) for record in self.records],
            }
            for (where, group, metric), row in first.items()
            if where == view.name and group and "=" in group and metric == "acc1"
        ]

    def detection(self, view: ViewRecord) -> dict[str, Any]:
        distance = "near" if view.role == "near-ood" else "far"
        return {
            "record": view,
            "distance": distance,
            "tables": [
                self.table(title, [(score, (view.name, distance, f"{metric}.{score}")) for score in SCORES])
                for metric, title in DETECTION.items()
            ],
            "histograms": [
                (record.name, self.chart(charts.histogram(next(v for v in record.views if v.name == view.name), "mcm")))
                for record in self.records
                if not record.twin
            ],
        }

    def detection_averages(self) -> Table | None:
        inside = {view.baseline for view in self.records[0].views if view.histograms}
        known = self.rows[self.records[0].name]
        columns = [
            (f"{distance}: {DETECTION[metric]}, {score}", (view, distance, f"{metric}.{score}"))
            for view in sorted(inside)
            for distance in ("near", "far")
            for score in ("mcm", "energy")
            for metric in ("auroc", "fpr95_id_positive")
            if (view, distance, f"{metric}.{score}") in known
        ]
        return self.table("", columns) if columns else None

    def corruptions(self, view: str) -> dict[str, Any]:
        titles = {
            "clean_acc1": "clean top-1", "corruption_acc1": "mean top-1", "corruption_ece": "mean ECE",
            "mce": "mCE", "relative_mce": "relative mCE",
        }  # fmt: skip
        known = self.rows[self.records[0].name]
        groups = list(dict.fromkeys(g for v, g, m in known if v == view and m == "corruption_acc1" and g))
        return {
            "view": view,
            "n": known[view, "", "clean_acc1"].n,
            "means": self.table("", [(title, (view, "", metric)) for metric, title in titles.items()
                                     if (view, "", metric) in known]),
            "curves": self.chart(charts.severity(self.records, view)),
            "by_condition": self.table("", [(group, (view, group, "corruption_acc1")) for group in groups]),
        }  # fmt: skip

    def attack(self, attack: Any) -> dict[str, Any]:
        metrics = {"clean_acc1": "clean top-1", "robust_acc1": "robust top-1", "attack_success": "success"}
        if attack.kind == "transfer":
            metrics["attack_success"] = "transfer rate"
        else:
            metrics["queries"] = "mean queries"
        known = self.rows[self.records[0].name]
        columns = [
            (f"ε = {epsilon}/255: {title}", (attack.view, f"{attack.method}/{epsilon}", metric))
            for epsilon in attack.epsilons
            for metric, title in metrics.items()
            if (attack.view, f"{attack.method}/{epsilon}", metric) in known
        ]
        return {"record": attack, "table": self.table("", columns)}

    def retrieval(self, view: ViewRecord) -> dict[str, Any]:
        directions = {"image_retrieval_recall": "text → image", "text_retrieval_recall": "image → text"}
        columns = [
            (f"{title} R@{k}", (view.name, "", f"{metric}@{k}")) for metric, title in directions.items()
            for k in (1, 5, 10)
        ]  # fmt: skip
        return {"record": view, "table": self.table("", columns)}

    def bits(self) -> int | None:
        spec = charts.bits(self.records)
        return None if spec is None else self.chart(spec)

    def engines(self) -> list[dict[str, Any]]:
        table = []
        for record in self.records:
            rows = []
            for index, latency in enumerate(record.latency):
                p50 = float(np.median(latency.milliseconds))
                ratio = None
                if self.reference is not None:
                    ratio = p50 / float(np.median(self.reference.latency[index].milliseconds))
                measured = {
                    row.metric: row.value
                    for row in record.measurements
                    if row.view == f"tower:{latency.tower}" and row.group in ("", f"batch={latency.batch}")
                }
                rows.append({"latency": latency, "ratio": ratio, "measured": measured})
            table.append({"record": record, "rows": rows})
        return table

    def simulation(self) -> list[dict[str, Any]]:
        table = []
        for record in self.records:
            for view in record.views:
                rows = {
                    row.metric: row
                    for row in record.deployed_minus_simulated
                    if row.view == view.name and not row.group
                }
                if all(metric in rows for metric in SIMULATION_METRICS):
                    cells = [_cell(rows[name]) for name in SIMULATION_METRICS]
                    table.append({"name": record.name, "view": view.name, "cells": cells})
        return table


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _cell(row: Measurement, *, survives: bool = False) -> dict[str, str]:
    """A value, its difference to the reference, and whether that is better, worse or open, by the interval."""
    percent = row.unit == "fraction"
    factor, digits = (100, 1) if percent else (1, 1) if row.unit in ("queries", "scale") else (1, 3)
    sign = "+" if row.metric in ("confidence_gap", "effective_robustness.acc1") else ""
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
    return {
        "value": value,
        "interval": interval,
        "delta": delta,
        "verdict": verdict,
        "holm": "◆" if survives else "",
        "title": "" if row.p_value is None else f"p = {row.p_value:.2g}",
    }


def _verdict(row: Measurement) -> str:
    assert row.delta_low is not None and row.delta_high is not None
    higher_is_better = orientation(row.metric)[1]
    if higher_is_better is None or row.delta_low <= 0 <= row.delta_high:
        return ""
    return "better" if (row.delta_low > 0) == higher_is_better else "worse"
