"""The gate: a policy's rules on measured intervals, so that a pipeline can stop a release.

A rule passes where the whole interval passes, fails where the whole interval fails, else asks to investigate. What is
missing, not a number, of a failed engine, or simulated where a deployed result is asked for, fails.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from clipq.cpu import is_of, known_arithmetics
from clipq.errors import PolicyError
from clipq.evaluate.metrics.statistics import CONFIDENCE, Draws, intervals
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.pairing import unpaired
from clipq.evaluate.verdicts.headline import headline
from clipq.evaluate.verdicts.judgement import unseen
from clipq.evaluate.verdicts.limits import LIMITS, Quantity
from clipq.evaluate.verdicts.policy import Policy, Rule
from clipq.evaluate.verdicts.reference import reference_verdicts
from clipq.given import hint

EXIT_CODES = {"pass": 0, "fail": 1, "investigate": 3}
State = Literal["pass", "fail", "investigate"]

# Of fewer times no interval holds their median at 95 %: of 5, all lie on one side of it in 2 · 0.5⁵ = 6 % of all cases.
FEWEST_TIMES = 6

# So many numbers are judged together; their draws are in memory once more.
_BLOCK = 512


@dataclass(frozen=True, slots=True)
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
    findings = _on_references(policy, candidates)
    for one in candidates:
        if one.record.failed:
            findings.append(Finding(one.name, "engine", "fail", f"the engine failed: {one.record.failed}"))
            continue
        seen = {view.name for view in one.record.views if view.n} | {key.view for key in one.rows}
        for view in policy.required:
            state: State = "pass" if view in seen else "fail"
            reason = "measured" if view in seen else "the view is required and was not measured"
            findings.append(Finding(one.name, "required", state, reason, view=view))
        if policy.cpu:
            state = "pass" if is_of(one.record.cpu, policy.cpu) else "fail"
            findings.append(Finding(one.name, _cpu_text(policy.cpu), state, f"measured on {_cpu_of(one)}"))
    findings += _apply(policy, candidates)
    if not findings:
        raise PolicyError("no rule of this policy applies to these results: a gate that judges nothing passes nothing")
    return findings


def outcome(findings: Sequence[Finding]) -> State:
    """Fail where one fails, else investigate where one must be, else pass."""
    states = {finding.state for finding in findings}
    return next(state for state in ("fail", "investigate", "pass") if state in states)


def _on_references(policy: Policy, candidates: Sequence[Entry]) -> list[Finding]:
    """What the policy asks of the references of the engines that it judges."""
    if policy.reference is None:
        return []
    rule = f"reference={policy.reference}"
    found = [
        Finding(one.name, rule, "fail", "there is no reference that could be right")
        for one in candidates
        if one.reference is None and not one.record.failed
    ]
    for verdict in reference_verdicts({one.reference: None for one in candidates if one.reference is not None}):
        wanted: State = "fail" if verdict.state == "anomalous" else "pass"
        if policy.reference == "verified" and verdict.state != "verified":
            wanted = "investigate" if verdict.state == "too few samples" else "fail"
        found.append(Finding(verdict.engine, rule, wanted, f"{verdict.state}: {verdict.reason}"))
    return found


def _apply(policy: Policy, candidates: Sequence[Entry]) -> list[Finding]:
    """Findings rule by rule, made engine by engine: the draws of one engine at a time fill the memory."""
    by_rule: list[list[Finding]] = []
    meant: list[set[Entry]] = []
    names = [one.record.bundle.name for one in candidates]
    for rule in policy.rule:
        named = [
            one
            for one in candidates
            if _matches(one.record.bundle.name, rule.bundle) and _matches(one.record.bundle.recipe, rule.recipe)
        ]
        chosen = {one for one in named if not rule.cpu or is_of(one.record.cpu, rule.cpu)}
        meant.append(chosen)
        # A pattern that matches nobody is a typing error more often than a choice, and would pass in silence.
        asked = f"no engine is called {' or '.join(rule.bundle)}{hint(rule.bundle[0], names)}"
        asked += "" if rule.recipe == ("*",) else f" and made by {' or '.join(rule.recipe)}"
        missing = _elsewhere(rule, named, chosen) if named else [Finding("", _text(rule), "fail", asked)]
        by_rule.append([] if rule.optional else missing)
    for one in candidates:
        for rule, chosen, findings in zip(policy.rule, meant, by_rule, strict=True):
            if one in chosen and not one.record.failed:
                findings += _on_engine(rule, one, policy.confidence)
    return [finding for findings in by_rule for finding in findings]


def _elsewhere(rule: Rule, named: Sequence[Entry], chosen: Collection[Entry]) -> list[Finding]:
    """Engines that a rule is for, and that were measured on other CPUs alone: what is known of those does not count."""
    there = {(one.record.bundle.name, one.record.simulated) for one in chosen}
    return [
        Finding(one.name, _text(rule), "fail", f"was not measured there, but on {_cpu_of(one)}")
        for one in named
        if (one.record.bundle.name, one.record.simulated) not in there and not one.record.failed
    ]


def _cpu_of(one: Entry) -> str:
    return f"a CPU of level {one.record.cpu}" if one.record.cpu else f"{one.record.runtime}, which tells no CPU level"


def _cpu_text(levels: Sequence[str]) -> str:
    return f"cpu={'|'.join(levels)}"


def _on_engine(rule: Rule, one: Entry, confidence: float) -> list[Finding]:
    if one.record.simulated and rule.deployed:
        return [Finding(one.name, _text(rule), "fail", "simulated, and the rule asks for a deployed engine")]
    keys = _matching(rule, one)
    if not keys and rule.optional is not True:
        return [Finding(one.name, _text(rule), "fail", "was not measured")]
    confidence = confidence if rule.confidence is None else rule.confidence
    by_limit = [_judge(one, keys, asked, confidence) for asked in rule.limits()]
    return [finding for of_key in zip(*by_limit, strict=True) for finding in of_key]


def _matching(rule: Rule, entry: Entry) -> list[Key]:
    metrics = {metric for metric in {key.metric for key in entry.rows} if fnmatchcase(metric, rule.metric)}
    return [
        key
        for key in entry.rows
        if key.metric in metrics
        and (rule.view is None or fnmatchcase(key.view, rule.view))
        and (not key.part if rule.group is None else fnmatchcase(key.group, rule.group))
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _text(rule: Rule) -> str:
    parts = [f"{name} {limit:g}" for name, limit in rule.limits()]
    asked = (("view", rule.view), ("group", rule.group))
    where = "".join(f" {what}={value}" for what, value in asked if value is not None)
    where += f" {_cpu_text(rule.cpu)}" if rule.cpu else ""
    return f"{rule.metric}{where}: {', '.join(parts)}"


def _judge(entry: Entry, keys: Sequence[Key], asked: tuple[str, float], confidence: float) -> list[Finding]:
    """A limit on some numbers of an engine, in their order."""
    limit, bound = LIMITS[asked[0]], asked[1]
    kind = limit.quantity
    sign = f"{'.' + kind.name if kind.name else ''} {'>=' if limit.is_least else '<='} {bound:g}"
    sign += f" at {100 * confidence:g}%" if confidence else ""
    rules = {metric: f"{metric}{sign}" for metric in {key.metric for key in keys}}
    found = []
    for start in range(0, len(keys), _BLOCK):
        block = keys[start : start + _BLOCK]
        quantities = [_quantity(entry, key, kind) for key in block]
        known = [(key, draws) for key, draws in zip(block, quantities, strict=True) if draws is not None]
        bounds = iter(_intervals(known, confidence, [_unit(entry, key, kind) for key, _ in known]))
        for key, draws in zip(block, quantities, strict=True):
            rule = rules[key.metric]
            if entry.rows[key].busy:
                # Whatever the interval says: the same engine fails and passes on such a machine.
                found.append(Finding(entry.name, rule, "investigate", _BUSY, key.view, key.group))
            elif confidence and key.batch and entry.rows[key].n < FEWEST_TIMES:
                found.append(Finding(entry.name, rule, "investigate", _FEW, key.view, key.group))
            elif draws is None:
                found.append(Finding(entry.name, rule, "fail", _why_not(entry, key), key.view, key.group))
            else:
                found.append(_finding((entry.name, rule), key, draws, next(bounds), (bound, limit.is_least)))
    return found


def _finding(
    asked: tuple[str, str], key: Key, draws: Draws, interval: tuple[float, float], limit: tuple[float, bool]
) -> Finding:
    (low, high), (bound, is_least), (view, group, _) = interval, limit, key
    if not all(map(math.isfinite, (draws.value, low, high))):
        return Finding(*asked, "fail", "is not a number", view, group)
    passes = (low >= bound, high >= bound) if is_least else (high <= bound, low <= bound)
    state: State = "pass" if passes[0] else "investigate" if passes[1] else "fail"
    reason = _REASONS[state] if low != high else "passes" if state == "pass" else "fails"
    return Finding(*asked, state, reason, view, group, draws.value, low, high, draws.n)


_BUSY = "the machine was busy while engines were timed: time them again when nothing else runs"
_FEW = f"fewer than {FEWEST_TIMES} repeats were timed, which bound no median: measure with more (--repeats)"

_REASONS = {
    "pass": "the whole interval passes",
    "fail": "the whole interval fails",
    "investigate": "the interval holds the limit: more samples would decide",
}


def _intervals(
    found: Sequence[tuple[Key, Draws]], confidence: float, units: Sequence[float]
) -> list[tuple[float, float]]:
    """The intervals to judge. Where no sample differs one has no width, and what so many cannot exclude is added.

    ``units`` are what a change of 1 in each number counts for: more in a ratio to a small reference.
    """
    bounds = [(draws.value, draws.value) for _, draws in found]
    spread = [index for index, (_, draws) in enumerate(found) if confidence and len(draws.resampled) > 1]
    for index, (low, high) in zip(spread, intervals([found[one][1] for one in spread], confidence), strict=True):
        key, draws = found[index]
        more = units[index] * unseen(draws.n, confidence) if low == high and not key.tower else 0.0
        bounds[index] = (low - more, high + more)
    return bounds


def _quantity(entry: Entry, key: Key, kind: Quantity) -> Draws | None:
    """A number, or what a limit makes of it and the reference's: paired where both rest on the same samples."""
    if kind.against is None:
        return entry.draws(key)
    reference = entry.reference
    if reference is None or _why_not(entry, key):
        return None
    mine, theirs = entry.draws(key), reference.draws(key)
    if not entry.is_paired(reference, key):
        theirs = unpaired(theirs)
    return kind.against(mine, theirs)


def _why_not(entry: Entry, key: Key) -> str:
    """Why a number cannot be compared with the reference's, else nothing."""
    if entry.reference is None:
        return "there is no reference to compare with"
    if key not in entry.reference.rows:
        return "the reference has no such number to compare with"
    together = entry.was_timed_with(entry.reference, key)
    return "" if together else "was timed in another run than the reference: evaluate both by one command"


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
                    ends.setdefault(key, []).extend(_intervals([(key, draws)], CONFIDENCE, [1.0]))
    names = ", ".join(one.name for one in candidates)
    views = dict.fromkeys(view.name for one in candidates for view in one.record.views)
    # By name: simulated engines of the same folder are not what ships.
    bundles = ", ".join(dict.fromkeys(_quoted(_literal(one.record.bundle.name)) for one in candidates))
    lines = [
        f"# Written by `clipq-eval gate init` from {_comment(names)}.",
        f"# Limits on the difference to the reference: the worst end of the intervals seen, and {margin:g} to spare.",
        "confidence = 0.95",
        f"required = [{', '.join(map(_quoted, views))}]",
    ]
    levels = dict.fromkeys(one.record.cpu for one in candidates)
    if set(levels) <= set(known_arithmetics()):
        lines.append("# The same file can be another engine on another CPU (docs/cpu.md); without this any is taken.")
        lines.append(f"cpu = [{', '.join(map(_quoted, levels))}]")
    for (view, group, metric), bounds in ends.items():
        up = metric_of(metric).higher_is_better
        limit = min(low for low, _ in bounds) - margin if up else max(high for _, high in bounds) + margin
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
