"""Metrics as pure functions of predictions and sample weights.

Every function takes ``Predictions`` and a weight matrix ``(resamples, samples)`` and returns one value per row. A row
of ones gives the metric itself; a row of bootstrap counts gives it on that resample. So a metric and its interval come
from one definition, and the reference and a candidate can be resampled in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipq.evaluate.metrics import accuracy, calibration
from clipq.evaluate.metrics.predictions import Floats, Predictions


@dataclass(frozen=True)
class Metric:
    """A metric by name: its unit, its orientation, and its function."""

    name: str
    unit: str
    higher_is_better: bool | None
    function: Callable[[Predictions, Floats], Floats]
    title: str


CLASSIFICATION: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("acc1", "fraction", True, accuracy.acc1, "top-1 accuracy"),
        Metric("acc5", "fraction", True, accuracy.acc5, "top-5 accuracy"),
        Metric("mean_per_class_recall", "fraction", True, accuracy.mean_per_class_recall, "mean per-class recall"),
        Metric("ece", "fraction", False, calibration.ece, "ECE"),
        Metric("ece_adaptive", "fraction", False, calibration.ece_adaptive, "adaptive ECE"),
        Metric("ece_classwise", "fraction", False, calibration.ece_classwise, "class-wise ECE"),
        Metric("mce", "fraction", False, calibration.mce, "MCE"),
        Metric("confidence_gap", "fraction", None, calibration.confidence_gap, "confidence − accuracy"),
        Metric("nll", "nats", False, calibration.nll, "NLL"),
        Metric("brier", "score", False, calibration.brier, "Brier score"),
        Metric("aurc", "fraction", False, calibration.aurc, "AURC"),
    )
}

# The other metrics by the part of their name before a dot or an @: unit, whether higher is better.
ORIENTATION: dict[str, tuple[str, bool | None]] = {
    **{name: (metric.unit, metric.higher_is_better) for name, metric in CLASSIFICATION.items()},
    "agreement": ("fraction", True), "flips_lost": ("fraction", False), "flips_gained": ("fraction", True),
    "cosine": ("fraction", True), "confidence": ("fraction", None),
    "ece_tuned": ("fraction", False), "ece_untuned": ("fraction", False), "logit_scale_tuned": ("scale", None),
    "relative_drop": ("fraction", False), "effective_robustness": ("fraction", True),
    "auroc": ("fraction", True), "aupr_in": ("fraction", True), "aupr_out": ("fraction", True),
    "fpr95_id_positive": ("fraction", False), "fpr95_ood_positive": ("fraction", False),
    "corruption_acc1": ("fraction", True), "corruption_ece": ("fraction", False), "relative_mce": ("ratio", False),
    "clean_acc1": ("fraction", True), "robust_acc1": ("fraction", True), "attack_success": ("fraction", False),
    "queries": ("queries", True),
    "group_gap": ("fraction", False), "group_std": ("fraction", False), "group_worst": ("fraction", True),
    "group_ratio": ("ratio", True), "equalized_odds_difference": ("fraction", False),
    "image_retrieval_recall": ("fraction", True), "text_retrieval_recall": ("fraction", True),
}  # fmt: skip


# Fractions that can be negative.
SIGNED = ("confidence_gap", "relative_drop", "effective_robustness", "cosine")


def orientation(name: str) -> tuple[str, bool | None]:
    """Unit of a metric and whether higher is better (None: neither), by its name in ``results.csv``."""
    return ORIENTATION[name.split(".")[0].split("@")[0]]
