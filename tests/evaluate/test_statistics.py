from __future__ import annotations

from functools import partial

import numpy as np
from scipy.stats import bootstrap as scipy_bootstrap

from clipq.evaluate.measure import Answers, Engine, measure_view
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.predictions import Predictions
from clipq.evaluate.statistics import bootstrap, percentile_estimate, resample_weights


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(1.0, 300)
    ours = bootstrap({"mean": partial(weighted_mean, values)}, 300, resamples=4000)["mean"]
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert abs(ours.value - values.mean()) < 1e-12
    assert abs(ours.low - theirs.low) < 0.02 and abs(ours.high - theirs.high) < 0.02


def test_interval_covers_the_truth_at_its_rate():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        hits = rng.random(200) < 0.7
        estimate = bootstrap({"p": partial(weighted_mean, hits)}, 200, resamples=300, seed=trial)["p"]
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.985


def test_resamples_are_the_same_for_a_seed_and_blocks_do_not_matter(monkeypatch):
    whole = np.concatenate(list(resample_weights(50, 40, seed=3)))
    monkeypatch.setattr("clipq.evaluate.statistics._BLOCK_ENTRIES", 50 * 40)
    assert (np.concatenate(list(resample_weights(50, 40, seed=3))) == whole).all()
    assert (whole.sum(1) == 50).all()


def answers(name, probabilities, labels):
    return Answers(
        Engine(name, "r", "ort-cpu", False), Predictions(probabilities, labels), np.eye(len(labels), dtype=np.float32)
    )


def test_paired_difference_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    reference = np.eye(5)[np.where(rng.random(500) < 0.7, labels, (labels + 1) % 5)]
    candidate = reference.copy()
    candidate[:10] = np.eye(5)[(labels[:10] + 2) % 5]
    rows = measure_view("v", answers("c", candidate, labels), answers("r", reference, labels), {})
    row = next(row for row in rows if row.metric == "acc1")
    assert row.delta == row.value - (reference.argmax(1) == labels).mean()
    assert row.delta_high - row.delta_low < 0.5 * (row.high - row.low)
    assert row.low <= row.value <= row.high and row.p_value is not None and row.n == 500


def test_identical_engines_differ_by_nothing():
    labels = np.arange(40) % 4
    probabilities = np.full((40, 4), 0.1) + 0.6 * np.eye(4)[labels]
    rows = measure_view("v", answers("c", probabilities, labels), answers("r", probabilities, labels), {})
    for row in rows:
        if row.delta is not None:
            assert row.delta == row.delta_low == row.delta_high == 0, row.metric
    assert next(row for row in rows if row.metric == "agreement").value == 1


def test_percentile_estimate_brackets_its_value():
    estimate, draws = percentile_estimate([1.0, 2.0, 3.0, 4.0, 100.0], 50)
    assert estimate.value == 3.0 and estimate.low <= 3.0 <= estimate.high and len(draws) == 1000
