"""Fairness: how far one engine's accuracy differs between the groups of a column."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics import fairness as metrics
from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions
from clipq.evaluate.metrics.statistics import Statistic
from clipq.evaluate.results.estimates import Estimate, estimate


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

    Groups under ``smallest_group`` are left out; raises DataError where fewer than two remain.
    """
    large = [members for members in groups.values() if members.sum() >= smallest_group]
    if len(large) < 2:
        sizes = ", ".join(f"{name} {int(members.sum())}" for name, members in groups.items())
        raise DataError(
            f"{view}: column {column!r} has fewer than two groups of {smallest_group} samples ({sizes}); "
            "choose another column or a lower smallest_group"
        )
    members = np.stack(large)
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
    return estimate(functions, len(predictions), view=view, group=column, seed=seed)
