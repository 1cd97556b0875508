"""Confidence calibration; lower is better, but for the signed gap, which is best at 0.

The confidence of a sample is the probability of its predicted class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import logsumexp

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Floats, Graded, Integers, Predictions

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


def bin_sums(predictions: Graded, weights: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Per resample and equal-width bin: the weight, the summed confidence, the summed correctness."""
    index = bin_of(predictions.confidence, bins)
    values = (np.ones(len(predictions)), predictions.confidence, predictions.correct.astype(np.float64))
    of_weight, of_confidence, of_correct = (_scattered(value, index, bins) for value in values)
    return weights @ of_weight, weights @ of_confidence, weights @ of_correct


def ece(predictions: Graded, weights: Floats, bins: int = BINS) -> Floats:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., 2017)."""
    _, confidence, correct = bin_sums(predictions, weights, bins)
    return np.asarray(np.abs(confidence - correct).sum(1) / weights.sum(1))


def mce(predictions: Predictions, weights: Floats, bins: int = BINS) -> Floats:
    """Largest gap between confidence and accuracy over the equal-width bins that hold samples (Guo et al., 2017)."""
    weight, confidence, correct = bin_sums(predictions, weights, bins)
    gap = np.divide(np.abs(confidence - correct), weight, out=np.zeros_like(weight), where=weight > 0)
    return np.asarray(gap.max(1))


def ece_classwise(predictions: Predictions, weights: Floats, bins: int = BINS) -> Floats:
    """Gap between a class's probability and its frequency over equal-width bins, averaged over classes.

    Kull et al., 2019; every class counts the same, also one that no sample has.
    """
    probabilities = predictions.probabilities
    n, classes = probabilities.shape
    # Nearly all probabilities lie in the first bin: its sums are the totals minus what the other bins hold.
    rows, columns = np.nonzero(probabilities > 1 / bins)
    high = probabilities[rows, columns].astype(np.float64)
    gaps = high - (predictions.labels[rows] == columns)
    index = columns * bins + bin_of(high, bins)
    above = csr_matrix((gaps, (rows, index)), shape=(n, classes * bins))
    # The label's own −1 goes where its probability lies.
    excess = probabilities.astype(np.float32, copy=True)
    excess[np.arange(n), predictions.labels] -= 1
    total = weights @ excess
    by_bin = np.asarray((above.T @ weights.T).T).reshape(len(weights), classes, bins)
    first = total - by_bin[:, :, 1:].sum(2)
    return np.asarray((np.abs(first) + np.abs(by_bin[:, :, 1:]).sum(2)).sum(1) / classes / weights.sum(1))


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
    return weighted_mean(predictions.sum_of_squares - 2 * predictions.of_label + 1, weights)


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


def fit_logit_scale(cosines: Floats, labels: Integers) -> float:
    """The logit scale that minimizes the mean NLL on these samples: temperature scaling (Guo et al., 2017).

    Searched between 0.1 and 10,000; a bias is the same for all classes and plays no part in the softmax.
    """
    # Half of what importing clipq's statistics took, for one function of one axis.
    from scipy.optimize import minimize_scalar

    cosines = cosines.astype(np.float64)
    own = cosines[np.arange(len(labels)), labels]

    def loss(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float((logsumexp(scale * cosines, axis=1) - scale * own).mean())

    found: Any = minimize_scalar(loss, bounds=(np.log(0.1), np.log(1e4)), method="bounded")
    return float(np.exp(found.x))


def _scattered(values: Floats, index: Integers, columns: int) -> Floats:
    scattered = np.zeros((len(values), columns))
    scattered[np.arange(len(values)), index] = values
    return scattered
