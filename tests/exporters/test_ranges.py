from __future__ import annotations

import numpy as np
import pytest

from clipq.errors import RecipeError
from clipq.exporters.ranges import CHUNK, HALF_BINS, RangeHistogram, bin_counts, entropy_threshold
from clipq.exporters.recipes import Int8Static


def filled(*batches):
    histogram = RangeHistogram()
    for batch in batches:
        histogram.add(np.asarray(batch, dtype=np.float32))
    return histogram


def test_minmax_is_exact_and_holds_zero():
    assert filled([1.0, 2.0], [5.0]).range(Int8Static("minmax")) == (0.0, 5.0)
    assert filled([-3.0, 2.0]).range(Int8Static("minmax")) == (-3.0, 2.0)
    assert filled([0.0, 0.0]).range(Int8Static("minmax")) == (0.0, 0.0)


def test_order_of_batches_changes_no_count_when_the_limit_is_reached_by_doubling():
    rng = np.random.default_rng(0)
    small, large = rng.uniform(-1, 1, 1000), np.append(rng.uniform(-4, 4, 1000), 4.0)
    first = filled(np.append(small, 1.0), large)
    second = filled(large, np.append(small, 1.0))
    assert first.limit == second.limit == 4.0
    assert first.counts.sum() == second.counts.sum() == 2002
    # Merged pairs of fine bins are the coarse bins, up to values that fall on a border.
    assert np.abs(first.counts - second.counts).sum() <= 4


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_agrees_with_numpy(percentile):
    values = np.random.default_rng(1).standard_normal(200_000).astype(np.float32)
    low, high = filled(*np.split(values, 20)).range(Int8Static("percentile", percentile=percentile))
    expected = np.percentile(np.abs(values), percentile)
    assert high == pytest.approx(expected, rel=0.01) and low == pytest.approx(-expected, rel=0.01)


def test_entropy_clips_a_lonely_outlier_but_not_a_uniform_tensor():
    rng = np.random.default_rng(2)
    values = np.append(rng.standard_normal(100_000), 60.0)
    low, high = filled(values).range(Int8Static("entropy"))
    assert 3 < high < 20 and low >= -20
    uniform = filled(rng.uniform(-1, 1, 100_000))
    assert uniform.range(Int8Static("entropy"))[1] > 0.9


def test_entropy_threshold_stays_in_bounds():
    assert entropy_threshold(np.ones(HALF_BINS, dtype=np.int64)) > 0.95 * HALF_BINS
    empty_tail = np.zeros(HALF_BINS, dtype=np.int64)
    empty_tail[:200] = 100
    assert 128 <= entropy_threshold(empty_tail) <= HALF_BINS


def entropy_by_definition(counts):
    counts = counts.astype(float)
    counts[0] = counts[1]
    divergences = {}
    for kept in range(128, HALF_BINS + 1, 8):
        clipped = np.append(counts[: kept - 1], counts[kept - 1 :].sum())
        parts = np.split(counts[:kept], np.arange(1, 128) * kept // 128)
        merged = np.concatenate([(part > 0) * part.sum() / max((part > 0).sum(), 1) for part in parts])
        p, q = clipped / clipped.sum(), merged / max(merged.sum(), 1)
        there = p > 0
        divergences[kept] = (p[there] * np.log(p[there] / np.maximum(q[there], 1e-12))).sum()
    return min(divergences, key=divergences.get)


@pytest.mark.parametrize("draw", ["standard_normal", "standard_exponential", "standard_cauchy"])
@pytest.mark.parametrize("size", [50, 5000, 500_000])
def test_entropy_threshold_is_the_definitions(draw, size):
    magnitudes = filled(getattr(np.random.default_rng(3), draw)(size))._magnitudes()
    assert entropy_threshold(magnitudes) == entropy_by_definition(magnitudes)


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK + 7])
def test_counts_do_not_depend_on_chunks(size):
    values = np.random.default_rng(4).standard_normal(size).astype(np.float32)
    limit = float(np.abs(values).max())
    index = ((values + limit) * (HALF_BINS / limit)).astype(int).clip(max=2 * HALF_BINS - 1)
    assert (bin_counts(values, limit) == np.bincount(index, minlength=2 * HALF_BINS)).all()


def test_without_counts_there_is_minmax_alone():
    uncounted = RangeHistogram(counted=False)
    uncounted.add(np.array([-3.0, 2.0], dtype=np.float32))
    assert uncounted.range(Int8Static("minmax")) == (-3.0, 2.0)
    with pytest.raises(ValueError, match="entropy ranges are drawn from counts"):
        uncounted.range(Int8Static("entropy"))


def test_not_finite_is_refused():
    with pytest.raises(RecipeError, match="not finite"):
        filled([1.0, np.nan])
