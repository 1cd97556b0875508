"""Accuracy of zero-shot classification; higher is better, 0 to 1."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions


def weighted_mean(values: Floats | Booleans, weights: Floats) -> Floats:
    """Mean of per-sample values under each row of weights."""
    return np.asarray(weights @ values.astype(np.float64)) / weights.sum(1)


def share(hits: Booleans, of: Booleans, weights: Floats) -> Floats:
    """Weight of the hits ÷ weight of the samples they are among, undefined (NaN) without any; rows are groups."""
    numerator = weights @ hits.T.astype(np.float32)
    denominator = weights @ of.T.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator.astype(np.float64) / denominator)


def acc1(predictions: Predictions, weights: Floats) -> Floats:
    """Part of the samples whose most probable class is the label."""
    return weighted_mean(predictions.correct, weights)


def acc5(predictions: Predictions, weights: Floats) -> Floats:
    """Part of the samples whose label is among the five most probable classes; 1 with five classes or fewer."""
    return weighted_mean(predictions.rank_of_label < 5, weights)


def mean_per_class_recall(predictions: Predictions, weights: Floats) -> Floats:
    """Recall averaged over the classes that occur in the (re)sample, as CLIP_benchmark averages it."""
    n, classes = predictions.probabilities.shape
    of_class = csr_matrix((np.ones(n), (predictions.labels, np.arange(n))), shape=(classes, n))
    support = np.asarray(of_class @ weights.T).T
    hits = np.asarray(of_class @ (weights * predictions.correct).T).T
    present = support > 0
    return np.asarray(np.divide(hits, support, out=np.zeros_like(hits), where=present).sum(1) / present.sum(1))
