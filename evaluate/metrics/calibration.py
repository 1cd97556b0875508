"""Confidence calibration; lower is better, but for the signed gap, which is best at 0.

The confidence of a sample is the probability of its predicted class.
"""

from __future__ import annotations

import numpy as np

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.predictions import Floats, Integers, Predictions

BINS = 15

# Probabilities of 0 occur in float32 at CLIP's temperature; -log of this floor is 103.3 nats.
_LEAST_PROBABILITY = np.finfo(np.float32).smallest_subnormal


def bin_of(confidence: Floats, bins: int = BINS) -> Integers:
    """Index of the equal-width bin ``(lower, upper]`` of each confidence; 0 falls into the first bin.

    The last bin includes 1.0: float32 softmax saturates at CLIP's temperature.

    >>> bin_of(np.array([0.0, 0.05, 0.1, 0.1001, 1.0]), bins=10).tolist()
    [0, 0, 0, 1, 9]
    """
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def bin_sums(predictions: Predictions, weights: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Per resample and equal-width bin: the weight, the summed confidence, the summed correctness."""
    member = np.zeros((len(predictions), bins))
    member[np.arange(len(predictions)), bin_of(predictions.confidence, bins)] = 1
    return (
        weights @ member,
        weights @ (member * predictions.confidence[:, None]),
        weights @ (member * predictions.correct[:, None]),
    )


def ece(predictions: Predictions, weights: Floats, bins: int = BINS) -> Floats:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., 2017)."""
    _, confidence, correct = bin_sums(predictions, weights, bins)
    return np.asarray(np.abs(confidence - correct).sum(1) / weights.sum(1))


def mce(predictions: Predictions, weights: Floats, bins: int = BINS) -> Floats:
    """Largest gap between confidence and accuracy over the equal-width bins that hold samples (Guo et al., 2017)."""
    weight, confidence, correct = bin_sums(predictions, weights, bins)
    gap = np.divide(np.abs(confidence - correct), weight, out=np.zeros_like(weight), where=weight > 0)
    return np.asarray(gap.max(1))


def ece_adaptive(predictions: Predictions, weights: Floats, bins: int = BINS) -> Floats:
    """Mean gap between confidence and accuracy over bins of equal count (Nixon et al., 2019).

    Samples are ordered by confidence, equals by position; sample k of n falls into bin floor(k · bins / n).
    """
    order = np.argsort(predictions.confidence, kind="stable")
    gap = (predictions.confidence - predictions.correct)[order]
    ordered = weights[:, order]
    total = ordered.sum(1, keepdims=True)
    before = np.cumsum(ordered, axis=1) - ordered
    # A repeated sample that straddles a border goes whole into the bin it begins in.
    index = np.minimum((before * bins / total).astype(np.int64), bins - 1)
    flat = index + bins * np.arange(len(weights))[:, None]
    sums = np.bincount(flat.ravel(), weights=(ordered * gap).ravel(), minlength=bins * len(weights))
    return np.asarray(np.abs(sums.reshape(len(weights), bins)).sum(1) / total[:, 0])


def confidence_gap(predictions: Predictions, weights: Floats) -> Floats:
    """Mean confidence minus accuracy: positive is overconfident, negative underconfident, 0 is best."""
    return weighted_mean(predictions.confidence - predictions.correct, weights)


def nll(predictions: Predictions, weights: Floats) -> Floats:
    """Mean negative log-likelihood of the label, in nats."""
    return weighted_mean(-np.log(np.maximum(predictions.of_label, _LEAST_PROBABILITY)), weights)


def brier(predictions: Predictions, weights: Floats) -> Floats:
    """Mean squared distance of the probabilities to the one-hot label, summed over classes: 0 to 2 (Brier, 1950)."""
    squares = (predictions.probabilities.astype(np.float64) ** 2).sum(1)
    return weighted_mean(squares - 2 * predictions.of_label + 1, weights)


def aurc(predictions: Predictions, weights: Floats) -> Floats:
    """Area under the risk-coverage curve: the error rate, averaged over all coverages (Geifman et al., 2019).

    Samples are kept from the most confident down; among equals the wrong ones come first, so that ties are not luck.
    """
    order = np.lexsort((predictions.correct, -predictions.confidence))
    ordered = weights[:, order]
    kept = np.cumsum(ordered, axis=1)
    wrong = np.cumsum(ordered * ~predictions.correct[order], axis=1)
    risk = np.divide(wrong, kept, out=np.zeros_like(wrong), where=kept > 0)
    return np.asarray((risk * ordered).sum(1) / ordered.sum(1))
