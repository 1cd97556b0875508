"""Out-of-distribution detection by one engine: each score's metrics per set, near and far averages, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from clipq.data.views import View
from clipq.evaluate.axes.reading import Found, Reading
from clipq.evaluate.metrics.ood import Detection, given_scores, outlier_scores
from clipq.evaluate.metrics.predictions import Floats
from clipq.evaluate.metrics.statistics import Statistic, mean_of
from clipq.evaluate.metrics.zeroshot import GivenAnswers
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.results.record import ScoreHistogram
from clipq.evaluate.suites.plan import Plan, PlannedView

Distance = Literal["near", "far"]

HISTOGRAM_BINS = 40


def measure(reading: Reading[PlannedView]) -> Found:
    """Every score between an out-of-distribution view and its baseline."""
    planned = reading.asked
    assert planned.baseline is not None
    inside, outside = (_scores(reading, view) for view in (planned.baseline, planned.view))
    distance: Distance = "near" if planned.entry.role == "near-ood" else "far"
    return Found(
        detection(inside, outside, view=planned.view.name, distance=distance, seed=reading.suite.seed),
        view={"histograms": histograms(inside, outside)},
    )


def near_and_far(plan: Plan, estimates: Sequence[Estimate], sizes: Mapping[str, int]) -> list[Estimate]:
    """The averages of each in-distribution view over the out-of-distribution views that belong to it.

    ``sizes`` are how many samples of each view the engine saw.
    """
    outside = {one.view.name: one.baseline.name for one in plan.views if "-ood" in one.entry.role and one.baseline}
    found: list[Estimate] = []
    for inside in dict.fromkeys(outside.values()):
        found += averages([row for row in estimates if outside.get(row.view) == inside], inside, sizes[inside])
    return found


def _scores(reading: Reading[PlannedView], view: View) -> dict[str, Floats]:
    """The scores of a view's samples by the classes of the baseline."""
    answers = reading.embeddings.answers(view, reading.subject, reading.asked.baseline)
    if isinstance(answers, GivenAnswers):
        return given_scores(answers.probabilities)
    return outlier_scores(answers.cosines, answers.classifier.logits(answers.cosines))


def detection(
    inside: dict[str, Floats], outside: dict[str, Floats], *, view: str, distance: Distance, seed: int = 0
) -> list[Estimate]:
    """Metrics of every score between the in-distribution view and one OOD view, named ``auroc.mcm`` and so on."""
    functions: dict[str, Statistic] = {}
    for score in inside:
        detector = Detection(inside[score], outside[score])
        functions.update({f"{name}.{score}": function for name, function in detector.functions().items()})
    sizes = (len(next(iter(scores.values()))) for scores in (inside, outside))
    return estimate(functions, *sizes, view=view, group=distance, seed=seed)


def averages(rows: Sequence[Estimate], view: str, size: int) -> list[Estimate]:
    """Near and far means over the OOD views, as OpenOOD averages them; view and size are the in-distribution one's."""
    means = []
    for distance in ("near", "far"):
        of_distance = [row for row in rows if row.group == distance]
        for metric in dict.fromkeys(row.metric for row in of_distance):
            draws = [row.draws for row in of_distance if row.metric == metric]
            means.append(Estimate(view, distance, metric, mean_of(draws, shared=size), "fraction"))
    return means


def histograms(inside: dict[str, Floats], outside: dict[str, Floats]) -> tuple[ScoreHistogram, ...]:
    """How each score is distributed in and out of distribution, over common bins."""
    made = []
    for score in inside:
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
