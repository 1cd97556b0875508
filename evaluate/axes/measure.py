"""Cells to estimates, one view at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from clipq.data.views import View
from clipq.evaluate.axes import adversarial, agreement, classification, corruption, fairness, ood, retrieval, shift
from clipq.evaluate.axes.flips import find_flips, write_thumbnail
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square_cells import SquareResults
from clipq.evaluate.cells.subjects import Subject
from clipq.evaluate.metrics.ood import outlier_scores
from clipq.evaluate.metrics.predictions import Floats, Outcome
from clipq.evaluate.metrics.zeroshot import Answers
from clipq.evaluate.results.estimates import Estimate
from clipq.evaluate.results.pairing import SampleAnswers
from clipq.evaluate.results.record import (
    FlipRecord,
    ViewRecord,
)
from clipq.evaluate.suites.plan import (
    Plan,
    PlannedCorruptions,
    PlannedSquare,
    PlannedTransfer,
    PlannedView,
    groups_of,
)
from clipq.progress import Progress


@dataclass
class Found:
    """What was found out about one subject."""

    estimates: list[Estimate] = field(default_factory=list)
    against_twin: list[Estimate] = field(default_factory=list)
    views: list[ViewRecord] = field(default_factory=list)
    answers: dict[str, SampleAnswers] = field(default_factory=dict)


@dataclass
class Measuring:
    """Cells to estimates, one view at a time, so that one view's predictions of two engines are in memory at once."""

    plan: Plan
    subjects: list[Subject]
    reference: Subject | None
    embeddings: Embeddings
    squares: SquareResults
    pictures: Path | None
    found: dict[str, Found] = field(default_factory=dict)

    def measure(self, progress: Progress) -> dict[str, Found]:
        """Everything found, by subject."""
        self.found = {subject.label: Found() for subject in self.subjects}
        plan = self.plan
        steps: list[Callable[[], None]] = [
            *(partial(self._view, one) for one in plan.views),
            *(partial(self._corruptions, one) for one in plan.corruptions),
            *(partial(self._transfer, one) for one in plan.transfers),
            *(partial(self._square, one) for one in plan.squares),
        ]
        progress.start("metrics and intervals", len(steps))
        for step in steps:
            step()
            progress.advance(1)
        for label, found in self.found.items():
            self._ood_averages(label, found)
        return self.found

    def _view(self, planned: PlannedView) -> None:
        measure = {
            "retrieval": self._retrieval,
            "near-ood": self._ood,
            "far-ood": self._ood,
        }.get(planned.entry.role, self._classified)
        measure(planned)

    def _classified(self, planned: PlannedView) -> None:
        view, suite = planned.view, self.plan.suite
        base = self._answers_of_reference(view)
        base_inside = None
        if planned.baseline is not None and self.reference is not None:
            base_inside = self.embeddings.answers(planned.baseline, self.reference).predictions.correct
        for subject in self.subjects:
            answers = base if self._is_reference(subject) and base else self.embeddings.answers(view, subject)
            rows, _, skipped = self.embeddings.images(view, subject)
            columns = groups_of(planned, rows)
            predictions = answers.predictions
            found = classification.classification(answers, view=view.name, bins=suite.ece_bins, seed=suite.seed)
            found += classification.tuned(
                answers, view=view.name, fraction=suite.tune_fraction, bins=suite.ece_bins, seed=suite.seed
            )
            for column, groups in columns.items():
                found += fairness.by_group(answers, groups, view=view.name, bins=suite.ece_bins, seed=suite.seed)
                if planned.entry.groups:
                    smallest = planned.entry.smallest_group
                    found += fairness.fairness(
                        predictions, groups, view=view.name, column=column, smallest_group=smallest, seed=suite.seed
                    )
            if planned.baseline is not None:
                inside = self.embeddings.answers(planned.baseline, subject).predictions.correct
                pair = None if base is None or base_inside is None else (base_inside, base.predictions.correct)
                found += shift.shift(inside, predictions.correct, pair, view=view.name, seed=suite.seed)
            if base is not None and not self._is_reference(subject):
                found += agreement.compared(answers, base, view=view.name, seed=suite.seed)
            twin = self._twin(subject)
            if twin is not None:
                other = self.embeddings.answers(view, twin)
                paired = agreement.compared(answers, other, view=view.name, seed=suite.seed)
                self.found[subject.label].against_twin += paired
            self.found[subject.label].estimates += found
            self.found[subject.label].answers[view.name] = SampleAnswers.of(answers.ids, predictions)
            flips: tuple[FlipRecord, ...] = ()
            if base is not None and not self._is_reference(subject) and not subject.simulated:
                flips = find_flips(answers, base, view, partial(self._thumbnail, view))
            templates = self.embeddings.templates_of(view, subject)
            self.found[subject.label].views.append(
                ViewRecord(
                    name=view.name,
                    source=view.source,
                    role=planned.entry.role,
                    baseline="" if planned.baseline is None else planned.baseline.name,
                    digest=view.digest,
                    n=len(rows),
                    classes=answers.predictions.probabilities.shape[1],
                    templates=templates.name,
                    template_count=len(templates.templates),
                    skipped=skipped,
                    smallest_group=planned.entry.smallest_group if planned.entry.groups else None,
                    reliability=classification.reliability(predictions, suite.ece_bins),
                    flips=flips,
                )
            )

    def _ood(self, planned: PlannedView) -> None:
        assert planned.baseline is not None
        distance: ood.Distance = "near" if planned.entry.role == "near-ood" else "far"
        for subject in self.subjects:
            inside = self._scores(planned.baseline, planned.baseline, subject)
            outside = self._scores(planned.view, planned.baseline, subject)
            found = self.found[subject.label]
            found.estimates += ood.detection(
                inside, outside, view=planned.view.name, distance=distance, seed=self.plan.suite.seed
            )
            found.views.append(
                self._unlabelled_record(planned, subject).model_copy(
                    update={"histograms": ood.histograms(inside, outside)}
                )
            )

    def _ood_averages(self, label: str, found: Found) -> None:
        outside = {planned.view.name: planned.baseline for planned in self.plan.views if "-ood" in planned.entry.role}
        for inside in dict.fromkeys(view.name for view in outside.values() if view is not None):
            members = {name for name, view in outside.items() if view is not None and view.name == inside}
            found.estimates += ood.averages([row for row in found.estimates if row.view in members], inside)

    def _retrieval(self, planned: PlannedView) -> None:
        view = planned.view
        for subject in self.subjects:
            rows, images, _ = self.embeddings.images(view, subject)
            captions = self.embeddings.captions(view, subject)
            owner = np.repeat(np.arange(len(view.samples)), [len(sample.captions) for sample in view.samples])
            # Captions of images that could not be decoded have nothing to find.
            place = np.full(len(view.samples), -1)
            place[rows] = np.arange(len(rows))
            kept = place[owner] >= 0
            found = self.found[subject.label]
            found.estimates += retrieval.retrieval(
                images, captions[kept], place[owner][kept], view=view.name, seed=self.plan.suite.seed
            )
            found.views.append(self._unlabelled_record(planned, subject))

    def _corruptions(self, planned: PlannedCorruptions) -> None:
        base = None if self.reference is None else self._outcomes(planned, self.reference)
        for subject in self.subjects:
            clean, corrupted = self._outcomes(planned, subject)
            against: corruption.Baseline | None = None
            if planned.entry.baseline == "alexnet":
                against = "alexnet"
            elif base is not None:
                against = base[0].correct, {key: one.correct for key, one in base[1].items()}
            self.found[subject.label].estimates += corruption.corruption(
                clean,
                corrupted,
                against,
                view=f"{planned.clean.name}-c",
                bins=self.plan.suite.ece_bins,
                seed=self.plan.suite.seed,
            )

    def _outcomes(
        self, planned: PlannedCorruptions, subject: Subject
    ) -> tuple[Outcome, dict[corruption.Condition, Outcome]]:
        classes_of = planned.clean
        clean = self.embeddings.answers(planned.clean, subject, classes_of).predictions.outcome()
        return clean, {
            condition: self.embeddings.answers(view, subject, classes_of).predictions.outcome()
            for condition, view in planned.corrupted.items()
        }

    def _transfer(self, planned: PlannedTransfer) -> None:
        manifest = planned.attack.manifest
        for subject in self.subjects:
            clean = self.embeddings.answers(planned.clean, subject).predictions.correct
            for epsilon, view in planned.attacked.items():
                attacked = self.embeddings.answers(view, subject, planned.clean).predictions.correct
                self.found[subject.label].estimates += adversarial.robustness(
                    clean,
                    attacked,
                    view=planned.name,
                    group=f"{manifest.method}/{epsilon}",
                    fooled=np.array(manifest.fooled[str(epsilon)]),
                    seed=self.plan.suite.seed,
                )

    def _square(self, planned: PlannedSquare) -> None:
        seed = self.plan.suite.seed
        for subject in self.subjects:
            for epsilon in planned.entry.epsilons:
                outcome = self.squares[planned.view.name, epsilon, subject.label]
                view, group = planned.view.name, f"square/{epsilon}"
                found = self.found[subject.label]
                found.estimates += adversarial.robustness(
                    outcome.clean, outcome.right, view=view, group=group, seed=seed
                )
                found.estimates += adversarial.queries(
                    outcome.queries, outcome.clean, view=view, group=group, seed=seed
                )

    def _scores(self, view: View, classes_of: View, subject: Subject) -> dict[str, Floats]:
        answers = self.embeddings.answers(view, subject, classes_of)
        return outlier_scores(answers.cosines, answers.classifier.logits(answers.cosines))

    def _unlabelled_record(self, planned: PlannedView, subject: Subject) -> ViewRecord:
        view = planned.view
        rows, _, skipped = self.embeddings.images(view, subject)
        return ViewRecord(
            name=view.name,
            source=view.source,
            role=planned.entry.role,
            baseline="" if planned.baseline is None else planned.baseline.name,
            digest=view.digest,
            n=len(rows),
            captions=sum(len(sample.captions) for sample in view.samples) if planned.entry.role == "retrieval" else 0,
            skipped=skipped,
        )

    def _thumbnail(self, view: View, index: int) -> str:
        return "" if self.pictures is None else write_thumbnail(view, index, self.pictures)

    def _answers_of_reference(self, view: View) -> Answers | None:
        return None if self.reference is None else self.embeddings.answers(view, self.reference)

    def _is_reference(self, subject: Subject) -> bool:
        return self.reference is not None and subject.label == self.reference.label

    def _twin(self, subject: Subject) -> Subject | None:
        """The same bundle with integer kernels off, if it is evaluated too."""
        if subject.simulated:
            return None
        return next((other for other in self.subjects if other.bundle == subject.bundle and other.simulated), None)
