"""One evaluation: subjects × views to cells, cells to estimates, estimates to records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from clipq.bundle import TOWERS
from clipq.data.pixels import PixelCache
from clipq.data.views import View
from clipq.engines.cuda import current_gpu
from clipq.environment import environment
from clipq.errors import EngineError
from clipq.evaluate.attacked import SquareResults, attack_all
from clipq.evaluate.axes import adversarial, classification, corruption, fairness, ood, retrieval, shift
from clipq.evaluate.axes.classification import Answers
from clipq.evaluate.batch_size import measured_batch
from clipq.evaluate.bench import BenchSettings, SubjectBench, bench, bench_measurements
from clipq.evaluate.cells import BATCH, BatchSize
from clipq.evaluate.embeddings import Embeddings
from clipq.evaluate.estimates import Estimate, measurements
from clipq.evaluate.flips import find_flips, write_thumbnail
from clipq.evaluate.metrics.ood import outlier_scores
from clipq.evaluate.pairing import SampleAnswers, write_pairing
from clipq.evaluate.plan import (
    Plan,
    PlannedCorruptions,
    PlannedSquare,
    PlannedTransfer,
    PlannedView,
    groups_of,
    open_plan,
)
from clipq.evaluate.predictions import Floats, Outcome
from clipq.evaluate.storage import Storage
from clipq.evaluate.subjects import Subject, gather_subjects
from clipq.evaluate.suite import Suite
from clipq.progress import Progress
from clipq.record import (
    AttackRecord,
    BundleRecord,
    FlipRecord,
    Record,
    ViewRecord,
    write_csv,
    write_record,
)

# Of linear algebra, whatever the machine has: on another number of threads sums end in other digits.
METRIC_THREADS = 2


@dataclass(frozen=True)
class Where:
    """Where engines run and results and fetched data go; without a cache nothing is fetched.

    ``auto_batch`` halves the batch where GPU memory ends, which is an error otherwise; ``graphs`` launches plans as
    CUDA graphs. ``thumbnails`` keeps small pictures of a few flips for the report; ``pixels`` keeps decoded images.
    ``batch`` None: the batch size is found by measurement.
    ``cells`` are in the results folder where nothing else is said; ``failed`` engines, by label, are not tried.
    """

    results: Path
    runtime: str = "ort-cpu"
    threads: int = 0
    cache: Path | None = None
    auto_batch: bool = False
    graphs: bool = False
    thumbnails: bool = True
    pixels: PixelCache | None = None
    batch: int | None = BATCH
    cells: Storage | None = None
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Found:
    """What was found out about one subject."""

    estimates: list[Estimate] = field(default_factory=list)
    against_twin: list[Estimate] = field(default_factory=list)
    views: list[ViewRecord] = field(default_factory=list)
    answers: dict[str, SampleAnswers] = field(default_factory=dict)


def evaluate(
    paths: Sequence[Path], suite: Suite, where: Where, *, given: dict[str, Any], progress: Progress
) -> list[Record]:
    """Evaluate bundles by a suite; writes cells, records and ``results.csv``, returns the records.

    An engine that fails is named in its record and left out; raises EngineError where the reference fails.
    """
    subjects, reference = gather_subjects(
        paths,
        runtime=where.runtime,
        threads=where.threads,
        simulated=suite.simulated,
        reference=suite.reference,
        graphs=where.graphs,
    )
    progress.start("opening and checking the data", 0)
    return evaluate_plan(open_plan(suite, where.cache), subjects, reference, where, given=given, progress=progress)


def evaluate_plan(
    plan: Plan,
    subjects: Sequence[Subject],
    reference: Subject | None,
    where: Where,
    *,
    given: dict[str, Any],
    progress: Progress,
) -> list[Record]:
    """``evaluate`` where subjects are gathered and the data is open already."""
    suite = plan.suite
    with Embeddings(
        where.cells or Storage(str(where.results / "cells")),
        suite.templates,
        suite.on_bad_image,
        suite.seed,
        progress=progress,
        cache=where.pixels,
        batch=BatchSize(where.batch or measured_batch(subjects, progress), automatic=where.auto_batch),
        failed=dict(where.failed),
    ) as embeddings:
        for view in plan.classified_views():
            embeddings.templates_of(view, subjects[0])
        _fill(plan, subjects, embeddings)
        squares = attack_all(plan, subjects, embeddings)
    working = [subject for subject in subjects if subject.label not in embeddings.failed]
    if reference is not None and reference.label in embeddings.failed:
        raise EngineError(f"the reference {reference.label} failed: {embeddings.failed[reference.label]}")
    if not working:
        raise EngineError("every engine failed: " + "; ".join(f"{k}: {v}" for k, v in embeddings.failed.items()))
    benches: dict[str, SubjectBench] = {}
    if suite.latency is not None:
        settings = BenchSettings(batches=suite.latency.batches, repeats=suite.latency.repeats)
        progress.start("latency, memory, kernels", len(TOWERS) + len(working))
        benches = bench(working, settings, where.results / "bench", lambda what: progress.advance(1))
    pictures = where.results if where.thumbnails else None
    with threadpool_limits(METRIC_THREADS, user_api="blas"):
        found = _Measuring(plan, working, reference, embeddings, squares, pictures).measure(progress)
    records = [_record(subject, reference, found, benches, embeddings, plan, where, given) for subject in subjects]
    for subject, record in zip(subjects, records, strict=True):
        write_record(where.results, record)
        mine = found.get(subject.label, _Found())
        write_pairing(where.results, record, mine.estimates, mine.answers)
    write_csv(where.results, records)
    return records


def _fill(plan: Plan, subjects: Sequence[Subject], embeddings: Embeddings) -> None:
    """Embed everything that the plan asks for; texts engine by engine, for one text tower is open at a time."""
    for subject in subjects:
        for view in plan.classified_views():
            embeddings.fill_classes(view, [subject])
        for view in plan.captioned_views():
            embeddings.fill_captions(view, [subject])
    for view in plan.image_views():
        embeddings.fill_images(view, subjects)


@dataclass
class _Measuring:
    """Cells to estimates, one view at a time, so that one view's predictions of two engines are in memory at once."""

    plan: Plan
    subjects: list[Subject]
    reference: Subject | None
    embeddings: Embeddings
    squares: SquareResults
    pictures: Path | None
    found: dict[str, _Found] = field(default_factory=dict)

    def measure(self, progress: Progress) -> dict[str, _Found]:
        """Everything found, by subject."""
        self.found = {subject.label: _Found() for subject in self.subjects}
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
                found += classification.by_group(answers, groups, view=view.name, bins=suite.ece_bins, seed=suite.seed)
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
                found += classification.compared(answers, base, view=view.name, seed=suite.seed)
            twin = self._twin(subject)
            if twin is not None:
                other = self.embeddings.answers(view, twin)
                paired = classification.compared(answers, other, view=view.name, seed=suite.seed)
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

    def _ood_averages(self, label: str, found: _Found) -> None:
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


def _record(
    subject: Subject,
    reference: Subject | None,
    found: dict[str, _Found],
    benches: dict[str, SubjectBench],
    embeddings: Embeddings,
    plan: Plan,
    where: Where,
    given: dict[str, Any],
) -> Record:
    failed = embeddings.failed.get(subject.label, "")
    mine = found.get(subject.label, _Found())
    base = [] if reference is None else found[reference.label].estimates
    columns = subject.columns
    rows = measurements(columns, mine.estimates, None if reference is None else reference.columns, base)
    if benches and not failed:
        rows += bench_measurements(subject, benches, reference)
    against_twin = []
    twin = columns.twin
    if not subject.simulated and twin.label in found:
        against_twin = measurements(
            columns,
            [one for one in mine.estimates if not one.paired] + mine.against_twin,
            twin,
            found[twin.label].estimates,
        )
    manifest = subject.bundle.manifest
    return Record(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=BundleRecord(
            name=subject.bundle.name,
            digest=subject.bundle.digest,
            checkpoint=manifest.checkpoint.name,
            recipe=manifest.recipe.name,
            scheme=manifest.recipe.scheme,
            options=manifest.recipe.options,
            towers=manifest.recipe.towers,
            calibration=manifest.recipe.calibration,
            file_bytes=sum(manifest.tower(tower).bytes for tower in TOWERS),
            plans={
                name: built.model_dump(mode="json")
                for name in TOWERS
                if (built := manifest.tower(name).plan) is not None
            },
        ),
        runtime=subject.runtime,
        simulated=columns.simulated,
        twin=subject.simulated,
        failed=failed,
        reference=reference.bundle.name if reference else "",
        arguments_given=given,
        arguments_resolved={
            **plan.suite.model_dump(mode="json", by_alias=True), "runtime": where.runtime, "threads": where.threads,
            "batch": embeddings.batch.size, "cuda_graphs": subject.graphs,
        },
        environment={**environment(), **({} if subject.runtime == "ort-cpu" else {"gpu": asdict(current_gpu())})},
        views=tuple(mine.views),
        attacks=_attacks(plan),
        latency=benches[subject.label].latency if subject.label in benches else (),
        census=benches[subject.label].census if subject.label in benches else (),
        gpu=benches[subject.label].gpu if subject.label in benches else None,
        measurements=tuple(rows),
        deployed_minus_simulated=tuple(against_twin),
    )  # fmt: skip


def _attacks(plan: Plan) -> tuple[AttackRecord, ...]:
    transfers = [
        AttackRecord(
            view=planned.name,
            kind="transfer",
            method=planned.attack.manifest.method,
            epsilons=planned.attack.manifest.epsilons,
            n=len(planned.clean.samples),
            options=planned.attack.manifest.options,
            digest=planned.attack.manifest.pixels_sha256,
        )
        for planned in plan.transfers
    ]
    squares = [
        AttackRecord(
            view=planned.view.name,
            kind="square",
            method="square",
            epsilons=planned.entry.epsilons,
            n=len(planned.view.samples),
            options={"queries": planned.entry.queries},
            digest=planned.view.digest,
        )
        for planned in plan.squares
    ]
    return (*transfers, *squares)
