from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from clipq.evaluate.axes.agreement import compared
from clipq.evaluate.axes.classification import classification
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.statistics import (
    Draws,
    bootstrap,
    holm,
    intervals,
    median_ratio,
    percentile_draws,
    resample_weights,
    wilson,
)
from clipq.evaluate.metrics.zeroshot import Answers, Classifier
from clipq.evaluate.results.estimates import Engine, measurements


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(1.0, 300)
    ours = bootstrap({"mean": partial(weighted_mean, values)}, 300, resamples=4000)["mean"]
    theirs = scipy_bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    assert abs(ours.value - values.mean()) < 1e-12
    low, high = ours.interval()
    assert abs(low - theirs.low) < 0.02 and abs(high - theirs.high) < 0.02


def test_interval_covers_the_truth_at_its_rate():
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        hits = rng.random(200) < 0.7
        low, high = bootstrap({"p": partial(weighted_mean, hits)}, 200, resamples=300, seed=trial)["p"].interval()
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 300 <= 0.985


def test_resamples_are_the_same_for_a_seed_and_blocks_do_not_matter(monkeypatch):
    whole = np.concatenate(list(resample_weights(50, 40, seed=3)))
    monkeypatch.setattr("clipq.evaluate.metrics.statistics._BLOCK_ENTRIES", 50 * 40)
    assert (np.concatenate(list(resample_weights(50, 40, seed=3))) == whole).all()
    assert (whole.sum(1) == 50).all()


REFERENCE, CANDIDATE = Engine("r", "fp32", "ort-cpu", False), Engine("c", "int8", "ort-cpu", False)


def answers(chosen, labels, classes=5):
    """Answers that choose these classes, at a temperature that makes them nearly certain."""
    classifier = Classifier(np.eye(classes, dtype=np.float32), np.arange(classes), 20.0, None)
    return Answers(np.eye(classes, dtype=np.float32)[chosen], classifier, labels, tuple(map(str, range(len(labels)))))


def compare(candidate, reference):
    estimates = classification(candidate, view="v") + compared(candidate, reference, view="v")
    return measurements(CANDIDATE, estimates, REFERENCE, classification(reference, view="v"))


def test_paired_difference_is_narrower_than_unpaired():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    reference = np.where(rng.random(500) < 0.7, labels, (labels + 1) % 5)
    candidate = reference.copy()
    candidate[:10] = (labels[:10] + 2) % 5
    row = next(row for row in compare(answers(candidate, labels), answers(reference, labels)) if row.metric == "acc1")
    assert row.delta == row.value - (reference == labels).mean()
    assert row.delta_high - row.delta_low < 0.5 * (row.high - row.low)
    assert row.low <= row.value <= row.high and row.p_value is not None and row.n == 500


def test_identical_engines_differ_by_nothing():
    labels = np.arange(40) % 5
    rows = compare(answers((labels + (labels == 2)) % 5, labels), answers((labels + (labels == 2)) % 5, labels))
    for row in rows:
        if row.delta is not None:
            assert row.delta == row.delta_low == row.delta_high == 0 and row.p_value == 1, row.metric
    assert next(row for row in rows if row.metric == "agreement").value == 1
    assert all(row.delta is None for row in rows if row.metric in ("agreement", "cosine"))


def test_an_interval_holds_its_value_where_resampling_is_biased():
    from clipq.evaluate.metrics.calibration import ece
    from clipq.evaluate.metrics.predictions import Outcome

    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.3, 1, 150)
    calibrated = Outcome(confidence, rng.random(150) < confidence)
    draws = bootstrap({"ece": partial(ece, calibrated)}, 150)["ece"]
    low, high = draws.interval()
    assert draws.resampled.mean() > draws.value + 0.005, "binned ECE is larger on resamples"
    assert low < draws.value < high and high - low == pytest.approx(
        np.ptp(np.quantile(draws.resampled, [0.025, 0.975]))
    )


def test_a_difference_of_one_sample_in_two_hundred_does_not_leave_zero_out():
    """One flip: McNemar's p is 1, and a third of the resamples do not hold the sample at all."""
    for seed in range(20):
        flips = np.zeros(200)
        flips[0] = -1
        low, high = bootstrap({"d": partial(weighted_mean, flips)}, 200, seed=seed)["d"].interval()
        assert low < 0 and high == 0


def test_differences_over_two_populations_are_paired_across_calls():
    first, second = np.random.default_rng(0).random((2, 300)), np.random.default_rng(1).random((2, 200))

    def function(row):
        return lambda a, b: weighted_mean(first[row], a) - weighted_mean(second[row], b)

    together = bootstrap({"x": function(0), "y": function(1)}, 300, 200, seed=5)
    apart = [bootstrap({"f": function(row)}, 300, 200, seed=5)["f"] for row in (0, 1)]
    assert ((together["x"] - together["y"]).resampled == (apart[0] - apart[1]).resampled).all()


def test_wald_p_value_agrees_with_the_z_test():
    from scipy.stats import norm

    values = np.random.default_rng(2).normal(0.1, 1, 400)
    draws = bootstrap({"mean": partial(weighted_mean, values)}, 400, resamples=4000)["mean"]
    expected = 2 * norm.sf(abs(values.mean()) / (values.std(ddof=1) / 20))
    assert draws.p_value() == pytest.approx(expected, rel=0.25)


def test_holm_agrees_with_statsmodels_by_hand():
    # Holm's own example: thresholds .05/4, .05/3, ... stop at the first that fails.
    assert holm([0.01, 0.02, 0.03, 0.04]) == [True, False, False, False]
    assert holm([0.001, 0.01, 0.024, 0.04]) == [True, True, True, True]
    assert holm([]) == []


def test_wilson_agrees_with_scipy():
    from scipy.stats import binomtest

    for hits, n in ((0, 5), (3, 10), (10, 10), (700, 1000)):
        theirs = binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_percentile_draws_bracket_their_value():
    draws = percentile_draws([1.0, 2.0, 3.0, 4.0, 100.0], 50)
    low, high = draws.percentile_interval()
    assert draws.value == 3.0 and 1 <= low <= 3.0 <= high <= 100 and len(draws.resampled) == 1000
    outlier = percentile_draws([1.0, 1.1, 1.2, 1.3, 40.0], 99)
    low, high = outlier.percentile_interval()
    assert 1 <= low <= outlier.value <= high <= 40, "a latency's interval stays among the latencies seen"


@pytest.mark.parametrize("kind", ["means", "biased", "holes", "ragged", "one value"])
def test_intervals_of_many_are_those_of_each(kind):
    rng = np.random.default_rng(0)
    resampled = [rng.normal(0.8, 0.01, 1000).astype(np.float32) for _ in range(1100)]
    values = [0.7 if kind == "biased" else 0.8] * len(resampled)
    if kind == "holes":
        resampled[600][:7] = np.nan
        resampled[601][:] = np.nan
    elif kind == "ragged":
        resampled[3] = resampled[3][:1]
    elif kind == "one value":
        resampled[5][:] = 0.8
    draws = [Draws(value, row, 100) for value, row in zip(values, resampled, strict=True)]
    for confidence in (0.95, 0.9999):
        expected = [one.interval(confidence) for one in draws]
        np.testing.assert_allclose(intervals(draws, confidence), expected, rtol=1e-6, equal_nan=True)


def test_the_interval_of_a_ratio_holds_what_two_copies_differ_in():
    rng = np.random.default_rng(0)
    mine, base, copy = (rng.normal(1, 0.01, 30) for _ in range(3))
    ratio, low, high = median_ratio((0.5 * mine).tolist(), base.tolist())
    assert 0.49 < low <= ratio <= high < 0.51
    same, least, most = median_ratio((0.5 * mine).tolist(), base.tolist(), (1.2 * copy).tolist())
    assert same == ratio and least < 0.43 and most < 0.51, "by 20 %"


@pytest.mark.parametrize("common", [0.0, 0.1])
def test_intervals_of_times_that_hang_together_hold_the_truth(common):
    """Of an engine and one that takes 0.8 of it, in turns that resemble their neighbours, on a machine that drifts."""
    rng = np.random.default_rng(1)

    def drift(spread):
        states = [rng.normal(0, 1)]
        for noise in rng.normal(0, 1, 29):
            states.append(0.6 * states[-1] + 0.8 * noise)
        return spread * np.array(states)

    held = 0
    for _ in range(100):
        machine = drift(common)
        mine, base, copy = (np.exp(machine + drift(0.05)).tolist() for _ in range(3))
        _, low, high = median_ratio([0.8 * one for one in mine], base, copy)
        held += low <= 0.8 <= high
    assert held >= 85
