"""What many engines have in common, found by itself, each with its counts and a significance that is corrected.

A regularity says that an axis improves (or worsens) in at least half of a family of cases; a case is one measurement of
one engine. Its p-value is the partial-conjunction test's (Benjamini and Heller, 2008): for at least u of k cases,
(k − u + 1) · p₍ᵤ₎ of the one-sided p-values. That holds whatever the cases have in common, and they have much: the same
photos and the same reference. All families, axes and directions that were looked at are then corrected by Holm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from clipq.evaluate.metrics.statistics import holm
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.record import Measurement
from clipq.evaluate.verdicts.by_axis import confidence_state
from clipq.evaluate.verdicts.headline import AXES, headline
from clipq.evaluate.verdicts.judgement import judge_row

# Of two cases, half is one: no regularity.
SMALLEST = 3

Direction = Literal["improves", "worsens"]


@dataclass(frozen=True)
class Regularity:
    """``count`` of ``cases`` are beyond their interval in the direction; ``p_value`` that at least half truly are."""

    axis: str
    family: str
    direction: Direction
    count: int
    cases: int
    engines: int
    p_value: float
    survives: bool = False

    @property
    def text(self) -> str:
        """As a sentence."""
        each_once = self.cases == self.engines
        cases = f"{self.cases} engines" if each_once else f"{self.cases} cases ({self.engines} engines)"
        return f"among {self.family}, {AXES[self.axis].title} {self.direction} in {self.count} of {cases}"


def find_regularities(results: Results) -> tuple[list[Regularity], int]:
    """Those that survive Holm's correction, the surest first, and how many were looked at."""
    found = []
    for family, cases in _families(results).items():
        for axis in AXES:
            of_axis = [(name, row) for name, where, row in cases if where == axis]
            if len({name for name, _ in of_axis}) < SMALLEST:
                continue
            for direction in ("improves", "worsens"):
                found.append(_regularity(axis, family, direction, of_axis))
    kept = [one for one, survives in zip(found, holm([one.p_value for one in found]), strict=True) if survives]
    kept.sort(key=lambda one: (one.p_value, -one.cases))
    # A family that holds the same cases as another says the same again.
    distinct: dict[tuple[object, ...], Regularity] = {}
    for one in kept:
        distinct.setdefault((one.axis, one.direction, one.count, one.cases, one.engines, one.p_value), one)
    return list(distinct.values()), len(found)


def _regularity(axis: str, family: str, direction: Direction, cases: Sequence[tuple[str, Measurement]]) -> Regularity:
    sided = sorted(_one_sided(row, direction) for _, row in cases)
    k = len(sided)
    u = (k + 1) // 2
    word = "better" if direction == "improves" else "worse"
    count = sum(judge_row(row) == word for _, row in cases)
    p_value = min(1.0, (k - u + 1) * sided[u - 1])
    return Regularity(axis, family, direction, count, k, len({name for name, _ in cases}), p_value)


def _one_sided(row: Measurement, direction: Direction) -> float:
    assert row.delta is not None
    if row.p_value is None or np.isnan(row.p_value):
        return 1.0
    up = metric_of(row.metric).higher_is_better == (direction == "improves")
    return row.p_value / 2 if (row.delta > 0) == up and row.delta != 0 else 1 - row.p_value / 2


def _families(results: Results) -> dict[str, list[tuple[str, str, Measurement]]]:
    """Cases (engine, axis, measurement) by family; engines that ran and simulated ones are kept apart."""
    families: dict[str, list[tuple[str, str, Measurement]]] = {}
    for entry in results.candidates:
        cases = [(axis, row) for axis, rows in headline(entry.record).items() for row in rows if row.delta is not None]
        for axis, row in cases:
            for family in _families_of(entry, axis, row):
                families.setdefault(family, []).append((entry.name, axis, row))
    return families


def _families_of(entry: Entry, axis: str, row: Measurement) -> Iterable[str]:
    scheme, scope = entry.record.bundle.scheme, entry.record.bundle.scope
    kind = "simulated" if entry.record.simulated else "engines"
    kind = "predictions" if entry.record.predicted_for else kind
    names = [f"all {kind}"]
    if scheme.weight_bits:
        names.append(f"{kind} with {scheme.weight_bits}-bit weights")
    names.append(f"{kind}, method {scheme.method}")
    if scope != "both":
        names.append(f"{kind}, {scope} tower only")
    yield from names
    if axis == "calibration":
        assert entry.reference is not None
        base = entry.reference.rows.get(Key(row.view, "", "confidence_gap"))
        state = "" if base is None else confidence_state(base)
        if state:
            yield from (f"{name}, where the reference is {state}" for name in names)
