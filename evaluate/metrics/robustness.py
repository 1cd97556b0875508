"""Robustness: corruption errors, accuracy under attack, accuracy that shift costs beyond what its baseline explains.

Functions take weight matrices (resamples × samples) and return one value per resample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.predictions import Booleans, Floats

# AlexNet's error on ImageNet-C, mean over the five severities, and on clean ImageNet (Hendrycks and Dietterich, 2019;
# the figures of google-research/augmix).
ALEXNET_CLEAN_ERROR = 0.4348
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip


def errors(correct: Booleans, weights: Floats) -> Floats:
    """Error per resample and condition; ``correct`` is samples × conditions, the same samples in each."""
    return np.asarray(1 - (weights @ correct.astype(np.float64)) / weights.sum(1, keepdims=True))


def mean_corruption_error(by_corruption: Sequence[Floats], baseline: Sequence[Floats]) -> Floats:
    """mCE: mean over corruptions of the error over severities ÷ the baseline's (Hendrycks and Dietterich, 2019).

    Each list has one array (resamples × severities) per corruption. 1 is the baseline's level, lower is better; a
    corruption on which the baseline makes no error has no value and makes the mean undefined.
    """
    ratios = []
    for mine, base in zip(by_corruption, baseline, strict=True):
        below = base.sum(1)
        ratios.append(np.divide(mine.sum(1), below, out=np.full_like(below, np.nan), where=below > 1e-9))
    return np.mean(ratios, axis=0)


def relative_mean_corruption_error(
    by_corruption: Sequence[Floats], clean: Floats, baseline: Sequence[Floats], baseline_clean: Floats
) -> Floats:
    """Relative mCE: as mCE, with each error taken above the clean error; lower is better."""
    above = [mine - clean[:, None] for mine in by_corruption]
    base = [theirs - baseline_clean[:, None] for theirs in baseline]
    return mean_corruption_error(above, base)


def relative_drop(inside: Booleans, shifted: Booleans, w_inside: Floats, w_shifted: Floats) -> Floats:
    """Part of the in-distribution accuracy that is lost under shift: 1 − shifted ÷ in-distribution; lower is better."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - weighted_mean(shifted, w_shifted) / weighted_mean(inside, w_inside)


def effective_robustness(accuracy: Floats, inside: Floats, base: Floats, base_inside: Floats) -> Floats:
    """Shifted accuracy beyond what the in-distribution accuracy explains (Taori et al., 2020); higher is better.

    Their baseline is fitted on a testbed of models in logit space. With one reference at hand, the line goes through
    the reference with slope 1: logit(expected) = logit(inside) + logit(base) − logit(base_inside). The reference has 0.
    """
    # Accuracies of exactly 0 and 1 have no logit; a hair inside keeps the difference finite.
    inside, base, base_inside = (np.clip(value, 1e-6, 1 - 1e-6) for value in (inside, base, base_inside))
    return np.asarray(accuracy - expit(logit(inside) + logit(base) - logit(base_inside)))
