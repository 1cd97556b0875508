"""Predictions to measurements: every metric with its interval, and against the reference, paired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clipq.evaluate.metrics import CLASSIFICATION, agreement, calibration
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.calibration import BINS, bin_sums
from clipq.evaluate.predictions import Floats, Predictions
from clipq.evaluate.statistics import bootstrap
from clipq.record import Measurement, ReliabilityBin

GROUP_METRICS = ("acc1", "ece", "confidence_gap")
SMALLEST_GROUP = 10


@dataclass(frozen=True)
class Engine:
    """Whose measurements these are: the first columns of ``results.csv``."""

    bundle: str
    recipe: str
    runtime: str
    simulated: bool

    @property
    def label(self) -> str:
        """What the column ``reference`` says when others are compared with this one."""
        return f"{self.bundle} (simulated)" if self.simulated else self.bundle


@dataclass(frozen=True)
class Answers:
    """One engine's predictions on a view, and the unit image embeddings behind them."""

    engine: Engine
    predictions: Predictions
    embeddings: NDArray[np.float32]

    def subset(self, rows: NDArray[np.bool_]) -> Answers:
        """The answers on some samples."""
        return Answers(self.engine, self.predictions.subset(rows), self.embeddings[rows])


def measure_view(
    view: str,
    candidate: Answers,
    reference: Answers | None,
    groups: dict[str, NDArray[np.bool_]],
    *,
    bins: int = BINS,
    seed: int = 0,
) -> list[Measurement]:
    """All measurements of a candidate on a view, whole and by group; ``reference`` None leaves the deltas empty."""
    rows = _measure(view, "", candidate, reference, tuple(CLASSIFICATION), bins, seed)
    for group, members in groups.items():
        if members.sum() >= SMALLEST_GROUP:
            part = None if reference is None else reference.subset(members)
            rows += _measure(view, group, candidate.subset(members), part, GROUP_METRICS, bins, seed)
    return rows


def reliability(predictions: Predictions, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The bars of the reliability diagram, empty bins left out."""
    sums = bin_sums(predictions, np.ones((1, len(predictions))), bins)
    weight, confidence, correct = (row[0] for row in sums)
    edges = np.linspace(0, 1, bins + 1)
    return tuple(
        ReliabilityBin(
            lower=float(edges[index]),
            upper=float(edges[index + 1]),
            n=int(weight[index]),
            confidence=float(confidence[index] / weight[index]),
            accuracy=float(correct[index] / weight[index]),
        )
        for index in range(bins)
        if weight[index] > 0
    )


def _measure(
    view: str,
    group: str,
    candidate: Answers,
    reference: Answers | None,
    names: tuple[str, ...],
    bins: int,
    seed: int,
) -> list[Measurement]:
    if reference is not None and reference.engine == candidate.engine:
        reference = None
    predictions = candidate.predictions
    functions: dict[str, Callable[[Floats], Floats]] = {}
    for name in names:
        function = _metric(name, bins)
        functions[name] = partial(function, predictions)
        if reference is not None:
            functions[f"{name}.delta"] = _difference(function, predictions, reference.predictions)
    if reference is not None and not group:
        cosines = (candidate.embeddings.astype(np.float64) * reference.embeddings).sum(1)
        functions["cosine"] = partial(weighted_mean, cosines)
        for compare in (agreement.agreement, agreement.flips_lost, agreement.flips_gained):
            functions[compare.__name__] = partial(compare, predictions, reference.predictions)
    estimates = bootstrap(functions, len(predictions), seed=seed)
    rows = []
    for name, estimate in estimates.items():
        if name.endswith(".delta"):
            continue
        known = CLASSIFICATION.get(name)
        delta = estimates.get(f"{name}.delta")
        p_value = None
        if reference is not None and name == "acc1":
            p_value = agreement.mcnemar_p(predictions, reference.predictions)
        rows.append(
            Measurement(
                **vars(candidate.engine),
                view=view,
                group=group,
                metric=name,
                unit=known.unit if known else "fraction",
                value=estimate.value,
                low=estimate.low,
                high=estimate.high,
                n=estimate.n,
                reference="" if reference is None else reference.engine.label,
                delta=None if delta is None else delta.value,
                delta_low=None if delta is None else delta.low,
                delta_high=None if delta is None else delta.high,
                p_value=p_value,
            )
        )
    return rows


def _metric(name: str, bins: int) -> Callable[[Predictions, Floats], Floats]:
    binned = {"ece": calibration.ece, "mce": calibration.mce, "ece_adaptive": calibration.ece_adaptive}
    return partial(binned[name], bins=bins) if name in binned else CLASSIFICATION[name].function


def _difference(
    function: Callable[[Predictions, Floats], Floats], candidate: Predictions, reference: Predictions
) -> Callable[[Floats], Floats]:
    return lambda weights: function(candidate, weights) - function(reference, weights)
