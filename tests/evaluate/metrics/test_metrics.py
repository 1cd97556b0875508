"""Each metric against an independent implementation on the same arrays, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from netcal.metrics import ACE, ECE, MCE
from sklearn.metrics import log_loss, recall_score, top_k_accuracy_score

from clipq.errors import DataError
from clipq.evaluate.metrics import accuracy, agreement, calibration
from clipq.evaluate.metrics.predictions import Predictions
from clipq.evaluate.metrics.table import functions_of


def ones(predictions):
    return np.ones((1, len(predictions)))


def value(function, predictions, **options):
    return float(function(predictions, ones(predictions), **options)[0])


def draw(seed, samples=400, classes=12, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((samples, classes)) * sharpness
    labels = np.where(rng.random(samples) < 0.5, logits.argmax(1), rng.integers(0, classes, samples))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(probabilities, labels)


SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_accuracies_agree_with_scikit_learn(seed):
    p = draw(seed)
    classes = np.arange(12)
    assert value(accuracy.acc1, p) == pytest.approx((p.probabilities.argmax(1) == p.labels).mean())
    assert value(accuracy.acc5, p) == pytest.approx(
        top_k_accuracy_score(p.labels, p.probabilities, k=5, labels=classes)
    )
    expected = recall_score(p.labels, p.predicted, average="macro", labels=np.unique(p.labels))
    assert value(accuracy.mean_per_class_recall, p) == pytest.approx(expected)
    assert value(calibration.nll, p) == pytest.approx(log_loss(p.labels, p.probabilities, labels=classes))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_errors_agree_with_netcal(seed, bins):
    p = draw(seed)
    # netcal takes the confidence of the predicted class where it is given class probabilities.
    assert value(calibration.ece, p, bins=bins) == pytest.approx(ECE(bins).measure(p.probabilities, p.labels), abs=1e-6)
    assert value(calibration.mce, p, bins=bins) == pytest.approx(MCE(bins).measure(p.probabilities, p.labels), abs=1e-6)


def test_adaptive_ece_by_hand():
    # Confidences .5 .6 | .7 .9 in two bins of two: |.55 - .5| and |.8 - 1| with weight one half each.
    confidence = np.array([0.9, 0.5, 0.7, 0.6])
    p = Predictions(np.stack([confidence, 1 - confidence], 1), np.array([0, 0, 0, 1]))
    assert value(calibration.ece_adaptive, p, bins=2) == pytest.approx(0.5 * 0.05 + 0.5 * 0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_adaptive_ece_is_near_netcal(seed):
    # netcal borders its equal-count bins by interpolated quantiles, so the two differ by single samples.
    p = draw(seed, samples=3000)
    expected = ACE(10).measure(p.probabilities, p.labels)
    assert expected > 0 and abs(value(calibration.ece_adaptive, p, bins=10) - expected) < 0.2


def test_brier_by_hand():
    p = Predictions(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]), np.array([0, 2]))
    assert value(calibration.brier, p) == pytest.approx(((0.09 + 0.04 + 0.01) + (0.01 + 0.64 + 0.81)) / 2)


def test_aurc_by_hand():
    # From the most confident down: right, wrong, right; risks 0, 1/2, 1/3.
    p = Predictions(np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]), np.array([0, 1, 0]))
    assert value(calibration.aurc, p) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_gap_is_signed():
    p = Predictions(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([1, 1]))
    assert value(calibration.confidence_gap, p) == pytest.approx(0.85)
    assert value(calibration.confidence_gap, Predictions(p.probabilities, np.array([0, 0]))) == pytest.approx(-0.15)


def test_one_sample_one_class():
    p = Predictions(np.ones((1, 1)), np.zeros(1, dtype=int))
    for name, function in functions_of(p).items():
        assert np.isfinite(function(np.ones((1, 1)))), name
    assert value(accuracy.acc1, p) == value(accuracy.acc5, p) == 1
    assert value(calibration.ece, p) == value(calibration.nll, p) == value(calibration.brier, p) == 0


def test_confidence_of_exactly_one_counts_in_the_last_bin():
    p = Predictions(np.tile([1.0, 0.0], (10, 1)), np.array([0] * 6 + [1] * 4))
    assert value(calibration.ece, p) == pytest.approx(0.4)
    assert value(calibration.mce, p) == pytest.approx(0.4)
    assert np.isfinite(value(calibration.nll, p))


def test_ties_do_not_flatter():
    p = Predictions(np.full((4, 2), 0.5), np.array([0, 0, 1, 1]))
    assert value(accuracy.acc1, p) == 0.5
    # Wrong ones first among equals: risks 1, 1, 2/3, 2/4.
    assert value(calibration.aurc, p) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)


def test_weights_are_counts():
    """A row of counts gives the metric of the sample so repeated (adaptive ECE: whole samples, so nearly)."""
    p = draw(3, samples=60)
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.integers(0, 60, 60), minlength=60)
    repeated = p.subset(np.repeat(np.arange(60), counts))
    ones = np.ones((1, len(repeated)), np.float32)
    for (name, function), again in zip(functions_of(p).items(), functions_of(repeated).values(), strict=True):
        tolerance = 0.05 if name in ("ece_adaptive", "aurc") else 1e-6
        weighted = function(counts[None].astype(np.float32))[0]
        assert weighted == pytest.approx(again(ones)[0], abs=tolerance), name


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (5, 0, 0.0625), (1, 1, 1.0), (8, 2, 0.109375)])
def test_mcnemar_by_hand(lost, gained, p):
    n = lost + gained + 3
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    labels = np.zeros(n, dtype=int)
    reference = Predictions(np.array([right] * lost + [wrong] * gained + [right] * 3), labels)
    candidate = Predictions(np.array([wrong] * lost + [right] * gained + [right] * 3), labels)
    assert agreement.mcnemar_p(candidate.correct, reference.correct) == pytest.approx(p)
    assert float(agreement.flips_lost(candidate, reference, ones(candidate))[0]) == pytest.approx(lost / n)
    assert float(agreement.flips_gained(candidate, reference, ones(candidate))[0]) == pytest.approx(gained / n)
    assert float(agreement.agreement(candidate, reference, ones(candidate))[0]) == pytest.approx(3 / n)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        ([[3.0, 1.0]], [0]),  # logits
        ([[0.5, 0.5]], [2]),  # label out of range
        ([[np.nan, 1.0]], [0]),
        ([[1.2, -0.2]], [0]),
        ([[0.5, 0.5]], [0, 1]),
    ],
)
def test_refuses_what_is_not_probabilities(probabilities, labels):
    with pytest.raises(DataError):
        Predictions(np.array(probabilities), np.array(labels))
