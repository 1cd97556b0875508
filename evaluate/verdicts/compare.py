"""Two evaluations against each other: yesterday's engine and today's, two GPUs, two runtimes.

Everything is B − A. What rests on the same samples is paired; a part in common is paired by sample id where the metric
can be taken from answers; the rest is compared unpaired, with wider intervals, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from clipq.errors import ResultsError
from clipq.evaluate.metrics.accuracy import weighted_mean
from clipq.evaluate.metrics.agreement import mcnemar_p
from clipq.evaluate.metrics.calibration import BINS, ece
from clipq.evaluate.metrics.predictions import Outcome
from clipq.evaluate.metrics.statistics import Draws, Statistic, bootstrap, holm
from clipq.evaluate.metrics.table import metric_of
from clipq.evaluate.results.basis import made_otherwise, unlike
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.folders import Results
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.pairing import SampleAnswers, unpaired
from clipq.evaluate.results.record import Measurement, Record
from clipq.evaluate.verdicts.headline import AXES, headline, title
from clipq.evaluate.verdicts.judgement import MARGIN, Verdict, judge, reach, samples_to_decide

EXIT_CODES = {"same or better": 0, "worse": 1, "undecided": 3}
Outcomes = Literal["same or better", "worse", "undecided"]
How = Literal["paired", "paired by id", "unpaired"]


@dataclass(frozen=True)
class Difference:
    """One metric of two records: B − A with its 95 % interval, how it was paired, and what follows.

    ``n_to_decide`` is the number of samples that would decide an unknown one if the difference stayed, else 0.
    """

    axis: str
    title: str
    view: str
    group: str
    metric: str
    unit: str
    a: float
    b: float
    delta: float
    low: float
    high: float
    p_value: float
    n: int
    how: How
    verdict: Verdict
    n_to_decide: int


@dataclass(frozen=True)
class PairOfRecords:
    """Two records by name, and their differences on the headline metrics; ``missing`` are those of A that B lacks.

    ``latency`` holds each tower's ratio to its own run's reference in B over that in A: absolute times of two runs mean
    little, ratios to a reference that was timed in turns with the engine mean something. ``made_otherwise`` is a
    library that was another one in B: a difference may be of that. ``unlike``: in what else than its arithmetic one of
    the engines is another, a phrase each, as far as records say it.
    """

    a: str
    b: str
    runtime_a: str
    runtime_b: str
    same_engine: bool
    differences: tuple[Difference, ...]
    latency: tuple[dict[str, Any], ...] = ()
    missing: tuple[str, ...] = ()
    made_otherwise: str = ""
    unlike: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcomes:
        """Worse where one metric is beyond chance among all compared, undecided where one is unknown or missing."""
        verdicts = {one.verdict for one in self.differences}
        if "worse" in verdicts:
            return "worse"
        return "undecided" if "unknown" in verdicts or self.missing else "same or better"


@dataclass(frozen=True)
class Comparison:
    """All records of A and B that belong together; ``only_a`` and ``only_b`` have no partner.

    ``failed`` are engines of A that failed in B, with the reason.
    """

    pairs: tuple[PairOfRecords, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    failed: tuple[str, ...]
    margin: float

    @property
    def outcome(self) -> Outcomes:
        """The worst of the pairs'; worse where an engine of A failed in B, undecided where one is not there."""
        outcomes: set[Outcomes] = {pair.outcome for pair in self.pairs}
        if self.failed or "worse" in outcomes:
            return "worse"
        return "undecided" if self.only_a or "undecided" in outcomes else "same or better"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "outcome": self.outcome,
            **asdict(self),
            "pairs": [asdict(pair) | {"outcome": pair.outcome} for pair in self.pairs],
        }


def compare(a: Results, b: Results, *, margin: float = MARGIN) -> Comparison:
    """Compare B with A, record by record: two single ones whatever they are called, else those of one name.

    Raises ResultsError where nothing belongs together.
    """
    partners, failures = _partners(a, b)
    if not partners and not failures:
        names = (", ".join(one.name for one in side) or "none" for side in (a, b))
        raise ResultsError("no working engine is in both: A has {}, B has {}; name two record files".format(*names))
    pairs = _judged([(one, two, _differences(one, two)) for one, two in partners], margin)
    paired = {id(one) for pair in (*partners, *failures) for one in pair}
    only_a, only_b = (tuple(one.name for one in side if id(one) not in paired) for side in (a, b))
    failed = tuple(f"{one.record.name}: {two.record.failed}" for one, two in failures)
    return Comparison(tuple(pairs), only_a, only_b, failed, margin)


_Pairs = list[tuple[Entry, Entry]]


def _partners(a: Results, b: Results) -> tuple[_Pairs, _Pairs]:
    """The working engines of A with their partners in B: those that worked there, and those that failed."""
    if len(a.engines) == len(b.engines) == 1 and a.entries and b.entries:
        return [(a.entries[0], b.entries[0])], []
    found: tuple[_Pairs, _Pairs] = ([], [])
    for one in a.entries:
        # Another CPU or runtime is a partner too, where it is the only one: two of them are what people compare.
        for alike in (_place, _runtime, _name):
            mine, theirs = ([two for two in side.engines if alike(two) == alike(one)] for side in (a, b))
            if len(mine) == len(theirs) == 1:
                found[bool(theirs[0].record.failed)].append((one, theirs[0]))
                break
    return found


def _name(entry: Entry) -> tuple[str, ...]:
    return (entry.record.name,)


def _runtime(entry: Entry) -> tuple[str, ...]:
    return (entry.record.name, entry.record.runtime)


def _place(entry: Entry) -> tuple[str, ...]:
    return (entry.record.name, entry.record.runtime, entry.record.cpu)


def _differences(a: Entry, b: Entry) -> list[Difference]:
    rows = []
    axes = headline(b.record, ratios=False)
    for axis, measured in axes.items():
        for row in measured:
            key = row.key
            if key in a.rows:
                rows.append(_difference(a, b, row, axis))
    if not rows:
        raise ResultsError(f"{a.record.name} and {b.record.name} have no metric in common; evaluate them by one suite")
    return rows


def _missing(a: Entry, b: Entry) -> tuple[str, ...]:
    rows = [row for measured in headline(a.record, ratios=False).values() for row in measured]
    return tuple(title(row) for row in rows if row.key not in b.rows)


def _difference(a: Entry, b: Entry, row: Measurement, axis: str) -> Difference:
    key = row.key
    _require_one_question(a, b, key)
    mine, theirs = b.draws(key), a.draws(key)
    how: How = "paired"
    p_value = None
    if a.is_paired(b, key) and len(mine.resampled) == len(theirs.resampled):
        if key.metric == "acc1" and not key.group and row.view in a.pairing.answers and row.view in b.pairing.answers:
            p_value = mcnemar_p(b.pairing.answers[row.view].correct, a.pairing.answers[row.view].correct)
    elif (common := _on_common_samples(a, b, key)) is not None:
        (theirs, mine), p_value, how = common[0], common[1], "paired by id"
    else:
        _require_one_question(a, b, key, bins=metric_of(key.metric).binned)
        mine, how = unpaired(mine), "unpaired"
    draws = mine - theirs
    low, high = draws.interval()
    return Difference(
        axis=axis, title=title(row), view=row.view, group=row.group, metric=row.metric, unit=row.unit,
        a=theirs.value, b=mine.value, delta=draws.value, low=low, high=high,
        p_value=draws.p_value() if p_value is None else p_value,
        n=min(mine.n, theirs.n), how=how, verdict="unknown", n_to_decide=0,
    )  # fmt: skip


def _require_one_question(a: Entry, b: Entry, key: Key, *, bins: bool = False) -> None:
    """Raise ResultsError where a number of two engines is of other classes, templates, corruptions or attacks.

    Other samples can be compared unpaired; answers to other questions are other quantities. So are ``bins``, where they
    count.
    """
    mine, theirs = a.rests_on(key), b.rests_on(key)
    if mine is None or theirs is None:
        return
    what = unlike(mine.questions, theirs.questions)
    if bins and mine.samples.get("ece_bins", BINS) != theirs.samples.get("ece_bins", BINS):
        what = what or "ece_bins"
    if what:
        raise ResultsError(
            f"{a.record.name} in A and {b.record.name} in B were not asked the same: they differ in the {what}; "
            "evaluate both by one suite"
        )


def _on_common_samples(a: Entry, b: Entry, key: Key) -> tuple[tuple[Draws, Draws], float | None] | None:
    """Accuracy or ECE on the samples that both have, by id; None where too few are common or it needs more."""
    view, group, metric = key
    one, two = a.pairing.answers.get(view), b.pairing.answers.get(view)
    if one is None or two is None or group or metric not in ("acc1", "ece"):
        return None
    one, two = one.common(two)
    if len(one) < 20:
        return None
    # One number of bins for both: another number is another metric.
    bins = a.record.arguments_resolved.get("ece_bins", BINS)
    functions: dict[str, Statistic] = {"a": _statistic(metric, one, bins), "b": _statistic(metric, two, bins)}
    draws = bootstrap(functions, len(one))
    return (draws["a"], draws["b"]), mcnemar_p(two.correct, one.correct) if metric == "acc1" else None


def _statistic(metric: str, answers: SampleAnswers, bins: int) -> Statistic:
    if metric == "acc1":
        return partial(weighted_mean, answers.correct)
    outcome = Outcome(answers.confidence.astype(np.float64), answers.correct)
    return partial(ece, outcome, bins=bins)


def _judged(found: Sequence[tuple[Entry, Entry, list[Difference]]], margin: float) -> list[PairOfRecords]:
    """Verdicts by Holm over everything compared: of twenty metrics one is beyond its 95 % interval by chance."""
    flat = [one for _, _, rows in found for one in rows]
    survives = dict(zip(map(id, flat), holm([one.p_value for one in flat]), strict=True))
    pairs = []
    for a, b, rows in found:
        judged = []
        for one in rows:
            verdict = judge(one.delta, one.low, one.high, one.metric, n=one.n, margin=margin)
            doubtful = verdict in ("better", "worse") and not survives[id(one)]
            if doubtful:
                verdict = "same" if reach(one.low, one.high, one.n) <= margin else "unknown"
            more = 0
            if verdict == "unknown" and not doubtful and np.isfinite([one.low, one.high]).all():
                more = samples_to_decide(one.n, one.delta, one.low, one.high, margin=margin)
            judged.append(replace(one, verdict=verdict, n_to_decide=more))
        judged.sort(key=lambda one: list(AXES).index(one.axis))
        same = a.record.bundle.digest == b.record.bundle.digest and a.record.place == b.record.place
        names = (a.record.name, b.record.name, a.record.place, b.record.place)
        made = made_otherwise(b.record, a.record)
        found_of = tuple(judged), tuple(_latency(a, b)), _missing(a, b)
        pairs.append(PairOfRecords(*names, same, *found_of, made, _unlike(a.record, b.record)))
    return pairs


def _unlike(a: Record, b: Record) -> tuple[str, ...]:
    """In what two engines are others: checkpoints, and what one of them has unlike its own reference."""
    names = (b.bundle.checkpoint, a.bundle.checkpoint)
    found = [f"checkpoint ({names[0]} and {names[1]})"] if names[0] != names[1] else []
    for side, one, other in (("A", a, b), ("B", b, a)):
        alone = [what for what in one.unlike_reference if what not in other.unlike_reference]
        found += [f"{side} and its reference: {what}" for what in alone]
    return tuple(found)


def _latency(a: Entry, b: Entry) -> list[dict[str, Any]]:
    rows = []
    for key in b.rows:
        if key.metric != "latency_ms.p50" or key not in a.rows:
            continue
        ratios = [_latency_ratio(one, key) for one in (a, b)]
        if ratios[0] is None or ratios[1] is None:
            continue
        draws = unpaired(ratios[1]).resampled / ratios[0].resampled
        low, high = (float(bound) for bound in np.quantile(draws, [0.025, 0.975]))
        ratio = ratios[1].value / ratios[0].value
        bounds = {"low": min(low, ratio), "high": max(high, ratio)}
        busy = a.rows[key].busy or b.rows[key].busy
        rows.append({"view": key.view, "group": key.group, "ratio": ratio, **bounds, "busy": busy})
    return rows


def _latency_ratio(entry: Entry, key: Key) -> Draws | None:
    """An engine's p50 over that of its own run's reference; None for the reference itself, and without one."""
    reference = entry.reference
    if reference is None or reference is entry or key not in reference.rows:
        return None
    if not entry.was_timed_with(reference, key):
        return None
    mine, theirs = entry.draws(key), unpaired(reference.draws(key))
    return Draws(mine.value / theirs.value, mine.resampled / theirs.resampled, mine.n)
