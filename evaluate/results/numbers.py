"""Numbers as text, here and nowhere else: one minus sign, percent and points for fractions."""

from __future__ import annotations

import math

import numpy as np

from clipq.evaluate.results.record import Measurement


def number(value: float, unit: str = "", *, signed: bool = False, digits: int = 3) -> str:
    """A value: fractions in percent with one digit, everything else with ``digits``.

    >>> number(0.8314, "fraction"), number(-0.005, "fraction", signed=True), number(1.5)
    ('83.1', '−0.5', '1.500')
    """
    factor, places = (100, 1) if unit == "fraction" else (1, digits)
    return f"{factor * value:{'+' if signed else ''}.{places}f}".replace("-", "−")


def with_interval(
    value: float, low: float | None, high: float | None, unit: str = "", *, signed: bool = False, digits: int = 3
) -> str:
    """A value with its interval, where it has one.

    >>> with_interval(-0.005, -0.01, 0.002, "fraction", signed=True)
    '−0.5 [−1.0, +0.2]'
    """
    bounds = [number(one, unit, signed=signed, digits=digits) for one in (low, high) if one is not None]
    text = number(value, unit, signed=signed, digits=digits)
    return f"{text} [{', '.join(bounds)}]" if len(bounds) == 2 else text


def value(row: Measurement) -> str:
    """A measurement with its interval."""
    return with_interval(row.value, row.low, row.high, row.unit)


def delta(row: Measurement) -> str:
    """A measurement's difference to the reference with its interval; empty where there is none."""
    if row.delta is None or row.delta_low is None or row.delta_high is None:
        return ""
    return with_interval(row.delta, row.delta_low, row.delta_high, row.unit, signed=True)


def difference(row: Measurement, *, unit: str = " points") -> str:
    """The difference in words: points for fractions, and no change where there was none."""
    if row.delta is None or row.delta_low is None or row.delta_high is None:
        return ""
    if math.isnan(row.delta):
        return "not a number"
    if not any((row.delta, row.delta_low, row.delta_high)):
        return f"no change in {row.n}"
    first, _, bounds = delta(row).partition(" ")
    return f"{first}{unit if row.unit == 'fraction' else ''} {bounds}"


def ratio(value: float, low: float, high: float) -> str:
    """A ratio with its interval."""
    return with_interval(value, low, high, digits=2)


def times(ratio: float) -> str:
    """A ratio in a sentence: 3.4×, and 1.03× where it is small."""
    return f"{ratio:.1f}×" if ratio >= 1.15 else f"{ratio:.2f}×"


def amount(value: float, row: Measurement) -> str:
    """A bound, in points for fractions."""
    return points(value) if row.unit == "fraction" else number(value)


def points(value: float) -> str:
    """A bound of a fraction in percentage points."""
    # Rounded up: the interval must lie within what is said.
    return f"{max(0.1, np.ceil(1000 * value - 1e-9) / 10):.1f} points"
