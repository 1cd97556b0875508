"""Out-of-distribution detection by one engine: each score's metrics per set, near and far averages, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipq.evaluate.metrics.ood import SCORES, Detection
from clipq.evaluate.metrics.predictions import Floats
from clipq.evaluate.metrics.statistics import Statistic, mean_of
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.results.record import ScoreHistogram

Distance = Literal["near", "far"]

HISTOGRAM_BINS = 40


def detection(
    inside: dict[str, Floats], outside: dict[str, Floats], *, view: str, distance: Distance, seed: int = 0
) -> list[Estimate]:
    """Metrics of every score between the in-distribution view and one OOD view, named ``auroc.mcm`` and so on."""
    functions: dict[str, Statistic] = {}
    for score in SCORES:
        detector = Detection(inside[score], outside[score])
        functions.update({f"{name}.{score}": function for name, function in detector.functions().items()})
    sizes = len(inside[SCORES[0]]), len(outside[SCORES[0]])
    return estimate(functions, *sizes, view=view, group=distance, seed=seed)


def averages(rows: Sequence[Estimate], view: str) -> list[Estimate]:
    """Near and far means over the OOD views, as OpenOOD averages them; the view is the in-distribution one."""
    means = []
    for distance in ("near", "far"):
        of_distance = [row for row in rows if row.group == distance]
        for metric in dict.fromkeys(row.metric for row in of_distance):
            draws = [row.draws for row in of_distance if row.metric == metric]
            means.append(Estimate(view, distance, metric, mean_of(draws), "fraction"))
    return means


def histograms(inside: dict[str, Floats], outside: dict[str, Floats]) -> tuple[ScoreHistogram, ...]:
    """How each score is distributed in and out of distribution, over common bins."""
    made = []
    for score in SCORES:
        low, high = (float(f(np.concatenate([inside[score], outside[score]]))) for f in (np.min, np.max))
        edges = np.linspace(low, high if high > low else low + 1e-9, HISTOGRAM_BINS + 1)
        made.append(
            ScoreHistogram(
                score=score,
                edges=tuple(edges.tolist()),
                inside=tuple(np.histogram(inside[score], edges)[0].tolist()),
                outside=tuple(np.histogram(outside[score], edges)[0].tolist()),
            )
        )
    return tuple(made)
