"""What became of the cases, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.fuzz.case import Outcome

COLUMNS = {
    "accepted": "accepted", "refused": "refused in one line", "traceback": "tracebacks", "hang": "hangs", "memory": "over memory",
    "outside": "files outside", "silent": "silent differences", "fuzzer": "the fuzzer's own",
}  # fmt: skip


def written(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table, a row for each kind and one for all."""
    kinds = list(dict.fromkeys(sorted(one.kind for one in outcomes)))
    lines = [f"| kind | tried | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (len(COLUMNS) + 1)]
    for kind in (*kinds, "all"):
        of_kind = [one.ended for one in outcomes if kind in (one.kind, "all")]
        counted = Counter(of_kind)
        lines.append(f"| {kind} | {len(of_kind)} | {' | '.join(str(counted[one]) for one in COLUMNS)} |")
    return "\n".join(lines)
