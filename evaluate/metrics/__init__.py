"""Metrics as pure functions of predictions and sample weights.

Every function takes ``Predictions`` and a weight matrix ``(resamples, samples)`` and returns one value per row. A row
of ones gives the metric itself; a row of bootstrap counts gives it on that resample. So a metric and its interval come
from one definition, and the reference and a candidate can be resampled in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipq.evaluate.metrics import accuracy, calibration
from clipq.evaluate.predictions import Floats, Predictions


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
        Metric("mce", "fraction", False, calibration.mce, "MCE"),
        Metric("confidence_gap", "fraction", None, calibration.confidence_gap, "confidence − accuracy"),
        Metric("nll", "nats", False, calibration.nll, "NLL"),
        Metric("brier", "score", False, calibration.brier, "Brier score"),
        Metric("aurc", "fraction", False, calibration.aurc, "AURC"),
    )
}
