"""Results to ``report.html``: verdicts first, then what they rest on, the proof of precision, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipq import __version__
from clipq.evaluate.bench import breaks_promise
from clipq.evaluate.headline import AXES
from clipq.evaluate.judgement import MARGIN
from clipq.evaluate.metrics import CLASSIFICATION
from clipq.evaluate.metrics.ood import SCORES
from clipq.evaluate.report.data import PageData, same_latency
from clipq.evaluate.report.regularities import find_regularities
from clipq.evaluate.report.results import Results
from clipq.evaluate.report.verdicts import MARKS, AxisVerdict, axis_verdicts, confidence_state, difference, findings
from clipq.evaluate.statistics import median_ratio
from clipq.files import write_atomic
from clipq.record import AttackRecord, Measurement, ViewRecord

TABLE_METRICS = (
    "acc1", "ece", "confidence_gap", "nll", "brier", "aurc", "acc5", "mean_per_class_recall", "ece_adaptive",
    "ece_classwise", "mce",
)  # fmt: skip
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
SIMULATION = ("acc1", "ece", "confidence_gap", "agreement", "cosine")

# So many views stand open when the page opens.
OPEN_VIEWS = 1


def write_report(results: Results, target: Path, *, images: bool = True) -> Path:
    """Write the page; everything a user or a data set named is escaped. Without ``images`` it shows no photo."""
    write_atomic(target, render(results, images=images))
    return target


def render(results: Results, *, images: bool = True) -> str:
    """The page: one HTML file that needs no network."""
    environment = Environment(
        loader=PackageLoader("clipq.evaluate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = _Page(results, PageData(results, images))
    context = page.context()
    data = page.data.encode()
    return environment.get_template("report.html.j2").render(
        **context,
        data=data,
        flips_left_out=page.data.flips_left_out,
        style=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        library=Markup(_resource("vega.js").replace("</script", "<\\/script")),
    )


def _resource(name: str) -> str:
    return (resources.files("clipq.evaluate.report") / name).read_text(encoding="utf-8")


@dataclass
class _Page:
    """The template's values."""

    results: Results
    data: PageData

    def context(self) -> dict[str, Any]:
        results = self.results
        entries, views = results.entries, results.views
        numbered = list(enumerate(entries))
        attacks = {(one.view, one.kind, one.method): one for entry in entries for one in entry.record.attacks}
        corrupted = dict.fromkeys(key[0] for key in self.data.keys if key[2] == "corruption_acc1")
        regularities, looked_at = find_regularities(results)
        verdicts: list[dict[str, Any]] = [
            {"index": index, "entry": entry, "findings": findings(entry), "axes": axis_verdicts(entry)}
            for index, entry in numbered
            if entry.is_candidate
        ]
        kernels = [
            {"index": index, "entry": entry, "census": census,
             "broken": breaks_promise(census, simulated=entry.record.simulated)}
            for index, entry in numbered
            for census in entry.record.census
        ]  # fmt: skip
        return {
            "version": __version__,
            "entries": entries,
            "failed": results.failed,
            "references": [entry for entry in entries if entry.reference is entry.record],
            "checkpoints": list(dict.fromkeys(entry.record.bundle.checkpoint for entry in entries)),
            "runtimes": list(dict.fromkeys(entry.record.runtime for entry in entries)),
            "dates": sorted({entry.record.created[:10] for entry in entries}),
            "machines": _machines(results),
            "axes": {axis: title for axis, title in AXES.items() if any(one["axes"][axis].rows for one in verdicts)},
            "marks": MARKS,
            "margin": MARGIN,
            "verdicts": verdicts,
            "regularities": regularities,
            "looked_at": looked_at,
            "views": [self.classified(view) for view in views.values() if view.classes],
            "all_views": list(views.values()),
            "open_views": OPEN_VIEWS,
            "ood": [self.detection(view) for view in views.values() if view.histograms],
            "ood_averages": self.detection_averages(),
            "corruptions": [self.corruptions(view) for view in corrupted],
            "attacks": [self.attack(attack) for attack in attacks.values()],
            "retrieval": [self.retrieval(view) for view in views.values() if view.role == "retrieval"],
            "has_flips": any(view.flips for entry in entries for view in entry.record.views),
            "has_costs": any(not entry.record.twin for entry in entries),
            "engines": self.engines(),
            "gpu": any("gpu" in entry.record.environment for entry in entries),
            "kernels": kernels,
            "broken": [(one["entry"], one["census"]) for one in kernels if one["broken"]],
            "simulation": self.simulation(),
            "comparisons": len(results.compared),
            "survivors": len(results.survivors),
            "not_measured": self.not_measured([one["axes"] for one in verdicts]),
        }

    def columns(self, titles: dict[str, str], view: str, group: str = "") -> list[tuple[str, tuple[str, str, str]]]:
        return [(title, (view, group, metric)) for metric, title in titles.items()]

    def classified(self, view: ViewRecord) -> dict[str, Any]:
        name, table = view.name, self.data.table
        gaps = dict.fromkeys(key[1] for key in self.data.keys if key[0] == name and key[2] == "group_gap.acc1")
        groups = [key for key in self.data.keys if key[0] == name and "=" in key[1] and key[2] == "acc1"]
        metrics = {metric: CLASSIFICATION[metric].title for metric in TABLE_METRICS}
        small = view.smallest_group or 0
        sizes = {key[1]: self._n(key) for key in groups}
        return {
            "record": view,
            "metrics": table(f"Metrics on {name}", self.columns(metrics, name)),
            "compared": table(f"Agreement with the reference on {name}", self.columns(COMPARED, name)),
            "tuned": table(f"Logit-scale tuning on {name}", self.columns(TUNED, name)),
            "shift": table(f"Shift of {name}", self.columns(SHIFT, name)),
            "confidence": self.confidence(name),
            "groups": table(f"Top-1 by group on {name}", [(f"{g} (n = {sizes[g]})", (name, g, "acc1")) for g in sizes]),
            "small": [group for group, n in sizes.items() if n < small],
            "gaps": [(one, table(f"Gaps over {one} on {name}", self.columns(GAPS, name, one))) for one in gaps],
            "reliability": any(
                one.name == name and one.reliability for entry in self.results.entries for one in entry.record.views
            ),
        }

    def _n(self, key: tuple[str, str, str]) -> int:
        return max(entry.rows[key].n for entry in self.results.entries if key in entry.rows)

    def confidence(self, view: str) -> dict[str, list[str]]:
        """Which engines are over- and which underconfident, by the interval of confidence − accuracy."""
        found: dict[str, list[str]] = {}
        for entry in self.results.entries:
            row = entry.rows.get((view, "", "confidence_gap"))
            if row is not None:
                state = confidence_state(row) or "neither over- nor underconfident beyond the interval"
                found.setdefault(state, []).append(entry.name)
        return found

    def detection(self, view: ViewRecord) -> dict[str, Any]:
        distance = "near" if view.role == "near-ood" else "far"
        return {
            "record": view,
            "distance": distance,
            "tables": [
                (title, self.data.table(f"{title} on {view.name}",
                                        [(score, (view.name, distance, f"{metric}.{score}")) for score in SCORES]))
                for metric, title in DETECTION.items()
            ],
        }  # fmt: skip

    def detection_averages(self) -> int | None:
        inside = dict.fromkeys(view.baseline for view in self.results.views.values() if view.histograms)
        columns = [
            (f"{view}, {distance}: {DETECTION[metric]}, {score}", (view, distance, f"{metric}.{score}"))
            for view in inside
            for distance in ("near", "far")
            for score in ("mcm", "energy")
            for metric in ("auroc", "fpr95_id_positive")
        ]
        return self.data.table("OOD averages", columns)

    def corruptions(self, view: str) -> dict[str, Any]:
        titles = {
            "clean_acc1": "clean top-1", "corruption_acc1": "mean top-1", "corruption_ece": "mean ECE",
            "mce": "mCE", "relative_mce": "relative mCE",
        }  # fmt: skip
        groups = [key for key in self.data.keys if key[0] == view and key[2] == "corruption_acc1" and key[1]]
        return {
            "view": view,
            "n": self._n((view, "", "clean_acc1")),
            "means": self.data.table(f"Corruption means of {view}", self.columns(titles, view)),
            "by_condition": self.data.table(f"Corruptions of {view} one by one", [(key[1], key) for key in groups]),
        }

    def attack(self, attack: AttackRecord) -> dict[str, Any]:
        metrics = {"clean_acc1": "clean top-1", "robust_acc1": "robust top-1", "attack_success": "success"}
        if attack.kind == "transfer":
            metrics["attack_success"] = "transfer rate"
        else:
            metrics["queries"] = "mean queries"
        columns = [
            (f"ε = {epsilon}/255: {title}", (attack.view, f"{attack.method}/{epsilon}", metric))
            for epsilon in attack.epsilons
            for metric, title in metrics.items()
        ]
        return {"record": attack, "table": self.data.table(f"{attack.method} on {attack.view}", columns)}

    def retrieval(self, view: ViewRecord) -> dict[str, Any]:
        directions = {"image_retrieval_recall": "text → image", "text_retrieval_recall": "image → text"}
        columns = [
            (f"{title} R@{k}", (view.name, "", f"{metric}@{k}")) for metric, title in directions.items()
            for k in (1, 5, 10)
        ]  # fmt: skip
        return {"record": view, "table": self.data.table(f"Retrieval on {view.name}", columns)}

    def engines(self) -> list[dict[str, Any]]:
        table = []
        for index, entry in enumerate(self.results.entries):
            rows = []
            for latency in entry.record.latency:
                base = same_latency(entry, latency)
                measured = {
                    row.metric: row.value
                    for row in entry.record.measurements
                    if row.view == f"tower:{latency.tower}" and row.group in ("", f"batch={latency.batch}")
                }
                ratio = ""
                if base is not None and entry.is_candidate:
                    ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*median_ratio(latency.milliseconds, base.milliseconds))
                rows.append({"latency": latency, "ratio": ratio, "measured": measured})
            table.append({"index": index, "entry": entry, "rows": rows})
        return [one for one in table if one["rows"]]

    def simulation(self) -> list[dict[str, Any]]:
        table = []
        for index, entry in enumerate(self.results.entries):
            for view in entry.record.views:
                rows = {
                    row.metric: row
                    for row in entry.record.deployed_minus_simulated
                    if row.view == view.name and not row.group
                }
                if all(metric in rows for metric in SIMULATION):
                    cells = [_simulated_cell(rows[name]) for name in SIMULATION]
                    table.append({"index": index, "name": entry.name, "view": view.name, "cells": cells})
        return table

    def not_measured(self, verdicts: Sequence[dict[str, AxisVerdict]]) -> list[str]:
        """What nobody should read into the page."""
        missing = [title for axis, title in AXES.items() if verdicts and not any(one[axis].rows for one in verdicts)]
        timed = any(entry.record.latency for entry in self.results.entries)
        missing += [] if timed else ["latency", "memory", "which kernels ran"]
        energy = any(key[2] == "joules_per_sample" for key in self.data.keys)
        return [*missing, *([] if energy else ["energy"])]


def _machines(results: Results) -> list[str]:
    found = []
    for entry in results.entries:
        environment = entry.record.environment
        gpu = f", {environment['gpu']['name']}" if "gpu" in environment else ""
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        found.append(
            f"{environment['cpu']}, {environment['cores']} cores{gpu}, {environment['system']}, "
            f"Python {environment['python']}; {packages}"
        )
    return list(dict.fromkeys(found))


def _simulated_cell(row: Measurement) -> tuple[str, str]:
    if row.metric == "cosine":
        return f"{row.value:.4f}", ""
    return f"{100 * row.value:.1f}", difference(row)
