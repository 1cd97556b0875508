"""Results to ``report.html``: verdicts first, then what they rest on, the proof of precision, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipq import __version__
from clipq.cpu import spoken
from clipq.evaluate.metrics.ood import SCORES
from clipq.evaluate.metrics.table import METRICS, Section, of_section, title_of
from clipq.evaluate.published import table
from clipq.evaluate.report.data import PageData
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key, attack_group, batch_group, tower_view
from clipq.evaluate.results.numbers import difference, number, ratio
from clipq.evaluate.results.record import AttackRecord, Measurement, ViewRecord
from clipq.evaluate.verdicts.by_axis import MARKS, AxisVerdict, axis_verdicts, confidence_state, findings
from clipq.evaluate.verdicts.headline import AXES
from clipq.evaluate.verdicts.judgement import MARGIN, breaks_promise
from clipq.evaluate.verdicts.reference import STATES, TOLERANCE, WITHIN, reference_verdicts
from clipq.evaluate.verdicts.regularities import find_regularities
from clipq.evaluate.verdicts.saturation import in_words, percent
from clipq.files import write_atomic

SIMULATION = ("acc1", "ece", "confidence_gap", "agreement", "cosine")

# How the page marks what is known of a reference.
CHECK_CLASSES = {"verified": "better", "anomalous": "worse", "too few samples": "", "no published value": "quiet"}

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
    page = _Page(results.working(), PageData(results, images))
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
        corrupted = dict.fromkeys(key.view for key in self.data.keys if key.metric == "corruption_acc1")
        regularities, looked_at = find_regularities(results)
        verdicts: list[dict[str, Any]] = [
            {"index": index, "entry": entry, "findings": findings(entry), "axes": axis_verdicts(entry)}
            for index, entry in numbered
            if entry.is_candidate
        ]
        kernels = self.kernels()
        return {
            "version": __version__,
            "entries": entries,
            "failed": results.failed,
            "notes": results.notes,
            "references": [entry for entry in entries if entry.is_reference],
            "checked": (checked := reference_verdicts(entries)),
            "compared": any(check.published is not None for one in checked for check in one.checks),
            "check_classes": CHECK_CLASSES,
            "check_verbs": STATES,
            "publisher": table.shipped().source,
            "tolerance": TOLERANCE,
            "within": WITHIN,
            "checkpoints": list(dict.fromkeys(entry.record.bundle.checkpoint for entry in entries)),
            "runtimes": list(dict.fromkeys(entry.record.place for entry in entries)),
            "dates": sorted({entry.record.created[:10] for entry in entries}),
            "machines": _machines(results),
            "axes": {
                name: axis.title for name, axis in AXES.items() if any(one["axes"][name].rows for one in verdicts)
            },
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
            "has_costs": any(not (entry.record.is_side or entry.record.bundle.ran_on) for entry in entries),
            "engines": self.engines(),
            "elsewhere": [entry for entry in entries if entry.record.bundle.ran_on],
            "gpu": any("gpu" in entry.record.environment for entry in entries),
            "kernels": kernels,
            "saturation": self.saturation(),
            "broken": [(one["entry"], one["census"]) for one in kernels if one["broken"]],
            "simulation": self.simulation(),
            "comparisons": len(results.compared),
            "survivors": len(results.survivors),
            "not_measured": self.not_measured([one["axes"] for one in verdicts]),
        }

    def kernels(self) -> list[dict[str, Any]]:
        """The census of each tower, and whether it breaks what its recipe promises."""
        return [
            {"index": index, "entry": entry, "census": census,
             "broken": breaks_promise(census, entry.record.bundle, simulated=entry.record.simulated)}
            for index, entry in enumerate(self.results.entries)
            for census in entry.record.census
        ]  # fmt: skip

    def columns(self, section: Section, view: str, group: str = "") -> list[tuple[str, Key]]:
        """A section's metrics in all their forms, each with its title, on a view (and group)."""
        names = [metric.name + form for metric in of_section(section) for form in metric.forms or ("",)]
        return [(title_of(name), Key(view, group, name)) for name in names]

    def classified(self, view: ViewRecord) -> dict[str, Any]:
        name, table = view.name, self.data.table
        here = [key for key in self.data.keys if key.view == name]
        gaps = [key.column for key in here if key.metric == "group_gap.acc1"]
        groups = [key for key in here if key.part and key.metric == "acc1"]
        further = self.columns("classification, further", name)
        small = view.smallest_group or 0
        sizes = {key.part: self._n(key) for key in groups}
        return {
            "record": view,
            "metrics": table(f"Metrics on {name}", self.columns("classification", name) + further),
            "compared": table(f"Agreement with the reference on {name}", self.columns("agreement", name)),
            "tuned": table(f"Logit-scale tuning on {name}", self.columns("tuning", name)),
            "shift": table(f"Shift of {name}", self.columns("shift", name)),
            "confidence": self.confidence(name),
            "groups": table(
                f"Top-1 by group on {name}", [(f"{key.part} (n = {sizes[key.part]})", key) for key in groups]
            ),
            "small": [group for group, n in sizes.items() if n < small],
            "gaps": [(one, table(f"Gaps over {one} on {name}", self.columns("fairness", name, one))) for one in gaps],
            "reliability": any(
                one.name == name and one.reliability for entry in self.results.entries for one in entry.record.views
            ),
        }

    def _n(self, key: Key) -> int:
        return max(entry.rows[key].n for entry in self.results.entries if key in entry.rows)

    def confidence(self, view: str) -> dict[str, list[str]]:
        """Which engines are over- and which underconfident, by the interval of confidence − accuracy."""
        found: dict[str, list[str]] = {}
        for entry in self.results.entries:
            row = entry.rows.get(Key(view, "", "confidence_gap"))
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
                (
                    metric.title,
                    self.data.table(
                        f"{metric.title} on {view.name}",
                        [(score, Key(view.name, distance, f"{metric.name}.{score}")) for score in SCORES],
                    ),
                )
                for metric in of_section("ood")
            ],
        }

    def detection_averages(self) -> int | None:
        inside = dict.fromkeys(view.baseline for view in self.results.views.values() if view.histograms)
        columns = [
            (f"{view}, {distance}: {title_of(f'{metric}.{score}')}", Key(view, distance, f"{metric}.{score}"))
            for view in inside
            for distance in ("near", "far")
            for score in ("mcm", "energy")
            for metric in ("auroc", "fpr95_id_positive")
        ]
        return self.data.table("OOD averages", columns)

    def corruptions(self, view: str) -> dict[str, Any]:
        clean = Key(view, "", "clean_acc1")
        means = [(METRICS[clean.metric].title, clean), *self.columns("corruptions", view)]
        one_by_one = [key for key in self.data.keys if key.view == view and key.condition]
        groups = [key for key in one_by_one if key.metric == "corruption_acc1"]
        return {
            "view": view,
            "n": self._n(clean),
            "means": self.data.table(f"Corruption means of {view}", means),
            "by_condition": self.data.table(f"Corruptions of {view} one by one", [(key.group, key) for key in groups]),
        }

    def attack(self, attack: AttackRecord) -> dict[str, Any]:
        renamed = {"attack_success": "transfer rate"} if attack.kind == "transfer" else {}
        columns = [
            (f"ε = {epsilon}/255: {renamed.get(key.metric, title)}", key)
            for epsilon in attack.epsilons
            for title, key in self.columns("attacks", attack.view, attack_group(attack.method, epsilon))
        ]
        return {"record": attack, "table": self.data.table(f"{attack.method} on {attack.view}", columns)}

    def retrieval(self, view: ViewRecord) -> dict[str, Any]:
        return {
            "record": view,
            "table": self.data.table(f"Retrieval on {view.name}", self.columns("retrieval", view.name)),
        }

    def engines(self) -> list[dict[str, Any]]:
        table = []
        for index, entry in enumerate(self.results.entries):
            rows = []
            for latency in entry.record.latency:
                base = entry.timed_beside(latency)
                measured = {
                    row.metric: row.value
                    for row in entry.record.measurements
                    if row.view == tower_view(latency.tower) and row.group in ("", batch_group(latency.batch))
                }
                times = ""
                if latency.busy:
                    times = "machine was busy"
                elif base is not None and entry.is_candidate:
                    times = ratio(*latency.over(base))
                elif (again := latency.twice()) is not None:
                    times = f"again {ratio(*again)}"
                rows.append({"latency": latency, "ratio": times, "measured": measured})
            table.append({"index": index, "entry": entry, "rows": rows})
        return [one for one in table if one["rows"]]

    def saturation(self) -> list[dict[str, Any]]:
        return [
            {"index": index, "entry": entry, "tower": census.tower, "text": in_words(found),
             "share": percent(found.share) if found.samples else ""}
            for index, entry in enumerate(self.results.entries)
            for census in entry.record.census
            if (found := census.saturation) is not None
        ]  # fmt: skip

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
        missing = [
            axis.title for axis in AXES.values() if verdicts and not any(one[axis.name].rows for one in verdicts)
        ]
        timed = any(entry.record.latency for entry in self.results.entries)
        missing += [] if timed else ["latency", "memory", "which kernels ran"]
        energy = any(key.metric == "joules_per_sample" for key in self.data.keys)
        return [*missing, *([] if energy else ["energy"])]


def _machines(results: Results) -> list[str]:
    found = []
    for entry in results.entries:
        environment = entry.record.environment
        gpu = f", {environment['gpu']['name']}" if "gpu" in environment else ""
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        found.append(
            f"{environment['cpu']}{_level(environment)}, {environment['cores']} cores{gpu}, {environment['system']}, "
            f"Python {environment['python']}; {packages}"
        )
    return list(dict.fromkeys(found))


def _level(environment: Mapping[str, Any]) -> str:
    """What its instruction set makes of 8-bit products; before schema 7 nobody wrote it down."""
    return f" ({spoken(environment['cpu_level'])})" if "cpu_level" in environment else ""


def _simulated_cell(row: Measurement) -> tuple[str, str]:
    if row.metric == "cosine":
        return number(row.value, digits=4), ""
    return number(row.value, row.unit), difference(row)
