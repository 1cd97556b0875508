"""Better, same, worse or unknown: what an interval says about a difference, and how many samples would say more."""

from __future__ import annotations

import math
from typing import Literal

from clipq.evaluate.metrics import orientation

Verdict = Literal["better", "same", "worse", "unknown"]

# Two engines are called the same where the whole interval of their difference lies within this, in the metric's unit.
# One point of a fraction is what release gates ask about (MLPerf's 99 %).
MARGIN = 0.01


def judge(
    delta: float | None, low: float | None, high: float | None, metric: str, *, margin: float = MARGIN
) -> Verdict:
    """By the interval of a difference: better or worse where it leaves out 0, same where it lies within ±``margin``.

    Metrics that are neither better high nor better low can only be same or unknown, as can what is not a number.

    >>> [judge(d, d - 0.005, d + 0.005, "acc1") for d in (-0.02, 0.0, 0.02)]
    ['worse', 'same', 'better']
    >>> judge(0.0, -0.03, 0.03, "acc1")
    'unknown'
    """
    if delta is None or low is None or high is None or not all(map(math.isfinite, (delta, low, high))):
        return "unknown"
    higher_is_better = higher(metric)
    if higher_is_better is not None and (low > 0 or high < 0):
        return "better" if (low > 0) == higher_is_better else "worse"
    return "same" if max(abs(low), abs(high)) <= margin else "unknown"


def samples_to_decide(n: int, delta: float, low: float, high: float, *, margin: float = MARGIN) -> int:
    """How many samples would decide, if the difference stayed: its interval then leaves out 0 or is within ±``margin``.

    The half-width falls with the square root of the samples, so that n grows with (half-width ÷ distance)².

    >>> samples_to_decide(1000, 0.005, -0.005, 0.015)
    4000
    """
    half = max(high - delta, delta - low)
    # The nearer of the two questions: is it beyond 0, is it within the margin.
    distance = max(abs(delta), margin - abs(delta))
    return max(n, math.ceil(n * (half / distance) ** 2 - 1e-6))


def higher(metric: str) -> bool | None:
    """Whether higher is better, also for what is measured of the engine itself; None where neither is."""
    name = metric.split(".")[0]
    if name in ("latency_ms", "device_latency_ms", "file_bytes", "peak_rss_bytes", "gpu_bytes", "joules_per_sample"):
        return False
    if name in ("throughput", "integer_share"):
        return True
    return False if name == "reformat_share" else orientation(metric)[1]
