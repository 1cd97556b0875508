"""Corruptions: accuracy and calibration of one engine per corruption and severity, and mean corruption errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import numpy as np

from clipq.data.views import View
from clipq.evaluate.axes.reading import Found, Reading
from clipq.evaluate.metrics import calibration
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.calibration import BINS
from clipq.evaluate.metrics.predictions import Booleans, Floats, Outcome
from clipq.evaluate.metrics.robustness import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    errors,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from clipq.evaluate.metrics.statistics import Statistic, bootstrap, mean_of
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.key import condition_group, corrupted_view
from clipq.evaluate.suites.corruptions import STANDARD
from clipq.evaluate.suites.plan import PlannedCorruptions

Condition = tuple[str, int]
Baseline = tuple[Booleans, Mapping[Condition, Booleans]] | Literal["alexnet"]


def measure(reading: Reading[PlannedCorruptions]) -> Found:
    """Every corruption and severity of a labelled view."""
    planned, reference = reading.asked, reading.reference
    base: Baseline | None = None
    if planned.entry.baseline == "alexnet":
        base = "alexnet"
    elif reference is not None:
        clean, corrupted = reference.once(_outcomes)
        base = clean.correct, {condition: one.correct for condition, one in corrupted.items()}
    clean, corrupted = reading.once(_outcomes)
    suite, view = reading.suite, corrupted_view(planned.clean.name)
    return Found(corruption(clean, corrupted, base, view=view, bins=suite.ece_bins, seed=suite.seed))


def _outcomes(reading: Reading[PlannedCorruptions]) -> tuple[Outcome, dict[Condition, Outcome]]:
    """What remains of an engine's answers, clean and by condition."""
    planned = reading.asked

    def outcome(view: View) -> Outcome:
        return reading.embeddings.answers(view, reading.subject, planned.clean).predictions.outcome()

    return outcome(planned.clean), {condition: outcome(view) for condition, view in planned.corrupted.items()}


def corruption(
    clean: Outcome,
    corrupted: Mapping[Condition, Outcome],
    base: Baseline | None,
    *,
    view: str,
    bins: int = BINS,
    seed: int = 0,
) -> list[Estimate]:
    """Rows per condition (group ``gaussian_noise/3``), their mean, and mCE and relative mCE.

    All conditions show the same samples. ``base`` is which of them the reference gets right, clean and per condition;
    "alexnet" divides by AlexNet's published errors, and without a base there is no mCE: divided by its own errors every
    engine would have 1. mCE is over ImageNet-C's 15 corruptions, as far as they were asked for.
    """
    correct = {condition_group(*condition): one.correct for condition, one in corrupted.items()}
    functions: dict[tuple[str, str], Statistic] = {("", "clean_acc1"): partial(weighted_mean, clean.correct)}
    for condition, one in corrupted.items():
        group = condition_group(*condition)
        functions[group, "corruption_acc1"] = partial(weighted_mean, one.correct)
        functions[group, "corruption_ece"] = partial(calibration.ece, one, bins=bins)
    # All conditions in one call: the resamples are drawn once, and not once for each of a hundred conditions.
    draws = bootstrap(functions, len(clean), seed=seed)
    rows = [
        Estimate(
            view, group, metric, one, "fraction", None if metric.endswith("ece") else correct.get(group, clean.correct)
        )
        for (group, metric), one in draws.items()
    ]
    for metric in ("corruption_acc1", "corruption_ece"):
        mean = mean_of([one for (_, name), one in draws.items() if name == metric], shared=len(clean))
        rows.append(Estimate(view, "", metric, mean, "fraction"))
    standard = [name for name in dict.fromkeys(name for name, _ in corrupted) if name in STANDARD]
    if standard and base is not None:
        rows += _corruption_errors(clean.correct, corrupted, standard, base, view=view, seed=seed)
    return rows


def _corruption_errors(
    clean: Booleans,
    corrupted: Mapping[Condition, Outcome],
    standard: list[str],
    base: Baseline,
    *,
    view: str,
    seed: int,
) -> list[Estimate]:
    conditions = {name: [condition for condition in corrupted if condition[0] == name] for name in standard}

    def stacked(correct: Mapping[Condition, Booleans], name: str, weights: Floats) -> Floats:
        return errors(np.stack([correct[condition] for condition in conditions[name]], axis=1), weights)

    mine = {condition: predictions.correct for condition, predictions in corrupted.items()}

    def both(weights: Floats) -> tuple[list[Floats], Floats, list[Floats], Floats]:
        own = [stacked(mine, name, weights) for name in standard]
        own_clean = 1 - weighted_mean(clean, weights)
        if isinstance(base, str):
            # Published as means over severities: as many severities of that error have the same sum.
            published = [np.full_like(one, ALEXNET_ERRORS[name]) for name, one in zip(standard, own, strict=True)]
            return own, own_clean, published, np.full_like(own_clean, ALEXNET_CLEAN_ERROR)
        base_clean, base_correct = base
        theirs = [stacked(base_correct, name, weights) for name in standard]
        return own, own_clean, theirs, 1 - weighted_mean(base_clean, weights)

    def mce(weights: Floats) -> Floats:
        own, _, theirs, _ = both(weights)
        return mean_corruption_error(own, theirs)

    def relative_mce(weights: Floats) -> Floats:
        return relative_mean_corruption_error(*both(weights))

    functions = {"mean_corruption_error": mce, "relative_mean_corruption_error": relative_mce}
    draws = bootstrap(functions, len(clean), seed=seed)
    return [Estimate(view, "", name, one, "ratio") for name, one in draws.items() if np.isfinite(one.value)]
