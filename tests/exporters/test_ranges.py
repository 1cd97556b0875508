from __future__ import annotations

import numpy as np
import pytest

from clipq.errors import RecipeError
from clipq.exporters.ranges import HALF_BINS, RangeHistogram, entropy_threshold
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


def test_not_finite_is_refused():
    with pytest.raises(RecipeError, match="not finite"):
        filled([1.0, np.nan])
