"""A comparison of two evaluations as text."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipq.evaluate.report.markdown import plain
from clipq.evaluate.verdicts.compare import Comparison, Difference, PairOfRecords


def as_markdown(comparison: Comparison) -> str:
    """For a pull request: a table per pair of engines, B − A."""
    rules = f"B − A, 95 % intervals, Holm over all rows, same within ±{comparison.margin:g}"
    lines = [f"**{comparison.outcome}** ({rules})", ""]
    for pair in comparison.pairs:
        lines += [f"### {plain(pair_title(pair))}: {pair.outcome}", ""]
        if pair.same_engine:
            lines += ["The same engine (digest and runtime).", ""]
        lines += ["| metric | A | B | B − A | p | pairing | verdict |", "|---|---:|---:|---:|---:|---|---|"]
        for one in pair.differences:
            cells = [one.title, *shown(one), f"{one.p_value:.2g}", f"{one.how}, n = {one.n}", verdict_text(one)]
            lines.append("| " + " | ".join(map(plain, cells)) + " |")
        for row in pair.latency:
            ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(f"| {plain(latency_title(row))} | | | × {plain(ratio)} | | unpaired | not judged |")
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


def latency_title(row: dict[str, Any]) -> str:
    """What a latency row says."""
    return f"{row['view'].removeprefix('tower:')} tower, {row['group'].replace('=', ' ')}: p50 ÷ reference's"


def shown(one: Difference) -> tuple[str, str, str]:
    """A, B and B − A with its interval, in percent and points for fractions."""
    factor, digits = (100, 1) if one.unit == "fraction" else (1, 3)
    a, b = (f"{factor * value:.{digits}f}" for value in (one.a, one.b))
    delta, low, high = (f"{factor * value:+.{digits}f}" for value in (one.delta, one.low, one.high))
    return a, b, f"{delta} [{low}, {high}]"


def verdict_text(one: Difference) -> str:
    """The verdict, and what would decide where there is none."""
    if one.verdict != "unknown" or not np.isfinite([one.low, one.high]).all():
        return one.verdict
    return f"unknown, n = {one.n_to_decide:,} would decide" if one.n_to_decide else "unknown: may be chance"
