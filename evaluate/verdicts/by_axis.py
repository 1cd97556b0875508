"""What the numbers say, in a word per axis and a sentence per engine; by intervals, never by signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipq.evaluate.metrics.statistics import holm
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.numbers import amount, difference, points, times
from clipq.evaluate.results.record import LatencyRecord, Measurement
from clipq.evaluate.verdicts.headline import AXES, headline, title
from clipq.evaluate.verdicts.judgement import MARGIN, Verdict, judge_row, reach
from clipq.evaluate.verdicts.saturation import in_a_clause, open_hints
from clipq.hints import sentences

MARKS = {"better": "▲", "worse": "▼", "same": "=", "unknown": "?"}


@dataclass(frozen=True)
class AxisVerdict:
    """One axis of one engine: the verdict, how it reads in a cell, and the measurements behind it.

    Over several measurements each must survive Holm's correction among them; worse outweighs better.
    """

    axis: str
    verdict: Verdict
    text: str
    better: tuple[Measurement, ...]
    worse: tuple[Measurement, ...]
    rows: tuple[Measurement, ...]


def axis_verdicts(entry: Entry) -> dict[str, AxisVerdict]:
    """A verdict for each axis, also for those not measured (unknown)."""
    measured = headline(entry.record)
    return {axis: _judged(axis, [row for row in measured.get(axis, ()) if row.delta is not None]) for axis in AXES}


def _judged(axis: str, rows: list[Measurement]) -> AxisVerdict:
    if not rows:
        return AxisVerdict(axis, "unknown", "not measured", (), (), ())
    survives = holm([1.0 if row.p_value is None or np.isnan(row.p_value) else row.p_value for row in rows])
    verdicts = [judge_row(row) for row in rows]
    single = len(rows) == 1
    sure = [single or survived for survived in survives]
    better, worse = (
        tuple(row for row, one, kept in zip(rows, verdicts, sure, strict=True) if one == word and kept)
        for word in ("better", "worse")
    )
    within = all(_bound(row) <= MARGIN for row in rows)
    verdict: Verdict = "worse" if worse else "better" if better else "same" if within else "unknown"
    if single:
        text = difference(rows[0], unit="")
    else:
        counts = [f"{len(found)} {word}" for word, found in (("worse", worse), ("better", better)) if found]
        word = "same" if verdict == "same" else "undecided"
        text = f"{', '.join(counts)} of {len(rows)}" if counts else f"{word} ({len(rows)})"
    return AxisVerdict(axis, verdict, text, better, worse, tuple(rows))


def sentence(entry: Entry) -> str:
    """The verdict on one engine in a sentence."""
    return f"{entry.name} on {entry.place}: {findings(entry)}."


def findings(entry: Entry) -> str:
    """Size and speed, what changed beyond its interval, what is the same within it, what the data cannot say, hints."""
    verdicts = {axis: found for axis, found in axis_verdicts(entry).items() if found.rows}
    near, far = verdicts.get("near-ood"), verdicts.get("far-ood")
    clauses: dict[Verdict, list[str]] = {"worse": [], "better": [], "same": [], "unknown": []}
    for axis, found in verdicts.items():
        if near and far and near.verdict == far.verdict == "same" and axis in ("near-ood", "far-ood"):
            if axis == "near-ood":
                bound = max(map(_bound, near.rows + far.rows))
                clauses["same"].append(f"OOD detection unchanged within ±{points(bound)}")
            continue
        clauses[found.verdict].append(_clause(found, _subject(found, entry)))
    changed = clauses["worse"] + _confidence(entry) + clauses["better"]
    undecided = [f"undecided: {', '.join(clauses['unknown'])}"] if clauses["unknown"] else []
    beside = filter(None, [entry.record.unlike_in_words, in_a_clause(entry.record)])
    hints = [f"hint: {said}" for said in sentences(open_hints(entry.record))]
    return "; ".join([_cost(entry), *changed, *clauses["same"], *undecided, *beside, *hints])


def _cost(entry: Entry) -> str:
    assert entry.reference is not None
    base = entry.reference.record
    if place := entry.record.bundle.ran_on or base.bundle.ran_on:
        # Where it ran itself stands before every sentence on it.
        whose = "it runs elsewhere" if entry.record.bundle.ran_on else f"the reference runs elsewhere ({place})"
        return f"size and speed not measured here, for {whose}"
    if entry.record.simulated or base.simulated:
        if level := entry.record.predicted_for:
            return f"predicted for a CPU without VNNI ({level}), so its speed says nothing"
        whose = "simulated, so its" if entry.record.simulated else "the reference is simulated, so"
        return f"{whose} size and speed say nothing"
    ratio = base.bundle.file_bytes / entry.record.bundle.file_bytes
    size = f"{times(ratio)} smaller" if ratio >= 1.05 else f"{times(1 / ratio)} larger" if ratio <= 0.95 else "as large"
    mine = _largest(entry.record.latency)
    theirs = None if mine is None else entry.timed_beside(mine)
    if mine is None or theirs is None:
        beside = " beside the reference" if mine is not None and base.latency else ""
        return f"{size}, speed not measured{beside}"
    ratio, least, most = mine.over(theirs)
    if mine.busy:
        return f"{size}, speed not known: the machine was busy"
    value, low, high = 1 / ratio, 1 / most, 1 / least
    where = f"image tower, batch {mine.batch}"
    if low > 1:
        speed = f"{times(value)} faster [{low:.2f}, {high:.2f}]"
    elif high < 1:
        speed = f"{times(1 / value)} slower [{1 / high:.2f}, {1 / low:.2f}]"
    else:
        speed = f"no faster or slower beyond the interval [{low:.2f}, {high:.2f}]"
    return f"{size}, {speed} ({where})"


def _largest(latencies: tuple[LatencyRecord, ...]) -> LatencyRecord | None:
    image = [one for one in latencies if one.tower == "image"]
    return max(image, key=lambda one: one.batch, default=None)


def _subject(found: AxisVerdict, entry: Entry) -> str:
    if found.axis == "corruptions" and all(row.metric == "corruption_acc1" for row in found.rows):
        return "top-1 under corruptions"
    # An engine that others' attacks miss is not thereby robust: its own gradients were not asked.
    kinds = {attack.kind for attack in entry.record.attacks}
    transferred = found.axis == "adversarial" and kinds == {"transfer"}
    return AXES[found.axis].subject + (" against a transferred attack" if transferred else "")


def _clause(found: AxisVerdict, subject: str) -> str:
    if len(found.rows) > 1:
        ends = []
        for word, rows in (("worse", found.worse), ("better", found.better)):
            if rows:
                most = max(rows, key=lambda row: abs(row.delta or 0))
                ends.append(f"{word} in {len(rows)} of {len(found.rows)} (most: {title(most)} {difference(most)})")
        if not ends and found.verdict == "same":
            return f"{subject} unchanged within ±{points(max(map(_bound, found.rows)))} in all {len(found.rows)}"
        return f"{subject} " + (" and ".join(ends) or f"({len(found.rows)} measurements)")
    row = found.rows[0]
    if found.verdict == "same":
        return f"{subject} unchanged within ±{amount(_bound(row), row)}"
    if found.verdict == "unknown":
        return f"{subject} ({difference(row)})"
    if found.axis == "fairness":
        assert row.delta is not None and row.delta_low is not None and row.delta_high is not None
        grows = row.delta_low > 0
        bounds = sorted(abs(bound) * 100 for bound in (row.delta_low, row.delta_high))
        how = "grows" if grows else "shrinks"
        return f"{subject} {how} by {abs(row.delta) * 100:.1f} points [{bounds[0]:.1f}, {bounds[1]:.1f}]"
    return f"{subject} {difference(row)}"


def _confidence(entry: Entry) -> list[str]:
    """Whether the engine becomes over- or underconfident, on how many in-distribution views."""
    assert entry.reference is not None
    found: dict[str, int] = {}
    views = [view.name for view in entry.record.views if view.role in ("in-distribution", "groups")]
    for view in views:
        key = Key(view, "", "confidence_gap")
        mine, theirs = entry.rows.get(key), entry.reference.rows.get(key)
        if mine is None or theirs is None or mine.delta_low is None or mine.delta_high is None:
            continue
        now, before = confidence_state(mine), confidence_state(theirs)
        # Both states can straddle a threshold by chance: the change itself must be beyond its interval too.
        if now != before and (mine.delta_low > 0 or mine.delta_high < 0):
            words = f"becomes {now}" if now else f"is no longer {before}"
            found[words] = found.get(words, 0) + 1
    return [words if len(views) == 1 else f"{words} on {count} of {len(views)} sets" for words, count in found.items()]


def confidence_state(row: Measurement) -> str:
    """``overconfident``, ``underconfident``, or empty where the interval of confidence − accuracy holds 0."""
    if row.low is None or row.high is None or (not row.low > 0 and not row.high < 0):
        return ""
    return "overconfident" if row.low > 0 else "underconfident"


def _bound(row: Measurement) -> float:
    return reach(row.delta_low, row.delta_high, row.n)
