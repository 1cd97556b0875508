"""Everything that a plan asks engines for, into cells."""

from __future__ import annotations

from clipq.errors import EngineError, NotAnswered
from clipq.evaluate.cells.embeddings import Embeddings
from clipq.evaluate.cells.square_cells import fill_attack
from clipq.evaluate.cells.subjects import Cohort, Subject
from clipq.evaluate.suites.plan import Plan, PlannedView


def fill(plan: Plan, cohort: Cohort, embeddings: Embeddings) -> Cohort:
    """Embed and attack what is missing; the cohort without the engines that failed on the way."""
    # Texts engine by engine, for one text tower is open at a time.
    for subject in (one for one in cohort.working if one.has_embeddings):
        try:
            _fill_texts(plan, subject, embeddings)
        except EngineError as error:
            cohort = cohort.without({subject.label: str(error)})
    for subject in (one for one in cohort.working if not one.has_embeddings):
        if not any(_has_predictions(planned, subject, embeddings) for planned in plan.views):
            reason = "predictions came back of none of these views; export the cells again with this suite"
            cohort = cohort.without({subject.label: reason})
    for view in plan.image_views():
        cohort = cohort.without(embeddings.fill_images(view, cohort.working))
    for planned, epsilon in plan.attacks():
        for subject in cohort.working:
            try:
                fill_attack(planned, epsilon, subject, embeddings)
            except NotAnswered:
                # Said where it is measured.
                continue
            except EngineError as error:
                cohort = cohort.without({subject.label: str(error)})
    return cohort


def _has_predictions(planned: PlannedView, subject: Subject, embeddings: Embeddings) -> bool:
    try:
        embeddings.seen(planned.view, subject, planned.baseline)
    except NotAnswered:
        return False
    return True


def _fill_texts(plan: Plan, subject: Subject, embeddings: Embeddings) -> None:
    for view in plan.classified_views():
        embeddings.fill_classes(view, subject)
    for view in plan.captioned_views():
        embeddings.fill_captions(view, subject)
