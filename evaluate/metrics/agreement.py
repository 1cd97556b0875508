"""How a candidate's answers differ from the reference's on the same samples.

Values are parts of all samples, 0 to 1. ``agreement`` and ``cosine`` are higher-is-better, ``flips_lost`` lower,
``flips_gained`` higher.
"""

from __future__ import annotations

from scipy.special import bdtr

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Booleans, Floats, Predictions


def agreement(candidate: Predictions, reference: Predictions, weights: Floats) -> Floats:
    """Part of the samples given the same class by both."""
    return weighted_mean(candidate.predicted == reference.predicted, weights)


def flips_lost(candidate: Predictions, reference: Predictions, weights: Floats) -> Floats:
    """Part of the samples that the reference gets right and the candidate wrong."""
    return weighted_mean(reference.correct & ~candidate.correct, weights)


def flips_gained(candidate: Predictions, reference: Predictions, weights: Floats) -> Floats:
    """Part of the samples that the reference gets wrong and the candidate right."""
    return weighted_mean(~reference.correct & candidate.correct, weights)


def mcnemar_p(candidate: Booleans, reference: Booleans) -> float:
    """Two-sided exact McNemar p-value of equal accuracy (McNemar, 1947; binomial on the flips); 1 without flips.

    Takes which samples each gets right.

    >>> import numpy as np
    >>> mcnemar_p(np.zeros(5, bool), np.ones(5, bool))
    0.0625
    """
    lost = int((reference & ~candidate).sum())
    gained = int((~reference & candidate).sum())
    if lost + gained == 0:
        return 1.0
    # scipy.stats has this as binomtest, and takes half a second to load.
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))
