"""Differences between groups of people or things; the vocabulary and the definitions are fairlearn's.

``group_gap``, ``group_std`` and ``equalized_odds_difference`` are best at 0, ``group_ratio`` at 1; ``group_worst`` has
the orientation of its metric.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipq.errors import DataError
from clipq.evaluate.metrics.accuracy import share
from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions

# Accuracies of fewer samples differ by chance alone.
SMALLEST_GROUP = 20


def large_groups(groups: Mapping[str, Booleans], smallest: int, *, column: str, view: str) -> list[Booleans]:
    """The groups of a column with so many samples or more; raises DataError where they are fewer than two."""
    large = [members for members in groups.values() if members.sum() >= smallest]
    if len(large) < 2:
        sizes = ", ".join(f"{name} {int(members.sum())}" for name, members in [*groups.items()][:5])
        sizes += ", …" if len(groups) > 5 else ""
        raise DataError(
            f"{view and view + ': '}column {column!r} has fewer than two groups of {smallest} samples ({sizes}); "
            "choose another column or a lower smallest_group"
        )
    return large


def group_accuracies(predictions: Predictions, members: Booleans, weights: Floats) -> Floats:
    """Top-1 accuracy per resample and group; ``members`` is groups × samples. A group without weight has none (NaN)."""
    return share(predictions.correct[None] & members, members, weights)


def group_gap(values: Floats) -> Floats:
    """Largest minus smallest value over groups (values: resamples × groups)."""
    return np.asarray(np.nanmax(values, axis=1) - np.nanmin(values, axis=1))


def group_std(values: Floats) -> Floats:
    """Standard deviation over groups (population formula, groups weigh the same)."""
    return np.asarray(np.nanstd(values, axis=1))


def group_worst(values: Floats) -> Floats:
    """Smallest value over groups."""
    return np.asarray(np.nanmin(values, axis=1))


def group_ratio(values: Floats) -> Floats:
    """Smallest ÷ largest value over groups; undefined where all are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nanmin(values, axis=1) / np.nanmax(values, axis=1))


def equalized_odds_difference(predictions: Predictions, members: Booleans, weights: Floats) -> Floats:
    """Largest gap between groups in true- or false-positive rate (Hardt et al., 2016; fairlearn's definition).

    fairlearn has it for two classes; for more, each class is taken against the rest and the largest gap counts, which
    for two classes is fairlearn's value. A group without positives (or negatives) of a class has no such rate.
    """
    gaps = [np.zeros(len(weights))]
    for label in np.unique(predictions.labels):
        says, is_label = predictions.predicted == label, predictions.labels == label
        for population in (is_label, ~is_label):
            rates = share((says & population)[None] & members, population[None] & members, weights)
            with np.errstate(invalid="ignore"):
                known = (~np.isnan(rates)).any(1)
                gap = np.where(known, _nan_range(rates), 0.0)
            gaps.append(gap)
    return np.max(gaps, axis=0)


def _nan_range(values: Floats) -> Floats:
    filled_low = np.where(np.isnan(values), np.inf, values).min(1)
    filled_high = np.where(np.isnan(values), -np.inf, values).max(1)
    return np.asarray(filled_high - filled_low)
