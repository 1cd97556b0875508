"""Fairness: each group of a column on its own, and how far one engine's accuracy differs between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from clipq.evaluate.axes.classification import with_correct
from clipq.evaluate.axes.reading import Found, Reading, answers_of, decoded
from clipq.evaluate.metrics import accuracy, calibration
from clipq.evaluate.metrics import fairness as metrics
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.suites.plan import PlannedView, groups_of


def measure(reading: Reading[PlannedView]) -> Found:
    """Every group of a labelled view on its own; the gaps of the columns that the suite names."""
    answers, suite, view, entry = reading.once(answers_of), reading.suite, reading.asked.view, reading.asked.entry
    rows, _ = reading.once(decoded)
    found: list[Estimate] = []
    for column, groups in groups_of(reading.asked, rows).items():
        found += by_group(answers.predictions, groups, view=view.name, bins=suite.ece_bins, seed=suite.seed)
        if entry.groups:
            found += fairness(
                answers.predictions,
                groups,
                view=view.name,
                column=column,
                smallest_group=entry.smallest_group,
                seed=suite.seed,
            )
    return Found(found, view={"smallest_group": entry.smallest_group} if entry.groups else {})


def by_group(
    predictions: Predictions, groups: Mapping[str, Booleans], *, view: str, bins: int = BINS, seed: int = 0
) -> list[Estimate]:
    """Accuracy, recall, confidence and calibration of each group on its own."""
    rows: list[Estimate] = []
    for group, members in groups.items():
        mine = predictions.subset(members)
        functions: dict[str, Statistic] = {
            "acc1": partial(accuracy.acc1, mine),
            "mean_per_class_recall": partial(accuracy.mean_per_class_recall, mine),
            "confidence": partial(weighted_mean, mine.confidence),
            "ece": partial(calibration.ece, mine, bins=bins),
            "confidence_gap": partial(calibration.confidence_gap, mine),
        }
        rows += with_correct(estimate(functions, len(mine), view=view, group=group, seed=seed), mine)
    return rows


def fairness(
    predictions: Predictions,
    groups: Mapping[str, Booleans],
    *,
    view: str,
    column: str,
    smallest_group: int,
    seed: int = 0,
) -> list[Estimate]:
    """Gap, spread, worst group and ratio of top-1 accuracy, and the equalized-odds difference; the group is ``column``.

    Groups under ``smallest_group`` are left out, and their samples are not counted; raises DataError where fewer than
    two remain.
    """
    members = np.stack(metrics.large_groups(groups, smallest_group, column=column, view=view))
    summaries = {
        "group_gap.acc1": metrics.group_gap,
        "group_std.acc1": metrics.group_std,
        "group_worst.acc1": metrics.group_worst,
        "group_ratio.acc1": metrics.group_ratio,
    }

    def summarized(summary: Statistic, weights: Floats) -> Floats:
        return summary(metrics.group_accuracies(predictions, members, weights))

    functions: dict[str, Statistic] = {name: partial(summarized, summary) for name, summary in summaries.items()}
    functions["equalized_odds_difference"] = partial(metrics.equalized_odds_difference, predictions, members)
    return estimate(functions, len(predictions), view=view, group=column, seed=seed, n=int(members.any(0).sum()))
