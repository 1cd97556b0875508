"""Better, same, worse or unknown: what an interval says about a difference, and how many samples would say more."""

from __future__ import annotations

import math
from typing import Literal

from clipq.bundle import Recipe
from clipq.evaluate.metrics.statistics import CONFIDENCE
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.record import BundleRecord, CensusRecord, Measurement

Verdict = Literal["better", "same", "worse", "unknown"]

# Two engines are called the same where the whole interval of their difference lies within this, in the metric's unit.
# One point of a fraction is what release gates ask about (MLPerf's 99 %).
MARGIN = 0.01


def judge(
    delta: float | None, low: float | None, high: float | None, metric: str, *, n: int, margin: float = MARGIN
) -> Verdict:
    """By the interval of a difference: better or worse where it leaves out 0, same where it lies within ±``margin``.

    Metrics that are neither better high nor better low can only be same or unknown, as can what is not a number.

    >>> [judge(d, d - 0.005, d + 0.005, "acc1", n=1000) for d in (-0.02, 0.0, 0.02)]
    ['worse', 'same', 'better']
    >>> judge(0.0, -0.03, 0.03, "acc1", n=1000)
    'unknown'
    """
    if delta is None or low is None or high is None or not all(map(math.isfinite, (delta, low, high))):
        return "unknown"
    higher_is_better = metric_of(metric).higher_is_better
    if higher_is_better is not None and (low > 0 or high < 0):
        return "better" if (low > 0) == higher_is_better else "worse"
    return "same" if reach(low, high, n) <= margin else "unknown"


def judge_row(row: Measurement) -> Verdict:
    """The verdict on a measurement's difference to the reference."""
    return judge(row.delta, row.delta_low, row.delta_high, row.metric, n=row.n)


def reach(low: float | None, high: float | None, n: int) -> float:
    """How far from 0 the difference may be: the far end of its interval; infinite where there is none.

    >>> reach(0.0, 0.0, 100) > 0.0295
    True
    """
    if low is None or high is None or not math.isfinite(low) or not math.isfinite(high):
        return math.inf
    return max(abs(low), abs(high)) or unseen(n)


def unseen(n: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate of change that ``n`` samples without any change do not exclude: 3 ÷ n at 95 %.

    A bootstrap of samples that all agree has no spread, whatever their number: its interval is a point and claims too
    much. The bound is the rule of three (Hanley and Lippman-Hand, 1983), exact: n samples miss it with probability 5 %.
    """
    return 1 - math.exp(math.log(1 - confidence) / n) if n > 0 else 1.0


def samples_to_decide(n: int, delta: float, low: float, high: float, *, margin: float = MARGIN) -> int:
    """How many samples would decide, if the difference stayed: its interval then leaves out 0 or is within ±``margin``.

    The half-width falls with the square root of the samples, so that n grows with (half-width ÷ distance)²; without any
    difference seen it falls with the samples themselves.

    >>> samples_to_decide(1000, 0.005, -0.005, 0.015)
    4000
    >>> samples_to_decide(50, 0.0, 0.0, 0.0)
    299
    """
    if low == high == 0:
        return max(n, math.ceil(math.log(1 - CONFIDENCE) / math.log(1 - margin))) if margin < 1 else n
    half = max(high - delta, delta - low)
    # The nearer of the two questions: is it beyond 0, is it within the margin.
    distance = max(abs(delta), margin - abs(delta))
    return max(n, math.ceil(n * (half / distance) ** 2 - 1e-6))


def breaks_promise(census: CensusRecord, made: Recipe | BundleRecord, *, simulated: bool) -> bool:
    """Whether a tower whose recipe says integers did not do most of its matrix multiplication in them."""
    promised = made.scheme.arithmetic == "integer" and census.tower in made.towers
    return not simulated and promised and census.verdict != "unknown" and census.integer_share < 0.5
