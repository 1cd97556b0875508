"""A comparison of two evaluations as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipq.evaluate.report.markdown import plain
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.numbers import number, ratio, with_interval
from clipq.evaluate.verdicts.compare import Comparison, Difference, PairOfRecords


def as_markdown(comparison: Comparison) -> str:
    """For a pull request: a table per pair of engines, B − A."""
    rules = f"B − A, 95 % intervals, Holm over all rows, same within ±{comparison.margin:g}"
    lines = [f"**{comparison.outcome}** ({rules})", ""]
    for pair in comparison.pairs:
        lines += [f"### {plain(pair_title(pair))}: {pair.outcome}", ""]
        if pair.same_engine:
            lines += ["The same engine (digest, runtime, CPU).", ""]
        lines += [line for note in notes_of(pair) for line in (plain(note), "")]
        lines += ["| metric | A | B | B − A | p | pairing | verdict |", "|---|---:|---:|---:|---:|---|---|"]
        for one in pair.differences:
            cells = [one.title, *shown(one), f"{one.p_value:.2g}", f"{one.how}, n = {one.n}", verdict_text(one)]
            lines.append("| " + " | ".join(map(plain, cells)) + " |")
        for row in pair.latency:
            times = ratio(row["ratio"], row["low"], row["high"])
            lines.append(
                f"| {plain(latency_title(row))} | | | × {plain(times)} | | unpaired | {latency_verdict(row)} |"
            )
        lines += [f"Not measured in B: {plain(', '.join(pair.missing))}"] if pair.missing else []
        lines.append("")
    lines += [f"Failed in B: {plain(one)}" for one in comparison.failed]
    lines += [f"Only in {side}: {plain(', '.join(names))}" for side, names in
              (("A", comparison.only_a), ("B", comparison.only_b)) if names]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def pair_title(pair: PairOfRecords) -> str:
    """Both names, where they differ, and the runtimes."""
    a, b = f"{pair.a} on {pair.runtime_a}", f"{pair.b} on {pair.runtime_b}"
    return a if a == b else f"{a} → {b}"


def notes_of(pair: PairOfRecords) -> list[str]:
    """What else than the engines' arithmetic differences may be of, in sentences."""
    found = [f"Measured in B with another {pair.made_otherwise}; differences may be of that."] * bool(
        pair.made_otherwise
    )
    return found + [f"B is not made as A is: {', '.join(pair.unlike)}."] * bool(pair.unlike)


def latency_title(row: dict[str, Any]) -> str:
    """What a latency row says."""
    key = Key(row["view"], row["group"], "latency_ms.p50")
    return f"{key.tower} tower, batch {key.batch}: p50 ÷ reference's"


def latency_verdict(row: dict[str, Any]) -> str:
    """What is said of a ratio of times."""
    return "machine was busy" if row["busy"] else "not judged"


def shown(one: Difference) -> tuple[str, str, str]:
    """A, B and B − A with its interval, in percent and points for fractions."""
    delta = with_interval(one.delta, one.low, one.high, one.unit, signed=True)
    return number(one.a, one.unit), number(one.b, one.unit), delta


def verdict_text(one: Difference) -> str:
    """The verdict, and what would decide where there is none."""
    if one.verdict != "unknown" or not np.isfinite([one.low, one.high]).all():
        return one.verdict
    return f"unknown, n = {one.n_to_decide:,} would decide" if one.n_to_decide else "unknown: may be chance"
