"""Numbers as text."""

from __future__ import annotations

import math

import numpy as np

from clipq.evaluate.results.record import Measurement


def times(ratio: float) -> str:
    """A ratio: 3.4×, and 1.03× where it is small."""
    return f"{ratio:.1f}×" if ratio >= 1.15 else f"{ratio:.2f}×"


def difference(row: Measurement, *, unit: str = " points") -> str:
    """The difference with its interval, in points for fractions."""
    if row.delta is None or row.delta_low is None or row.delta_high is None:
        return ""
    if math.isnan(row.delta):
        return "not a number"
    numbers = (row.delta, row.delta_low, row.delta_high)
    if not any(numbers):
        return f"no change in {row.n}"
    if row.unit == "fraction":
        delta, low, high = (f"{100 * number:+.1f}" for number in numbers)
    else:
        (delta, low, high), unit = (f"{number:+.3f}" for number in numbers), ""
    return f"{delta}{unit} [{low}, {high}]".replace("-", "−")


def amount(value: float, row: Measurement) -> str:
    """A bound, in points for fractions."""
    return points(value) if row.unit == "fraction" else f"{value:.3f}"


def points(value: float) -> str:
    """A bound of a fraction in percentage points, rounded up."""
    # Rounded up: the interval must lie within what is said.
    return f"{max(0.1, np.ceil(1000 * value - 1e-9) / 10):.1f} points"
