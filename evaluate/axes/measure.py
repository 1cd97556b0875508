"""Cells to estimates: every axis on everything that was asked, one view at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from clipq.errors import NotAnswered
from clipq.evaluate.axes import (
    adversarial,
    agreement,
    classification,
    corruption,
    fairness,
    flips,
    ood,
    retrieval,
    shift,
)
from clipq.evaluate.axes.reading import Found, Reading, decoded, readings
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Cohort
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.pairing import SampleAnswers
from clipq.evaluate.results.record import MOST_LEFT_OUT, ViewRecord
from clipq.evaluate.suites.plan import Plan, PlannedView
from clipq.evaluate.suites.published import asked_as_published
from clipq.evaluate.suites.schema import LABELLED
from clipq.evaluate.suites.templates import asked_on
from clipq.progress import Progress

# The suite's words for what is asked, and the axis that measures it, in the order of an engine's rows.
STEPS: tuple[tuple[tuple[str, ...], Callable[[Reading[Any]], Found]], ...] = (
    (LABELLED, classification.measure),
    (LABELLED, fairness.measure),
    (("shifted",), shift.measure),
    (LABELLED, agreement.measure),
    (LABELLED, flips.measure),
    (("near-ood", "far-ood"), ood.measure),
    (("retrieval",), retrieval.measure),
    (("corruptions",), corruption.measure),
    (("transfer",), adversarial.measure_transfer),
    (("square",), adversarial.measure_square),
)


@dataclass
class Findings:
    """Everything that was found out about one engine."""

    estimates: list[Estimate] = field(default_factory=list)
    against_twin: list[Estimate] = field(default_factory=list)
    views: list[ViewRecord] = field(default_factory=list)
    answers: dict[str, SampleAnswers] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)

    def add(self, reading: Reading[Any], found: Sequence[Found]) -> None:
        """What the axes found on one thing that was asked."""
        for one in found:
            self.estimates += one.estimates
            self.against_twin += one.against_twin
            self.unanswered |= one.unanswered
            if one.answers is not None:
                self.answers[reading.asked.view.name] = one.answers
        if isinstance(reading.asked, PlannedView):
            self.views.append(_view_record(reading, found))


def measure(
    plan: Plan, cohort: Cohort, embeddings: Embeddings, pictures: Path | None, progress: Progress
) -> dict[str, Findings]:
    """Everything found out about the working engines, by label."""
    findings = {subject.label: Findings() for subject in cohort.working}
    asked = list(plan.asked())
    progress.start("metrics and intervals", len(asked))
    for word, one in asked:
        steps = [step for words, step in STEPS if word in words]
        for reading in readings(one, cohort, embeddings, pictures):
            findings[reading.subject.label].add(reading, [_found(step, reading, word) for step in steps])
        progress.advance(1)
    for found in findings.values():
        found.estimates += ood.near_and_far(plan, found.estimates, {view.name: view.n for view in found.views})
    return findings


def _found(step: Callable[[Reading[Any]], Found], reading: Reading[Any], word: str) -> Found:
    try:
        return step(reading)
    except NotAnswered as error:
        return Found(unanswered={f"{reading.asked.name} ({word})": str(error)})


def _view_record(reading: Reading[PlannedView], found: Sequence[Found]) -> ViewRecord:
    planned = reading.asked
    try:
        rows, skipped = reading.once(decoded)
    except NotAnswered:
        rows, skipped = np.zeros(0, np.int64), {}
    return ViewRecord(
        name=planned.view.name,
        source=planned.view.source,
        role=planned.entry.role,
        baseline="" if planned.baseline is None else planned.baseline.name,
        digest=planned.view.digest,
        digests=asked_on(planned.view, reading.subject.bundle, reading.suite),
        n=len(rows),
        skipped=skipped,
        left_out=dict(islice(planned.view.left_out.items(), MOST_LEFT_OUT)),
        left_out_count=len(planned.view.left_out) + planned.view.left_out_unnamed,
        unverified=planned.view.unverified,
        published=asked_as_published(planned, reading.subject.bundle, reading.suite),
        **{name: value for one in found for name, value in one.view.items()},
    )
