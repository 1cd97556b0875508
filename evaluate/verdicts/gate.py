"""The gate: a policy's rules on measured intervals, so that a pipeline can stop a release.

A rule passes where the whole interval passes, fails where the whole interval fails, else asks to investigate. What is
missing, not a number, of a failed engine, or simulated where a deployed result is asked for, fails.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from clipq.errors import PolicyError
from clipq.evaluate.metrics.statistics import CONFIDENCE, Draws
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.pairing import unpaired
from clipq.evaluate.verdicts.headline import headline
from clipq.evaluate.verdicts.judgement import unseen
from clipq.evaluate.verdicts.limits import LIMITS, Quantity
from clipq.evaluate.verdicts.policy import Policy, Rule
from clipq.given import hint

EXIT_CODES = {"pass": 0, "fail": 1, "investigate": 3}
State = Literal["pass", "fail", "investigate"]


@dataclass(frozen=True)
class Finding:
    """One rule on one number of one engine; ``low`` to ``high`` is the interval that was judged."""

    engine: str
    rule: str
    state: State
    reason: str
    view: str = ""
    group: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


def judge_policy(results: Results, policy: Policy) -> list[Finding]:
    """Every rule on every engine that is judged, also on one that failed. Raises PolicyError without any."""
    candidates = [one for one in results.engines if one.is_judged]
    if not candidates:
        raise PolicyError("there is no candidate in these results: only the reference was evaluated")
    findings: list[Finding] = []
    for one in candidates:
        if one.record.failed:
            findings.append(Finding(one.name, "engine", "fail", f"the engine failed: {one.record.failed}"))
            continue
        seen = {view.name for view in one.record.views if view.n} | {key.view for key in one.rows}
        for view in policy.required:
            state: State = "pass" if view in seen else "fail"
            reason = "measured" if view in seen else "the view is required and was not measured"
            findings.append(Finding(one.name, "required", state, reason, view=view))
    for rule in policy.rule:
        findings += _apply(rule, candidates, rule.confidence if rule.confidence is not None else policy.confidence)
    if not findings:
        raise PolicyError("no rule of this policy applies to these results: a gate that judges nothing passes nothing")
    return findings


def outcome(findings: Sequence[Finding]) -> State:
    """Fail where one fails, else investigate where one must be, else pass."""
    states = {finding.state for finding in findings}
    return next(state for state in ("fail", "investigate", "pass") if state in states)


def _apply(rule: Rule, candidates: Sequence[Entry], confidence: float) -> list[Finding]:
    meant = [
        one
        for one in candidates
        if _matches(one.record.bundle.name, rule.bundle) and _matches(one.record.bundle.recipe, rule.recipe)
    ]
    # A pattern that matches nobody is a typing error more often than a choice, and would pass in silence.
    if not meant and not rule.optional:
        names = [one.record.bundle.name for one in candidates]
        asked = f"no engine is called {' or '.join(rule.bundle)}{hint(rule.bundle[0], names)}"
        asked += "" if rule.recipe == ("*",) else f" and made by {' or '.join(rule.recipe)}"
        return [Finding("", _text(rule), "fail", asked)]
    findings = []
    for one in meant:
        if one.record.failed:
            continue
        if one.record.simulated and rule.deployed:
            findings.append(
                Finding(one.name, _text(rule), "fail", "simulated, and the rule asks for a deployed engine")
            )
            continue
        keys = _matching(rule, one)
        if not keys and rule.optional is not True:
            findings.append(Finding(one.name, _text(rule), "fail", "was not measured"))
        for key in keys:
            findings += [_judge(one, key, asked, confidence) for asked in rule.limits()]
    return findings


def _matching(rule: Rule, entry: Entry) -> list[Key]:
    return [
        key
        for key in entry.rows
        if fnmatchcase(key.metric, rule.metric)
        and (rule.view is None or fnmatchcase(key.view, rule.view))
        and (not key.part if rule.group is None else fnmatchcase(key.group, rule.group))
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _text(rule: Rule) -> str:
    parts = [f"{name} {limit:g}" for name, limit in rule.limits()]
    asked = (("view", rule.view), ("group", rule.group))
    where = "".join(f" {what}={value}" for what, value in asked if value is not None)
    return f"{rule.metric}{where}: {', '.join(parts)}"


def _judge(entry: Entry, key: Key, asked: tuple[str, float], confidence: float) -> Finding:
    view, group, metric = key
    limit, bound = LIMITS[asked[0]], asked[1]
    kind = limit.quantity
    rule = f"{metric}{'.' + kind.name if kind.name else ''} {'>=' if limit.is_least else '<='} {bound:g}"
    rule += f" at {100 * confidence:g}%" if confidence else ""
    draws = _quantity(entry, key, kind)
    if draws is None:
        return Finding(entry.name, rule, "fail", "there is no reference to compare with", view, group)
    low, high = _interval(draws, key, confidence, _unit(entry, key, kind))
    found = (view, group, draws.value, low, high, draws.n)
    if not all(map(math.isfinite, (draws.value, low, high))):
        return Finding(entry.name, rule, "fail", "is not a number", *found[:2])
    passes = (low >= bound, high >= bound) if limit.is_least else (high <= bound, low <= bound)
    state: State = "pass" if passes[0] else "investigate" if passes[1] else "fail"
    reason = {
        "pass": "the whole interval passes",
        "fail": "the whole interval fails",
        "investigate": "the interval holds the limit: more samples would decide",
    }[state]
    if low == high:
        reason = "passes" if state == "pass" else "fails"
    return Finding(entry.name, rule, state, reason, *found)


def _interval(draws: Draws, key: Key, confidence: float, unit: float = 1.0) -> tuple[float, float]:
    """The interval to judge. Where no sample differs it has no width, and what so many cannot exclude is added.

    ``unit`` is what a change of 1 in the number counts for: more in a ratio to a small reference.
    """
    if not confidence or len(draws.resampled) < 2:
        return draws.value, draws.value
    low, high = draws.interval(confidence)
    if low == high and not key.tower:
        more = unit * unseen(draws.n, confidence)
        return low - more, high + more
    return low, high


def _quantity(entry: Entry, key: Key, kind: Quantity) -> Draws | None:
    """A number, or what a limit makes of it and the reference's: paired where both rest on the same samples."""
    if kind.against is None:
        return entry.draws(key)
    reference = entry.reference
    if reference is None or key not in reference.rows:
        return None
    mine, theirs = entry.draws(key), reference.draws(key)
    if entry.rests_on(key) is None or entry.rests_on(key) != reference.rests_on(key):
        theirs = unpaired(theirs)
    return kind.against(mine, theirs)


def _unit(entry: Entry, key: Key, kind: Quantity) -> float:
    reference = None if entry.reference is None else entry.reference.rows.get(key)
    return 1.0 if reference is None else kind.unit(reference.value)


def policy_from(entries: Sequence[Entry], margin: float) -> str:
    """A policy that these engines pass with ``margin`` to spare: today's differences as tomorrow's limits.

    One rule per headline metric and view, on the difference to the reference; its limit is the outermost end of the
    candidates' intervals plus the margin, rounded outward to a tenth of a point.
    """
    candidates = [one for one in entries if one.is_candidate and not one.record.simulated]
    if not candidates:
        raise PolicyError("there is no deployed candidate with a reference in these results")
    ends: dict[Key, list[tuple[float, float]]] = {}
    for one in candidates:
        for rows in headline(one.record).values():
            for row in rows:
                key = row.key
                draws = _quantity(one, key, LIMITS["max_delta"].quantity)
                if draws is not None:
                    ends.setdefault(key, []).append(_interval(draws, key, CONFIDENCE))
    names = ", ".join(one.record.name for one in candidates)
    views = dict.fromkeys(view.name for one in candidates for view in one.record.views)
    # By name: simulated engines of the same folder are not what ships.
    bundles = ", ".join(_quoted(_literal(one.record.bundle.name)) for one in candidates)
    lines = [
        f"# Written by `clipq-eval gate init` from {_comment(names)}.",
        f"# Limits on the difference to the reference: the worst end of the intervals seen, and {margin:g} to spare.",
        "confidence = 0.95",
        f"required = [{', '.join(map(_quoted, views))}]",
    ]
    for (view, group, metric), intervals in ends.items():
        up = metric_of(metric).higher_is_better
        limit = min(low for low, _ in intervals) - margin if up else max(high for _, high in intervals) + margin
        if not math.isfinite(limit):
            continue
        rounded = math.floor(limit * 1000) / 1000 if up else math.ceil(limit * 1000) / 1000
        lines += ["", "[[rule]]", f"metric = {_quoted(metric)}", f"view = {_quoted(_literal(view))}"]
        lines += [f"group = {_quoted(_literal(group))}"] if group else []
        lines += [f"bundle = [{bundles}]"]
        lines += [f"{'min' if up else 'max'}_delta = {rounded:g}"]
    return "\n".join(lines) + "\n"


def _literal(name: str) -> str:
    """A pattern that matches just this name: columns such as light*size are no patterns."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())
