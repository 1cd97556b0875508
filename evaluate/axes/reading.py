"""What an axis is given, one engine on one thing that a suite asks, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.subjects import Cohort, Subject
from clipq.evaluate.metrics.predictions import Integers
from clipq.evaluate.metrics.zeroshot import Answers, GivenAnswers
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.pairing import SampleAnswers
from clipq.evaluate.suites.plan import PlannedView
from clipq.evaluate.suites.schema import Suite

Asked = TypeVar("Asked")
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Reading(Generic[Asked]):
    """The stored numbers of one engine on one thing that a suite asks for, with the reference's and the twin's.

    ``pictures`` is the results folder that small pictures go to, if any are kept.
    """

    asked: Asked
    subject: Subject
    cohort: Cohort
    embeddings: Embeddings
    pictures: Path | None = None
    of_reference: Reading[Asked] | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def suite(self) -> Suite:
        """What says how metrics are taken."""
        return self.embeddings.suite

    @property
    def reference(self) -> Reading[Asked] | None:
        """The reference on the same, if there is one; this very reading where it is the reference's."""
        return self if self.subject == self.cohort.reference else self.of_reference

    @property
    def twin(self) -> Reading[Asked] | None:
        """The same bundle with integer kernels off on the same, if that is evaluated too."""
        twin = self.cohort.twin(self.subject)
        return None if twin is None else replace(self, subject=twin)

    def once(self, make: Callable[[Reading[Asked]], Made]) -> Made:
        """What ``make`` makes of this reading, kept while the reading is: of the reference's, for all engines."""
        if make not in self._made:
            self._made[make] = make(self)
        made: Made = self._made[make]
        return made


@dataclass(frozen=True)
class Found:
    """What one axis found out about one engine on one thing that was asked.

    ``view`` are the fields of the view's record that the axis knows, ``answers`` pair the view with other runs.
    ``unanswered`` says what an engine that ran elsewhere was not asked, and why nothing was found.
    """

    estimates: list[Estimate] = field(default_factory=list)
    against_twin: list[Estimate] = field(default_factory=list)
    view: Mapping[str, Any] = field(default_factory=dict)
    answers: SampleAnswers | None = None
    unanswered: Mapping[str, str] = field(default_factory=dict)


def readings(asked: Asked, cohort: Cohort, embeddings: Embeddings, pictures: Path | None) -> Iterator[Reading[Asked]]:
    """Every working engine on one thing; two engines' numbers are in memory at once, its and the reference's."""
    base = None
    if cohort.reference is not None:
        base = Reading(asked, cohort.reference, cohort, embeddings, pictures)
    for subject in cohort.working:
        if base is not None and subject == cohort.reference:
            yield base
        else:
            yield Reading(asked, subject, cohort, embeddings, pictures, base)


def answers_of(reading: Reading[PlannedView]) -> Answers | GivenAnswers:
    """An engine's answers on a view, with the view's own classes."""
    return reading.embeddings.answers(reading.asked.view, reading.subject)


def decoded(reading: Reading[PlannedView]) -> tuple[Integers, dict[str, str]]:
    """The rows of the samples that an engine saw, and the others with the reason."""
    baseline = getattr(reading.asked, "baseline", None)
    return reading.embeddings.seen(reading.asked.view, reading.subject, baseline)
