"""Is the reference itself right? Its numbers against what others published of the same checkpoint on the same test set.

A published number is of the whole test set. Where ours is too, only libraries differ, and nothing but TOLERANCE lies
between right and wrong; where it is of a random part, its interval comes on top. Over several parts intervals are
widened so that all of them hold together (Bonferroni). Where the prompts are not the published ones nothing is
verified, and only what no choice of prompts explains is anomalous. ``python -m benchmarks.published`` shows how often
each is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtri

from clipq.evaluate.metrics.statistics import CONFIDENCE
from clipq.evaluate.published import table
from clipq.evaluate.published.table import PublishedSet, Table
from clipq.evaluate.results.entry import Entry
from clipq.evaluate.results.key import Key
from clipq.evaluate.results.numbers import number, with_interval
from clipq.evaluate.results.record import Measurement, Record, ViewRecord
from clipq.evaluate.verdicts.judgement import unseen

State = Literal["verified", "anomalous", "too few samples", "no published value"]
# In the order of what must be seen first, with the verb that a sentence on a reference has.
STATES: dict[State, str] = {"anomalous": "is", "verified": "is", "too few samples": "has", "no published value": "has"}

# Libraries alone: two published runs of one checkpoint on one test set are within it in 103 of 109 cases, within half
# of it in 95 (benchmarks/published_twice.csv).
TOLERANCE = 0.01
# Verified is what lies within this as a whole, interval and all: 5 points wide.
WITHIN = 0.025
# Nobody's prompts: open_clip's 80 templates bring 3.5 points over the plain one on ImageNet (CLIP, section 3.1.4).
OF_PROMPTS = 0.10
# What is left out may be the harder part.
MOST_SKIPPED = 0.002
# Two of ImageNet's names stand for two classes each, and have to be told apart.
FEW_OTHER_NAMES = 0.01


@dataclass(frozen=True)
class Check:
    """One view against its published value; numbers are fractions, None where there is nothing to compare.

    ``low`` and ``high`` are the 95 % interval, both the value where the whole test set was seen. ``causes`` are what an
    anomaly may come from, the likeliest first.
    """

    view: str
    state: State
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    published: float | None = None
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReferenceVerdict:
    """All views of a reference together: anomalous where one is, else verified where one is; such views come first."""

    engine: str
    state: State
    checks: tuple[Check, ...]

    @property
    def said(self) -> list[tuple[str, Check]]:
        """The checks, each with its view; views of which the same is to be said are named together."""
        views: dict[tuple[State, str], list[Check]] = {}
        for one in self.checks:
            views.setdefault((one.state, one.reason), []).append(one)
        return [(", ".join(one.view for one in alike), alike[0]) for alike in views.values()]

    @property
    def reason(self) -> str:
        """What the verdict rests on, with the causes of an anomaly."""
        deciding = [(views, one) for views, one in self.said if one.state == self.state]
        named = [f"{views}: {one.reason}" if views else one.reason for views, one in deciding]
        causes = dict.fromkeys(cause for _, one in deciding for cause in one.causes)
        said = f". Usual causes, the likeliest first: {'; '.join(causes)}" if causes else ""
        return "; ".join(named) + said


def reference_verdicts(entries: Iterable[Entry]) -> list[ReferenceVerdict]:
    """The verdict on every reference among these engines."""
    return [judge_reference(entry.record, entry.name) for entry in entries if entry.is_reference]


def judge_reference(record: Record, name: str) -> ReferenceVerdict:
    """The verdict on a reference by its record; ``name`` is what it is called."""
    known, scheme = table.shipped(), record.bundle.scheme
    checkpoint = known.checkpoint(record.bundle.checkpoint)
    missing = "" if checkpoint else f"{known.source} published nothing of {record.bundle.checkpoint}"
    if scheme.arithmetic != "float" or min(scheme.weight_bits, scheme.activation_bits) < 16:
        what = f"quantized ({scheme.widths})" if scheme.weight_bits else "of unknown precision"
        missing = f"it is {what}, and published values are of FP32"
    if missing:
        return ReferenceVerdict(name, "no published value", (Check("", "no published value", missing),))
    views = [view for view in record.views if view.classes or view.captions]
    rows = {row.key: row for row in record.measurements}
    parts = sum(_is_part(view) for view in views if view.published is not None)
    checks = tuple(_Question(checkpoint, view, known, rows, parts).check() for view in views)
    checks = checks or (Check("", "no published value", "nothing was classified or retrieved"),)
    ordered = sorted(checks, key=lambda one: list(STATES).index(one.state))
    return ReferenceVerdict(name, ordered[0].state, tuple(ordered))


def compare(
    value: float, interval: tuple[float, float], published: float, *, slack: float = TOLERANCE, parts: int = 1
) -> State:
    """The rule, on one view; ``interval`` is a point where the whole test set was seen.

    >>> [compare(v, (v, v), 0.633) for v in (0.6325, 0.610)]
    ['verified', 'anomalous']
    >>> [compare(v, (v - h, v + h), 0.633) for v, h in ((0.63, 0.02), (0.63, 0.04), (0.59, 0.02))]
    ['verified', 'too few samples', 'anomalous']
    """
    low, high = interval
    wider = float(ndtri(1 - (1 - CONFIDENCE) / 2 / max(parts, 1)) / ndtri(1 - (1 - CONFIDENCE) / 2))
    if not value - (value - low) * wider - slack <= published <= value + (high - value) * wider + slack:
        return "anomalous"
    return "verified" if max(abs(low - published), abs(high - published)) <= WITHIN else "too few samples"


def _is_part(view: ViewRecord) -> bool:
    return view.published is not None and view.n + len(view.skipped) < view.published.images


@dataclass(frozen=True)
class _Question:
    """A view of a checkpoint that something was published of; ``parts`` views are parts of their test sets."""

    checkpoint: str
    view: ViewRecord
    known: Table
    rows: Mapping[Key, Measurement]
    parts: int

    def check(self) -> Check:
        """The view against its published value."""
        said, view = self.view.published, self.view
        if said is None:
            return self._nothing("neither its source nor the suite calls it a published test set")
        published_set = self.known.sets.get(said.name)
        value = self.known.values[self.checkpoint].get(said.name)
        if published_set is None or value is None:
            return self._nothing(f"{self.known.source} published nothing of {self.checkpoint} on {said.name}")
        if view.classes != published_set.classes and published_set.classes:
            return self._nothing(f"has {view.classes} classes, {said.name} {published_set.classes}")
        if said.images != published_set.images:
            return self._nothing(
                f"is of {said.images:,} images, the test set of {said.name} of {published_set.images:,}"
            )
        if len(view.skipped) > MOST_SKIPPED * published_set.images:
            return self._nothing(f"{len(view.skipped):,} of its images could not be decoded")
        rows = [self.rows[key] for metric in published_set.metrics if (key := Key(view.name, "", metric)) in self.rows]
        if len(rows) < len(published_set.metrics) or not all(math.isfinite(row.value) for row in rows):
            return self._nothing(f"{' and '.join(published_set.metrics)} was not measured")
        return self._against(value, rows, published_set)

    def _nothing(self, reason: str) -> Check:
        return Check(self.view.name, "no published value", reason)

    def _against(self, published: float, rows: Sequence[Measurement], published_set: PublishedSet) -> Check:
        view = self.view
        value, low, high = (sum(one) / len(rows) for one in zip(*map(_bounds, rows), strict=True))
        if not _is_part(view):
            # The same images: nothing is left to chance.
            low = high = value
        elsewise = self._other_prompts(published_set)
        state = compare(value, (low, high), published, slack=OF_PROMPTS if elsewise else TOLERANCE, parts=self.parts)
        if elsewise and state != "anomalous":
            state = "no published value"
        figures = f"{with_interval(value, low, high, 'fraction') if low < high else number(value, 'fraction')} %"
        where = f"{view.n:,} of {published_set.images:,}" if _is_part(view) else f"all {view.n:,}"
        reason = f"{figures} on {where} images of {published_set.name}, published {number(published, 'fraction')} %"
        if state == "no published value":
            reason = f"{' and '.join(elsewise)} ({reason})"
        elif state == "too few samples":
            reason += f": the interval does not lie within ± {100 * WITHIN:g} points of that"
            reason += _enough(abs(value - published), max(value - low, high - value), view.n, published_set.images)
        elif state == "anomalous":
            off = f"{100 * abs(value - published):.1f} points {'below' if value < published else 'above'}"
            reason += f": {off}"
        causes = self._causes(elsewise, value, published_set) if state == "anomalous" else ()
        return Check(view.name, state, reason, value, low, high, view.n, published, causes)

    def _other_prompts(self, published_set: PublishedSet) -> list[str]:
        """What of the question is another one than the published, a phrase each."""
        said, view = self.view.published, self.view
        assert said is not None
        found = []
        if said.same_templates is False:
            found.append(f"the templates differ ({view.template_count} here, {published_set.template_count} published)")
        if said.other_names and said.other_names > FEW_OTHER_NAMES * published_set.classes:
            found.append(f"{said.other_names} of {published_set.classes} class names differ")
        return found

    def _causes(self, elsewise: Sequence[str], value: float, published_set: PublishedSet) -> tuple[str, ...]:
        """What the anomaly may come from: first what can be told from here, then the rest in the order of the trade."""
        said = self.view.published
        assert said is not None
        found = list(elsewise)
        if published_set.classes and value < 2 / published_set.classes:
            found.append(
                "answers no better than chance: class names in another order than the labels, or a wrong tokenizer"
            )
        found += self._other_gelu(published_set)
        found.append("preprocessing: mean and std, resize and crop")
        if published_set.classes and not elsewise:
            found.append("text: tokenizer, templates, class names and their order")
        return (*found, "other weights than the name says")

    def _other_gelu(self, published_set: PublishedSet) -> list[str]:
        """The same weights under the model's name with the other activation, where open_clip has that."""
        model, _, tag = self.checkpoint.partition("/")
        suffix = "-quickgelu"
        twin = f"{model.removesuffix(suffix) if model.endswith(suffix) else model + suffix}/{tag}"
        if twin not in self.known.values and twin not in self.known.aliases:
            return []
        value = self.known.values.get(twin, self.known.values[self.checkpoint])[published_set.name]
        own = self.known.values[self.checkpoint][published_set.name]
        has = f", published {number(value, 'fraction')} %" if abs(value - own) > TOLERANCE else ""
        return [f"GELU and QuickGELU exchanged (the twin is {twin}{has})"]


def _bounds(row: Measurement) -> tuple[float, float, float]:
    """A value and its interval, which is never a point: samples that all agree prove little."""
    low, high = (row.value if bound is None else bound for bound in (row.low, row.high))
    more = unseen(row.n) if low == high else 0.0
    return row.value, low - more, high + more


def _enough(off: float, half: float, n: int, images: int) -> str:
    """How many images would decide, if the value stayed as far off as it is; nothing where no part of them would."""
    room = WITHIN - off
    most = images if room <= 0 else math.ceil(n * (half / room) ** 2 / 100) * 100
    return f"; about {most:,} images would do" if most < images else "; all images decide"
