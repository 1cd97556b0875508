"""The few measurements that speak for each axis of reliability: what summaries, verdicts and comparisons look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from clipq.evaluate.metrics.table import metric_of, title_of
from clipq.evaluate.results.key import Key, attack_group
from clipq.evaluate.results.record import Measurement, Record

Rows = Mapping[Key, Measurement]


@dataclass(frozen=True)
class Axis:
    """An axis of reliability: its name in results, its title in tables, what a sentence about it is about.

    ``headline`` are the measurements of a record that speak for it, by view, group and metric; what was not measured
    may be among them.
    """

    name: str
    title: str
    subject: str
    headline: Callable[[Record, Rows], Iterable[Key]]


def _views(roles: tuple[str, ...], *metrics: str, group: str = "") -> Callable[[Record, Rows], Iterable[Key]]:
    """Metrics of every view in one of these roles."""
    return lambda record, rows: [
        Key(view.name, group, metric) for view in record.views if view.role in roles for metric in metrics
    ]


def _groups(record: Record, rows: Rows) -> Iterable[Key]:
    return [key for key in rows if key.metric == "group_gap.acc1"]


def _corruptions(record: Record, rows: Rows) -> Iterable[Key]:
    views = dict.fromkeys(key.view for key in rows if key.metric == "corruption_acc1")
    means = [Key(view, "", "mean_corruption_error") for view in views]
    return [mean if mean in rows else mean._replace(metric="corruption_acc1") for mean in means]


def _attacks(record: Record, rows: Rows) -> Iterable[Key]:
    return [
        Key(attack.view, attack_group(attack.method, attack.epsilons[len(attack.epsilons) // 2]), "robust_acc1")
        for attack in record.attacks
    ]


_INSIDE = ("in-distribution", "groups")
_RECALLS = ("image_retrieval_recall@1", "text_retrieval_recall@1")
AXES = {
    axis.name: axis
    for axis in (
        Axis("accuracy", "accuracy", "top-1", _views(_INSIDE, "acc1")),
        Axis("calibration", "confidence calibration", "ECE", _views(_INSIDE, "ece")),
        Axis("shift", "natural shift", "top-1 under natural shift", _views(("shifted",), "acc1")),
        Axis("near-ood", "near OOD", "near-OOD AUROC", _views(_INSIDE, "auroc.mcm", group="near")),
        Axis("far-ood", "far OOD", "far-OOD AUROC", _views(_INSIDE, "auroc.mcm", group="far")),
        Axis("corruptions", "corruptions", "mCE", _corruptions),
        Axis("adversarial", "adversarial", "robust top-1", _attacks),
        Axis("fairness", "gap between groups", "the gap between groups", _groups),
        Axis("retrieval", "retrieval", "retrieval R@1", _views(("retrieval",), *_RECALLS)),
    )
}


def headline(record: Record, *, ratios: bool = True) -> dict[str, list[Measurement]]:
    """Measurements by axis, in the order of the views; axes that were not measured are missing.

    Accuracy and calibration are top-1 and ECE of the in-distribution views; OOD is the average AUROC of MCM over the
    near and the far sets; corruptions are mCE (the mean top-1 where mCE is not defined); an attack is taken at its
    middle strength. ``ratios=False`` takes nothing that is divided by the run's own reference, as compare does.
    """
    rows = {row.key: row for row in record.measurements if ratios or row.unit != "ratio"}
    found = {axis.name: [rows[key] for key in axis.headline(record, rows) if key in rows] for axis in AXES.values()}
    return {name: measured for name, measured in found.items() if measured}


def title(row: Measurement) -> str:
    """What a headline measurement is called in a table."""
    key, metric = row.key, metric_of(row.metric)
    if key.distance:
        return f"{row.view}, {key.distance} OOD: {title_of(row.metric)}"
    if key.column:
        return f"{row.view}: gap over {key.column}"
    if key.attack is not None:
        method, epsilon = key.attack
        return f"{row.view}, {method}, ε = {epsilon}/255: {metric.title}"
    return f"{row.view}: {metric.short or title_of(row.metric)}"
