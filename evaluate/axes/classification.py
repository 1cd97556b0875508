"""Zero-shot classification by one engine on one view: accuracy, confidence calibration."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.special import softmax

from clipq.evaluate.axes.reading import Found, Reading, answers_of
from clipq.evaluate.metrics import calibration
from clipq.evaluate.metrics.calibration import BINS, bin_sums, fit_logit_scale
from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions
from clipq.evaluate.metrics.statistics import Draws, Statistic, bootstrap, wilson
from clipq.evaluate.metrics.table import functions_of
from clipq.evaluate.metrics.zeroshot import Answers, GivenAnswers
from clipq.evaluate.results.estimates import Estimate, estimate
from clipq.evaluate.results.pairing import SampleAnswers
from clipq.evaluate.results.record import ReliabilityBin
from clipq.evaluate.suites.plan import PlannedView
from clipq.evaluate.suites.schema import Suite


def measure(reading: Reading[PlannedView]) -> Found:
    """Accuracy and calibration on a labelled view, calibration once more with a fitted logit scale."""
    answers, suite, view = reading.once(answers_of), reading.suite, reading.asked.view
    templates = reading.embeddings.templates_of(view, reading.subject)
    return Found(
        estimates=[
            *classification(answers, view=view.name, bins=suite.ece_bins, seed=suite.seed),
            *_tuned(answers, suite, view.name),
        ],
        view={
            "classes": answers.predictions.probabilities.shape[1],
            "templates": templates.name,
            "template_count": len(templates.templates),
            "reliability": reliability(answers.predictions, suite.ece_bins),
        },
        answers=SampleAnswers.of(answers.ids, answers.predictions),
    )


def _tuned(answers: Answers | GivenAnswers, suite: Suite, view: str) -> list[Estimate]:
    """A scale is fitted to cosines; of predictions alone there are none."""
    if isinstance(answers, GivenAnswers):
        return []
    return tuned(answers, view=view, fraction=suite.tune_fraction, bins=suite.ece_bins, seed=suite.seed)


def classification(answers: Answers | GivenAnswers, *, view: str, bins: int = BINS, seed: int = 0) -> list[Estimate]:
    """All classification metrics of an engine on a view."""
    predictions = answers.predictions
    return with_correct(estimate(functions_of(predictions, bins), len(predictions), view=view, seed=seed), predictions)


def tuned(answers: Answers, *, view: str, fraction: float, bins: int = BINS, seed: int = 0) -> list[Estimate]:
    """ECE before and after fitting the logit scale on a held-out part of the samples; both on the rest.

    Which samples are held out depends on their ids and the seed, so it is the same for every engine. Nothing where an
    engine answers all of them right: the larger the scale, the better, and where a search ends is rounding's luck.
    """
    held_out = np.array([zlib.crc32(f"{seed}/{name}".encode()) / 2**32 < fraction for name in answers.ids])
    if held_out.sum() < 2 or (~held_out).sum() < 2 or not answers.classifier.is_plain:
        return []
    if answers.subset(held_out).predictions.correct.all():
        return []
    fitted = fit_logit_scale(answers.cosines[held_out], answers.labels[held_out])
    rest = answers.subset(~held_out)
    before, after = rest.predictions, rest.classifier.predict(rest.cosines, rest.labels, fitted)
    functions: dict[str, Statistic] = {
        "ece_untuned": partial(calibration.ece, before, bins=bins),
        "ece_tuned": partial(calibration.ece, after, bins=bins),
    }
    rows = estimate(functions, len(rest.labels), view=view, seed=seed)
    scales = _resampled_scales(answers, held_out, fitted, seed)
    return [*rows, Estimate(view, "", "logit_scale_tuned", Draws(fitted, scales, int(held_out.sum())), "scale")]


def _resampled_scales(answers: Answers, held_out: Booleans, fitted: float, seed: int) -> Floats:
    """The fitted scale on resamples of the held-out part, by one Newton step of the mean NLL from the fit.

    At its minimum the mean NLL's slope in the scale is 0 and its curvature the mean variance of the cosines under the
    predicted classes; so each resample needs two weighted means instead of a search.
    """
    cosines = answers.cosines[held_out].astype(np.float64)
    probabilities = softmax(fitted * cosines, axis=1)
    expected = (probabilities * cosines).sum(1)
    slope = expected - cosines[np.arange(len(cosines)), answers.labels[held_out]]
    curvature = (probabilities * cosines**2).sum(1) - expected**2
    step: Statistic = lambda weights: fitted - (weights @ slope) / (weights @ curvature)  # noqa: E731
    # Where all is answered surely, no resample has a curvature: its scale is unknown.
    with np.errstate(divide="ignore", invalid="ignore"):
        return bootstrap({"scale": step}, len(cosines), seed=seed)["scale"].resampled


def with_correct(estimates: list[Estimate], predictions: Predictions) -> list[Estimate]:
    """Top-1 accuracies know which samples are right, for McNemar's test."""
    return [replace(one, correct=predictions.correct) if one.metric == "acc1" else one for one in estimates]


def reliability(predictions: Predictions, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """The bars of the reliability diagram with Wilson intervals, empty bins left out."""
    weight, confidence, correct = (row[0] for row in bin_sums(predictions, np.ones((1, len(predictions))), bins))
    edges = np.linspace(0, 1, bins + 1)
    bars = []
    for index in np.flatnonzero(weight):
        low, high = wilson(float(correct[index]), float(weight[index]))
        bars.append(
            ReliabilityBin(
                lower=float(edges[index]),
                upper=float(edges[index + 1]),
                n=int(weight[index]),
                confidence=float(confidence[index] / weight[index]),
                accuracy=float(correct[index] / weight[index]),
                low=low,
                high=high,
            )
        )
    return tuple(bars)
