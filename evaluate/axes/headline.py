"""The few measurements that speak for each axis of reliability: what summaries, verdicts and comparisons look at."""

from __future__ import annotations

from collections.abc import Iterable

from clipq.evaluate.metrics.table import metric_of, title_of
from clipq.evaluate.results.key import attack_group
from clipq.evaluate.results.record import Measurement, Record

AXES = {
    "accuracy": "accuracy",
    "calibration": "confidence calibration",
    "shift": "natural shift",
    "near-ood": "near OOD",
    "far-ood": "far OOD",
    "corruptions": "corruptions",
    "adversarial": "adversarial",
    "fairness": "gap between groups",
    "retrieval": "retrieval",
}


def headline(record: Record, *, ratios: bool = True) -> dict[str, list[Measurement]]:
    """Measurements by axis, in the order of the views; axes that were not measured are missing.

    Accuracy and calibration are top-1 and ECE of the in-distribution views; OOD is the average AUROC of MCM over the
    near and the far sets; corruptions are mCE (the mean top-1 where mCE is not defined); an attack is taken at its
    middle strength. ``ratios=False`` takes nothing that is divided by the run's own reference, as compare does.
    """
    known = {row.key: row for row in record.measurements}
    inside = [view.name for view in record.views if view.role in ("in-distribution", "groups")]
    corrupted = dict.fromkeys(row.view for row in record.measurements if row.metric == "corruption_acc1")
    mce = "mean_corruption_error"
    wanted: dict[str, Iterable[tuple[str, str, str]]] = {
        "accuracy": [(view, "", "acc1") for view in inside],
        "calibration": [(view, "", "ece") for view in inside],
        "shift": [(view.name, "", "acc1") for view in record.views if view.role == "shifted"],
        "near-ood": [(view, "near", "auroc.mcm") for view in inside],
        "far-ood": [(view, "far", "auroc.mcm") for view in inside],
        "corruptions": [
            (view, "", mce if ratios and (view, "", mce) in known else "corruption_acc1") for view in corrupted
        ],
        "adversarial": [
            (attack.view, attack_group(attack.method, attack.epsilons[len(attack.epsilons) // 2]), "robust_acc1")
            for attack in record.attacks
        ],
        "fairness": [key for key in known if key[2] == "group_gap.acc1"],
        "retrieval": [
            (view.name, "", f"{way}_retrieval_recall@1")
            for view in record.views
            if view.role == "retrieval"
            for way in ("image", "text")
        ],
    }
    found = {axis: [known[key] for key in keys if key in known] for axis, keys in wanted.items()}
    return {axis: rows for axis, rows in found.items() if rows}


def title(row: Measurement) -> str:
    """What a headline measurement is called in a table."""
    key, metric = row.key, metric_of(row.metric)
    if key.distance:
        return f"{key.distance} OOD: {title_of(row.metric)}"
    if key.column:
        return f"{row.view}: gap over {key.column}"
    if key.attack is not None:
        method, epsilon = key.attack
        return f"{row.view}, {method}, ε = {epsilon}/255: {metric.title}"
    return f"{row.view}: {metric.short or title_of(row.metric)}"
